"""The engine: map a pure function over tasks, each of which writes one shard.

A task knows nothing of workers: whichever process runs it, and after whatever interruption, it writes the same bytes.
A finished shard carries its counts in the file's own metadata, so a rerun reads them instead of doing the work again.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from bert_pipeline.errors import BertpipeError

T = TypeVar("T")
R = TypeVar("R")


def run_tasks(function: Callable[[T], R], tasks: Sequence[T], workers: int) -> Iterator[tuple[int, R]]:
    """Yield `(index, function(task))` for every task, in the order in which they finish.

    `function` must be importable and tasks and results picklable. The first error ends the run; with one worker
    everything happens in this process.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        for index, task in enumerate(tasks):
            yield index, function(task)
        return
    # Not fork: the parent may hold threads (tokenizers, torch) whose locks a forked child would inherit.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _prepare_worker, (os.getpid(),)) as pool:
        with _ignoring_interrupts():  # processes start in here, and inherit it before they can choose
            futures = {pool.submit(function, task): index for index, task in enumerate(tasks)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise BertpipeError(
                "A worker process was killed, most often for lack of memory. Run the same command again with fewer "
                "--workers: finished shards are kept."
            ) from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    # A terminal sends Ctrl-C to all processes. The parent alone answers it; it cancels what has not begun.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _prepare_worker(parent: int) -> None:
    # One process a core is the parallelism; threads inside would only fight over the same cores.
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    # A parent killed with -9 cannot stop its workers; without this they would wait for tasks for ever.
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
