"""What a run reports while it trains: `metrics.jsonl`, trackers, the progress bar, a profile."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_pipeline.progress import Bar, print_line
from bert_pipeline.training.config import TrainConfig
from bert_pipeline.training.distributed import Ranks
from bert_pipeline.training.hardware import find_peak, peak_memory
from bert_pipeline.training.metrics import Meter, MetricsLog, StepTotals
from bert_pipeline.training.position import Position
from bert_pipeline.training.profile import Profiler
from bert_pipeline.training.step import StepResult
from bert_pipeline.training.task import TrainingTask
from bert_pipeline.training.trackers import Trackers

METRICS = "metrics.jsonl"


class Reporter:
    """Collects the figures of steps; the main process writes and shows them."""

    def __init__(self, config: TrainConfig, ranks: Ranks, task: TrainingTask, folder: Path) -> None:
        """`folder` is the run's."""
        self._config = config
        self._ranks = ranks
        self._task = task
        self._folder = folder
        peak = find_peak(ranks.device, is_half=ranks.precision.half_dtype is not None)
        self.peak_flops = peak and peak * ranks.world_size
        """FLOP/s of all devices together, if known."""
        self.bar: Bar | None = None
        self._meter = Meter(task, self.peak_flops)
        self._loss_scale = 1.0
        self._log: MetricsLog | None = None
        self._trackers: Trackers | None = None
        self._profiler: Profiler | None = None

    @property
    def totals(self) -> StepTotals:
        """Totals of the steps since this process started, without the first ones."""
        return self._meter.total

    def start(self, position: Position, *, is_complete: bool) -> None:
        """Open the logs at a position; `is_complete` says whether no step is left."""
        config = self._config
        self._trackers = Trackers(self._ranks.accelerator, config, self._folder, position.step)
        if self._ranks.is_main:
            path = self._folder / METRICS
            self._log = MetricsLog(path, position.step, is_complete=is_complete)
            self._profiler = Profiler(self._folder) if config.profile else None

    def finish(self) -> None:
        """End the profile, and say what it has written."""
        if self._profiler:
            print_line(self._profiler.finish(), quiet=self._config.quiet)

    def add_time(self, seconds: float, waiting: float) -> None:
        """Add the time of a step, and how much of it was spent waiting for its batch."""
        self._meter.add_time(seconds, waiting)
        if self._profiler:
            self._profiler.step()

    def add_step(
        self, result: StepResult, losses: list[float], norm: float, loss_scale: float
    ) -> None:
        """Add a step that updated the weights, by what `StepResult.read` returned."""
        agreed = result.all_ranks
        rate = result.learning_rate
        self._loss_scale = loss_scale
        self._meter.add_step(result.inputs, losses, agreed.terms, agreed.flops, rate, norm)

    def skip_interval(self, position: Position) -> None:
        """Drop the figures since the last line: a resumed run will write them."""
        self._meter.read(position)

    def write_interval(self, position: Position) -> None:
        """Write a line about the steps since the last one, if there are any."""
        line = self._meter.read(position)
        if not line:
            return
        memory = peak_memory(self._ranks.device)
        scale = {"loss_scale": self._loss_scale} if self._loss_scale != 1.0 else {}
        self.write({**line, **scale, "peak_memory_bytes": memory})
        if self.bar:
            speed = line["tokens_per_second"]
            text = f"step {line['step']:,} · loss {line['loss']:.3f} · {speed:,.0f} tokens/s"
            self.bar.note(text)

    def write(self, line: Mapping[str, Any]) -> None:
        """Write a line of metrics."""
        if self._log:
            self._log.write(line)
            self._task.on_metrics(line)
        if self._trackers:
            self._trackers.log(line)
