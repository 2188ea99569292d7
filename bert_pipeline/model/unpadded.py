"""A faster encoder: the modules of a stock Hugging Face BERT or RoBERTa, on unpadded batches.

`UnpaddedEncoder` computes the hidden states of an unmodified `BertModel` or `RobertaModel` from its
own modules and parameters: gradients arrive where they always do, and the checkpoint stays a stock
one. It saves work compared with calling the model:

* examples are concatenated, so no linear layer, norm or activation works on padding; only attention
  knows where each example ends (`attention.py`);
* Q, K and V come from one matrix product;
* the last layer is finished only at the positions that heads read (`HeadPositions`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    BertForMaskedLM,
    BertForPreTraining,
    CamembertForMaskedLM,
    RobertaForMaskedLM,
    XLMRobertaForMaskedLM,
)

from bert_pipeline.model.attention import AttentionLayout, make_layout
from bert_pipeline.model.compile import wrap_layer
from bert_pipeline.model.kernels import dropout, product_dtype, take_rows
from bert_pipeline.model.unpadded_batch import HeadPositions, UnpaddedBatch

# These have BERT's encoder layers; RoBERTa has another head, and numbers positions from its padding
# index + 1 on.
ROBERTA_NETWORKS = (RobertaForMaskedLM, XLMRobertaForMaskedLM, CamembertForMaskedLM)
UNPADDED_NETWORKS = (BertForPreTraining, BertForMaskedLM, *ROBERTA_NETWORKS)


def supports_unpadded(config: Any) -> bool:
    """Whether the masked LM of a config is one of `UNPADDED_NETWORKS`."""
    return MODEL_FOR_MASKED_LM_MAPPING[type(config)] in UNPADDED_NETWORKS


class UnpaddedLayer(nn.Module):
    """A stock encoder layer on unpadded hidden states."""

    def __init__(self, stock: nn.Module, **how: bool) -> None:
        """`how` is passed to `wrap_layer`; evaluation calls the layer unwrapped."""
        super().__init__()
        self.stock: Any = stock
        self._train = wrap_layer(self._compute, **how)

    def forward(self, hidden: Tensor, layout: AttentionLayout, *, last: bool = False) -> Tensor:
        """Hidden states `[T, hidden]`; of the `last` layer only where heads read, `[R, hidden]`."""
        compute = self._train if self.training else self._compute
        result: Tensor = compute(hidden, layout, last)
        return result

    def _compute(self, hidden: Tensor, layout: AttentionLayout, last: bool) -> Tensor:
        attention = self.stock.attention.self
        shape = (attention.num_attention_heads, attention.attention_head_size)
        rate = attention.dropout.p if attention.training else 0.0
        # Attention: queries only where heads read if this is the last layer.
        if last:
            key_value = _project(hidden, attention.key, attention.value).view(-1, 2, *shape)
            hidden = take_rows(hidden, layout.head_positions.index)
            query = attention.query(hidden).view(-1, *shape)
            mixed = layout.attend_head_positions(query, key_value, attention.scaling, rate)
        else:
            qkv = _project(hidden, attention.query, attention.key, attention.value)
            mixed = layout.attend(qkv.view(-1, 3, *shape), attention.scaling, rate)
        hidden = _add_and_normalize(self.stock.attention.output, mixed, hidden)
        # Feed-forward.
        return _add_and_normalize(self.stock.output, self.stock.intermediate(hidden), hidden)


def _project(hidden: Tensor, *layers: Any) -> Tensor:
    """Several linear layers in one matrix product."""
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    return F.linear(hidden, weight, bias)


def _add_and_normalize(output: Any, change: Tensor, hidden: Tensor) -> Tensor:
    """A stock layer's `output` module: linear, dropout, residual connection, norm."""
    change = dropout(output.dense(change), output.dropout.p, output.training)
    return _normalize(output.LayerNorm, change + hidden)


def _normalize(norm: Any, hidden: Tensor) -> Tensor:
    """Layer norm computed in fp32 and returned in the dtype of the matrix products.

    Autocast alone returns fp32, which doubles the memory traffic of the residual connections.
    """
    exact = torch.promote_types(hidden.dtype, torch.float32)
    weight = norm.weight.to(exact)
    bias = norm.bias.to(exact)
    normalized = F.layer_norm(hidden.to(exact), norm.normalized_shape, weight, bias, norm.eps)
    return normalized.to(product_dtype(hidden))


class UnpaddedEncoder(nn.Module):
    """Embeddings and layers of one of `UNPADDED_NETWORKS`; any head can read its hidden states."""

    def __init__(self, network: Any, **how: bool) -> None:
        """`how` (activation checkpointing, compilation) is passed to `wrap_layer`."""
        super().__init__()
        body = network.base_model
        attention = body.encoder.layer[0].attention.self
        self.embeddings: Any = body.embeddings
        self.layers = nn.ModuleList(UnpaddedLayer(layer, **how) for layer in body.encoder.layer)
        is_roberta = isinstance(network, ROBERTA_NETWORKS)
        self._first_position = body.embeddings.padding_idx + 1 if is_roberta else 0
        self._head_size = attention.attention_head_size
        self._attention_dropout = attention.dropout.p

    def forward(self, batch: UnpaddedBatch, head_positions: HeadPositions) -> Tensor:
        """Last hidden states where the heads read, `[R, hidden]`."""
        hidden = self._embed(batch)
        rate = self._attention_dropout if self.training else 0.0
        layout = make_layout(batch, head_positions, hidden, self._head_size, rate)
        for layer in self.layers[:-1]:
            hidden = layer(hidden, layout)
        result: Tensor = self.layers[-1](hidden, layout, last=True)
        return result

    def _embed(self, batch: UnpaddedBatch) -> Tensor:
        own = self.embeddings
        total = own.word_embeddings(batch.tokens)
        # Models without segments have one type for all tokens.
        types = own.token_type_embeddings
        segments = types(batch.segment_ids) if types.num_embeddings > 1 else types.weight[0]
        total = total + segments
        total = total + own.position_embeddings(batch.positions + self._first_position)
        return dropout(_normalize(own.LayerNorm, total), own.dropout.p, own.training)
