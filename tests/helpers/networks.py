"""Small stock networks of the unpadded path, and rows as they and our models take them."""

from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from bert_pipeline.model.unpadded_batch import PretrainingBatch
from tests.helpers.model_rows import flatten, pad

LAYERS = 3
CONFIG = BertConfig(
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=40,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
# One global layer, then two with a window of 5 tokens before and after.
MODERN_CONFIG = ModernBertConfig(
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    intermediate_size=48,
    local_attention=11,
    pad_token_id=0,
)
DROPOUT = {"hidden_dropout_prob": 0.4, "attention_probs_dropout_prob": 0.4}
MODERN_DROPOUT = {"embedding_dropout": 0.4, "attention_dropout": 0.4, "mlp_dropout": 0.4}
BIASES = {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True}
GLOBAL_LAST = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
NETWORKS = {
    "bert, pairs": lambda: BertForPreTraining(CONFIG),
    "bert": lambda: BertForMaskedLM(CONFIG),
    "bert, dropout": lambda: BertForPreTraining(BertConfig(**CONFIG.to_dict() | DROPOUT)),
    "modernbert": lambda: modernbert(),
    "modernbert, global last": lambda: modernbert(**GLOBAL_LAST),
    "modernbert, biases": lambda: modernbert(**BIASES, decoder_bias=False),
    "modernbert, dropout": lambda: modernbert(**MODERN_DROPOUT),
}


def modernbert(**fields: Any) -> ModernBertForMaskedLM:
    """With biases and weights of norms that matter."""
    network = ModernBertForMaskedLM(ModernBertConfig(**MODERN_CONFIG.to_dict() | fields))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def for_stock(model: Any, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The rows as a stock model takes them."""
    padded = pad(rows, isinstance(model, BertForPreTraining))
    if isinstance(model, ModernBertForMaskedLM):
        del padded["token_type_ids"]
    return padded


def for_ours(model: Any, rows: list[dict[str, Any]]) -> PretrainingBatch:
    """The rows as our models take them."""
    return flatten(rows, isinstance(model, BertForPreTraining))
