"""Several training processes on this machine, started by torch and ended together."""

import importlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

from bert_pipeline.engine.processes import stop_fork_server, without_main
from bert_pipeline.errors import (
    BertpipeError,
    LostRank,
    ReportedByMain,
    Stopped,
    UsageError,
    describe_os_error,
)
from bert_pipeline.training.config import TrainConfig
from bert_pipeline.training.signals import StopSignal

POLL_S = 0.2
"""Seconds between checks of the processes."""
KILL_AFTER_S = 60.0
"""Seconds after a failure until the remaining processes are killed."""
NO_FAILURE = (None, 0, 128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of processes that run, ended or were stopped."""


def launch(entry: str, config: TrainConfig) -> None:
    """Call `entry` ("module:function") with the config in `num_processes` new processes.

    Waits for them; a failure or stop of one becomes this process's.
    """
    from torch.cuda import device_count
    from torch.multiprocessing.spawn import start_processes

    if 0 < device_count() < config.num_processes:
        raise UsageError(
            f"--num-processes {config.num_processes}: each process needs a GPU, and there are "
            f"{device_count()}."
        )
    # The libraries are loaded once, in a fork server that has not touched a GPU.
    module = entry.partition(":")[0]
    stop_fork_server()
    multiprocessing.set_forkserver_preload([module, "bert_pipeline.training.server"])
    with StopSignal() as stop:
        with without_main():
            running: Any = start_processes(  # type: ignore[no-untyped-call]
                _run_rank,
                (entry, config, _free_port()),
                config.num_processes,
                join=False,
                start_method="forkserver",
            )
        killed: list[int] = []
        try:
            _wait(running.processes, stop)
            killed = [
                rank
                for rank, process in enumerate(running.processes)
                if process.exitcode == -signal.SIGKILL
            ]
        finally:  # a second Ctrl-C ends all of them at once
            for process in running.processes:
                process.kill()
                process.join()
    codes = [process.exitcode for process in running.processes]
    if stop.number:
        raise Stopped(
            "Stopped by a signal; the last step is saved. Run the same command again to resume.",
            stop.number,
        )
    if killed:
        raise BertpipeError(
            f"The training process of rank {killed[0]} was killed, perhaps because of a lack of "
            "memory. Run the same command again to resume from the last checkpoint."
        )
    if any(codes):
        raise BertpipeError(
            f"A training process failed (exit codes by rank: {codes}); see its message above."
        )


def _wait(processes: list[Any], stop: StopSignal) -> None:
    """Wait for all processes; after a failure or a stop signal, send SIGTERM to the others."""
    signalled: float | None = None
    while alive := [process for process in processes if process.is_alive()]:
        alive[0].join(POLL_S)
        failed = any(process.exitcode not in NO_FAILURE for process in processes)
        if failed or (stop.number and signalled is None):
            signalled = signalled or time.monotonic()
            for process in alive:
                # Never SIGINT: a Ctrl-C has reached them too, and this would be the second one.
                if process.is_alive():
                    os.kill(process.pid, signal.SIGTERM)
        # A rank whose partner has gone would wait for it until the network's timeout.
        if failed and signalled is not None and time.monotonic() > signalled + KILL_AFTER_S:
            return


def _run_rank(rank: int, entry: str, config: TrainConfig, port: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the fork server ignores it
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(config.num_processes),
        "LOCAL_WORLD_SIZE": str(config.num_processes),
        "OMP_NUM_THREADS": str(max(1, config.threads // config.num_processes)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    threading.Thread(target=_stop_with_launcher, daemon=True).start()
    try:
        module, _, function = entry.partition(":")
        getattr(importlib.import_module(module), function)(config)
    except LostRank as error:
        # If that process failed, the launcher ends this one before it prints a message.
        time.sleep(10 * POLL_S)
        _fail(rank, str(error), error.exit_code)
    except BertpipeError as error:
        # The launcher itself reports a stop, the main process its own error.
        is_reported = isinstance(error, Stopped | ReportedByMain)
        _fail(rank, "" if is_reported else str(error), error.exit_code)
    except OSError as error:
        _fail(rank, describe_os_error(error), 1)
    except Exception:
        _fail(rank, traceback.format_exc(), 1)


def _fail(rank: int, message: str, code: int) -> NoReturn:
    if message:
        prefix = f"rank {rank}: " if rank else ""
        print(f"bertpipe: {prefix}{message}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


def _stop_with_launcher() -> None:
    """Save and stop if the launcher was killed: no other process would end this one."""
    launcher = multiprocessing.parent_process()
    assert launcher
    launcher.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
