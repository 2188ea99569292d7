"""A faster pretraining forward pass over the parameters of a stock Hugging Face BERT.

`flat_forward` computes the masked-LM and next-sentence losses of an unmodified
`BertForPreTraining` (or `BertForMaskedLM`) from its own parameters, so gradients land
where they always do and the checkpoint stays a stock one.  It differs from calling the
model in what it leaves out:

* examples are concatenated, so no linear layer, norm or activation works on padding; rows
  are padded only inside attention, and not even there when all lengths are equal;
* Q, K and V come from one product;
* the last layer is finished only at the positions the heads read (masked tokens and
  `[CLS]`), and the vocabulary is scored only at masked positions;
* on CPU the vocabulary loss and its gradient are worked out together, a block of rows at a
  time, so that logits never leave the cache (`masked_cross_entropy`).
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertForMaskedLM, BertForPreTraining
from transformers.models.bert.modeling_bert import BertLayer

from bert_pipeline.model.kernels import masked_cross_entropy, spread_rows, take_rows


@dataclass(frozen=True)
class FlatBatch:
    """Examples laid end to end; example `i` is `tokens[cu_seqlens[i]:cu_seqlens[i + 1]]`."""

    tokens: Tensor  # [T] int64
    segment_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, counted from each example's own start
    cu_seqlens: Tensor  # [B + 1] int64
    max_seqlen: int
    masked_index: Tensor  # [M] int64 into tokens, without repeats, never an example's first token
    masked_labels: Tensor  # [M] int64
    is_random_next: Tensor | None = None  # [B] int64, None without a next-sentence task

    def to(self, device: torch.device) -> "FlatBatch":
        """The batch on another device."""
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {
            field.name: value.pin_memory().to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return FlatBatch(**moved)


@dataclass(frozen=True)
class _Rows:
    """How flat rows map to the padded `[batch, width]` grid that attention works on."""

    batch: int
    width: int
    slots: Tensor | None  # [T] grid slot of each flat row; None when there is no padding
    mask: Tensor | None  # [B, 1, 1, width] True at real tokens

    @classmethod
    def of(cls, batch: FlatBatch) -> "_Rows":
        examples, width = batch.cu_seqlens.numel() - 1, batch.max_seqlen
        if examples * width == batch.tokens.numel():
            return cls(examples, width, None, None)
        lengths = batch.cu_seqlens.diff()
        example = torch.repeat_interleave(lengths, output_size=batch.tokens.numel())
        columns = torch.arange(width, device=lengths.device)
        mask = (columns < lengths[:, None])[:, None, None, :]
        return cls(examples, width, example * width + batch.positions, mask)

    def spread(self, flat: Tensor) -> Tensor:
        if self.slots is None:
            return flat
        return spread_rows(flat, self.slots, self.batch * self.width)

    def gather(self, grid: Tensor) -> Tensor:
        return grid if self.slots is None else take_rows(grid, self.slots)


def _attention(layer: BertLayer, hidden: Tensor, rows: _Rows) -> Tensor:
    """The layer's self-attention, before its output projection, on flat rows."""
    own = layer.attention.self
    parts = (own.query, own.key, own.value)
    weight = torch.cat([part.weight for part in parts])
    bias = torch.cat([part.bias for part in parts])
    grid = rows.spread(F.linear(hidden, weight, bias))
    heads, size = own.num_attention_heads, own.attention_head_size
    query, key, value = grid.view(rows.batch, rows.width, 3, heads, size).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=rows.mask,
        dropout_p=own.dropout.p if own.training else 0.0,
        scale=own.scaling,
    )
    return rows.gather(mixed.transpose(1, 2).reshape(rows.batch * rows.width, heads * size))


def _layer(layer: BertLayer, hidden: Tensor, rows: _Rows, keep: Tensor | None) -> Tensor:
    """One encoder layer; with `keep`, only those rows of its output."""
    mixed = _attention(layer, hidden, rows)
    if keep is not None:
        mixed, hidden = take_rows(mixed, keep), take_rows(hidden, keep)
    hidden = layer.attention.output(mixed, hidden)
    result: Tensor = layer.output(layer.intermediate(hidden), hidden)
    return result


def _embed(model: BertForPreTraining | BertForMaskedLM, batch: FlatBatch) -> Tensor:
    own = model.bert.embeddings
    total = own.word_embeddings(batch.tokens)
    total = total + own.token_type_embeddings(batch.segment_ids)
    total = total + own.position_embeddings(batch.positions)
    result: Tensor = own.dropout(own.LayerNorm(total))
    return result


def _masked_loss(model: BertForPreTraining | BertForMaskedLM, hidden: Tensor, labels: Tensor) -> Tensor:
    head = model.cls.predictions
    hidden = head.transform(hidden)
    weight, bias = head.decoder.weight, head.decoder.bias
    if hidden.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        loss: Tensor = masked_cross_entropy(hidden, weight, bias, labels)
        return loss
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, reduction="sum")


def encode(model: BertForPreTraining | BertForMaskedLM, batch: FlatBatch) -> tuple[Tensor, Tensor | None]:
    """Last hidden states where the heads read: masked positions `[M, hidden]`, and `[CLS]` `[B, hidden]` for pairs."""
    rows = _Rows.of(batch)
    masked = batch.masked_index.numel()
    with_next = batch.is_random_next is not None
    keep = torch.cat([batch.masked_index, batch.cu_seqlens[:-1]]) if with_next else batch.masked_index
    hidden = _embed(model, batch)
    layers = model.bert.encoder.layer
    for number, layer in enumerate(layers, start=1):
        hidden = _layer(layer, hidden, rows, keep if number == len(layers) else None)
    return hidden[:masked], hidden[masked:] if with_next else None


def score_next(model: BertForPreTraining, first: Tensor) -> Tensor:
    """Logits `[B, 2]` of "B follows" and "B is random", from the hidden states of `[CLS]`."""
    pooler = model.bert.pooler
    scores: Tensor = model.cls.seq_relationship(pooler.activation(pooler.dense(first)))
    return scores


def flat_forward(model: BertForPreTraining | BertForMaskedLM, batch: FlatBatch) -> tuple[Tensor, Tensor]:
    """Summed masked-LM loss and summed next-sentence loss (0 without that task)."""
    hidden, first = encode(model, batch)
    mlm = _masked_loss(model, hidden, batch.masked_labels)
    if first is None or batch.is_random_next is None:
        return mlm, mlm.new_zeros(())
    return mlm, F.cross_entropy(score_next(model, first).float(), batch.is_random_next, reduction="sum")
