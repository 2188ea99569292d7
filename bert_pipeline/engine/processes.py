"""Processes on this machine: a pool that notices dead workers, and workers that notice a dead parent."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import TypeVar

from bert_pipeline.errors import BertpipeError

R = TypeVar("R")

KILLED = (
    "A worker process was killed, most often for lack of memory. Run the same command again with fewer "
    "--workers: finished shards are kept."
)
PRELOADED = ["numpy", "tokenizers", "bert_pipeline.storage.shards"]
"""Modules that nearly every task needs; none that reads the environment while it is loaded."""
PATIENCE_S = 3
"""Seconds that a worker has to end by itself; one that waits inside a library's own code is killed."""


def run_in_processes(calls: Sequence[Callable[[], R]], workers: int) -> Iterator[tuple[int, R]]:
    """Yield `(index, call())` for every call, in the order in which they finish.

    The first error ends the run; with one worker everything happens in this process.
    """
    if min(workers, len(calls)) <= 1:
        for index, call in enumerate(calls):
            yield index, call()
        return
    with _borrow_pool(workers) as pool:
        # Processes start in here.
        with _ignoring_interrupts(), _without_main():
            futures = {pool.submit(_run, call): index for index, call in enumerate(calls)}
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:  # results are handed on and not kept
                    yield futures.pop(future), future.result()
        except BrokenProcessPool:
            raise BertpipeError(KILLED) from None
        except BaseException:
            # An error, Ctrl-C, or a caller who has enough: tasks may take hours, and what they finished is kept.
            processes = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            _end_processes(processes)
            raise


_shared: dict[int, ProcessPoolExecutor] | None = None


@contextmanager
def keep_processes() -> Iterator[None]:
    """Let all runs within the block share their processes, which take a second to start and to load libraries."""
    global _shared
    before, _shared = _shared, {}
    try:
        yield
    finally:
        for pool in _shared.values():
            pool.shutdown()
        _shared = before


@contextmanager
def _borrow_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    pool = _shared.pop(workers, None) if _shared is not None else None
    pool = pool or ProcessPoolExecutor(
        workers, _context(), _prepare_pool_worker, (dict(os.environ),)
    )
    try:
        yield pool
    except BaseException:
        pool.shutdown()
        raise
    if _shared is None:
        pool.shutdown()
    else:
        _shared[workers] = pool


def prepare_processes() -> None:
    """Begin to load what workers need, beside what this process goes on to load itself."""
    _context()
    with _ignoring_interrupts():
        forkserver.ensure_running()


def _context() -> BaseContext:
    """Workers are forked from a process that has loaded libraries and has no threads.

    This one may hold threads (tokenizers, torch) whose locks a forked child would inherit, and loading the libraries
    again in every worker takes longer than much of the work.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    # A terminal sends Ctrl-C to all processes. The parent alone answers it; it cancels what has not begun. Processes
    # inherit this before they can choose.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep new processes from importing this one's main module, which costs time and may be a script without a guard.

    Tasks are functions of modules, which are imported by their names.
    """
    main = vars(sys.modules["__main__"])
    hidden: dict[str, object] = {
        name: main.pop(name) for name in ("__file__", "__spec__") if name in main
    }
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(hidden)


def _end_processes(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    end = time.monotonic() + PATIENCE_S
    for process in processes:
        process.join(max(0, end - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


_told_to_end = False


def _prepare_pool_worker(environment: dict[str, str]) -> None:
    signal.signal(signal.SIGTERM, _end)
    os.environ.clear()
    os.environ.update(
        environment
    )  # what this process was forked from may have started in another one
    _be_one_thread()
    threading.Thread(target=_end_with_starter, daemon=True).start()


def _end_with_starter() -> None:
    # Without this a worker would wait for tasks for ever when the process that wants them was killed with -9.
    starter = multiprocessing.parent_process()
    assert starter is not None
    starter.join()
    os._exit(1)


def _end(number: int, frame: FrameType | None) -> None:
    # A task that ends so cleans up behind it: its temporary files, and the semaphores of libraries.
    global _told_to_end
    _told_to_end = True
    # The pool may be gone before this worker is: whatever breaks from now on is no news.
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    sys.exit(128 + number)


def _run(call: Callable[[], R]) -> R:
    if _told_to_end:  # the pool goes on with what was in its queue already
        sys.exit()
    return call()


def prepare_worker(parent: int) -> None:
    """Make this process a worker: one thread, and no life after process `parent`."""
    _be_one_thread()
    end_with(parent)


def _be_one_thread() -> None:
    # One process a core is the parallelism; threads inside would only fight over the same cores.
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def end_with(parent: int) -> None:
    """End this process soon after its parent, which cannot stop it when killed with -9."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    # Without this a worker would wait for tasks for ever.
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
