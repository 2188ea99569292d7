"""One step: what it is made of, and how it is taken without the host waiting for the device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from bert_pipeline.training.checkpoint import Position
from bert_pipeline.training.distributed import Ranks, accumulating, gradient_norm


class Batch(Protocol):
    """What the model takes."""

    def to(self, device: torch.device) -> "Batch": ...


class Optimizer(Protocol):
    """What updates the weights."""

    def set_progress(self, progress: float) -> float: ...
    def step(self, norm: torch.Tensor, good: torch.Tensor) -> None: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One rank's share of a step."""

    parts: Sequence[Batch]
    """Worked through one after the other."""
    totals: Sequence[int]
    """For each loss that the model returns, how many terms it sums in this rank's parts."""
    tokens: int
    """Real tokens of the whole step, over all ranks."""
    examples: int
    """Examples of the whole step, over all ranks."""
    epoch: int
    flops: float | None
    """Floating-point operations of this rank's parts; None where they are not known."""
    next: Position
    """Where the run stands in its data after the step (what is not data is as it was)."""
    origin: Any = None
    """What tells the examples of the whole step, to look them up again."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step that was taken; its figures may still be in the device's queue."""

    step: Step
    totals: Sequence[float]
    """Terms of each loss over all ranks."""
    flops: float | None
    """Floating-point operations over all ranks."""
    learning_rate: float
    _figures: torch.Tensor
    _arrived: torch.cuda.Event | None

    def read(self) -> tuple[list[float], float]:
        """Each loss summed over all ranks, and the gradient's norm; waits for the device to have them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        *losses, norm = self._figures.tolist()
        return losses, norm


@dataclass(frozen=True, slots=True)
class Trainer:
    """A model with its optimizer."""

    ranks: Ranks
    model: nn.Module
    """Returns a tuple of summed losses for a batch."""
    optimizer: Optimizer
    losses: Mapping[str, float]
    """Names and weights of the losses that the model returns, in its order."""
    seed: int

    def take(
        self, step: Step, number: int, totals: Sequence[float], flops: float | None, progress: float
    ) -> StepResult:
        """Update the weights, unless a loss or the gradient is not finite.

        `number` counts steps from 0; `totals` and `flops` are the step's over all ranks, `progress` is the share of the
        run that lies behind.
        """
        learning_rate = self.optimizer.set_progress(progress)
        # Dropout as a function of the step: nothing to save, and a resumed run draws what the first would have drawn.
        torch.manual_seed((self.seed * 1_000_003 + number) * self.ranks.count + self.ranks.own)
        losses = self.ranks.sum(self.backward(step, totals).double())
        norm = gradient_norm(self.model.parameters())
        self.optimizer.step(norm, norm.isfinite() & losses.isfinite().all())
        figures, arrived = _send_to_host(torch.cat([losses, norm.double().unsqueeze(0)]))
        return StepResult(step, totals, flops, learning_rate, figures, arrived)

    def backward(self, step: Step, totals: Sequence[float]) -> torch.Tensor:
        """Gradients of the step's loss: each summed loss over its terms in the whole step, weighted.

        Returns this rank's sums.
        """
        accelerator = self.ranks.accelerator
        # Ranks' gradients are averaged, but the totals already count all ranks.
        weights = [
            weight * self.ranks.count / max(1.0, total)
            for weight, total in zip(self.losses.values(), totals, strict=True)
        ]
        sums = []
        for number, part in enumerate(step.parts, start=1):
            with accumulating(self.model, accelerator, last=number == len(step.parts)):
                with accelerator.autocast():  # which a model in shards does not bring along
                    losses = self.model(part.to(accelerator.device))
                terms = [weight * loss for weight, loss in zip(weights, losses, strict=True)]
                accelerator.backward(torch.stack(terms).sum())
            sums.append(torch.stack(losses).detach())
        return torch.stack(sums).sum(0)


def _send_to_host(figures: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    if not figures.is_cuda:
        return figures, None
    host = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
    host.copy_(figures, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return host, arrived
