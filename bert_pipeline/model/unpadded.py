"""A faster encoder: the modules of a stock BERT, RoBERTa or ModernBERT, on unpadded batches.

`UnpaddedEncoder` computes the hidden states of an unmodified Hugging Face model from its own
modules and parameters: gradients arrive where they always do, and the checkpoint stays a stock one.
It saves work compared with calling the model:

* examples are concatenated, so no linear layer, norm or activation works on padding; only attention
  knows where each example ends (`attention.py`);
* Q, K and V come from one matrix product;
* the last layer is finished only at the positions that heads read (`HeadPositions`).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    BertModel,
    CamembertModel,
    ModernBertModel,
    RobertaModel,
    XLMRobertaModel,
)

from bert_pipeline.model.attention import make_layout
from bert_pipeline.model.kernels import dropout
from bert_pipeline.model.unpadded_batch import HeadPositions, UnpaddedBatch
from bert_pipeline.model.unpadded_layers import (
    FULL_ATTENTION,
    LOCAL_ATTENTION,
    AttentionInputs,
    PostNormLayer,
    PreNormLayer,
    UnpaddedLayer,
    normalize,
)

# These have BERT's encoder layers; RoBERTa numbers positions from its padding index + 1 on.
ROBERTA_BODIES = (RobertaModel, XLMRobertaModel, CamembertModel)
BERT_BODIES = (BertModel, *ROBERTA_BODIES)
UNPADDED_BODIES = (*BERT_BODIES, ModernBertModel)


def supports_unpadded(config: Any) -> bool:
    """Whether the base model of a config is one of `UNPADDED_BODIES`."""
    return MODEL_MAPPING[type(config)] in UNPADDED_BODIES


def has_bert_layers(config: Any) -> bool:
    """Whether the base model of a config is one of `BERT_BODIES`."""
    return MODEL_MAPPING[type(config)] in BERT_BODIES


class BertEmbeddings(nn.Module):
    """The embeddings of BERT and RoBERTa: of tokens, segments and positions."""

    def __init__(self, stock: Any, first_position: int) -> None:
        super().__init__()
        self.stock = stock
        self._first_position = first_position

    def forward(self, batch: UnpaddedBatch) -> Tensor:
        """Hidden states `[T, hidden]`."""
        own = self.stock
        total = own.word_embeddings(batch.tokens)
        # Models without segments have one type for all tokens.
        types = own.token_type_embeddings
        segments = types(batch.segment_ids) if types.num_embeddings > 1 else types.weight[0]
        total = total + segments
        total = total + own.position_embeddings(batch.positions + self._first_position)
        return dropout(normalize(own.LayerNorm, total), own.dropout.p, own.training)


class ModernBertEmbeddings(nn.Module):
    """The embeddings of ModernBERT: of tokens alone."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.stock = stock

    def forward(self, batch: UnpaddedBatch) -> Tensor:
        """Hidden states `[T, hidden]`."""
        own = self.stock
        # All layers add to this sum, so it keeps its precision under autocast.
        return dropout(own.norm(own.tok_embeddings(batch.tokens)), own.drop.p, own.training)


class UnpaddedEncoder(nn.Module):
    """Embeddings and layers of one of `UNPADDED_BODIES`; any head can read its hidden states."""

    def __init__(self, body: Any, **how: bool) -> None:
        """`how` (activation checkpointing, compilation) is passed to `wrap_layer`."""
        super().__init__()
        self._windows: dict[str, int | None] = {FULL_ATTENTION: None}
        self.rotary: Any = None
        self.final_norm: Any = None
        self.embeddings: nn.Module
        layers: list[UnpaddedLayer]
        if isinstance(body, BERT_BODIES):
            is_roberta = isinstance(body, ROBERTA_BODIES)
            first_position = body.embeddings.padding_idx + 1 if is_roberta else 0
            self.embeddings = BertEmbeddings(body.embeddings, first_position)
            layers = [PostNormLayer(layer, **how) for layer in body.encoder.layer]
        else:
            self.embeddings = ModernBertEmbeddings(body.embeddings)
            layers = [PreNormLayer(layer, **how) for layer in body.layers]
            self._windows[LOCAL_ATTENTION] = body.config.sliding_window
            self.rotary = body.rotary_emb
            self.final_norm = body.final_norm
        self.layers: Any = nn.ModuleList(layers)

    def forward(self, batch: UnpaddedBatch, head_positions: HeadPositions) -> Tensor:
        """Last hidden states where the heads read, `[R, hidden]`."""
        hidden: Tensor = self.embeddings(batch)
        inputs = self._prepare_all(batch, head_positions, hidden)
        for layer in self.layers[:-1]:
            hidden = layer(hidden, inputs[layer.attention_type])
        last = self.layers[-1]
        hidden = last(hidden, inputs[last.attention_type], last=True)
        return hidden if self.final_norm is None else normalize(self.final_norm, hidden)

    def hidden_states(self, batch: UnpaddedBatch) -> Iterator[Tensor]:
        """The embeddings and the output of each layer, `[T, hidden]`.

        As a stock model's `hidden_states`, of which the last are its last hidden states.
        """
        hidden: Tensor = self.embeddings(batch)
        yield hidden
        starts = torch.arange(batch.cu_seqlens.numel(), device=hidden.device)
        first = HeadPositions(batch.cu_seqlens[:-1], starts, starts[:0], 1)
        inputs = self._prepare_all(batch, first, hidden)
        for number, layer in enumerate(self.layers, start=1):
            hidden = layer(hidden, inputs[layer.attention_type])
            is_last = number == len(self.layers) and self.final_norm is not None
            yield normalize(self.final_norm, hidden) if is_last else hidden

    def _prepare_all(
        self, batch: UnpaddedBatch, head_positions: HeadPositions, hidden: Tensor
    ) -> dict[str, AttentionInputs]:
        """What the layers of each attention type share."""
        types = {layer.attention_type for layer in self.layers}
        return {kind: self._prepare(kind, batch, head_positions, hidden) for kind in types}

    def _prepare(
        self, kind: str, batch: UnpaddedBatch, head_positions: HeadPositions, hidden: Tensor
    ) -> AttentionInputs:
        """What the layers of one attention type share."""
        first = self.layers[0]
        rate = first.attention_dropout
        window = self._windows[kind]
        layout = make_layout(batch, head_positions, hidden, first.head_size, rate, window)
        if self.rotary is None:
            return AttentionInputs(layout, None)
        # Of its first argument the stock module takes the device and the dtype.
        exact = hidden.new_empty(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
        table = torch.cat(self.rotary(exact, batch.positions[None], kind))
        # The stock table repeats its first half.
        return AttentionInputs(layout, table[..., : first.head_size // 2])
