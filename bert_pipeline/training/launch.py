"""Several training processes on this machine, started by torch and ended together."""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

from bert_pipeline.errors import (
    BertpipeError,
    LostRank,
    ReportedByMain,
    Stopped,
    UsageError,
    describe_os_error,
)
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.training.signals import StopSignal

POLL, PATIENCE = 0.2, 60.0
"""Seconds between looks at a process, and until those that another one's failure left behind are killed."""
NO_FAILURE = (None, 0, 128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of processes that run, ended or stopped."""


def run_pretrain(config: PretrainConfig) -> None:
    """Pretrain in this process, or in `num_processes` new ones unless a launcher has started this one already."""
    if config.num_processes > 1 and "WORLD_SIZE" not in os.environ:
        launch(config)
    else:
        from bert_pipeline.pretraining.pretrain import pretrain

        pretrain(config)


def launch(config: PretrainConfig) -> None:
    """Run `pretrain` in `num_processes` processes and wait; their failure or stop becomes this process's."""
    from torch.cuda import device_count
    from torch.multiprocessing.spawn import start_processes

    if 0 < device_count() < config.num_processes:
        raise UsageError(
            f"--num-processes {config.num_processes}: each needs a GPU, and here are {device_count()}."
        )
    # The libraries are loaded once, in a server that no GPU was touched in, and not by every process anew.
    multiprocessing.set_forkserver_preload(["bert_pipeline.training.server"])
    with StopSignal() as stop:
        running: Any = start_processes(  # type: ignore[no-untyped-call]
            _run_rank,
            (config, _free_port()),
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
            "Stopped by a signal; the last step is saved. Run the same command again to go on.",
            stop.number,
        )
    if killed:
        raise BertpipeError(
            f"The training process of rank {killed[0]} was killed, perhaps for want of memory. The same command goes "
            "on from the last checkpoint."
        )
    if any(codes):
        raise BertpipeError(
            f"A training process failed (exit codes by rank: {codes}); its message stands above."
        )


def _wait(processes: list[Any], stop: StopSignal) -> None:
    """Until all have ended; once one has failed, or this process is told to stop, the others are told so."""
    told: float | None = None
    while alive := [process for process in processes if process.is_alive()]:
        alive[0].join(POLL)
        failed = any(process.exitcode not in NO_FAILURE for process in processes)
        if failed or (stop.number and told is None):
            told = told or time.monotonic()
            for process in alive:
                # Never SIGINT: after a Ctrl-C, which reaches them too, it would be the second one.
                if process.is_alive():
                    os.kill(process.pid, signal.SIGTERM)
        # A rank whose partner is gone would wait for it until the network's timeout.
        if failed and told is not None and time.monotonic() > told + PATIENCE:
            return


def _run_rank(rank: int, config: PretrainConfig, port: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the server ignores it
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(config.num_processes),
        "LOCAL_WORLD_SIZE": str(config.num_processes),
        "OMP_NUM_THREADS": str(max(1, config.threads // config.num_processes)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    from bert_pipeline.pretraining.pretrain import pretrain

    threading.Thread(target=_end_with_launcher, daemon=True).start()
    try:
        pretrain(config)
    except LostRank as error:
        time.sleep(
            10 * POLL
        )  # where that process has failed, this one is ended by now, before it says so
        _fail(rank, str(error), error.exit_code)
    except BertpipeError as error:
        # The launching process says itself that it was stopped.
        _fail(
            rank, "" if isinstance(error, Stopped | ReportedByMain) else str(error), error.exit_code
        )
    except OSError as error:
        _fail(rank, describe_os_error(error), 1)
    except Exception:
        _fail(rank, traceback.format_exc(), 1)


def _fail(rank: int, message: str, code: int) -> NoReturn:
    if message:
        print(f"bertpipe: {f'rank {rank}: ' if rank else ''}{message}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


def _end_with_launcher() -> None:
    """Save and stop when the launching process was killed: nobody else would end this one, or know of it."""
    launcher = multiprocessing.parent_process()
    assert launcher
    launcher.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
