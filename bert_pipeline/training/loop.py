"""The training loop: steps, clock, checks, evaluations, checkpoints and signals. It knows Accelerate, not BERT.

Whether a step's loss and gradient were finite is decided on the device, which then leaves weights and state alone; the
host reads it when the next step is in the queue, and nothing waits.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bert_pipeline.errors import BertpipeError, ReportedByMain, Stopped
from bert_pipeline.progress import Bar
from bert_pipeline.training.checkpoint import Position
from bert_pipeline.training.metrics import Account, Meter
from bert_pipeline.training.prefetch import StepsAhead
from bert_pipeline.training.schedule import Length
from bert_pipeline.training.signals import StopSignal
from bert_pipeline.training.step import Step, StepResult, Trainer


@dataclass(frozen=True, slots=True)
class Hooks:
    """What happens between steps."""

    evaluate: Callable[[], Mapping[str, float]]
    save: Callable[[Position], None]
    """Begin to write a checkpoint: `settle` waits for it, and raises what kept it from being written."""
    settle: Callable[[], None]
    has_failed: Callable[[], bool]
    """Whether the main process knows already that `settle` will raise: the run then ends."""
    restore: Callable[[int], None]
    """Put weights and optimizer back to the last checkpoint, or to the start; the step tells people where."""
    write_aside: Callable[[int, Step], None]
    """Keep the examples of a bad step (numbered from 1) for people to look at."""
    log: Callable[[Mapping[str, Any]], None]
    tick: Callable[[], None]
    """After each step."""
    log_every: int
    evaluate_every: int
    checkpoint_every: int


@dataclass(frozen=True, slots=True)
class Training:
    """What is trained, how long, and how its figures are taken."""

    trainer: Trainer
    make_step: Callable[[Position, float], Step]
    """This rank's share of the step at a position: a pure function of it and of the share of the run behind it."""
    length: Length
    max_bad_steps: int
    """Steps in a row that may be bad (loss or gradient not finite) before the run goes back to its last checkpoint."""
    peak_flops: float | None = None
    """FLOP/s of all devices together, where they are known."""


def fit(
    training: Training, start: Position, hooks: Hooks, progress: Bar
) -> tuple[Position, Account]:
    """Train from `start` to the end of the run's length; return where it ended and what the steps took.

    The clock counts everything from here on, added to what earlier parts of the run took. Raises `Stopped` after
    saving when a signal asks to stop, and `BertpipeError` when going back did not help against bad steps.
    """
    with StopSignal() as stop:
        run = _Fit(training, start, hooks, progress, stop)
        while not run.go_on():
            pass  # it went back to a checkpoint, and its prepared steps were dropped
        position = run.position
        if position.step > run.saved:
            hooks.save(position)
        hooks.settle()  # a second SIGTERM does not end it
    if run.stopping:
        raise Stopped(
            f"Stopped by a signal; step {position.step} is saved. Run the same command again to go on.",
            run.stopping,
        )
    return position, run.meter.whole


class _Fit:
    """A run in progress."""

    def __init__(
        self, training: Training, start: Position, hooks: Hooks, progress: Bar, stop: StopSignal
    ) -> None:
        self._training, self._hooks, self._progress, self._stop = training, hooks, progress, stop
        self._began, self._before = time.perf_counter(), start.elapsed_s
        self._unread: StepResult | None = None
        self.position = replace(start, regular=False)
        self.saved = start.step
        """The newest step that there is a checkpoint of."""
        self.meter = Meter(training.trainer.losses, training.peak_flops)
        self.stopping = 0

    def go_on(self) -> bool:
        """Take steps until the end of the run or a signal (True), or until the run has gone back (False)."""
        training = self._training
        training.trainer.model.train()
        with StepsAhead(training.make_step, training.length, self.position) as steps:
            while True:
                began = time.perf_counter()
                step = steps.next()
                waited = time.perf_counter() - began
                elapsed, flops, totals = self._agree(step)
                done = training.length.progress(self.position.step, self.position.tokens, elapsed)
                if self.stopping or done >= 1.0:
                    self._end(complete=done >= 1.0)
                    return True
                steps.prepare(elapsed)
                taken = training.trainer.take(step, self.position.step, totals, flops, done)
                if self._read():
                    # The step just taken is forgotten: it started from weights that are no more.
                    return False
                self._unread = taken
                self._move(step)
                if self._is_time() and self._read():
                    return False
                self.meter.spend(time.perf_counter() - began, waited)
                self._between_steps()

    def _end(self, *, complete: bool) -> None:
        self._read()
        if complete:
            self._log()
        else:  # of a stopped run, the lines go on as if it had not been
            self.meter.read(self.position)

    def _log(self) -> None:
        # The device has just been waited for, which the clock did not see yet.
        self.position = replace(self.position, elapsed_s=self._elapsed())
        if line := self.meter.read(self.position):
            self._hooks.log(line)
            self._progress.note(
                f"loss {line['loss']:.3f} · {line['tokens_per_second']:,.0f} tokens/s"
            )

    def _agree(self, step: Step) -> tuple[float, float | None, list[float]]:
        """The main process's time, and the step's operations and terms of the losses over all ranks.

        All ranks also learn here that one was told to stop or could not save, so that they stop at the same step.
        """
        stop = self._stop.number or self._hooks.has_failed()
        own = [self._elapsed(), stop, step.flops or 0.0, *step.totals]
        gathered = self._training.trainer.ranks.gather(own)
        self.stopping = int(gathered[:, 1].max())
        flops, *totals = gathered[:, 2:].sum(0).tolist()
        return float(gathered[0, 0]), None if step.flops is None else flops, totals

    def _elapsed(self) -> float:
        return self._before + time.perf_counter() - self._began

    def _move(self, step: Step) -> None:
        after = step.next
        self.position = replace(
            self.position,
            step=after.step,
            phase=after.phase,
            rows=after.rows,
            tokens=after.tokens,
            elapsed_s=self._elapsed(),
        )
        self._progress.move_to(
            self._training.length.progress(after.step, after.tokens, self.position.elapsed_s)
        )

    def _read(self) -> bool:
        """Look at the last step's figures; True when the run went back because of them."""
        taken, self._unread = self._unread, None
        if taken is None:
            return False
        losses, norm = taken.read()
        if math.isfinite(norm) and all(map(math.isfinite, losses)):
            self.meter.add(taken, losses, norm)
            self.position = replace(self.position, bad_in_a_row=0)
            return False
        position = self.position
        self.position = replace(
            position, skipped=position.skipped + 1, bad_in_a_row=position.bad_in_a_row + 1
        )
        self._hooks.write_aside(taken.step.next.step, taken.step)
        return self.position.bad_in_a_row >= self._training.max_bad_steps and self._go_back()

    def _go_back(self) -> bool:
        count, step = self._training.max_bad_steps, self.position.step
        if self.position.went_back:
            if not self._training.trainer.ranks.main:
                raise ReportedByMain(BertpipeError.exit_code)
            raise BertpipeError(
                f"Loss or gradient was not finite in {count} steps in a row, up to step {step}, and again after going "
                "back to the last checkpoint. The weights hold none of them, and the batches lie in skipped/. Lower "
                "the learning rate and start anew with --overwrite."
            )
        self._hooks.restore(step)
        self.position = replace(self.position, bad_in_a_row=0, went_back=True)
        return True

    def _is_time(self) -> bool:
        """Whether the figures are wanted now."""
        hooks, step = self._hooks, self.position.step
        return any(
            step % every == 0
            for every in (hooks.log_every, hooks.evaluate_every, hooks.checkpoint_every)
        )

    def _between_steps(self) -> None:
        """Log, evaluate and save where it is time to."""
        hooks, step = self._hooks, self.position.step
        hooks.tick()
        if step % hooks.log_every == 0:
            self._log()
        # At the end there is a full evaluation and a save anyway; by the clock, ranks would not agree on where that is.
        if self._training.length.progress(step, self.position.tokens, 0.0) >= 1.0:
            return
        if step % hooks.evaluate_every == 0:
            hooks.log({"step": step, **hooks.evaluate()})
        # In a bad row the weights may be what is wrong: the last checkpoint stays the one to go back to.
        if step % hooks.checkpoint_every == 0 and not self.position.bad_in_a_row:
            self.position = replace(self.position, went_back=False)
            hooks.save(replace(self.position, regular=True))
            self.saved = step
