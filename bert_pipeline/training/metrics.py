"""Metrics of a run: lines of `metrics.jsonl`, and totals for the summary."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_pipeline.storage.atomic import atomic
from bert_pipeline.training.position import Position
from bert_pipeline.training.task import StepInputs, TrainingTask


class MetricsLog:
    """`metrics.jsonl`: one JSON object per line, appended as it happens."""

    def __init__(self, path: Path, after_step: int, *, is_complete: bool = False) -> None:
        """Drop the lines after `after_step`: their steps will be repeated.

        If the steps of the run are complete, the final evaluation is dropped too.
        """
        self._path = path
        lines = path.read_bytes().splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= after_step]
        if is_complete and kept and "loss" not in json.loads(kept[-1]):
            kept.pop()
        with atomic(path) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in kept))

    def write(self, values: Mapping[str, Any]) -> None:
        """Append a line; numbers that are not finite become null, as JSON has none."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(values)) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(figure) for key, figure in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # truncated by a kill, or damaged


WARM_UP_STEPS = 3
"""Steps of a process that its figures of speed leave out."""


@dataclass(frozen=True, slots=True)
class StepTotals:
    """Totals over steps, without evaluations and checkpoints."""

    seconds: float = 0.0
    waiting: float = 0.0
    """Seconds in which steps waited for their batches."""
    tokens: int = 0
    flops: float | None = 0.0

    def plus(self, other: "StepTotals") -> "StepTotals":
        """The sum of both."""
        is_known = self.flops is not None and other.flops is not None
        flops = (self.flops or 0.0) + (other.flops or 0.0) if is_known else None
        return StepTotals(
            self.seconds + other.seconds,
            self.waiting + other.waiting,
            self.tokens + other.tokens,
            flops,
        )

    def minus(self, part: "StepTotals") -> "StepTotals":
        """The rest after the steps of `part`."""
        is_known = self.flops is not None and part.flops is not None
        flops = (self.flops or 0.0) - (part.flops or 0.0) if is_known else None
        return StepTotals(
            self.seconds - part.seconds,
            self.waiting - part.waiting,
            self.tokens - part.tokens,
            flops,
        )

    def rates(self, peak: float | None) -> dict[str, float | None]:
        """Real tokens and FLOPs per second, the share of `peak` (MFU), and of time waiting."""
        if not self.seconds:
            names = ("tokens_per_second", "flops_per_second", "mfu", "data_wait")
            return dict.fromkeys(names)
        speed = None if self.flops is None else self.flops / self.seconds
        return {
            "tokens_per_second": self.tokens / self.seconds,
            "flops_per_second": speed,
            "mfu": speed / peak if speed is not None and peak else None,
            "data_wait": self.waiting / self.seconds,
        }


class Meter:
    """Sums since the last line of metrics."""

    def __init__(self, task: TrainingTask, peak: float | None) -> None:
        """`peak` is the FLOP/s of all devices together, if known."""
        self._task = task
        self._peak = peak
        self._total = StepTotals()
        self._warm_up = StepTotals()
        self._timed_steps = 0
        self._updates = 0
        self._clear()

    @property
    def total(self) -> StepTotals:
        """Since the start of this process, without the first steps, which compile kernels."""
        has_more = self._updates > WARM_UP_STEPS
        return self._total.minus(self._warm_up) if has_more else self._total

    def _clear(self) -> None:
        self._interval = StepTotals()
        self._last: tuple[StepInputs, float, float] | None = None
        self._sums = [0.0] * len(self._task.losses)
        self._terms = [0.0] * len(self._task.losses)

    def add_time(self, seconds: float, waiting: float) -> None:
        """Add the time of a step."""
        step = StepTotals(seconds, waiting)
        self._interval = self._interval.plus(step)
        if self._timed_steps < WARM_UP_STEPS:
            self._warm_up = self._warm_up.plus(step)
        self._timed_steps += 1

    def add_step(
        self,
        inputs: StepInputs,
        sums: Sequence[float],
        terms: Sequence[float],
        flops: float | None,
        learning_rate: float,
        grad_norm: float,
    ) -> None:
        """Add a step that updated the weights: summed losses and their terms over all ranks."""
        self._last = (inputs, learning_rate, grad_norm)
        step = StepTotals(tokens=inputs.tokens, flops=flops)
        self._interval = self._interval.plus(step)
        if self._updates < WARM_UP_STEPS:
            self._warm_up = self._warm_up.plus(step)
        self._updates += 1
        self._sums = [total + value for total, value in zip(self._sums, sums, strict=True)]
        self._terms = [total + value for total, value in zip(self._terms, terms, strict=True)]

    def read(self, position: Position) -> dict[str, Any] | None:
        """A line of metrics, and start again; None without a step.

        Each loss is per term, None without terms.
        """
        self._total = self._total.plus(self._interval)
        if self._last is None:
            self._clear()
            return None
        inputs, learning_rate, grad_norm = self._last
        losses = self._task.losses
        means = [
            value / terms if terms else None
            for value, terms in zip(self._sums, self._terms, strict=True)
        ]
        weighted = zip(losses.values(), means, strict=True)
        line = {
            "step": position.step,
            **inputs.metrics,
            "loss": sum(weight * mean for weight, mean in weighted if mean is not None),
            **dict(zip(losses, means, strict=True)),
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "tokens": position.tokens,
            **self._task.interval_metrics(self._terms, self._interval.tokens),
            **self._interval.rates(self._peak),
            "skipped_steps": position.skipped,
            "elapsed_s": position.elapsed_s,
        }
        self._clear()
        return line
