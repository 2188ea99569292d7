"""Attention on unpadded hidden states: each example attends to its own tokens only."""

from dataclasses import dataclass
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from bert_pipeline.model.kernels import dropout as apply_dropout
from bert_pipeline.model.kernels import product_dtype, scatter_rows, take_rows
from bert_pipeline.model.unpadded_batch import HeadPositions, UnpaddedBatch

MAX_MATERIALIZED_WIDTH = 128
"""Up to this many tokens a CPU keeps the attention weights for the backward pass: faster than
recomputing them, and still small."""


@dataclass(frozen=True)
class PaddedLayout:
    """Attention on a padded `[examples, width]` grid; no padding where all lengths are equal."""

    examples: int
    width: int
    slots: Tensor | None  # [T] grid slot of each token; None without padding
    mask: Tensor | None  # [B, 1, 1, width] True at real tokens
    head_positions: HeadPositions
    read_slots: Tensor  # [R] slot of each read position in [examples, max_per_example]

    @classmethod
    def from_batch(cls, batch: UnpaddedBatch, head_positions: HeadPositions) -> Self:
        """The grid as wide as the longest example of the batch."""
        examples = batch.cu_seqlens.numel() - 1
        width = batch.max_seqlen
        # Position r of example i goes to slot i × max_per_example + r - starts[i].
        starts = head_positions.cu_seqlens
        count = head_positions.index.numel()
        first_slots = torch.arange(examples, device=starts.device) * head_positions.max_per_example
        shifts = torch.repeat_interleave(
            first_slots - starts[:-1], starts.diff(), output_size=count
        )
        read_slots = torch.arange(count, device=starts.device) + shifts
        if examples * width == batch.tokens.numel():
            return cls(examples, width, None, None, head_positions, read_slots)
        lengths = batch.cu_seqlens.diff()
        example = torch.repeat_interleave(lengths, output_size=batch.tokens.numel())
        columns = torch.arange(width, device=lengths.device)
        mask = (columns < lengths[:, None])[:, None, None, :]
        slots = example * width + batch.positions
        return cls(examples, width, slots, mask, head_positions, read_slots)

    def pad(self, values: Tensor, padding: int = 0) -> Tensor:
        """Values of the tokens `[T]` as the grid's `[examples, width]`."""
        if self.slots is not None:
            padded = values.new_full((self.examples * self.width,), padding)
            values = padded.index_copy_(0, self.slots, values)
        return values.view(self.examples, self.width)

    def attend(self, qkv: Tensor, scale: float, dropout: float) -> Tensor:
        """Mixed values `[T, heads × size]` of queries, keys and values `[T, 3, heads, size]`."""
        query, key, value = self._pad_heads(qkv).permute(2, 0, 3, 1, 4)
        mixed = self._mix(query, key, value, scale, dropout)
        return mixed if self.slots is None else take_rows(mixed, self.slots)

    def attend_head_positions(
        self, query: Tensor, key_value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """Mixed values `[R, heads × size]` where heads read.

        Queries are `[R, heads, size]`, keys and values `[T, 2, heads, size]`.
        """
        key, value = self._pad_heads(key_value).permute(2, 0, 3, 1, 4)
        per_example = self.head_positions.max_per_example
        padded = scatter_rows(query, self.read_slots, self.examples * per_example)
        grid = padded.view(self.examples, per_example, *query.shape[1:]).transpose(1, 2)
        return take_rows(self._mix(grid, key, value, scale, dropout), self.read_slots)

    def _pad_heads(self, states: Tensor) -> Tensor:
        grid = states
        if self.slots is not None:
            grid = scatter_rows(states, self.slots, self.examples * self.width)
        return grid.view(self.examples, self.width, *states.shape[1:])

    def _mix(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """`[examples × queries, heads × size]` of `[examples, heads, queries or keys, size]`."""
        is_narrow = self.width <= MAX_MATERIALIZED_WIDTH
        if query.device.type == "cpu" and (dropout or is_narrow):
            # Torch has no fused CPU kernel with dropout either; without, its kernel recomputes the
            # weights in the backward pass.
            examples, heads = query.shape[:2]
            bias = query.new_zeros(examples, heads, 1, self.width)
            if self.mask is not None:
                bias.masked_fill_(~self.mask, -torch.inf)
            keys = key.flatten(0, 1).mT
            scores = torch.baddbmm(bias.flatten(0, 1), query.flatten(0, 1), keys, alpha=scale)
            weights = apply_dropout(torch.softmax(scores, -1), dropout, training=True)
            mixed = torch.bmm(weights, value.flatten(0, 1))
            mixed = mixed.view(examples, heads, -1, value.shape[-1])
        else:
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=self.mask, dropout_p=dropout, scale=scale
            )
        return mixed.transpose(1, 2).flatten(2).flatten(0, 1)


@dataclass(frozen=True)
class VarlenLayout:
    """Attention by torch's kernel for examples of any lengths: no padding, and no dropout."""

    cu_seqlens: Tensor  # [B + 1] int32
    max_seqlen: int
    head_positions: HeadPositions
    read_cu_seqlens: Tensor  # [B + 1] int32

    @classmethod
    def from_batch(cls, batch: UnpaddedBatch, head_positions: HeadPositions) -> Self:
        """The bounds of the batch's examples, as the kernel takes them."""
        read_cu_seqlens = head_positions.cu_seqlens.int()
        return cls(batch.cu_seqlens.int(), batch.max_seqlen, head_positions, read_cu_seqlens)

    def attend(self, qkv: Tensor, scale: float, dropout: float) -> Tensor:
        """As `PaddedLayout.attend`; `scale` must be the kernel's own, 1 / sqrt(head size)."""
        query, key, value = qkv.unbind(1)
        return self._mix(query, key, value, self.cu_seqlens, self.max_seqlen)

    def attend_head_positions(
        self, query: Tensor, key_value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """As `PaddedLayout.attend_head_positions`."""
        key, value = key_value.unbind(1)
        longest = self.head_positions.max_per_example
        return self._mix(query, key, value, self.read_cu_seqlens, longest)

    def _mix(
        self, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, longest: int
    ) -> Tensor:
        # Only arguments that every torch from 2.10 on takes in this order.
        mixed = varlen_attn(
            query, key, value, cu_seqlens, self.cu_seqlens, longest, self.max_seqlen
        )
        return cast(Tensor, mixed).flatten(1)


AttentionLayout = PaddedLayout | VarlenLayout


def make_layout(
    batch: UnpaddedBatch,
    head_positions: HeadPositions,
    hidden: Tensor,
    head_size: int,
    dropout: float,
) -> AttentionLayout:
    """The layout that fits the batch, the device and dtype of `hidden`, and attention dropout."""
    if dropout or not has_varlen_kernel(hidden, head_size):
        return PaddedLayout.from_batch(batch, head_positions)
    return VarlenLayout.from_batch(batch, head_positions)


def has_varlen_kernel(hidden: Tensor, head_size: int) -> bool:
    """Whether `varlen_attn` supports hidden states like these."""
    if not hidden.is_cuda or not torch.backends.cuda.is_flash_attention_available():
        return False
    is_half = product_dtype(hidden) in (torch.float16, torch.bfloat16)
    is_recent = torch.cuda.get_device_capability(hidden.device) >= (8, 0)
    # The limits of flash attention.
    return is_half and is_recent and head_size % 8 == 0 and head_size <= 256
