"""Stock encoder layers on unpadded hidden states.

All layers share one attention. The kinds differ in where they normalize and in their feed-forward
network: `PostNormLayer` is the layer of BERT and RoBERTa, `PreNormLayer` that of ModernBERT.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert_pipeline.model.attention import AttentionLayout
from bert_pipeline.model.compile import wrap_layer
from bert_pipeline.model.kernels import dropout, product_dtype, rotate, take_rows

# Types of attention by the names in `layer_types` of configs.
FULL_ATTENTION = "full_attention"
LOCAL_ATTENTION = "sliding_attention"


@dataclass(frozen=True)
class AttentionInputs:
    """What the layers of one attention type share on a batch."""

    layout: AttentionLayout
    rotary: Tensor | None
    """Cosines and sines `[2, T, head size / 2]`; None where positions are embeddings."""


class UnpaddedLayer(nn.Module):
    """Attention over unpadded hidden states, and how it is called; the kinds add the rest."""

    attention_type: str
    head_size: int

    def __init__(self, stock: nn.Module, **how: bool) -> None:
        """`how` is passed to `wrap_layer`; evaluation calls the layer unwrapped."""
        super().__init__()
        self.stock: Any = stock
        self._train = wrap_layer(self._compute, **how)

    def forward(self, hidden: Tensor, inputs: AttentionInputs, *, last: bool = False) -> Tensor:
        """Hidden states `[T, hidden]`; of the `last` layer only where heads read, `[R, hidden]`."""
        compute = self._train if self.training else self._compute
        result: Tensor = compute(hidden, inputs, last)
        return result

    @property
    def attention_dropout(self) -> float:
        """The rate of dropout on attention weights; 0 in evaluation."""
        raise NotImplementedError

    def _projection(self, first: int, end: int) -> tuple[Tensor, Tensor | None]:
        """Weight `[n × hidden, hidden]` and bias of some of query (0), key (1) and value (2)."""
        raise NotImplementedError

    def _attention_input(self, hidden: Tensor) -> Tensor:
        """What the projections read."""
        raise NotImplementedError

    def _finish(self, mixed: Tensor, hidden: Tensor) -> Tensor:
        """The layer's output from mixed values and the layer's input."""
        raise NotImplementedError

    def _compute(self, hidden: Tensor, inputs: AttentionInputs, last: bool) -> Tensor:
        layout = inputs.layout
        size = hidden.shape[1]
        shape = (size // self.head_size, self.head_size)
        scale = self.head_size**-0.5
        rate = self.attention_dropout
        states = self._attention_input(hidden)
        if last:
            key_value = F.linear(states, *self._projection(1, 3)).view(-1, 2, *shape)
            key_value = rotate(key_value, inputs.rotary, 1)
            # Queries only where heads read.
            index = layout.head_positions.index
            hidden = take_rows(hidden, index)
            query = F.linear(self._attention_input(hidden), *self._projection(0, 1))
            table = None if inputs.rotary is None else inputs.rotary[:, index]
            query = rotate(query.view(-1, 1, *shape), table, 1).squeeze(1)
            mixed = layout.attend_head_positions(query, key_value, scale, rate)
        else:
            qkv = F.linear(states, *self._projection(0, 3)).view(-1, 3, *shape)
            mixed = layout.attend(rotate(qkv, inputs.rotary, 2), scale, rate)
        return self._finish(mixed, hidden)


class PostNormLayer(UnpaddedLayer):
    """The layer of BERT: norms after the residual connections."""

    attention_type = FULL_ATTENTION

    def __init__(self, stock: Any, **how: bool) -> None:
        super().__init__(stock, **how)
        self.head_size = stock.attention.self.attention_head_size

    @property
    def attention_dropout(self) -> float:
        attention = self.stock.attention.self
        return attention.dropout.p if attention.training else 0.0

    def _projection(self, first: int, end: int) -> tuple[Tensor, Tensor | None]:
        attention = self.stock.attention.self
        layers = (attention.query, attention.key, attention.value)[first:end]
        if len(layers) == 1:
            return layers[0].weight, layers[0].bias
        weight = torch.cat([layer.weight for layer in layers])
        return weight, torch.cat([layer.bias for layer in layers])

    def _attention_input(self, hidden: Tensor) -> Tensor:
        return hidden

    def _finish(self, mixed: Tensor, hidden: Tensor) -> Tensor:
        hidden = _add_and_normalize(self.stock.attention.output, mixed, hidden)
        return _add_and_normalize(self.stock.output, self.stock.intermediate(hidden), hidden)


class PreNormLayer(UnpaddedLayer):
    """The layer of ModernBERT: norms before attention and before a gated feed-forward network."""

    def __init__(self, stock: Any, **how: bool) -> None:
        super().__init__(stock, **how)
        self.attention_type = stock.attention_type
        self.head_size = stock.attn.head_dim

    @property
    def attention_dropout(self) -> float:
        attention = self.stock.attn
        return attention.attention_dropout if attention.training else 0.0

    def _projection(self, first: int, end: int) -> tuple[Tensor, Tensor | None]:
        projection = self.stock.attn.Wqkv
        if (first, end) == (0, 3):
            return projection.weight, projection.bias
        size = len(projection.weight) // 3
        rows = slice(first * size, end * size)
        return projection.weight[rows], None if projection.bias is None else projection.bias[rows]

    def _attention_input(self, hidden: Tensor) -> Tensor:
        norm = self.stock.attn_norm
        # The embeddings of the first layer are normalized already.
        return hidden if isinstance(norm, nn.Identity) else normalize(norm, hidden)

    def _finish(self, mixed: Tensor, hidden: Tensor) -> Tensor:
        attention = self.stock.attn
        change = attention.Wo(mixed)
        hidden = hidden + dropout(change, attention.attention_dropout, attention.training)
        mlp = self.stock.mlp
        value, gate = mlp.Wi(normalize(self.stock.mlp_norm, hidden)).chunk(2, dim=-1)
        change = mlp.Wo(dropout(mlp.act(value) * gate, mlp.drop.p, mlp.training))
        result: Tensor = hidden + change
        return result


def normalize(norm: Any, hidden: Tensor) -> Tensor:
    """Layer norm computed in fp32 and returned in the dtype of the matrix products.

    Autocast alone returns fp32, which doubles the memory traffic of what reads it.
    """
    exact = torch.promote_types(hidden.dtype, torch.float32)
    weight = norm.weight.to(exact)
    bias = None if norm.bias is None else norm.bias.to(exact)
    dtype = product_dtype(hidden)
    if hidden.device.type == "cpu" and hidden.dtype == dtype == torch.bfloat16:
        # On a CPU the kernel itself reads and writes bf16, and computes in fp32.
        return F.layer_norm(hidden, norm.normalized_shape, weight, bias, norm.eps)
    normalized = F.layer_norm(hidden.to(exact), norm.normalized_shape, weight, bias, norm.eps)
    return normalized.to(dtype)


def _add_and_normalize(output: Any, change: Tensor, hidden: Tensor) -> Tensor:
    """A stock BERT layer's `output` module: linear, dropout, residual connection, norm."""
    change = dropout(output.dense(change), output.dropout.p, output.training)
    return normalize(output.LayerNorm, change + hidden)
