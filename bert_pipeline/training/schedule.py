"""The length of a run, and its learning-rate schedule: warm-up, then learning-rate decay."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from bert_pipeline.training.position import Position


@dataclass(frozen=True, slots=True)
class RunLength:
    """A run's length in steps, real tokens, epochs or seconds: exactly one is set."""

    steps: int | None = None
    tokens: int | None = None
    epochs: float | None = None
    seconds: float | None = None

    def progress(self, position: Position, elapsed_s: float) -> float:
        """The completed share of the run, from 0 to 1, `elapsed_s` seconds after its start."""
        if self.steps is not None:
            return min(1.0, position.step / self.steps) if self.steps else 1.0
        if self.tokens is not None:
            return min(1.0, position.tokens / self.tokens)
        if self.epochs is not None:
            return min(1.0, position.epochs / self.epochs)
        assert self.seconds is not None
        return min(1.0, elapsed_s / self.seconds)


def _linear(progress: float, warmup: float, decay: float) -> float:
    """Linear decay to 0 (Devlin et al. 2019, A.2, https://arxiv.org/abs/1810.04805)."""
    return 1.0 - (progress - warmup) / (1.0 - warmup)


def _cosine(progress: float, warmup: float, decay: float) -> float:
    """Half a cosine to 0 (Loshchilov & Hutter 2017, eq. 5, https://arxiv.org/abs/1608.03983)."""
    rest = (progress - warmup) / (1.0 - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * rest))


def _wsd(progress: float, warmup: float, decay: float) -> float:
    """Warm-up, stable, decay: constant, then 1 - √x to 0 over the last share `decay` of the run.

    Hu et al. 2024, section 4.2 (https://arxiv.org/abs/2404.06395); this form of decay: Hägele et
    al. 2024, section 3.1 (https://arxiv.org/abs/2405.18392).
    """
    into_decay = (progress - (1.0 - decay)) / decay
    return 1.0 - math.sqrt(max(0.0, into_decay))


SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "wsd": _wsd,
}
"""Learning-rate schedules after the warm-up: factors by (progress, warmup, decay)."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Linear warm-up over the first share `warmup` of the run, then the schedule `name`."""

    name: str
    warmup: float
    decay: float

    def is_stable(self, progress: float) -> bool:
        """Whether the learning rate does not depend on the length of the run yet (`wsd`)."""
        return self.name == "wsd" and progress <= 1.0 - self.decay

    def factor(self, progress: float) -> float:
        """The factor of the peak learning rate at a completed share of the run."""
        if progress < self.warmup:
            return progress / self.warmup
        return SCHEDULES[self.name](progress, self.warmup, self.decay)
