"""The training loop: steps, clock, metrics, evaluations, checkpoints and signals. It knows Accelerate, not BERT."""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from bert_pipeline.artifact import atomic
from bert_pipeline.errors import BertpipeError, Stopped
from bert_pipeline.progress import Bar
from bert_pipeline.training.checkpoint import Position
from bert_pipeline.training.schedule import Length
from bert_pipeline.training.signals import StopSignal

STEPS_AHEAD = 2
NON_FINITE_IN_A_ROW = 10


class Batch(Protocol):
    """What the model takes."""

    def to(self, device: torch.device) -> "Batch": ...


class Optimizer(Protocol):
    """What updates the weights."""

    def set_progress(self, progress: float) -> float: ...
    def step(self) -> None: ...
    def zero_grad(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One rank's share of a step."""

    parts: Sequence[Batch]
    """Worked through one after the other."""
    totals: Sequence[int]
    """For each loss that the model returns, how many terms it sums in the whole step, over all ranks and parts."""
    tokens: int
    """Real tokens of the whole step."""
    epoch: int


@dataclass(frozen=True, slots=True)
class Hooks:
    """What happens between steps."""

    evaluate: Callable[[], Mapping[str, float]]
    save: Callable[[Position], None]
    log: Callable[[Mapping[str, Any]], None]
    log_every: int
    evaluate_every: int
    checkpoint_every: int


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, appended as it happens."""

    def __init__(self, path: Path, after_step: int) -> None:
        """Lines beyond `after_step` belong to steps that will be done again, and are dropped."""
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= after_step]
        with atomic(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        """Append a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # cut off by a kill


@dataclass(frozen=True, slots=True)
class Training:
    """What is trained, and how."""

    accelerator: Accelerator
    model: nn.Module
    """Returns a tuple of summed losses for a batch."""
    optimizer: Optimizer
    make_step: Callable[[int, float], Step]
    """This rank's share of step n, a pure function of n and of the share of the run that lies behind."""
    length: Length
    losses: Mapping[str, float]
    """Names and weights of the losses that the model returns, in its order."""
    max_grad_norm: float
    seed: int


def fit(training: Training, start: Position, hooks: Hooks, progress: Bar) -> Position:
    """Train from `start` to the end of the run's length and return where it ended.

    The clock counts everything from here on, added to what earlier parts of the run took. Raises `Stopped` after
    saving when a signal asks to stop, and `BertpipeError` when the loss stays non-finite.
    """
    clock, stop = _Clock(training.accelerator, start.elapsed_s), StopSignal()
    meter, position, skipped = _Meter(), start, 0
    training.model.train()
    with stop, _StepsAhead(training, start) as steps:
        while True:
            elapsed, stopping = clock.agree(stop.number)
            done = training.length.progress(position.step, elapsed)
            if stopping or done >= 1.0:
                break
            began = time.perf_counter()
            step = steps.next(elapsed)
            waited = time.perf_counter() - began
            update = _take_step(training, step, position.step, done)
            position = Position(position.step + 1, position.tokens + step.tokens, clock.elapsed())
            skipped = _count_skipped(update, skipped, position)
            if not skipped:
                meter.add(update, step, time.perf_counter() - began, waited)
            progress.move_to(position.step if training.length.steps else position.elapsed_s)
            if _between_steps(training, hooks, meter, position, progress):
                meter = _Meter()
    if position.step > start.step:
        hooks.save(position)
    if stopping:
        raise Stopped(
            f"Stopped by a signal; step {position.step} is saved. Run the same command again to go on.", stopping
        )
    return position


@dataclass(frozen=True, slots=True)
class _Update:
    """What a step did: this rank's sums of the losses, the gradient's norm, the learning rate."""

    losses: torch.Tensor
    norm: float
    learning_rate: float


def _take_step(training: Training, step: Step, number: int, done: float) -> _Update:
    """Update the weights, unless the gradient is not finite."""
    accelerator, optimizer = training.accelerator, training.optimizer
    learning_rate = optimizer.set_progress(done)
    # Dropout as a function of the step: nothing to save, and a resumed run draws what the first would have drawn.
    ranks, rank = accelerator.num_processes, accelerator.process_index
    torch.manual_seed((training.seed * 1_000_003 + number) * ranks + rank)
    losses = _forward_backward(accelerator, training.model, step, list(training.losses.values()))
    norm = float(accelerator.clip_grad_norm_(training.model.parameters(), training.max_grad_norm))
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad()
    return _Update(losses, norm, learning_rate)


def _count_skipped(update: _Update, skipped: int, position: Position) -> int:
    """Steps without an update up to this one; too many in a row end the run."""
    if math.isfinite(update.norm):
        return 0
    if skipped + 1 == NON_FINITE_IN_A_ROW:
        raise BertpipeError(
            f"Loss or gradient was not finite in {NON_FINITE_IN_A_ROW} steps in a row, up to step {position.step}. "
            "The weights hold none of them. Lower the learning rate and start anew with --overwrite."
        )
    return skipped + 1


def _between_steps(training: Training, hooks: Hooks, meter: "_Meter", position: Position, progress: Bar) -> bool:
    """Log, evaluate and save where it is time to; True when the meter was read."""
    at_end = training.length.steps == position.step
    logged = meter.last is not None and (position.step % hooks.log_every == 0 or at_end)
    if logged:
        line = meter.read(training, position)
        hooks.log(line)
        progress.note(f"loss {line['loss']:.3f} · {line['tokens_per_second']:,.0f} tokens/s")
    if position.step % hooks.evaluate_every == 0 and not at_end:
        hooks.log({"step": position.step, **hooks.evaluate()})
    if position.step % hooks.checkpoint_every == 0 and not at_end:
        hooks.save(position)
    return logged


class _Meter:
    """Sums since the last line of metrics."""

    def __init__(self) -> None:
        self.last: tuple[_Update, Step] | None = None
        self._losses: list[torch.Tensor] = []
        self._totals: list[Sequence[int]] = []
        self._tokens, self._seconds, self._waiting = 0, 0.0, 0.0

    def add(self, update: _Update, step: Step, seconds: float, waiting: float) -> None:
        self.last = update, step
        self._losses.append(update.losses)
        self._totals.append(step.totals)
        self._tokens += step.tokens
        self._seconds += seconds
        self._waiting += waiting

    def read(self, training: Training, position: Position) -> dict[str, Any]:
        """A line of metrics; each loss is per term over all ranks, None without terms."""
        assert self.last is not None
        update, step = self.last
        sums = training.accelerator.reduce(torch.stack(self._losses).sum(0), "sum").tolist()
        weights = training.losses.values()
        totals = [sum(column) for column in zip(*self._totals, strict=True)]
        means = [value / total if total else None for value, total in zip(sums, totals, strict=True)]
        return {
            "step": position.step,
            "epoch": step.epoch,
            "loss": sum(weight * mean for weight, mean in zip(weights, means, strict=True) if mean is not None),
            **dict(zip(training.losses, means, strict=True)),
            "learning_rate": update.learning_rate,
            "grad_norm": update.norm,
            "tokens": position.tokens,
            "tokens_per_second": self._tokens / self._seconds,
            "data_wait": self._waiting / self._seconds,
            "elapsed_s": position.elapsed_s,
        }


class _Clock:
    """Seconds of the run, the same on all ranks."""

    def __init__(self, accelerator: Accelerator, before: float) -> None:
        self._accelerator, self._began, self._before = accelerator, time.perf_counter(), before

    def elapsed(self) -> float:
        return self._before + time.perf_counter() - self._began

    def agree(self, signal_number: int) -> tuple[float, int]:
        """The main process's time, and the signal that any rank has seen: ranks must stop at the same step."""
        if self._accelerator.num_processes == 1:
            return self.elapsed(), signal_number
        seen = torch.zeros(2, dtype=torch.float64, device=self._accelerator.device)
        seen[0] = self.elapsed() if self._accelerator.is_main_process else 0.0
        seen[1] = signal_number
        all_seen = self._accelerator.gather(seen.unsqueeze(0))
        return float(all_seen[0, 0]), int(all_seen[:, 1].max())


class _StepsAhead:
    """Prepares the next steps on a thread while the current one runs."""

    def __init__(self, training: Training, start: Position) -> None:
        self._training, self._number = training, start.step
        self._pool = ThreadPoolExecutor(1)
        self._pending: deque[Future[Step]] = deque()
        self._prepare(start.elapsed_s)

    def __enter__(self) -> "_StepsAhead":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def next(self, elapsed: float) -> Step:
        """The next step; `elapsed` is the time that all ranks agree on."""
        step = self._pending.popleft().result()
        self._prepare(elapsed)
        return step

    def _prepare(self, elapsed: float) -> None:
        while len(self._pending) < STEPS_AHEAD:
            # In a run by steps this is the exact share; in one by the clock it is some steps old, on all ranks alike.
            done = self._training.length.progress(self._number, elapsed)
            self._pending.append(self._pool.submit(self._training.make_step, self._number, done))
            self._number += 1


def _forward_backward(accelerator: Accelerator, model: nn.Module, step: Step, weights: Sequence[float]) -> torch.Tensor:
    """Gradients of the step's loss: each summed loss over its terms in the whole step, weighted.

    Returns this rank's sums.
    """
    sums = []
    for number, part in enumerate(step.parts, start=1):
        with nullcontext() if number == len(step.parts) else accelerator.no_sync(model):
            losses = model(part.to(accelerator.device))
            terms = zip(weights, losses, step.totals, strict=True)
            loss = torch.stack([weight * value / max(1, total) for weight, value, total in terms]).sum()
            # Ranks' gradients are averaged, but the totals already count all ranks.
            accelerator.backward(loss * accelerator.num_processes)
        sums.append(torch.stack(losses).detach())
    return torch.stack(sums).sum(0)
