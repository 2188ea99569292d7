"""How far a run is, and the learning rate there."""

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["linear", "cosine", "wsd"]


@dataclass(frozen=True, slots=True)
class Length:
    """A run's length in steps, in real tokens or in seconds on its clock: exactly one is set."""

    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None

    def progress(self, step: int, tokens: int, elapsed: float) -> float:
        """Share of the run that lies behind, from 0 to 1."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        if self.tokens is not None:
            return min(1.0, tokens / self.tokens)
        assert self.seconds is not None
        return min(1.0, elapsed / self.seconds)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The course of a learning rate: it rises linearly over the first `warmup` of the run, and then

    - `linear` falls to 0 in a straight line (Devlin et al. 2019, A.2);
    - `cosine` falls to 0 along half a cosine (Loshchilov & Hutter 2017, eq. 5, without restarts);
    - `wsd` stays at its peak and falls to 0 over the last `decay` of the run, as 1 - √x (warm-up, stable, decay: Hu et
      al. 2024, section 4.2; this form of decay: Hägele et al. 2024, section 3.1).
    """

    shape: Shape
    warmup: float
    decay: float

    def factor(self, progress: float) -> float:
        """Share of the peak after a share of the run."""
        if progress < self.warmup:
            return progress / self.warmup
        if self.shape == "wsd":
            into_decay = (progress - (1.0 - self.decay)) / self.decay
            return 1.0 - math.sqrt(max(0.0, into_decay))
        rest = (progress - self.warmup) / (1.0 - self.warmup)
        return 1.0 - rest if self.shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * rest))
