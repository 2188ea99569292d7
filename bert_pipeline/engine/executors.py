"""The engine's executors, based on datatrove's (https://github.com/huggingface/datatrove).

Each runs a pipeline of one step, a callable of `(data, rank, world_size)`; a rank is the number of
a task. On a cluster the result of each task is a file in a folder that all nodes share. datatrove's
completion markers do not record the settings, so they are used only within one run: every run has a
new folder, and finished shards are found by their footers.
"""

import fcntl
import multiprocessing
import os
import shlex
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from datatrove.executor import RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.utils.stats import PipelineStats

from bert_pipeline.config import SLURM_SETTINGS
from bert_pipeline.engine import timeouts
from bert_pipeline.engine.cluster_job import RUNNING
from bert_pipeline.engine.processes import (
    WORKER_KILLED,
    exit_with_parent,
    prepare_worker,
    run_in_processes,
)
from bert_pipeline.errors import BertpipeError
from bert_pipeline.storage.atomic import write_json
from bert_pipeline.storage.locks import LockFile

T = TypeVar("T")
R = TypeVar("R")


HUB_KEYS = ("HF_ENDPOINT", "HF_HOME")
"""Variables of the Hub's client that tasks on Ray get; Slurm passes the whole environment."""


class MappedFunction(Generic[T, R]):
    """A function and its tasks, as the step of a datatrove pipeline whose ranks are the tasks."""

    def __init__(self, function: Callable[[T], R], tasks: Sequence[T]) -> None:
        self.function = function
        self.tasks = tasks

    def call_for(self, rank: int) -> Callable[[], R]:
        """The call for one rank, without the other tasks, so that it is small when pickled."""
        return partial(self.function, self.tasks[rank])

    def __call__(self, data: object, rank: int, world_size: int) -> R | None:
        return self.call_for(rank)()

    def __repr__(self) -> str:  # for the logs of datatrove
        return f"{self.function.__name__} of {len(self.tasks)} task(s)"


class RecordedFunction(MappedFunction[T, R]):
    """A function that runs on any node and writes its result to `NNNNN.json` in `folder`.

    The file has `result`, or `error` (a message), `expected` (whether it is a `BertpipeError`),
    `exit_code` and `traceback`. Relative paths are resolved as in the process that made the object.
    """

    def __init__(self, function: Callable[[T], R], tasks: Sequence[T], folder: Path) -> None:
        super().__init__(function, tasks)
        self._folder = folder
        self._working_directory = Path.cwd()

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        prepare_worker(os.getppid())
        if not self._folder.is_dir():
            raise RuntimeError(
                f"{self._folder}: not found on {socket.gethostname()}; all nodes must share it"
            )
        try:
            running = LockFile(
                self._folder.with_name(RUNNING)
            )  # until this task ends, or is killed
            running.lock(fcntl.LOCK_SH)
            os.chdir(self._working_directory)
            self._record(rank, {"result": self.call_for(rank)()})
        except Exception as error:
            self.record_error(rank, error)
            # datatrove logs all local variables of a traceback, so this one starts here.
            raise RuntimeError(f"task {rank} failed, see {self._folder}") from None

    def record_error(self, rank: int, error: Exception) -> None:
        """Record an error in place of a result."""
        expected = isinstance(error, BertpipeError)
        where = f"Task {rank} failed on {socket.gethostname()}: {type(error).__name__}: {error}"
        outcome = {
            "error": str(error) if expected else where,
            "expected": expected,
            "exit_code": getattr(error, "exit_code", 1),
            "traceback": "".join(traceback.format_exception(error)).splitlines(),
        }
        self._record(rank, outcome)

    def _record(self, rank: int, outcome: dict[str, Any]) -> None:
        write_json(self._folder / f"{rank:05}.json", outcome)


class LocalExecutor(PipelineExecutor):  # type: ignore[misc]
    """Processes on this machine.

    Not datatrove's `LocalPipelineExecutor`, whose pool waits forever for a worker that was killed.
    There are no logs and completion markers: results and errors are returned through the pool.
    """

    def __init__(self, function: MappedFunction[T, R], workers: int) -> None:
        super().__init__([function])
        self._function = function
        self._workers = workers

    @property
    def world_size(self) -> int:
        """The number of tasks."""
        return len(self._function.tasks)

    def run(self) -> Iterator[tuple[int, Any]]:
        """Yield `(rank, result)` as tasks finish."""
        # A worker receives only its own tasks, and does not import datatrove.
        calls = [self._function.call_for(rank) for rank in range(self.world_size)]
        yield from run_in_processes(calls, self._workers)

    def get_distributed_env(self, node_rank: int = -1) -> dict[str, str]:
        """An empty mapping: the tasks do not communicate."""
        return {}


class HubToken:
    """HF_TOKEN, for tasks on other nodes.

    Ray logs the variables of a runtime environment, and datatrove writes the attributes of an
    executor to a file. So this object has no attribute: the token exists only in what Ray sends to
    a task, whose process sets it.
    """

    def __reduce__(self) -> tuple[Any, tuple[str | None]]:
        return _set_token, (os.environ.get("HF_TOKEN"),)


def _set_token(token: str | None) -> HubToken:
    if token is not None:
        os.environ["HF_TOKEN"] = token
    return HubToken()


class RayExecutor(RayPipelineExecutor):  # type: ignore[misc]
    """Tasks on a Ray cluster; `run` exits when the process that made the object has ended."""

    def __init__(
        self,
        function: RecordedFunction[T, R],
        workers: int,
        folder: Path,
        options: Mapping[str, str],
    ) -> None:
        super().__init__(
            [function],
            tasks=len(function.tasks),
            workers=workers,
            logging_dir=str(folder),
            mem_per_cpu_gb=int(options.get("memory_gb", 0)),
        )
        self._function = function
        self._parent = os.getpid()

    def run(self) -> None:
        """Run all tasks on the cluster of RAY_ADDRESS or of this machine; else start one here."""
        exit_with_parent(self._parent)
        import ray

        # Ray itself has no timeout for connecting.
        timeout = threading.Timer(timeouts.RAY_CONNECT_S, _exit_unconnected)
        timeout.start()
        # The Hub's client reads these on import, so they must be set when a task's process starts.
        variables = {key: os.environ[key] for key in HUB_KEYS if key in os.environ}
        ray.init(include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
        timeout.cancel()
        self._token = HubToken()  # not before, because the executor was pickled to a file
        super().run()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        # In a separate process, so that this one can record when the kernel kills it for lack of
        # memory; datatrove's pool would wait forever. It also isolates the tasks.
        prepare_worker(os.getppid())
        # With datatrove's base class, because its class for Ray logs to a folder in /tmp that
        # several users cannot share.
        context = multiprocessing.get_context("fork")
        process = context.Process(
            target=PipelineExecutor._run_for_rank, args=(self, rank, local_rank, node_rank)
        )
        process.start()
        process.join()
        if process.exitcode:
            if process.exitcode < 0:
                self._function.record_error(rank, BertpipeError(WORKER_KILLED))
            raise RuntimeError(f"task {rank} ended with exit code {process.exitcode}")
        return PipelineStats()


def _exit_unconnected() -> None:
    address = os.environ.get("RAY_ADDRESS", "")
    sys.stderr.write(
        f"No response from the Ray cluster at {address or 'this machine'} (RAY_ADDRESS) within "
        f"{timeouts.RAY_CONNECT_S} seconds.\n"
    )
    sys.stderr.flush()
    os._exit(1)


class SlurmExecutor(SlurmPipelineExecutor):  # type: ignore[misc]
    """Tasks in Slurm array jobs of the same name, by which they are monitored and cancelled."""

    def __init__(
        self,
        function: RecordedFunction[T, R],
        workers: int,
        folder: Path,
        options: Mapping[str, str],
        name: str,
    ) -> None:
        settings = {key: int(options[key]) for key in SLURM_SETTINGS if key in options}
        arguments = {
            key.replace("_", "-"): value for key, value in options.items() if key not in settings
        }
        self._parent = os.getpid()
        super().__init__(
            [function],
            tasks=len(function.tasks),
            workers=workers,
            logging_dir=str(folder),
            job_name=name,
            # None uses the defaults of the cluster.
            time=None,
            partition=None,
            mem_per_cpu_gb=None,
            qos=None,
            sbatch_args=arguments,
            with_srun=False,
            **settings,
        )

    def launch_job(self) -> None:
        """Submit the tasks, unless the process that made the object has ended."""
        exit_with_parent(self._parent)
        super().launch_job()

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, str]:
        """The directives of the batch script; values with spaces are quoted."""
        arguments = super().get_sbatch_args(max_array)
        unset = (None, "NoneG")  # datatrove writes "NoneG" for an unset `mem_per_cpu_gb`
        return {
            key: shlex.quote(str(value)) if value else ""
            for key, value in arguments.items()
            if value not in unset
        }

    def get_launch_file_contents(self, sbatch_args: dict[str, str], run_script: str) -> str:
        """The batch script, which runs this Python, independent of the node's PATH."""
        pickled = self.logging_dir.resolve_paths("executor.pik")
        command = [sys.executable, "-m", "datatrove.tools.launch_pickled_pipeline", pickled]
        script: str = super().get_launch_file_contents(sbatch_args, shlex.join(command))
        return script

    def launch_merge_stats(self) -> None:
        """Do nothing: datatrove's statistics are not used."""
