"""The training loop: steps, clock, metrics, evaluations, checkpoints and signals. It knows Accelerate, not BERT."""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
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


@dataclass
class _Meter:
    """Sums since the last line of metrics."""

    losses: torch.Tensor | None = None
    totals: list[int] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    waiting: float = 0.0

    def add(self, losses: torch.Tensor, step: Step, seconds: float, waiting: float) -> None:
        self.losses = losses if self.losses is None else self.losses + losses
        self.totals = [a + b for a, b in zip(self.totals or [0] * len(step.totals), step.totals, strict=True)]
        self.tokens += step.tokens
        self.seconds += seconds
        self.waiting += waiting

    def means(self, accelerator: Accelerator) -> list[float | None]:
        """Each loss per term, over all ranks; None for a loss without terms."""
        assert self.losses is not None
        sums = accelerator.reduce(self.losses, "sum").tolist()
        return [value / total if total else None for value, total in zip(sums, self.totals, strict=True)]


def fit(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    make_step: Callable[[int], Step],
    length: Length,
    start: Position,
    *,
    loss_names: Sequence[str],
    max_grad_norm: float,
    seed: int,
    hooks: Hooks,
    progress: Bar,
) -> Position:
    """Train from `start` to the end of the run's length and return where it ended.

    The clock counts everything from here on, added to what earlier parts of the run took. Raises `Stopped` after
    saving when a signal asks to stop, and `BertpipeError` when the loss stays non-finite.
    """
    clock = _Clock(accelerator, start.elapsed_s)
    stop, meter, position, skipped = StopSignal(), _Meter(), start, 0
    model.train()
    with stop:
        for step in _look_ahead(make_step, start.step):
            elapsed, stopping = clock.agree(stop.number)
            done = length.progress(position.step, elapsed)
            if stopping or done >= 1.0:
                break
            began = time.perf_counter()
            data = step()
            waited = time.perf_counter() - began
            learning_rate = optimizer.set_progress(done)
            _seed_step(seed, position.step, accelerator)
            losses = _forward_backward(accelerator, model, data)
            norm = float(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm))
            skipped = 0 if math.isfinite(norm) else skipped + 1
            if not skipped:
                optimizer.step()
            elif skipped == NON_FINITE_IN_A_ROW:
                raise BertpipeError(
                    f"Loss or gradient was not finite in {skipped} steps in a row, up to step {position.step + 1}. "
                    "The weights hold none of them. Lower the learning rate and start anew with --overwrite."
                )
            optimizer.zero_grad()
            if not skipped:
                meter.add(losses, data, time.perf_counter() - began, waited)
            position = Position(position.step + 1, position.tokens + data.tokens, clock.elapsed())
            at_end = length.steps == position.step
            if meter.tokens and (position.step % hooks.log_every == 0 or at_end):
                line = _metrics(accelerator, meter, position, loss_names, data.epoch, learning_rate, norm)
                hooks.log(line)
                progress.move_to(
                    position.step if length.steps else position.elapsed_s,
                    f"loss {line['loss']:.3f} · {line['tokens_per_second']:,.0f} tokens/s",
                )
                meter = _Meter()
            if position.step % hooks.evaluate_every == 0 and not at_end:
                hooks.log({"step": position.step, **hooks.evaluate()})
                model.train()
            if position.step % hooks.checkpoint_every == 0 and not at_end:
                hooks.save(position)
    if position.step > start.step:
        hooks.save(position)
    if stopping:
        raise Stopped(
            f"Stopped by a signal; step {position.step} is saved. Run the same command again to go on.", stopping
        )
    return position


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


def _look_ahead(make_step: Callable[[int], Step], first: int) -> Iterator[Callable[[], Step]]:
    """Prepare the next steps on a thread; yields how to get each, so that the wait can be timed."""
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(make_step, first + ahead) for ahead in range(STEPS_AHEAD))
        number = first + STEPS_AHEAD
        while True:
            yield pending.popleft().result
            pending.append(pool.submit(make_step, number))
            number += 1


def _forward_backward(accelerator: Accelerator, model: nn.Module, step: Step) -> torch.Tensor:
    """Gradients of the step's loss: each summed loss over its terms in the whole step. Returns this rank's sums."""
    sums = []
    for number, part in enumerate(step.parts, start=1):
        with nullcontext() if number == len(step.parts) else accelerator.no_sync(model):
            losses = model(part.to(accelerator.device))
            loss = sum(value / total for value, total in zip(losses, step.totals, strict=True) if total)
            # Ranks' gradients are averaged, but the totals already count all ranks.
            accelerator.backward(loss * accelerator.num_processes)
        sums.append(torch.stack(losses).detach())
    return torch.stack(sums).sum(0)


def _seed_step(seed: int, step: int, accelerator: Accelerator) -> None:
    # Dropout as a function of the step: nothing to save, and a resumed run draws what the first would have drawn.
    torch.manual_seed((seed * 1_000_003 + step) * accelerator.num_processes + accelerator.process_index)


def _metrics(
    accelerator: Accelerator,
    meter: _Meter,
    position: Position,
    loss_names: Sequence[str],
    epoch: int,
    learning_rate: float,
    norm: float,
) -> dict[str, Any]:
    means = meter.means(accelerator)
    return {
        "step": position.step,
        "epoch": epoch,
        "loss": sum(mean for mean in means if mean is not None),
        **dict(zip(loss_names, means, strict=True)),
        "learning_rate": learning_rate,
        "grad_norm": norm,
        "tokens": position.tokens,
        "tokens_per_second": meter.tokens / meter.seconds,
        "data_wait": meter.waiting / meter.seconds,
        "elapsed_s": position.elapsed_s,
    }
