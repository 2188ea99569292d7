"""Batches filled up to fixed shapes, so that kernels, allocator and graphs see few of them.

What is added has no effect on losses and gradients: examples of padding tokens, which nothing
attends to or reads, and labels that the losses ignore.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from bert_pipeline.model.masked_cross_entropy import IGNORED
from bert_pipeline.model.task_model import TaskBatch
from bert_pipeline.model.unpadded_batch import HeadPositions, PretrainingBatch
from bert_pipeline.ragged import Int64Array

READ_MULTIPLE = 32
"""The most positions that heads read of an example are rounded up to a multiple: few values."""
CPU_TOKEN_MULTIPLE = 64
"""Token counts on a CPU in bf16 are rounded up to a multiple: oneDNN builds kernels for each number
of rows, which takes longer than the padding."""


@dataclass(frozen=True, slots=True)
class BatchShape:
    """Numbers of tokens, examples and masked tokens that a batch is filled up to."""

    tokens: int
    examples: int
    masked: int
    max_length: int
    """The most tokens of an example."""
    is_grid_fixed: bool = False
    """Whether attention on a padded grid takes `max_length` tokens for each example."""

    @classmethod
    def from_budget(
        cls, tokens: int, mean_length: float, max_length: int, mask_rate: float
    ) -> "BatchShape":
        """The shape of micro-batches of `tokens` tokens, at least two examples of `max_length`.

        Room for a quarter more examples than fit on average, and for a share `mask_rate` of each
        example's tokens, rounded up.
        """
        expected = min(1 + round(1.25 * tokens / mean_length), tokens // 2)
        examples = max(expected, -(-tokens // max_length) + 1)
        masked = min(int(tokens * mask_rate) + examples, tokens - examples)
        return cls(tokens, examples, masked, max_length, is_grid_fixed=True)

    @classmethod
    def from_batch(cls, batch: PretrainingBatch, multiple: int, max_length: int) -> "BatchShape":
        """The shape of a batch with its tokens and masked tokens rounded up to a multiple."""
        tokens = _round_up(len(batch.tokens), multiple)
        missing = tokens - len(batch.tokens)
        examples = len(batch.cu_seqlens) - 1 + -(-missing // max_length)
        masked = min(_round_up(len(batch.masked_index), multiple), tokens - examples)
        return cls(tokens, examples, masked, max_length)

    def split(self, lengths: Int64Array) -> Iterator[slice]:
        """Consecutive examples in parts that fit into the shape; `lengths` are their tokens.

        An example that is longer than the shape alone is a part of its own.
        """
        start = 0
        used = 0
        for number, length in enumerate(lengths.tolist()):
            if number > start and not self.can_fill(used + length, number + 1 - start):
                yield slice(start, number)
                start = number
                used = 0
            used += length
        if start < len(lengths):
            yield slice(start, len(lengths))

    def can_fill(self, tokens: int, examples: int) -> bool:
        """Whether a batch with this many tokens and examples can be filled up to the shape."""
        added = self.examples - examples
        missing = self.tokens - tokens
        return 0 <= added <= missing <= added * self.max_length


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def fill_up(batch: PretrainingBatch, shape: BatchShape, padding: int) -> PretrainingBatch:
    """A batch on the CPU filled up to a shape with tokens `padding`; unchanged where it exceeds it.

    Added examples share the missing tokens. Added masked tokens are any that have no label yet,
    spread over the batch.
    """
    examples = len(batch.cu_seqlens) - 1
    added = shape.examples - examples
    missing = shape.tokens - len(batch.tokens)
    if not shape.can_fill(len(batch.tokens), examples):
        return batch
    # Examples of padding tokens.
    lengths = np.full(added, missing // max(1, added), dtype=np.int64)
    lengths[: missing % max(1, added)] += 1
    ends = torch.from_numpy(len(batch.tokens) + np.cumsum(lengths))
    cu_seqlens = torch.cat([batch.cu_seqlens, ends])
    starts = np.cumsum(lengths) - lengths
    positions = torch.from_numpy(np.arange(missing) - np.repeat(starts, lengths))
    tokens = torch.cat([batch.tokens, torch.full((missing,), padding)])
    # Labels without a loss, at tokens that have none and are not the first of an example.
    index, labels = _add_labels(batch, cu_seqlens, len(tokens), shape.masked)
    longest = max(batch.max_seqlen, int(lengths.max(initial=0)))
    head_positions = HeadPositions.select(cu_seqlens, index)
    if shape.is_grid_fixed:
        most = _round_up(head_positions.max_per_example, READ_MULTIPLE)
        head_positions = replace(head_positions, max_per_example=min(most, shape.max_length))
    pairs = batch.is_random_next
    if pairs is not None:
        pairs = torch.cat([pairs, torch.full((added,), IGNORED)])
    return replace(
        batch,
        tokens=tokens,
        segment_ids=torch.cat([batch.segment_ids, torch.zeros(missing, dtype=torch.long)]),
        positions=torch.cat([batch.positions, positions]),
        cu_seqlens=cu_seqlens,
        max_seqlen=shape.max_length if shape.is_grid_fixed else longest,
        masked_index=index,
        masked_labels=labels,
        is_random_next=pairs,
        is_filled=True,
        head_positions=head_positions,
    )


def round_up_tokens(batch: TaskBatch, multiple: int, padding: int) -> TaskBatch:
    """A batch on the CPU with its number of tokens rounded up to a multiple.

    Added examples of padding are not longer than the longest one, and no head reads them.
    """
    missing = -len(batch.tokens) % multiple
    if not missing:
        return batch
    added = -(-missing // batch.max_seqlen)
    lengths = np.full(added, missing // added, dtype=np.int64)
    lengths[: missing % added] += 1
    ends = torch.from_numpy(len(batch.tokens) + np.cumsum(lengths))
    starts = np.cumsum(lengths) - lengths
    positions = torch.from_numpy(np.arange(missing) - np.repeat(starts, lengths))
    heads = batch.head_positions
    unread = heads.cu_seqlens[-1:].expand(added)
    return replace(
        batch,
        tokens=torch.cat([batch.tokens, torch.full((missing,), padding)]),
        segment_ids=torch.cat([batch.segment_ids, torch.zeros(missing, dtype=torch.long)]),
        positions=torch.cat([batch.positions, positions]),
        cu_seqlens=torch.cat([batch.cu_seqlens, ends]),
        head_positions=replace(heads, cu_seqlens=torch.cat([heads.cu_seqlens, unread])),
        padding_examples=added,
        padding_tokens=missing,
    )


def _add_labels(
    batch: PretrainingBatch, cu_seqlens: torch.Tensor, tokens: int, wanted: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Index and labels of the masked tokens, filled up to `wanted` with ignored ones."""
    missing = wanted - len(batch.masked_index)
    if missing <= 0:
        return batch.masked_index, batch.masked_labels
    is_free = torch.ones(tokens, dtype=torch.bool)
    is_free[batch.masked_index] = False
    is_free[cu_seqlens[:-1]] = False
    free = is_free.nonzero()[:, 0]
    missing = min(missing, len(free))
    chosen = free[torch.linspace(0, len(free) - 1, missing, dtype=torch.float64).long()]
    index, order = torch.cat([batch.masked_index, chosen]).sort()
    labels = torch.cat([batch.masked_labels, torch.full_like(chosen, IGNORED)])
    return index, labels[order]
