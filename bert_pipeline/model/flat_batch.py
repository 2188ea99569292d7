"""A batch without padding: examples laid end to end."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class FlatBatch:
    """Example `i` is `tokens[cu_seqlens[i]:cu_seqlens[i + 1]]`."""

    tokens: Tensor  # [T] int64
    segment_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, counted from each example's own start
    cu_seqlens: Tensor  # [B + 1] int64
    max_seqlen: int
    masked_index: Tensor  # [M] int64 into tokens, without repeats, never an example's first token
    masked_labels: Tensor  # [M] int64
    is_random_next: Tensor | None = None  # [B] int64, None without a next-sentence task
    void: bool = False
    """A stand-in where a rank has no example: its losses are 0, and it takes part in sums over ranks."""

    def pin(self) -> "FlatBatch":
        """The batch in page-locked memory, which a GPU reads by itself; for the thread that prepares batches."""
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device) -> "FlatBatch":
        """The batch on another device; from page-locked memory nothing waits for the copy."""
        return self if device.type == "cpu" else self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "FlatBatch":
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return FlatBatch(**values)
