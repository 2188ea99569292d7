"""The training loop: steps, clock, evaluations, checkpoints and signals. It knows no BERT.

Whether a step's loss and gradient are finite is decided on the device, which otherwise leaves
weights and optimizer state unchanged; the host reads the result when the next step is queued, so
nothing waits.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from bert_pipeline.errors import BertpipeError, ReportedByMain, Stopped
from bert_pipeline.progress import bar, print_line
from bert_pipeline.training.config import TrainConfig
from bert_pipeline.training.distributed import Ranks, gradient_norm, reshard, synchronize_if
from bert_pipeline.training.micro_batch import ForwardBackward, GraphedForwardBackward
from bert_pipeline.training.position import Position
from bert_pipeline.training.precision import LossScale
from bert_pipeline.training.prefetch import StepPrefetcher
from bert_pipeline.training.reporter import Reporter
from bert_pipeline.training.signals import StopSignal
from bert_pipeline.training.state import TrainingState
from bert_pipeline.training.step import (
    AllRanks,
    BestMetric,
    StepResult,
    copy_to_device,
    copy_to_host,
)
from bert_pipeline.training.task import StepInputs, TrainingTask


class StepOptimizer(Protocol):
    """What updates the weights."""

    @property
    def loss_scale(self) -> torch.Tensor:
        """The factor of the loss whose gradients `step` takes, a scalar on the device."""

    def set_progress(self, progress: float) -> float:
        """Set the learning rates for a completed share of the run; return the reported one."""

    def step(self, norm: torch.Tensor, finite: torch.Tensor) -> None:
        """Update the weights if `finite`, and clear the gradients."""


class Trainer:
    """Trains a model on a task until the end of the run's length."""

    def __init__(
        self,
        config: TrainConfig,
        ranks: Ranks,
        model: nn.Module,
        optimizer: StepOptimizer,
        task: TrainingTask,
        state: TrainingState,
        folder: Path,
        best_metric: BestMetric | None = None,
        *,
        cuda_graphs: bool = False,
    ) -> None:
        """`model` returns a tuple of summed losses for a batch; `folder` is the run's.

        With a `best_metric`, the checkpoint with its best value is kept. With `cuda_graphs`,
        forward and backward passes are captured; `optimizer` must then keep the gradient tensors.
        """
        self.config = config
        self.ranks = ranks
        self.model = model
        self.optimizer = optimizer
        self.task = task
        self.state = state
        self.folder = folder
        self.best_metric = best_metric
        eager = ForwardBackward(model, ranks)
        self._forward_backward = GraphedForwardBackward(eager) if cuda_graphs else eager
        self.reporter = Reporter(config, ranks, task, folder)
        self.length = config.length()
        self._schedule = config.learning_rate_schedule()
        self.position = Position()
        self._stop = StopSignal()
        self._stopped_by = 0
        self._pending: StepResult | None = None
        self._saved_step = 0
        self._is_last_stable = False
        self._started = time.perf_counter()
        self._elapsed_before = 0.0

    def train(self) -> Position:
        """Train from the newest checkpoint to the end of the run; return the last position.

        The clock counts everything from here on, added to what earlier parts of the run took.
        Raises `Stopped` after saving if a signal asks to stop, and `BertpipeError` if rolling back
        did not help against steps with losses that are not finite.
        """
        config = self.config
        is_quiet = config.quiet or not self.ranks.is_main
        precision = self.ranks.precision.name
        start = self.state.load_newest(quiet=config.quiet) or Position(precision=precision)
        if start.precision != precision:
            raise BertpipeError(
                f"The run was trained in {start.precision} up to step {start.step:,}; here "
                f"--precision {config.precision} is {precision}. Resume where it is "
                f"{start.precision}, or start again with --overwrite."
            )
        if start.step:
            print_line(f"  resuming from step {start.step:,}", quiet=is_quiet)
        self._start(start)
        self._try_largest_batches()
        progress_bar = bar("training", 1.0, quiet=is_quiet, counted=False)
        with closing(self.state), progress_bar as self.reporter.bar, self._stop:
            while not self._train_until_rollback():
                pass
            if self.position.step > self._saved_step:
                self.save()
            self.state.wait()
        if self._stopped_by:
            raise Stopped(
                f"Stopped by a signal; step {self.position.step} is saved. Run the same command "
                "again to resume.",
                self._stopped_by,
            )
        self.reporter.finish()
        return self.position

    def _start(self, start: Position) -> None:
        """Set the clock, the position and the logs to the start or the checkpoint."""
        self.position = replace(start, regular=False, is_best=False, is_stable=False)
        self._saved_step = start.step
        is_complete = self.length.progress(start, start.elapsed_s) >= 1.0
        self.reporter.start(start, is_complete=is_complete)
        self._started = time.perf_counter()
        self._elapsed_before = start.elapsed_s

    def _train_until_rollback(self) -> bool:
        """Run steps to the end of the run or a signal (True), or until a rollback (False)."""
        self.model.train()
        with StepPrefetcher(self.task, self.length, self.position) as batches:
            while True:
                # 1. Wait for the batch, agree with the other ranks, and prepare the next batches.
                step_started = time.perf_counter()
                inputs = batches.next()
                waited = time.perf_counter() - step_started
                all_ranks = self._gather(inputs)
                progress = self.length.progress(self.position, all_ranks.elapsed_s)
                progress = 1.0 if self.stops_early else progress
                if all_ranks.stop_signal or progress >= 1.0:
                    self._stopped_by = all_ranks.stop_signal
                    self._finish_steps(is_complete=progress >= 1.0)
                    return True
                batches.prepare(all_ranks.elapsed_s)
                # 2. Forward, backward and optimizer update.
                result = self.train_step(inputs, all_ranks, progress)
                # 3. Read the losses of the previous step, while the device works on this one.
                if self._read_pending():
                    # This step is dropped: it started from the weights before the rollback.
                    return False
                self._pending = result
                self._advance(inputs, progress)
                if self._needs_values() and self._read_pending():
                    return False
                self.reporter.add_time(time.perf_counter() - step_started, waited)
                # 4. Log, evaluate and save at their intervals.
                self._between_steps()

    def _try_largest_batches(self) -> None:
        """Run out of memory now rather than late in the run, where longer examples begin."""
        self.model.train()
        weights = torch.ones(len(self.task.losses), device=self.ranks.device)
        forward_backward = ForwardBackward(self.model, self.ranks)
        for batch in self.task.largest_batches():
            forward_backward(batch, weights)
            for parameter in self.model.parameters():
                parameter.grad = None

    def train_step(self, inputs: StepInputs, all_ranks: AllRanks, progress: float) -> StepResult:
        """Update the weights, unless a loss or the gradient is not finite.

        `progress` is the completed share of the run.
        """
        ranks = self.ranks
        learning_rate = self.optimizer.set_progress(progress)
        # Dropout is a function of the step: a resumed run draws what the first would have drawn.
        step_seed = self.config.seed * 1_000_003 + self.position.step
        torch.manual_seed(step_seed * ranks.world_size + ranks.rank)
        losses = self.forward_backward(inputs, all_ranks.terms)
        losses = ranks.sum(losses.double())
        loss_scale = self.optimizer.loss_scale
        norm = gradient_norm(self.model.parameters()) / loss_scale
        self.optimizer.step(norm, norm.isfinite() & losses.isfinite().all())
        scalars = torch.stack([norm.double(), loss_scale.double()])
        values, arrived = copy_to_host(torch.cat([losses, scalars]))
        return StepResult(inputs, all_ranks, learning_rate, values, arrived)

    def forward_backward(self, inputs: StepInputs, terms: Sequence[float]) -> torch.Tensor:
        """Accumulate the gradients of the step's loss; return this rank's summed losses.

        The loss is the weighted sum over losses of summed loss / `terms`, which count all ranks.
        """
        ranks = self.ranks
        # DDP averages gradients over ranks, but the terms already count all ranks.
        weights = [
            weight * ranks.world_size / max(1.0, count)
            for weight, count in zip(self.task.losses.values(), terms, strict=True)
        ]
        scaled = copy_to_device(torch.tensor(weights), ranks.device) * self.optimizer.loss_scale
        sums = []
        last = len(inputs.micro_batches) - 1
        for number, batch in enumerate(inputs.micro_batches):
            with synchronize_if(number == last, self.model, ranks.accelerator):
                sums.append(self._forward_backward(batch, scaled))
        return torch.stack(sums).sum(0)

    def evaluate(self, *, final: bool = False) -> Mapping[str, Any]:
        """Evaluate on held-out data, and log the metrics; empty without held-out data."""
        metrics = self.task.evaluate(final=final)
        reshard(self.model)
        if metrics:
            self.reporter.write({"step": self.position.step, **metrics})
        return metrics

    def save(
        self, *, regular: bool = False, is_best: bool = False, is_stable: bool = False
    ) -> None:
        """Start to write a checkpoint of the current position."""
        position = replace(self.position, regular=regular, is_best=is_best, is_stable=is_stable)
        self.state.save(position)
        self._saved_step = self.position.step

    def _gather(self, inputs: StepInputs) -> AllRanks:
        """Agree with the other ranks; if one must stop, all stop at the same step."""
        stop = self._stop.number or self.state.has_failed()
        own = [self._elapsed(), stop, inputs.flops or 0.0, *inputs.terms]
        gathered = self.ranks.gather(own)
        flops, *terms = gathered[:, 2:].sum(0).tolist()
        return AllRanks(
            elapsed_s=float(gathered[0, 0]),
            stop_signal=int(gathered[:, 1].max()),
            terms=terms,
            flops=None if inputs.flops is None else flops,
        )

    def _elapsed(self) -> float:
        return self._elapsed_before + time.perf_counter() - self._started

    def _advance(self, inputs: StepInputs, progress: float) -> None:
        """Move on after a step that began at `progress`."""
        position = inputs.advance(self.position)
        self.position = replace(position, elapsed_s=self._elapsed())
        # By the clock, ranks would not agree on it.
        is_stable = self._schedule.is_stable
        self._is_last_stable = is_stable(progress) and not is_stable(
            self.length.progress(self.position, 0.0)
        )
        if self.reporter.bar:
            self.reporter.bar.move_to(self.length.progress(self.position, self.position.elapsed_s))

    def _read_pending(self) -> bool:
        """Read the losses of the pending step; True if the run was rolled back because of them."""
        result = self._pending
        self._pending = None
        if result is None:
            return False
        losses, norm, loss_scale = result.read()
        are_losses_finite = all(map(math.isfinite, losses))
        if math.isfinite(norm) and are_losses_finite:
            self.reporter.add_step(result, losses, norm, loss_scale)
            self.position = replace(self.position, bad_in_a_row=0)
            return False
        if are_losses_finite and loss_scale > LossScale.LOWEST:
            # An overflow of fp16, which the optimizer answers with a smaller scale.
            return False
        position = self.position
        self.position = replace(
            position, skipped=position.skipped + 1, bad_in_a_row=position.bad_in_a_row + 1
        )
        # The pending step is the last one that the position counts.
        self.task.record_skipped(position.step, result.inputs)
        is_too_many = self.position.bad_in_a_row >= self.config.max_bad_steps
        return is_too_many and self._roll_back()

    def _roll_back(self) -> bool:
        """Load the last regular checkpoint, or the initial weights; its data is not repeated."""
        count = self.config.max_bad_steps
        step = self.position.step
        if self.position.rolled_back:
            if not self.ranks.is_main:
                raise ReportedByMain(BertpipeError.exit_code)
            raise BertpipeError(
                f"Loss or gradient was not finite in {count} consecutive steps, up to step {step}, "
                "also after rolling back to the last checkpoint. The weights are finite; the "
                "batches are in skipped/. Lower the learning rate and start again with "
                "--overwrite."
            )
        # Checkpoints of stops do not count, so that a stopped and a continuous run do the same.
        checkpoint = self.state.load_newest(regular=True)
        if checkpoint is None:
            self.state.reset(self.task.initial_weights())
        print_line(
            f"  step {step:,}: loss or gradient not finite in {count} consecutive steps; rolled "
            f"back to the weights of step {checkpoint.step if checkpoint else 0:,}, continuing "
            "after these batches",
            quiet=self.config.quiet or not self.ranks.is_main,
        )
        self.position = replace(self.position, bad_in_a_row=0, rolled_back=True)
        return True

    def _needs_values(self) -> bool:
        config = self.config
        intervals = (config.log_every, config.evaluate_every, config.checkpoint_every)
        is_due = any(self.position.step % every == 0 for every in intervals)
        return is_due or self._is_last_stable

    def _between_steps(self) -> None:
        config = self.config
        step = self.position.step
        if step % config.log_every == 0:
            self._log_interval()
        # At the end there is a full evaluation and a checkpoint anyway; ranks would not agree on
        # the elapsed time.
        if self.length.progress(self.position, 0.0) >= 1.0:
            return
        is_best = step % config.evaluate_every == 0 and self.select(self.evaluate())
        # After a skipped step the weights may be the cause: the last checkpoint stays the one to
        # roll back to.
        is_regular = step % config.checkpoint_every == 0 and not self.position.bad_in_a_row
        if is_regular:
            self.position = replace(self.position, rolled_back=False)
        if is_regular or is_best or self._is_last_stable:
            self.save(regular=is_regular, is_best=is_best, is_stable=self._is_last_stable)

    def select(self, metrics: Mapping[str, Any]) -> bool:
        """Whether the metrics of an evaluation are the best so far."""
        if self.best_metric is None or self.best_metric.metric not in metrics:
            return False
        value = float(metrics[self.best_metric.metric])
        if not self.best_metric.is_better(value, self.position.best):
            since = self.position.evaluations_since_best + 1
            self.position = replace(self.position, evaluations_since_best=since)
            return False
        self.position = replace(self.position, best=value, evaluations_since_best=0)
        return True

    @property
    def stops_early(self) -> bool:
        """Whether the run ends because evaluations do not get better."""
        best = self.best_metric
        if best is None or best.patience is None:
            return False
        return self.position.evaluations_since_best >= best.patience

    def _finish_steps(self, *, is_complete: bool) -> None:
        self._read_pending()
        if is_complete:
            self._log_interval()
        else:  # the lines of a resumed run continue as if it had not been stopped
            self.reporter.skip_interval(self.position)

    def _log_interval(self) -> None:
        # The device has just been waited for, which the clock has not counted yet.
        self.position = replace(self.position, elapsed_s=self._elapsed())
        self.reporter.write_interval(self.position)
