"""Model folders with random weights, as `bertpipe pretrain` writes them."""

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM

from bert_pipeline.tokenizer.load import load_tokenizer
from bert_pipeline.tokenizer.save import save_pretrained, use_examples_layout

POSITIONS = 40


def save_random_model(
    folder: Path, tokenizer: Path, network_class: Any = BertForMaskedLM, **fields: Any
) -> Path:
    """Save a network of two small layers with a tokenizer, and large weights that matter."""
    loaded = load_tokenizer(tokenizer)
    config_class = network_class.config_class
    shape: dict[str, Any] = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": POSITIONS,
    }
    if config_class is not BertConfig:
        names = getattr(config_class, "attribute_map", {})
        shape = {names.get(name, name): value for name, value in shape.items()}
    config = config_class(
        vocab_size=loaded.vocab_size,
        pad_token_id=loaded.special.pad,
        initializer_range=0.2,
        **(shape | fields),
    )
    torch.manual_seed(0)
    network_class(config).save_pretrained(folder)
    save_pretrained(*use_examples_layout(loaded), folder, POSITIONS)
    return folder
