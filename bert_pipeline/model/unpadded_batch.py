"""A batch without padding: examples laid end to end."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeadPositions:
    """The rows whose last hidden states heads read: of each example the first (`[CLS]`), then its masked ones."""

    index: Tensor  # [R] int64 into tokens, ascending
    cu_seqlens: (
        Tensor  # [B + 1] int64: example `i` is read at `index[cu_seqlens[i]:cu_seqlens[i + 1]]`
    )
    masked: Tensor  # [M] int64: where in `index` the masked rows are
    most: int
    """Rows read of an example at most."""

    @classmethod
    def of(cls, cu_seqlens: Tensor, masked_index: Tensor) -> "HeadPositions":
        """Those of a batch; on the CPU, since `most` is a number."""
        bounds = torch.searchsorted(masked_index, cu_seqlens)
        examples, masked = cu_seqlens.numel() - 1, masked_index.numel()
        starts = bounds + torch.arange(examples + 1)
        # Example i stands behind i + 1 first rows.
        places = torch.arange(masked) + 1 + torch.repeat_interleave(bounds.diff())
        index = torch.empty(examples + masked, dtype=torch.long)
        index[starts[:-1]] = cu_seqlens[:-1]
        index[places] = masked_index
        return cls(index, starts, places, int(starts.diff().amax()) if examples else 0)

    def map(self, change: Callable[[Tensor], Tensor]) -> "HeadPositions":
        """The same with its tensors changed."""
        return HeadPositions(
            change(self.index), change(self.cu_seqlens), change(self.masked), self.most
        )


@dataclass(frozen=True)
class UnpaddedBatch:
    """Example `i` is `tokens[cu_seqlens[i]:cu_seqlens[i + 1]]`."""

    tokens: Tensor  # [T] int64
    segment_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, counted from each example's own start
    cu_seqlens: Tensor  # [B + 1] int64
    max_seqlen: int
    masked_index: Tensor  # [M] int64 into tokens, ascending, never an example's first token
    masked_labels: Tensor  # [M] int64
    is_random_next: Tensor | None = None  # [B] int64, None without a next-sentence task
    void: bool = False
    """A stand-in where a rank has no example: its losses are 0, and it takes part in sums over ranks."""
    reads: "HeadPositions | None" = None
    """What heads read; found here for a batch on the CPU."""

    def __post_init__(self) -> None:
        if self.reads is None:
            object.__setattr__(self, "reads", HeadPositions.of(self.cu_seqlens, self.masked_index))

    def pin(self) -> "UnpaddedBatch":
        """The batch in page-locked memory, which a GPU reads by itself; for the thread that prepares batches."""
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device) -> "UnpaddedBatch":
        """The batch on another device; from page-locked memory nothing waits for the copy."""
        return (
            self
            if device.type == "cpu"
            else self._map(lambda tensor: tensor.to(device, non_blocking=True))
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> "UnpaddedBatch":
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {
            name: change(value) for name, value in values.items() if isinstance(value, Tensor)
        }
        if self.reads is not None:
            values["reads"] = self.reads.map(change)
        return UnpaddedBatch(**values)
