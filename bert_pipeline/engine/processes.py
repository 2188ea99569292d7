"""Worker processes on this machine.

The pool detects workers that were killed, and workers exit when their parent was killed.
"""

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

from bert_pipeline.engine import timeouts
from bert_pipeline.errors import BertpipeError

R = TypeVar("R")

WORKER_KILLED = (
    "A worker process was killed, usually for lack of memory. Rerun the same command with fewer "
    "--workers to resume; finished shards are kept."
)
PRELOADED_MODULES = ["numpy", "tokenizers", "bert_pipeline.storage.shards"]
"""Modules that nearly all tasks need, and that do not read the environment on import."""


def run_in_processes(calls: Sequence[Callable[[], R]], workers: int) -> Iterator[tuple[int, R]]:
    """Yield `(index, call())` in the order in which the calls finish.

    Raises the first error of a call, or `BertpipeError` when a worker was killed. With one worker
    all calls run in this process.
    """
    if min(workers, len(calls)) <= 1:
        for index, call in enumerate(calls):
            yield index, call()
        return
    with _borrow_pool(workers) as pool:
        # `submit` starts processes.
        with _ignoring_interrupts(), without_main():
            futures = {pool.submit(_run, call): index for index, call in enumerate(calls)}
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:  # results are not kept after they are yielded
                    yield futures.pop(future), future.result()
        except BrokenProcessPool:
            raise BertpipeError(WORKER_KILLED) from None
        except BaseException:
            # An error, Ctrl-C, or the caller stopped iterating: do not wait for the running tasks.
            processes = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            _terminate(processes)
            raise


_shared: dict[int, ProcessPoolExecutor] | None = None


@contextmanager
def keep_processes() -> Iterator[None]:
    """Share worker processes between runs in the block, because they take a second to start."""
    global _shared
    before = _shared
    _shared = {}
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
    """Start importing what workers need, in parallel with the imports of this process."""
    _context()
    with _ignoring_interrupts():
        forkserver.ensure_running()


def stop_fork_server() -> None:
    """Stop the fork server of earlier workers, if any, so that the next one preloads other modules.

    It waits for processes of that server that are still running.
    """
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def _context() -> BaseContext:
    """Workers are forked from a server process that has imported libraries and has no threads.

    This process may have threads (tokenizers, torch) whose locks a forked child would inherit, and
    importing the libraries in every worker would take longer than many tasks.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED_MODULES)
    return context


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    # A terminal sends Ctrl-C to all processes, but only the parent must handle it. New processes
    # inherit the setting.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def without_main() -> Iterator[None]:
    """Keep new processes from importing the main module of this process.

    The import takes time, and the module may be a script without `if __name__ == "__main__"`. Tasks
    are functions of other modules.
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


def _terminate(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    end = time.monotonic() + timeouts.TERMINATE_S
    for process in processes:
        process.join(max(0, end - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


_is_terminating = False


def _prepare_pool_worker(environment: dict[str, str]) -> None:
    signal.signal(signal.SIGTERM, _exit_on_signal)
    os.environ.clear()
    # The fork server may have started with another environment.
    os.environ.update(environment)
    _use_one_thread()
    threading.Thread(target=_exit_with_starter, daemon=True).start()


def _exit_with_starter() -> None:
    # Otherwise a worker would wait for tasks forever after its parent was killed with SIGKILL.
    starter = multiprocessing.parent_process()
    assert starter is not None
    starter.join()
    os._exit(1)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    # An exception, so that the task removes its temporary files and libraries their semaphores.
    global _is_terminating
    _is_terminating = True
    # The pool may end before this worker does; errors from here on are not worth printing.
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    sys.exit(128 + number)


def _run(call: Callable[[], R]) -> R:
    if _is_terminating:  # the pool continues with the calls in its queue
        sys.exit()
    return call()


def prepare_worker(parent: int) -> None:
    """Make this process a worker: one thread, and exit after process `parent`."""
    _use_one_thread()
    exit_with_parent(parent)


def _use_one_thread() -> None:
    # The parallelism is one process per core; threads would compete for the same cores.
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def exit_with_parent(parent: int) -> None:
    """Exit soon after process `parent`, also when it was killed with SIGKILL."""
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
