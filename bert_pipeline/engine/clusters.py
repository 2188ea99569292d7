"""Tasks on a cluster: start them, gather their results as they come, and leave nothing running.

A process of its own drives datatrove's executor, as datatrove's launcher does: what Ray and Slurm's commands print goes
to a log, and whatever state it is in, it can be killed. It and the nodes are met in a hidden folder of the artifact.
"""

import importlib.util
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from bert_pipeline.config import ShardedConfig
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.storage.atomic import hash_json

T = TypeVar("T")

SCRATCH = ".engine"
"""Hidden folder of an artifact in the making: a folder for each run, with results and logs."""
SLURM_COMMANDS = ("sbatch", "squeue", "scancel")
LOOK_EVERY_S = 0.5
ASK_SLURM_EVERY_S = 15.0
SLURM_SILENCE_S = 600.0
"""Give up when `squeue` has failed for this long."""
LATE_S = 60.0
"""Files of other nodes may be seen this much later, the usual limit of caches on shared file systems."""


def run_on_cluster(
    function: Callable[[T], Any], tasks: Sequence[T], config: ShardedConfig, folder: Path
) -> Iterator[tuple[int, Any]]:
    """Yield `(index, function(task))` for every task, in the order in which they finish; results are JSON values.

    Raises `BertpipeError` with the first task's error, or when tasks vanish without a word.
    """
    job_class = JOBS[config.engine]
    job_class.check()
    end_earlier(folder)
    if not tasks:
        return
    place = folder.resolve() / SCRATCH
    place.mkdir()
    job = job_class(Path(tempfile.mkdtemp(dir=place)), _job_name(folder), len(tasks))
    job.prepare(function, tasks, config)
    has_failed = True
    try:
        job.start()
        yield from _gather(job)
        job.wait()
        has_failed = False
    except GeneratorExit:  # the caller has enough
        has_failed = False
        raise
    finally:
        job.stop()
        if not has_failed:
            shutil.rmtree(place, ignore_errors=True)


def end_earlier(folder: Path) -> None:
    """Cancel what a killed run may have left on a cluster, and forget its results."""
    place = folder / SCRATCH
    if place.exists() and not _missing_commands():
        _cancel_and_wait(_job_name(folder))
    shutil.rmtree(place, ignore_errors=True)


class Job(ABC):
    """A run of some tasks on a cluster."""

    cluster: ClassVar[str]

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self.folder, self.name, self.count = folder, name, count
        self.results = folder / "results"
        self._executor, self._log = folder / "driver.pik", folder / "driver.log"
        self._driver: subprocess.Popen[bytes] | None = None

    @staticmethod
    @abstractmethod
    def check() -> None:
        """Raise when this machine lacks what the engine needs."""

    @abstractmethod
    def make_executor(self, step: Any, config: ShardedConfig) -> Any:
        """The executor that the driver runs."""

    def prepare(
        self, function: Callable[[T], Any], tasks: Sequence[T], config: ShardedConfig
    ) -> None:
        """Write down what the driver runs."""
        from loguru import logger

        from bert_pipeline.engine.executors import RecordedStep

        logger.disable("datatrove")  # here; the driver and the tasks keep their logs
        self.results.mkdir()
        executor = self.make_executor(RecordedStep(function, tasks, self.results), config)
        self._executor.write_bytes(pickle.dumps(executor))

    def start(self) -> None:
        """Start the driver, out of reach of a terminal's Ctrl-C, which this process alone answers."""
        command = [
            sys.executable,
            "-m",
            "datatrove.tools.launch_pickled_pipeline",
            str(self._executor),
        ]
        # Inside a job of Slurm, what that job was granted must not be taken for what this one asks.
        environment = {
            key: value
            for key, value in os.environ.items()
            if key[:6] != "SLURM_" or key == "SLURM_CONF"
        }
        with self._log.open("wb") as log:
            self._driver = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment | {"RAY_USAGE_STATS_ENABLED": "0"},
                start_new_session=True,
            )

    def has_ended(self) -> bool:
        """Whether no task can be at work any more; raises when the cluster did not take them."""
        assert self._driver
        code = self._driver.poll()
        if code:
            lines = [
                line for line in self._log.read_text(errors="replace").splitlines() if line.strip()
            ]
            said = (
                [line for line in lines if line.startswith("sbatch:")]
                or lines[-1:]
                or [f"exit code {code}"]
            )
            raise BertpipeError(
                f"{self.cluster} did not take the tasks. {' '.join(said)}\nThe whole log: {self._log}"
            )
        return code is not None

    def wait(self) -> None:
        """Let the last task, whose result is known, come to its end."""
        assert self._driver
        with suppress(subprocess.TimeoutExpired):
            self._driver.wait(LATE_S)

    def stop(self) -> None:
        """End everything that may still be running."""
        if self._driver and self._driver.poll() is None:
            os.killpg(self._driver.pid, signal.SIGKILL)
            self._driver.wait()


class RayJob(Job):
    """Tasks on Ray; they end with the driver."""

    cluster = "Ray"

    @staticmethod
    def check() -> None:
        """Raise when Ray is not installed."""
        if importlib.util.find_spec("ray") is None:
            raise UsageError(
                "--engine ray needs Ray, here and in the same environment on every node: pip install 'bertpipe[ray]'"
            )

    def make_executor(self, step: Any, config: ShardedConfig) -> Any:
        """The executor that runs tasks from here."""
        from bert_pipeline.engine.executors import RayExecutor

        return RayExecutor(step, config.workers, self.folder, config.read_engine_options())


class SlurmJob(Job):
    """Tasks on Slurm; the driver only submits them."""

    cluster = "Slurm"

    def __init__(self, folder: Path, name: str, count: int) -> None:
        super().__init__(folder, name, count)
        self._queued, self._asked, self._answered = True, -math.inf, time.monotonic()

    @staticmethod
    def check() -> None:
        """Raise when Slurm's commands are missing."""
        if missing := _missing_commands():
            raise BertpipeError(
                f"--engine slurm: {', '.join(missing)} not found. Run it on a machine that submits jobs to Slurm."
            )

    def make_executor(self, step: Any, config: ShardedConfig) -> Any:
        """The executor that submits when run here, and does a task when run in a job."""
        from bert_pipeline.engine.executors import SlurmExecutor

        return SlurmExecutor(
            step, config.workers, self.folder, config.read_engine_options(), self.name
        )

    def start(self) -> None:
        """Submit, after an earlier job for the same folder has left."""
        _cancel_and_wait(self.name)
        super().start()

    def has_ended(self) -> bool:
        """Whether all is submitted and nothing is left in Slurm's queue."""
        if not super().has_ended():
            return False
        now = time.monotonic()
        if now - self._asked >= ASK_SLURM_EVERY_S:
            self._asked = now
            queued = _is_queued(self.name)
            if queued is not None:
                self._queued, self._answered = queued, now
            elif now - self._answered > SLURM_SILENCE_S:
                raise BertpipeError(
                    f"squeue has been failing for {SLURM_SILENCE_S / 60:.0f} minutes. Run the same command again when "
                    "Slurm answers: finished shards are kept."
                )
        return not self._queued

    def wait(self) -> None:
        """Let the last task, whose result is known, come to its end."""
        _wait_until_left(self.name)

    def stop(self) -> None:
        """Stop submitting, and cancel what was submitted."""
        super().stop()
        _run_slurm("scancel", f"--name={self.name}")


JOBS: dict[str, type[Job]] = {"ray": RayJob, "slurm": SlurmJob}


def _gather(job: Job) -> Iterator[tuple[int, Any]]:
    done: set[int] = set()
    last_sign = time.monotonic()
    while True:
        ended = (
            job.has_ended()
        )  # asked before looking: what was written before the end is then seen
        fresh = sorted({int(path.stem) for path in job.results.glob("[0-9]*.json")} - done)
        for rank in fresh:
            yield rank, _read_result(job.results / f"{rank:05}.json")
        done.update(fresh)
        if len(done) == job.count:
            return
        if fresh or not ended:
            last_sign = time.monotonic()
        elif time.monotonic() - last_sign >= LATE_S:
            raise BertpipeError(
                _explain_loss(job, min(set(range(job.count)) - done), job.count - len(done))
            )
        time.sleep(LOOK_EVERY_S)


def _read_result(path: Path) -> Any:
    outcome = json.loads(path.read_text(encoding="utf-8"))
    if "error" not in outcome:
        return outcome["result"]
    told = "" if outcome["expected"] else f"\nThe traceback: {path}"
    error = BertpipeError(outcome["error"] + told)
    error.exit_code = outcome["exit_code"]
    raise error


def _explain_loss(job: Job, first: int, count: int) -> str:
    return (
        f"{job.cluster} ended without the results of {count} of {job.count} task(s), the first of them task {first}. "
        "Most often tasks ran out of memory or time, were cancelled, or ran on a node that does not share "
        f"{job.folder.parent.parent}. Logs: {job.folder}. Run the same command again: finished shards are kept."
    )


def _job_name(folder: Path) -> str:
    # All jobs for a folder have one name, known before there is a job: none is ever lost.
    return f"bertpipe-{hash_json(str(folder.resolve()))[:16]}"


def _missing_commands() -> list[str]:
    return [command for command in SLURM_COMMANDS if shutil.which(command) is None]


def _cancel_and_wait(name: str) -> None:
    if _is_queued(name):
        _run_slurm("scancel", f"--name={name}")
        if not _wait_until_left(name):
            raise BertpipeError(
                f"The earlier job {name} does not end; look at `squeue --name={name}` and try again."
            )


def _wait_until_left(name: str) -> bool:
    end = time.monotonic() + LATE_S
    while _is_queued(name) is not False:
        if time.monotonic() >= end:
            return False
        time.sleep(LOOK_EVERY_S)
    return True


def _is_queued(name: str) -> bool | None:
    """Whether Slurm holds jobs of that name; None when it gives no answer, as a busy controller may."""
    answer = _run_slurm("squeue", "--noheader", f"--name={name}")
    return bool(answer.stdout.strip()) if answer.returncode == 0 else None


def _run_slurm(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False)
