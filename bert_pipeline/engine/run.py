"""Maps a pure function over tasks, each of which writes one shard.

The bytes of a shard do not depend on the process or machine that runs the task, or on interruptions
before it. A finished shard has its counts in its footer, so that a rerun reads them instead of
repeating the task.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from bert_pipeline.config import ShardedConfig
from bert_pipeline.engine.clusters import cancel_earlier_run, run_on_cluster
from bert_pipeline.engine.processes import keep_processes

__all__ = ["keep_processes", "run_stage", "run_tasks"]

T = TypeVar("T")
R = TypeVar("R")


def run_tasks(
    function: Callable[[T], R], tasks: Sequence[T], workers: int
) -> Iterator[tuple[int, R]]:
    """Yield `(index, function(task))` in the order in which the tasks finish, with local processes.

    `function` must be importable, tasks and results picklable. Raises the first error of a task.
    With one worker all tasks run in this process.
    """
    from bert_pipeline.engine.executors import LocalExecutor, MappedFunction

    yield from LocalExecutor(MappedFunction(function, tasks), workers).run()


def run_stage(
    function: Callable[[T], R], tasks: Sequence[T], config: ShardedConfig, folder: Path
) -> Iterator[tuple[int, R]]:
    """Like `run_tasks`, with the engine of `config`, for the unfinished artifact in `folder`.

    Results must be JSON values, because a cluster writes them to files.
    """
    if config.engine == "local":
        cancel_earlier_run(folder)
        yield from run_tasks(function, tasks, config.workers)
    else:
        yield from run_on_cluster(function, tasks, config, folder)
