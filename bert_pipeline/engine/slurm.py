"""`--engine slurm`: tasks as array jobs of Slurm."""

import math
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from bert_pipeline.config import ShardedConfig
from bert_pipeline.engine import timeouts
from bert_pipeline.engine.cluster_job import ClusterJob
from bert_pipeline.errors import BertpipeError

SLURM_COMMANDS = ("sbatch", "squeue", "scancel")


class SlurmJob(ClusterJob):
    """Tasks on Slurm, which the driver submits."""

    cluster = "Slurm"

    def __init__(self, folder: Path, name: str, count: int) -> None:
        super().__init__(folder, name, count)
        self._is_queued = True
        self._last_call = -math.inf
        self._last_success = time.monotonic()

    @staticmethod
    def check() -> None:
        """Raise `BertpipeError` when Slurm's commands are missing."""
        if missing := missing_commands():
            raise BertpipeError(
                f"--engine slurm: {', '.join(missing)} not found. Run the command on a machine "
                "that can submit Slurm jobs."
            )

    def make_executor(self, function: Any, config: ShardedConfig) -> Any:
        """The executor, which submits when run here, and runs a task when run in a job."""
        from bert_pipeline.engine.executors import SlurmExecutor

        return SlurmExecutor(
            function, config.workers, self.folder, config.read_engine_options(), self.name
        )

    def start(self) -> None:
        """Submit the tasks, after an earlier job for the same folder has ended."""
        cancel_and_wait(self.name)
        super().start()

    def has_ended(self) -> bool:
        """Whether all tasks are submitted and none is in Slurm's queue."""
        if not super().has_ended():
            return False
        now = time.monotonic()
        if now - self._last_call >= timeouts.SQUEUE_POLL_S:
            self._last_call = now
            queued = _is_queued(self.name)
            if queued is not None:
                self._is_queued = queued
                self._last_success = now
            elif now - self._last_success > timeouts.SQUEUE_FAILURE_S:
                raise BertpipeError(
                    f"squeue has failed for {timeouts.SQUEUE_FAILURE_S / 60:.0f} minutes. Rerun "
                    "the same command when Slurm responds; finished shards are kept."
                )
        return not self._is_queued

    def wait(self) -> None:
        """Wait until no task is in Slurm's queue, after the results of all tasks are there."""
        _wait_until_ended(self.name)

    def stop(self) -> None:
        """Stop the driver, and cancel the submitted tasks."""
        super().stop()
        _run_slurm("scancel", f"--name={self.name}")


def missing_commands() -> list[str]:
    """The commands of Slurm that are not on the PATH."""
    return [command for command in SLURM_COMMANDS if shutil.which(command) is None]


def cancel_and_wait(name: str) -> None:
    """Cancel the jobs of that name. Raises `BertpipeError` when they do not end."""
    if _is_queued(name):
        _run_slurm("scancel", f"--name={name}")
        if not _wait_until_ended(name):
            raise BertpipeError(
                f"The earlier job {name} does not end. See `squeue --name={name}`, and retry."
            )


def _wait_until_ended(name: str) -> bool:
    end = time.monotonic() + timeouts.SHARED_FILES_S
    while _is_queued(name) is not False:
        if time.monotonic() >= end:
            return False
        time.sleep(timeouts.RESULTS_POLL_S)
    return True


def _is_queued(name: str) -> bool | None:
    """Whether Slurm has jobs of that name; None when `squeue` fails, as with a busy controller."""
    answer = _run_slurm("squeue", "--noheader", f"--name={name}")
    return bool(answer.stdout.strip()) if answer.returncode == 0 else None


def _run_slurm(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False)
