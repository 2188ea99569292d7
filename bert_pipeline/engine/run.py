"""The engine: map a pure function over tasks, each of which writes one shard.

A task knows nothing of workers: whichever process on whichever machine runs it, and after whatever interruption, it
writes the same bytes. A finished shard carries its counts in the file's own metadata, so a rerun reads them instead of
doing the work again.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from bert_pipeline.config import ShardedConfig
from bert_pipeline.engine.clusters import end_earlier, run_on_cluster
from bert_pipeline.engine.processes import keep_processes

__all__ = ["keep_processes", "run_stage", "run_tasks"]

T = TypeVar("T")
R = TypeVar("R")


def run_tasks(
    function: Callable[[T], R], tasks: Sequence[T], workers: int
) -> Iterator[tuple[int, R]]:
    """Yield `(index, function(task))` for every task, in the order in which they finish, by processes here.

    `function` must be importable and tasks and results picklable. The first error ends the run; with one worker
    everything happens in this process.
    """
    from bert_pipeline.engine.executors import LocalExecutor, Step

    yield from LocalExecutor(Step(function, tasks), workers).run()


def run_stage(
    function: Callable[[T], R], tasks: Sequence[T], config: ShardedConfig, folder: Path
) -> Iterator[tuple[int, R]]:
    """The same by the engine that `config` names, for the artifact that is being made in `folder`.

    Results must be JSON values: on a cluster they travel as files.
    """
    if config.engine == "local":
        end_earlier(folder)
        yield from run_tasks(function, tasks, config.workers)
    else:
        yield from run_on_cluster(function, tasks, config, folder)
