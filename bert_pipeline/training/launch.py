"""Several training processes on this machine, started by torch and ended together."""

import os
import signal
import socket
import sys
from typing import Any

from bert_pipeline.errors import BertpipeError, Stopped, ToldElsewhere, UsageError
from bert_pipeline.training.config import PretrainConfig
from bert_pipeline.training.signals import StopSignal


def run_pretrain(config: PretrainConfig) -> None:
    """Pretrain in this process, or in `num_processes` new ones unless a launcher has started this one already."""
    if config.num_processes > 1 and "WORLD_SIZE" not in os.environ:
        launch(config)
    else:
        from bert_pipeline.training.pretrain import pretrain

        pretrain(config)


def launch(config: PretrainConfig) -> None:
    """Run `pretrain` in `num_processes` processes and wait; their failure or stop becomes this process's."""
    import multiprocessing

    from torch.cuda import device_count
    from torch.multiprocessing.spawn import start_processes

    if 0 < device_count() < config.num_processes:
        raise UsageError(f"--num-processes {config.num_processes}: each needs a GPU, and here are {device_count()}.")
    # The libraries are loaded once, in a server that no GPU was touched in, and not by every process anew.
    multiprocessing.set_forkserver_preload(["bert_pipeline.training.pretrain"])
    with StopSignal() as stop:
        running: Any = start_processes(  # type: ignore[no-untyped-call]
            _run_rank, (config, _free_port()), config.num_processes, join=False, start_method="forkserver"
        )
        while any(process.is_alive() for process in running.processes):
            for process in running.processes:
                process.join(timeout=0.2)
            failed = any(process.exitcode for process in running.processes)
            if stop.number or failed:
                # A rank whose partner is gone would wait for it until the network's timeout.
                number = stop.number or signal.SIGTERM
                for process in running.processes:
                    if process.is_alive():
                        os.kill(process.pid, number)
                _join_or_kill(running.processes)
    codes = [process.exitcode for process in running.processes]
    if stop.number:
        raise Stopped("Stopped by a signal; the last step is saved. Run the same command again to go on.", stop.number)
    if any(codes):
        raise BertpipeError(f"A training process failed (exit codes by rank: {codes}); its message stands above.")


def _join_or_kill(processes: list[Any], patience: float = 60.0) -> None:
    for process in processes:
        process.join(patience)
        if process.is_alive():
            process.kill()
            process.join()


def _run_rank(rank: int, config: PretrainConfig, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(config.num_processes),
        "LOCAL_WORLD_SIZE": str(config.num_processes),
        "OMP_NUM_THREADS": str(max(1, config.threads // config.num_processes)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    from bert_pipeline.training.pretrain import pretrain

    try:
        pretrain(config)
    except BertpipeError as error:
        # The launching process says itself that it was stopped.
        if not isinstance(error, Stopped | ToldElsewhere):
            print(f"bertpipe: {f'rank {rank}: ' if rank else ''}{error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
