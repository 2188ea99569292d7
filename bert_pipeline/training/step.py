"""What a step returns, what all ranks agree on before it, and which checkpoint is the best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from bert_pipeline.training.task import StepInputs


@dataclass(frozen=True, slots=True)
class BestMetric:
    """The metric of the evaluations that selects the best checkpoint, which is then kept."""

    metric: str
    mode: Literal["max", "min"] = "max"
    patience: int | None = None
    """The run ends after so many evaluations without a better value (early stopping)."""

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether a value is better than the best so far; NaN never is."""
        if best is None or math.isnan(best):
            return not math.isnan(value)
        return value > best if self.mode == "max" else value < best


@dataclass(frozen=True, slots=True)
class AllRanks:
    """What all ranks agree on before a step."""

    elapsed_s: float
    """The main process's clock."""
    stop_signal: int
    """The signal that some rank received; 1 if a checkpoint could not be written, 0 to continue."""
    terms: Sequence[float]
    """Terms of each loss over all ranks."""
    flops: float | None
    """Floating-point operations over all ranks."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step that was queued; its losses may not be computed yet."""

    inputs: StepInputs
    all_ranks: AllRanks
    learning_rate: float
    _values: torch.Tensor
    _arrived: torch.cuda.Event | None

    def read(self) -> tuple[list[float], float, float]:
        """Each loss summed over all ranks, gradient norm and loss scale; waits for the device."""
        if self._arrived is not None:
            self._arrived.synchronize()
        *losses, norm, loss_scale = self._values.tolist()
        return losses, norm, loss_scale


def copy_to_host(values: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Start to copy values to the host; the event is recorded after the copy."""
    if not values.is_cuda:
        return values, None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return host, arrived


def copy_to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values of the host on the device; the host does not wait."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
