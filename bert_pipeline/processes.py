"""Processes on this machine: a pool that notices dead workers, and workers that notice a dead parent."""

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

R = TypeVar("R")

KILLED = (
    "A worker process was killed, most often for lack of memory. Run the same command again with fewer "
    "--workers: finished shards are kept."
)


def run_in_processes(calls: Sequence[Callable[[], R]], workers: int) -> Iterator[tuple[int, R]]:
    """Yield `(index, call())` for every call, in the order in which they finish.

    The first error ends the run; with one worker everything happens in this process.
    """
    workers = min(workers, len(calls))
    if workers <= 1:
        for index, call in enumerate(calls):
            yield index, call()
        return
    # Not fork: the parent may hold threads (tokenizers, torch) whose locks a forked child would inherit.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, prepare_worker, (os.getpid(),)) as pool:
        with _ignoring_interrupts():  # processes start in here, and inherit it before they can choose
            futures = {pool.submit(call): index for index, call in enumerate(calls)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise BertpipeError(KILLED) from None
        except BaseException:
            # An error, Ctrl-C, or a caller who has enough: tasks may take hours, and what they finished is kept.
            for process in list((pool._processes or {}).values()):
                process.terminate()
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


def prepare_worker(parent: int) -> None:
    """Make this process a worker: one thread, and no life after process `parent`."""
    # One process a core is the parallelism; threads inside would only fight over the same cores.
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    end_with(parent)


def end_with(parent: int) -> None:
    """End this process soon after its parent, which cannot stop it when killed with -9."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    # Without this a worker would wait for tasks for ever.
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
