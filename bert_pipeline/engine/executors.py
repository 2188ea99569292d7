"""The engine's executors: datatrove's, each running one step, which is handed `(data, rank, world_size)`.

A rank is the number of a task. On a cluster the outcome of each task travels through a file in a folder that all
nodes share. datatrove's own marks of completion know nothing of what was asked, so they are used within one run alone:
every run has a new folder, and what was finished before is known by the shards themselves.
"""

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
from bert_pipeline.engine.processes import KILLED, end_with, prepare_worker, run_in_processes
from bert_pipeline.errors import BertpipeError
from bert_pipeline.storage.atomic import write_json

T = TypeVar("T")
R = TypeVar("R")

JOIN_S = 60
"""A Ray cluster must answer within this time, in seconds."""


class Step(Generic[T, R]):
    """A function of one task, as the step of a pipeline whose ranks are the tasks."""

    def __init__(self, function: Callable[[T], R], tasks: Sequence[T]) -> None:
        self.function, self.tasks = function, tasks

    def call_for(self, rank: int) -> Callable[[], R]:
        """The call that rank `rank` stands for, without the other tasks."""
        return partial(self.function, self.tasks[rank])

    def __call__(self, data: object, rank: int, world_size: int) -> R | None:
        return self.call_for(rank)()

    def __repr__(self) -> str:  # datatrove logs it
        return f"{self.function.__name__} of {len(self.tasks)} task(s)"


class RecordedStep(Step[T, R]):
    """A step that runs anywhere: its outcome is the file `NNNNN.json` in `folder`, and relative paths keep their sense.

    The file holds either `result`, or `error` (a message), whether it was `expected`, `exit_code` and `traceback`.
    """

    def __init__(self, function: Callable[[T], R], tasks: Sequence[T], folder: Path) -> None:
        super().__init__(function, tasks)
        self._folder, self._home = folder, Path.cwd()

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        prepare_worker(os.getppid())
        if not self._folder.is_dir():
            raise RuntimeError(
                f"{self._folder}: not found on {socket.gethostname()}; all nodes must share it"
            )
        try:
            os.chdir(self._home)
            self._record(rank, {"result": self.call_for(rank)()})
        except Exception as error:
            self.record_error(rank, error)
            # datatrove logs the value of every variable on an exception's way; on this one's there is no secret.
            raise RuntimeError(f"task {rank} failed, see {self._folder}") from None

    def record_error(self, rank: int, error: Exception) -> None:
        """Record why there is no result."""
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

    Not datatrove's `LocalPipelineExecutor`: its pool waits for ever for a worker that was killed. Nor are there logs
    and marks: somebody watches, and results and errors come back by the pool as they are.
    """

    def __init__(self, step: Step[T, R], workers: int) -> None:
        super().__init__([step])
        self._step, self._workers = step, workers

    @property
    def world_size(self) -> int:
        """The number of tasks."""
        return len(self._step.tasks)

    def run(self) -> Iterator[tuple[int, Any]]:
        """Yield `(rank, result)` as tasks finish."""
        # A worker is sent its own tasks alone, and never loads datatrove.
        calls = [self._step.call_for(rank) for rank in range(self.world_size)]
        yield from run_in_processes(calls, self._workers)

    def get_distributed_env(self, node_rank: int = -1) -> dict[str, str]:
        """Nothing: no step looks beyond its machine."""
        return {}


class RayExecutor(RayPipelineExecutor):  # type: ignore[misc]
    """Tasks on a Ray cluster, driven by a process that ends with the one that made this object."""

    def __init__(
        self, step: RecordedStep[T, R], workers: int, folder: Path, options: Mapping[str, str]
    ) -> None:
        super().__init__(
            [step],
            tasks=len(step.tasks),
            workers=workers,
            logging_dir=str(folder),
            mem_per_cpu_gb=int(options.get("memory_gb", 0)),
        )
        self._step, self._parent = step, os.getpid()

    def run(self) -> None:
        """Join the cluster that RAY_ADDRESS names or that runs on this machine, else start one here; run all tasks."""
        end_with(self._parent)
        import ray

        patience = threading.Timer(JOIN_S, _give_up_joining)  # Ray itself would try for ever
        patience.start()
        ray.init(include_dashboard=False, log_to_driver=False)
        patience.cancel()
        super().run()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        # In a process of its own: this one lives to tell when the kernel kills that one for lack of memory, where the
        # pool that datatrove put around both would wait for ever. It also leaves nothing behind for the next task.
        prepare_worker(os.getppid())
        # And by datatrove's base class: its class for Ray logs into a folder of /tmp that users cannot share.
        context = multiprocessing.get_context("fork")
        process = context.Process(
            target=PipelineExecutor._run_for_rank, args=(self, rank, local_rank, node_rank)
        )
        process.start()
        process.join()
        if process.exitcode:
            if process.exitcode < 0:
                self._step.record_error(rank, BertpipeError(KILLED))
            raise RuntimeError(f"task {rank} ended with exit code {process.exitcode}")
        return PipelineStats()


def _give_up_joining() -> None:
    address = os.environ.get("RAY_ADDRESS", "")
    sys.stderr.write(
        f"No cluster answered in {JOIN_S} seconds at {address or 'this machine'} (RAY_ADDRESS).\n"
    )
    sys.stderr.flush()
    os._exit(1)


class SlurmExecutor(SlurmPipelineExecutor):  # type: ignore[misc]
    """Tasks as the elements of array jobs, all with one name, by which they are watched and cancelled."""

    def __init__(
        self,
        step: RecordedStep[T, R],
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
            [step],
            tasks=len(step.tasks),
            workers=workers,
            logging_dir=str(folder),
            job_name=name,
            # What nobody gave is left to the cluster's own defaults.
            time=None,
            partition=None,
            mem_per_cpu_gb=None,
            qos=None,
            sbatch_args=arguments,
            with_srun=False,
            **settings,
        )

    def launch_job(self) -> None:
        """Submit, unless the process that made this object is gone."""
        end_with(self._parent)
        super().launch_job()

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, str]:
        """The directives of the batch script; values with spaces are quoted."""
        arguments = super().get_sbatch_args(max_array)
        unset = (None, "NoneG")  # the latter is datatrove's way of writing no `mem_per_cpu_gb`
        return {
            key: shlex.quote(str(value)) if value else ""
            for key, value in arguments.items()
            if value not in unset
        }

    def get_launch_file_contents(self, sbatch_args: dict[str, str], run_script: str) -> str:
        """The batch script, run by this very Python, whatever the PATH on the node."""
        pickled = self.logging_dir.resolve_paths("executor.pik")
        command = [sys.executable, "-m", "datatrove.tools.launch_pickled_pipeline", pickled]
        script: str = super().get_launch_file_contents(sbatch_args, shlex.join(command))
        return script

    def launch_merge_stats(self) -> None:
        """Submit no job for statistics that nobody reads."""
