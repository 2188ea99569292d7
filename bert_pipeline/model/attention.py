"""Attention over flat rows: each row attends to the rows of its own example."""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from bert_pipeline.model.kernels import dropout as drop
from bert_pipeline.model.kernels import product_dtype, spread_rows, take_rows
from bert_pipeline.model.unpadded_batch import HeadPositions, UnpaddedBatch

KEPT_WIDTH = 128
"""Tokens up to which a CPU keeps the weights of attention for the gradients: faster, and still of modest size."""


@dataclass(frozen=True)
class Grid:
    """Attention on a padded `[examples, width]` grid; without padding where all lengths are equal."""

    examples: int
    width: int
    slots: Tensor | None  # [T] grid slot of each flat row; None when there is no padding
    mask: Tensor | None  # [B, 1, 1, width] True at real tokens
    reads: HeadPositions
    read_slots: (
        Tensor  # [R] slot of each row that is read in the `[examples, reads.most]` grid of queries
    )

    @classmethod
    def of(cls, batch: UnpaddedBatch) -> "Grid":
        """The grid that the batch's longest example needs."""
        examples, width, reads = batch.cu_seqlens.numel() - 1, batch.max_seqlen, batch.reads
        assert reads is not None
        starts, rows = reads.cu_seqlens, reads.index.numel()
        # Row r of example i stands at i × most + r - starts[i].
        shift = torch.arange(examples, device=starts.device) * reads.most - starts[:-1]
        shifts = torch.repeat_interleave(shift, starts.diff(), output_size=rows)
        read_slots = torch.arange(rows, device=starts.device) + shifts
        if examples * width == batch.tokens.numel():
            return cls(examples, width, None, None, reads, read_slots)
        lengths = batch.cu_seqlens.diff()
        example = torch.repeat_interleave(lengths, output_size=batch.tokens.numel())
        columns = torch.arange(width, device=lengths.device)
        mask = (columns < lengths[:, None])[:, None, None, :]
        return cls(examples, width, example * width + batch.positions, mask, reads, read_slots)

    def spread(self, flat: Tensor, padding: int = 0) -> Tensor:
        """Numbers of flat rows `[T]` as the grid's `[examples, width]`."""
        if self.slots is not None:
            flat = flat.new_full((self.examples * self.width,), padding).index_copy_(
                0, self.slots, flat
            )
        return flat.view(self.examples, self.width)

    def attend(self, qkv: Tensor, scale: float, dropout: float) -> Tensor:
        """Mixed values `[T, heads × size]` of queries, keys and values `[T, 3, heads, size]`."""
        query, key, value = self._spread_heads(qkv).permute(2, 0, 3, 1, 4)
        mixed = self._mix(query, key, value, scale, dropout)
        return mixed if self.slots is None else take_rows(mixed, self.slots)

    def attend_reads(
        self, query: Tensor, key_value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """The same of queries `[R, heads, size]` of the rows that are read, keys and values `[T, 2, heads, size]`."""
        key, value = self._spread_heads(key_value).permute(2, 0, 3, 1, 4)
        spread = spread_rows(query, self.read_slots, self.examples * self.reads.most)
        grid = spread.view(self.examples, self.reads.most, *query.shape[1:]).transpose(1, 2)
        return take_rows(self._mix(grid, key, value, scale, dropout), self.read_slots)

    def _spread_heads(self, flat: Tensor) -> Tensor:
        grid = (
            flat
            if self.slots is None
            else spread_rows(flat, self.slots, self.examples * self.width)
        )
        return grid.view(self.examples, self.width, *flat.shape[1:])

    def _mix(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """Mixed values `[examples × queries, heads × size]` of `[examples, heads, queries or keys, size]`."""
        if query.device.type == "cpu" and (dropout or self.width <= KEPT_WIDTH):
            # Torch has no fused kernel with dropout for this either; without, its own works out the weights again.
            examples, heads = query.shape[:2]
            bias = query.new_zeros(examples, heads, 1, self.width)
            if self.mask is not None:
                bias.masked_fill_(~self.mask, -torch.inf)
            scores = torch.baddbmm(
                bias.flatten(0, 1), query.flatten(0, 1), key.flatten(0, 1).mT, alpha=scale
            )
            weights = drop(torch.softmax(scores, -1), dropout, training=True)
            mixed = torch.bmm(weights, value.flatten(0, 1)).view(
                examples, heads, -1, value.shape[-1]
            )
        else:
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=self.mask, dropout_p=dropout, scale=scale
            )
        return mixed.transpose(1, 2).flatten(2).flatten(0, 1)


@dataclass(frozen=True)
class Varlen:
    """Attention by torch's kernel for examples of any lengths: no padding, and no dropout."""

    cu_seqlens: Tensor  # [B + 1] int32
    max_seqlen: int
    reads: HeadPositions
    read_cu_seqlens: Tensor  # [B + 1] int32

    @classmethod
    def of(cls, batch: UnpaddedBatch) -> "Varlen":
        """The bounds of the batch's examples, as the kernel takes them."""
        assert batch.reads is not None
        return cls(
            batch.cu_seqlens.int(), batch.max_seqlen, batch.reads, batch.reads.cu_seqlens.int()
        )

    def attend(self, qkv: Tensor, scale: float, dropout: float) -> Tensor:
        """As `Grid.attend`; `scale` must be that of the head's size, the kernel's own."""
        query, key, value = qkv.unbind(1)
        return self._mix(query, key, value, self.cu_seqlens, self.max_seqlen)

    def attend_reads(
        self, query: Tensor, key_value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """As `Grid.attend_reads`."""
        key, value = key_value.unbind(1)
        return self._mix(query, key, value, self.read_cu_seqlens, self.reads.most)

    def _mix(
        self, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, most: int
    ) -> Tensor:
        # Only arguments that every torch from 2.10 on takes in this order.
        mixed = varlen_attn(query, key, value, cu_seqlens, self.cu_seqlens, most, self.max_seqlen)
        return cast(Tensor, mixed).flatten(1)


Rows = Grid | Varlen


def arrange(batch: UnpaddedBatch, hidden: Tensor, head_size: int, dropout: float) -> Rows:
    """The way of attending that fits the batch, the device and type of `hidden`, and dropout in attention."""
    return (
        Grid.of(batch) if dropout or not has_varlen_kernel(hidden, head_size) else Varlen.of(batch)
    )


def has_varlen_kernel(hidden: Tensor, head_size: int) -> bool:
    """Whether `varlen_attn` can work on hidden states like these."""
    if not hidden.is_cuda or not torch.backends.cuda.is_flash_attention_available():
        return False
    is_half = product_dtype(hidden) in (torch.float16, torch.bfloat16)
    is_recent = torch.cuda.get_device_capability(hidden.device) >= (8, 0)
    return (
        is_half and is_recent and head_size % 8 == 0 and head_size <= 256
    )  # flash attention's own limits
