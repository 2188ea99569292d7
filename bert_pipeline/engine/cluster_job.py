"""A job on a cluster: a driver process that submits or runs the tasks."""

import os
import pickle
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from bert_pipeline.config import ShardedConfig
from bert_pipeline.engine import timeouts
from bert_pipeline.errors import BertpipeError

T = TypeVar("T")

RESULTS = "results"
"""Folder of the results in the folder of a job."""
RUNNING = "running.lock"
"""File in the folder of a job, locked by each task while it runs."""


class ClusterJob(ABC):
    """Some tasks on a cluster, and the driver process that runs datatrove's executor for them.

    The driver is a process, as with datatrove's launcher, so that the output of Ray and Slurm goes
    to a log, and that it can be killed in any state.
    """

    cluster: ClassVar[str]

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self.folder = folder
        self.name = name
        self.count = count
        self.results = folder / RESULTS
        self._executor = folder / "driver.pik"
        self._log = folder / "driver.log"
        self._driver: subprocess.Popen[bytes] | None = None

    @staticmethod
    @abstractmethod
    def check() -> None:
        """Raise `BertpipeError` when software that the engine needs is missing."""

    @abstractmethod
    def make_executor(self, function: Any, config: ShardedConfig) -> Any:
        """The executor that the driver runs."""

    def prepare(
        self, function: Callable[[T], Any], tasks: Sequence[T], config: ShardedConfig
    ) -> None:
        """Write the executor to a file for the driver."""
        from loguru import logger

        from bert_pipeline.engine.executors import RecordedFunction

        logger.disable("datatrove")  # in this process; the driver and the tasks keep their logs
        self.results.mkdir()
        recorded = RecordedFunction(function, tasks, self.results)
        executor = self.make_executor(recorded, config)
        self._executor.write_bytes(pickle.dumps(executor))

    def start(self) -> None:
        """Start the driver in a new session, so that only this process receives Ctrl-C."""
        command = [
            sys.executable,
            "-m",
            "datatrove.tools.launch_pickled_pipeline",
            str(self._executor),
        ]
        # This process may be in a Slurm job, whose settings must not apply to the new one.
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("SLURM_") or key == "SLURM_CONF"
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
        """Whether no task can be running. Raises `BertpipeError` when the driver failed."""
        assert self._driver
        code = self._driver.poll()
        if code:
            log = self._log.read_text(errors="replace")
            lines = [line for line in log.splitlines() if line.strip()]
            reasons = [line for line in lines if line.startswith("sbatch:")] or lines[-1:]
            reason = " ".join(reasons or [f"exit code {code}"])
            raise BertpipeError(
                f"{self.cluster} could not start the tasks. {reason}\nComplete log: {self._log}"
            )
        return code is not None

    def wait(self) -> None:
        """Wait until the driver ends, after the results of all tasks are there."""
        assert self._driver
        with suppress(subprocess.TimeoutExpired):
            self._driver.wait(timeouts.SHARED_FILES_S)

    def stop(self) -> None:
        """Stop everything that may be running."""
        if self._driver and self._driver.poll() is None:
            os.killpg(self._driver.pid, signal.SIGKILL)
            self._driver.wait()
