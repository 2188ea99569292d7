"""Batches without padding: the tokens of all examples end to end.

Shapes: T tokens, B examples, R positions that heads read, M masked tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeadPositions:
    """The tokens whose last hidden states the heads read.

    Of each example the first token (`[CLS]`) comes first, then the others that were asked for:
    masked tokens for a masked LM, first sub-tokens for a tagger, none for a classifier.
    """

    index: Tensor  # [R] int64 into the batch's tokens, ascending
    cu_seqlens: Tensor  # [B + 1] int64: example i reads index[cu_seqlens[i]:cu_seqlens[i + 1]]
    others: Tensor  # [R - B] int64: where in `index` the tokens other than [CLS] are
    max_per_example: int
    """The most positions that are read of one example."""

    @classmethod
    def select(cls, cu_seqlens: Tensor, token_index: Tensor) -> Self:
        """The first token of each example and the tokens `token_index` (ascending, no first ones).

        For tensors on the CPU, because `max_per_example` is a Python number.
        """
        bounds = torch.searchsorted(token_index, cu_seqlens)
        examples = cu_seqlens.numel() - 1
        count = token_index.numel()
        starts = bounds + torch.arange(examples + 1)
        # A token of example i comes after i + 1 first tokens.
        others = torch.arange(count) + 1 + torch.repeat_interleave(bounds.diff())
        index = torch.empty(examples + count, dtype=torch.long)
        index[starts[:-1]] = cu_seqlens[:-1]
        index[others] = token_index
        return cls(index, starts, others, int(starts.diff().amax()) if examples else 0)

    @property
    def first(self) -> Tensor:
        """Where in `index` the first token of each example is, int64 `[B]`."""
        return self.cu_seqlens[:-1]

    def map(self, change: Callable[[Tensor], Any]) -> Self:
        """A copy with `change` applied to each tensor."""
        return type(self)(
            change(self.index), change(self.cu_seqlens), change(self.others), self.max_per_example
        )


@dataclass(frozen=True)
class UnpaddedBatch:
    """What the encoder reads. Example i is `tokens[cu_seqlens[i]:cu_seqlens[i + 1]]`."""

    tokens: Tensor  # [T] int64
    segment_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, counted from the start of each example
    cu_seqlens: Tensor  # [B + 1] int64
    max_seqlen: int

    def pin(self) -> Self:
        """A copy in page-locked memory, from which copies to a GPU are asynchronous."""
        return self.map(Tensor.pin_memory)

    def to(self, device: torch.device) -> Self:
        """The batch on another device; from page-locked memory the host does not wait."""
        if device.type == "cpu":
            return self
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def map(self, change: Callable[[Tensor], Any]) -> Self:
        """A copy with `change` applied to each tensor."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = change(value)
            elif isinstance(value, HeadPositions):
                values[name] = value.map(change)
        return type(self)(**values)


@dataclass(frozen=True)
class PretrainingBatch(UnpaddedBatch):
    """A batch with the labels of masked language modelling and of sentence pairs."""

    masked_index: Tensor  # [M] int64 into tokens, ascending, never the first token of an example
    masked_labels: Tensor  # [M] int64
    is_random_next: Tensor | None = None  # [B] int64, None without sentence pairs
    is_filled: bool = False
    """Whether some labels are `IGNORED`: the batch was filled up to a shape."""
    is_placeholder: bool = False
    """For a rank without examples: losses are multiplied by 0, so that it joins the all-reduce."""
    head_positions: HeadPositions = None  # type: ignore[assignment]
    """`[CLS]` and the masked tokens; computed here for a batch on the CPU."""

    def __post_init__(self) -> None:
        if self.head_positions is None:
            positions = HeadPositions.select(self.cu_seqlens, self.masked_index)
            object.__setattr__(self, "head_positions", positions)
