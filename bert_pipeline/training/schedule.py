"""How far a run is, and the learning rate there."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Length:
    """A run's length, in steps or in seconds on its clock: exactly one is set."""

    steps: int | None
    seconds: float | None

    def progress(self, step: int, elapsed: float) -> float:
        """Share of the run that lies behind, from 0 to 1."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.seconds is not None
        return min(1.0, elapsed / self.seconds)


def warm_up_then_linear(progress: float, warmup: float) -> float:
    """Factor of the peak learning rate: up to 1 over `warmup`, then down to 0, linearly (Devlin et al. 2019, A.2)."""
    if progress < warmup:
        return progress / warmup
    return (1.0 - progress) / (1.0 - warmup)
