"""Figures of a run: a line each so many steps, and an account at its end."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_pipeline.storage.atomic import atomic
from bert_pipeline.training.checkpoint import Position
from bert_pipeline.training.step import StepResult


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, appended as it happens."""

    def __init__(self, path: Path, after_step: int, *, complete: bool = False) -> None:
        """Lines beyond `after_step` belong to steps that will be done again, and are dropped.

        So is the evaluation that ends a run whose steps are `complete`.
        """
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= after_step]
        if complete and kept and "loss" not in json.loads(kept[-1]):
            kept.pop()
        with atomic(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        """Append a line; what is not a finite number is null, which JSON has no other word for."""
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # cut off by a kill


@dataclass(frozen=True, slots=True)
class Account:
    """What a run's steps took since it was started or resumed; evaluations and saves are left out."""

    seconds: float = 0.0
    waiting: float = 0.0
    """Seconds in which the step waited for its data."""
    tokens: int = 0
    flops: float | None = 0.0

    def plus(self, other: "Account") -> "Account":
        """Both together."""
        known = self.flops is not None and other.flops is not None
        flops = (self.flops or 0.0) + (other.flops or 0.0) if known else None
        return Account(
            self.seconds + other.seconds,
            self.waiting + other.waiting,
            self.tokens + other.tokens,
            flops,
        )

    def rates(self, peak: float | None) -> dict[str, float | None]:
        """Per second: real tokens and FLOPs; the share of `peak` that these are, and of the time spent waiting."""
        if not self.seconds:
            return {
                "tokens_per_second": None,
                "flops_per_second": None,
                "mfu": None,
                "data_wait": None,
            }
        speed = None if self.flops is None else self.flops / self.seconds
        return {
            "tokens_per_second": self.tokens / self.seconds,
            "flops_per_second": speed,
            "mfu": speed / peak if speed is not None and peak else None,
            "data_wait": self.waiting / self.seconds,
        }


class Meter:
    """Sums since the last line of metrics."""

    def __init__(self, losses: Mapping[str, float], peak: float | None) -> None:
        """Names and weights of the losses, and the FLOP/s of all devices together."""
        self._losses, self._peak = losses, peak
        self.whole = Account()
        """Since the start of this process."""
        self._clear()

    def _clear(self) -> None:
        self._account = Account()
        self._last: tuple[StepResult, float] | None = None
        self._sums = [0.0] * len(self._losses)
        self._totals = [0.0] * len(self._losses)

    def spend(self, seconds: float, waiting: float) -> None:
        """Count time of steps."""
        self._account = self._account.plus(Account(seconds, waiting))

    def add(self, taken: StepResult, sums: Sequence[float], norm: float) -> None:
        """Count a step that updated the weights."""
        self._last = taken, norm
        self._account = self._account.plus(Account(tokens=taken.step.tokens, flops=taken.flops))
        self._sums = [before + value for before, value in zip(self._sums, sums, strict=True)]
        self._totals = [
            before + total for before, total in zip(self._totals, taken.totals, strict=True)
        ]

    def read(self, position: Position) -> dict[str, Any] | None:
        """A line of metrics, and begin anew; None without a step. Each loss is per term, None without terms."""
        self.whole = self.whole.plus(self._account)
        if self._last is None:
            self._clear()
            return None
        taken, norm = self._last
        means = [
            value / total if total else None
            for value, total in zip(self._sums, self._totals, strict=True)
        ]
        weighted = zip(self._losses.values(), means, strict=True)
        line = {
            "step": position.step,
            "epoch": taken.step.epoch,
            "loss": sum(weight * mean for weight, mean in weighted if mean is not None),
            **dict(zip(self._losses, means, strict=True)),
            "learning_rate": taken.learning_rate,
            "grad_norm": norm,
            "tokens": position.tokens,
            "batch_size": taken.step.examples,
            "phase": position.phase,
            "predicted_share": self._totals[0] / self._account.tokens,
            **self._account.rates(self._peak),
            "skipped_steps": position.skipped,
            "elapsed_s": position.elapsed_s,
        }
        self._clear()
        return line
