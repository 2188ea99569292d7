"""What every training run does around its loop: checks of its processes, errors for people."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from bert_pipeline.config import flag
from bert_pipeline.errors import BertpipeError, LostRank, ReportedByMain, Stopped
from bert_pipeline.training.config import TrainConfig
from bert_pipeline.training.distributed import Ranks

CONNECTION_ERRORS = (
    "onnection closed by peer",
    "onnection reset by peer",
    "remote process exited",
    "roken pipe",
)
"""Parts of what gloo and NCCL report when a process they communicate with has gone."""
CPU_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""Part of what torch reports when an allocation on the CPU fails."""
GPU_OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Parts of what CUDA's libraries report when they find no memory for themselves."""


@contextmanager
def explain_failures(config: TrainConfig, ranks: Ranks) -> Iterator[None]:
    """Turn errors of memory and of communication in the block into messages for people."""
    try:
        yield
    except Stopped:
        ranks.accelerator.end_training()
        raise
    except torch.OutOfMemoryError as error:
        raise _explain_memory("The GPU", config) from error
    except RuntimeError as error:
        if CPU_OUT_OF_MEMORY in str(error):
            raise _explain_memory("This machine", config) from error
        if any(part in str(error) for part in GPU_OUT_OF_MEMORY):
            raise _explain_memory("The GPU", config) from error
        if ranks.world_size == 1 or not any(part in str(error) for part in CONNECTION_ERRORS):
            raise
        raise LostRank(
            "Another process of the run has ended, or its host is unreachable; see its output. "
            "When all are available again, the same commands resume from the last checkpoint. "
            f"({str(error).splitlines()[0][:200]})"
        ) from error
    ranks.accelerator.end_training()


def _explain_memory(device: str, config: TrainConfig) -> BertpipeError:
    return BertpipeError(
        f"{device} ran out of memory. Run the same command with "
        f"{config.smaller_micro_batches()} (smaller micro-batches) or "
        "--checkpoint-activations; or start again (--overwrite) with a smaller --batch-size."
    )


def check_processes(config: TrainConfig, ranks: Ranks) -> None:
    """Raise `BertpipeError` if the processes cannot train together."""
    _check_same_options(config, ranks)
    if ranks.device.type == "cuda":
        gpu = str(torch.cuda.get_device_properties(ranks.device).uuid)
        check_own_gpus(ranks.gather_objects((socket.gethostname(), gpu)), ranks.rank)


def check_own_gpus(gpus: Sequence[tuple[str, str]], rank: int) -> None:
    """Raise `BertpipeError` if two processes use the same GPU, which NCCL does not support.

    `gpus` are host and GPU of each process; all processes but the main one raise
    `ReportedByMain`.
    """
    for second, gpu in enumerate(gpus):
        first = gpus.index(gpu)
        if first == second:
            continue
        if rank:
            raise ReportedByMain(1)
        raise BertpipeError(
            f"Ranks {first} and {second} use the same GPU of {gpu[0]}; start one process per GPU."
        )


def _check_same_options(config: TrainConfig, ranks: Ranks) -> None:
    """Raise `BertpipeError` if the processes were given different options.

    They would train apart from each other, or wait forever.
    """
    own = config.shared_by_processes()
    main = ranks.broadcast(lambda: own)
    different = sorted(name for name in own if own[name] != main[name])
    gathered = ranks.gather([float(bool(different))])
    ranks_apart = gathered[:, 0].nonzero()[:, 0].tolist()
    if different:
        name = different[0]
        raise BertpipeError(
            f"{flag(name)} is {own[name]} here and {main[name]} in the main process."
        )
    if ranks_apart and not ranks.is_main:
        raise ReportedByMain(1)
    if ranks_apart:
        raise BertpipeError(
            "The launchers were given different options (see rank "
            f"{', '.join(map(str, ranks_apart))}); give all of them the same."
        )
