"""What the training engine trains: the interface between `training/` and its users."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch

from bert_pipeline.training.position import Position


class Batch(Protocol):
    """What the model takes; batches that are equal but for tensors compare equal."""

    def to(self, device: torch.device) -> Self:
        """The batch on another device."""

    def map(self, change: Callable[[torch.Tensor], Any]) -> Self:
        """A copy with `change` applied to each tensor."""


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One rank's share of a step, and the position in the data after it."""

    micro_batches: Sequence[Batch]
    """One per gradient-accumulation step."""
    terms: Sequence[float]
    """For each loss of the model, how many terms this rank's micro-batches sum, or their weight."""
    tokens: int
    """Real tokens of the step over all ranks."""
    epochs: float
    """Passes over the training data after the step."""
    cursor: Mapping[str, int]
    """The position in the data after the step."""
    flops: float | None = None
    """Floating-point operations of this rank's micro-batches; None if unknown."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Values that the task adds to the line of metrics, such as the epoch."""
    source: Any = None
    """What the task needs to look up the examples of the step again."""

    def advance(self, position: Position) -> Position:
        """The position after the step."""
        return replace(
            position,
            step=position.step + 1,
            tokens=position.tokens + self.tokens,
            epochs=self.epochs,
            cursor=self.cursor,
        )


class TrainingTask(Protocol):
    """What is trained on: pretraining, or a fine-tuning task."""

    @property
    def losses(self) -> Mapping[str, float]:
        """Names and weights of the losses that the model returns, in its order."""

    def make_step(self, position: Position, progress: float) -> StepInputs:
        """This rank's inputs of the step at a position: a pure function of its arguments."""

    def largest_batches(self) -> Iterable[Any]:
        """A micro-batch as large as any of this rank in the run, for each phase of the run."""

    def initial_weights(self) -> Mapping[str, torch.Tensor]:
        """The weights that the run started from."""

    def evaluate(self, *, final: bool) -> Mapping[str, Any]:
        """Metrics on held-out data; empty without any. The `final` evaluation uses all of it."""

    def record_skipped(self, step: int, inputs: StepInputs) -> None:
        """Keep the batch of a step (from 1) that was skipped, for inspection."""

    def interval_metrics(self, terms: Sequence[float], tokens: int) -> Mapping[str, float]:
        """Metrics of the steps since the last line: loss terms by loss, and tokens."""

    def on_metrics(self, line: Mapping[str, Any]) -> None:
        """Called with each line of metrics in the main process."""
