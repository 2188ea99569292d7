"""Attention on unpadded hidden states: each example attends to its own tokens only.

Layers with local attention have a `window`: tokens attend to those at most so many positions away,
before and after them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from bert_pipeline.model.kernels import dropout as apply_dropout
from bert_pipeline.model.kernels import product_dtype, scatter_rows, take_rows
from bert_pipeline.model.unpadded_batch import HeadPositions, UnpaddedBatch

MAX_KEPT_BYTES = 512
"""Up to this size of a query's attention weights (128 in fp32, 256 in bf16), a CPU keeps them for
the backward pass: faster than recomputing them, and still small."""
LOCAL_BLOCK = 128
"""Queries that a CPU mixes at a time in local attention, to skip most keys outside their window."""


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
        query, key, value = self.pad_heads(qkv)
        return self.unpad(_mix(query, key, value, self.mask, scale, dropout))

    def attend_head_positions(
        self, query: Tensor, key_value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """Mixed values `[R, heads × size]` where heads read.

        Queries are `[R, heads, size]`, keys and values `[T, 2, heads, size]`.
        """
        key, value = self.pad_heads(key_value)
        grid = self.pad_reads(query).transpose(1, 2)
        mixed = _mix(grid, key, value, self.mask, scale, dropout)
        return take_rows(_join_heads(mixed), self.read_slots)

    def pad_heads(self, states: Tensor) -> Tensor:
        """`[n, examples, heads, width, size]` of states of the tokens `[T, n, heads, size]`."""
        grid = states
        if self.slots is not None:
            grid = scatter_rows(states, self.slots, self.examples * self.width)
        grid = grid.view(self.examples, self.width, *states.shape[1:])
        return grid.permute(2, 0, 3, 1, 4)

    def pad_reads(self, values: Tensor) -> Tensor:
        """`[examples, max_per_example, ...]` of values at the read positions `[R, ...]`."""
        per_example = self.head_positions.max_per_example
        padded = scatter_rows(values, self.read_slots, self.examples * per_example)
        return padded.view(self.examples, per_example, *values.shape[1:])

    def unpad(self, mixed: Tensor) -> Tensor:
        """`[T, heads × size]` of mixed values `[examples, heads, width, size]`."""
        joined = _join_heads(mixed)
        return joined if self.slots is None else take_rows(joined, self.slots)


@dataclass(frozen=True)
class LocalLayout:
    """Attention on a padded grid within a window."""

    grid: PaddedLayout
    window: int
    read_positions: Tensor  # [R] positions within examples

    @classmethod
    def from_batch(cls, batch: UnpaddedBatch, head_positions: HeadPositions, window: int) -> Self:
        """The grid of `PaddedLayout`."""
        grid = PaddedLayout.from_batch(batch, head_positions)
        return cls(grid, window, batch.positions[head_positions.index])

    @property
    def head_positions(self) -> HeadPositions:
        """The positions that heads read."""
        return self.grid.head_positions

    def attend(self, qkv: Tensor, scale: float, dropout: float) -> Tensor:
        """As `PaddedLayout.attend`."""
        query, key, value = self.grid.pad_heads(qkv)
        columns = torch.arange(self.grid.width, device=qkv.device)
        is_token = self.grid.mask
        parts = []
        for rows, near in self._blocks(qkv.device):
            mask = self._is_near(columns[None, None, rows], columns[near])
            if is_token is not None:
                # Padding attends to padding: a row without keys would be NaN.
                mask = mask & (is_token[..., rows].mT == is_token[..., near])
            keys = key[:, :, near]
            values = value[:, :, near]
            parts.append(_mix(query[:, :, rows], keys, values, mask, scale, dropout))
        return self.grid.unpad(torch.cat(parts, 2))

    def attend_head_positions(
        self, query: Tensor, key_value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """As `PaddedLayout.attend_head_positions`."""
        grid = self.grid
        key, value = grid.pad_heads(key_value)
        reads = grid.pad_reads(self.read_positions)
        mask = self._is_near(reads[:, None], torch.arange(grid.width, device=query.device))
        if grid.mask is not None:
            mask = mask & grid.mask
        mixed = _mix(grid.pad_reads(query).transpose(1, 2), key, value, mask, scale, dropout)
        return take_rows(_join_heads(mixed), grid.read_slots)

    def _is_near(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Whether each position of `rows` `[..., queries]` attends to those of `columns`."""
        return (rows[..., None] - columns).abs() <= self.window

    def _blocks(self, device: torch.device) -> Iterator[tuple[slice, slice]]:
        """The queries that are mixed together, and the keys within their windows."""
        # The compiler would compile each number of blocks; a GPU mixes all queries at once.
        if device.type != "cpu" or torch.compiler.is_compiling():
            yield slice(None), slice(None)
            return
        for start in range(0, self.grid.width, LOCAL_BLOCK):
            end = start + LOCAL_BLOCK
            yield slice(start, end), slice(max(start - self.window, 0), end + self.window)


@dataclass(frozen=True)
class VarlenLayout:
    """Attention by torch's kernel for examples of any lengths: no padding, and no dropout."""

    cu_seqlens: Tensor  # [B + 1] int32
    max_seqlen: int
    head_positions: HeadPositions
    read_cu_seqlens: Tensor  # [B + 1] int32
    window: int | None

    @classmethod
    def from_batch(
        cls, batch: UnpaddedBatch, head_positions: HeadPositions, window: int | None
    ) -> Self:
        """The bounds of the batch's examples, as the kernel takes them."""
        bounds = batch.cu_seqlens.int()
        read_bounds = head_positions.cu_seqlens.int()
        return cls(bounds, batch.max_seqlen, head_positions, read_bounds, window)

    def attend(self, qkv: Tensor, scale: float, dropout: float) -> Tensor:
        """As `PaddedLayout.attend`; `scale` must be the kernel's own, 1 / sqrt(head size)."""
        query, key, value = qkv.unbind(1)
        return self._mix(query, key, value, self.cu_seqlens, self.max_seqlen)

    def attend_head_positions(
        self, query: Tensor, key_value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """As `PaddedLayout.attend_head_positions`."""
        key, value = key_value.unbind(1)
        if self.window is not None:
            # The kernel counts windows from row to row, so all tokens need a row.
            index = self.head_positions.index
            rows = scatter_rows(query, index, len(key))
            mixed = self._mix(rows, key, value, self.cu_seqlens, self.max_seqlen)
            return take_rows(mixed, index)
        longest = self.head_positions.max_per_example
        return self._mix(query, key, value, self.read_cu_seqlens, longest)

    def _mix(
        self, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, longest: int
    ) -> Tensor:
        window = -1 if self.window is None else self.window
        mixed = varlen_attn(
            query,
            key,
            value,
            cu_seqlens,
            self.cu_seqlens,
            longest,
            self.max_seqlen,
            window_size=(window, window),
        )
        return cast(Tensor, mixed).flatten(1)


AttentionLayout = PaddedLayout | LocalLayout | VarlenLayout


def make_layout(
    batch: UnpaddedBatch,
    head_positions: HeadPositions,
    hidden: Tensor,
    head_size: int,
    dropout: float,
    window: int | None,
) -> AttentionLayout:
    """The layout that fits the batch, the device and dtype of `hidden`, and attention dropout."""
    if not dropout and has_varlen_kernel(hidden, head_size):
        return VarlenLayout.from_batch(batch, head_positions, window)
    if window is None or batch.max_seqlen <= window + 1:
        return PaddedLayout.from_batch(batch, head_positions)
    return LocalLayout.from_batch(batch, head_positions, window)


def _mix(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """Values mixed by attention, `[examples, heads, queries, size]` like the queries.

    `mask` is True where queries attend to keys, `[examples or 1, 1, queries or 1, keys]`.
    """
    examples, heads, _, size = query.shape
    keys = key.shape[2]
    rows = 1 if mask is None else mask.shape[2]
    is_small = keys * query.element_size() <= MAX_KEPT_BYTES
    if query.device.type != "cpu" or not (dropout or is_small):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale
        )
    # Torch has no fused CPU kernel with dropout either; without, its kernel recomputes the weights
    # in the backward pass.
    bias = query.new_zeros(examples, heads, rows, keys)
    if mask is not None:
        bias.masked_fill_(~mask, -torch.inf)
    columns = key.flatten(0, 1).mT
    scores = torch.baddbmm(bias.flatten(0, 1), query.flatten(0, 1), columns, alpha=scale)
    weights = apply_dropout(torch.softmax(scores, -1), dropout, training=True)
    return torch.bmm(weights, value.flatten(0, 1)).view(examples, heads, -1, size)


def _join_heads(mixed: Tensor) -> Tensor:
    """`[examples × queries, heads × size]` of `[examples, heads, queries, size]`."""
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)


def has_varlen_kernel(hidden: Tensor, head_size: int) -> bool:
    """Whether `varlen_attn` supports hidden states like these."""
    if not hidden.is_cuda or not torch.backends.cuda.is_flash_attention_available():
        return False
    is_half = product_dtype(hidden) in (torch.float16, torch.bfloat16)
    is_recent = torch.cuda.get_device_capability(hidden.device) >= (8, 0)
    # The limits of flash attention.
    return is_half and is_recent and head_size % 8 == 0 and head_size <= 256
