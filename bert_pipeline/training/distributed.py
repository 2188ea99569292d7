"""What several processes do together: agree, share, and hold the model whole (DDP) or in shards (FSDP2)."""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from bert_pipeline.errors import BertpipeError, ReportedByMain
from bert_pipeline.pretraining.config import PretrainConfig

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a run, and a way for their hosts to talk that no GPU waits for."""

    accelerator: Accelerator
    hosts: dist.ProcessGroup | None
    """Gloo: NCCL would make every exchange a synchronisation of the device."""

    @classmethod
    def of(cls, accelerator: Accelerator) -> "Ranks":
        """The processes that this one was started with."""
        together = accelerator.num_processes > 1
        return cls(accelerator, dist.new_group(backend="gloo") if together else None)

    @property
    def count(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def own(self) -> int:
        """Number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return bool(self.accelerator.is_main_process)

    def gather(self, values: Sequence[float]) -> torch.Tensor:
        """Everyone's values, float64 `[ranks, len(values)]`."""
        own = torch.tensor(values, dtype=torch.float64)
        if self.hosts is None:
            return own.unsqueeze(0)
        gathered = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(gathered, own, group=self.hosts)
        return torch.stack(gathered)

    def share(self, make: Callable[[], T]) -> T:
        """What the main process makes, or its error, on all of them; the others do not run `make`."""
        if self.hosts is None:
            return make()
        shared: list[Any] = [None, None]
        failure: Exception | None = None
        if self.main:
            try:
                shared[0] = make()
            except Exception as error:
                failure, shared[1] = error, getattr(error, "exit_code", 1)
        dist.broadcast_object_list(shared, src=0, group=self.hosts)
        if failure is not None:
            raise failure
        if shared[1] is not None:
            raise ReportedByMain(shared[1])
        result: T = shared[0]
        return result

    def spread(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The main process's tensors on all of them."""
        if self.hosts is None:
            return dict(tensors)
        described = self.share(
            lambda: {name: (value.shape, value.dtype) for name, value in tensors.items()}
        )
        received = {}
        for name, (shape, dtype) in described.items():
            value = tensors[name].contiguous() if self.main else torch.empty(shape, dtype=dtype)
            dist.broadcast(value, src=0, group=self.hosts)
            received[name] = value
        return received

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, on the device and in its queue."""
        if self.count > 1:
            dist.all_reduce(values)
        return values


def make_accelerator(config: PretrainConfig) -> Accelerator:
    """Accelerate for this machine's GPUs or CPU, with fixed arithmetic."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        threads = max(1, config.threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # Accelerate warns without
        torch.set_num_threads(threads)
        _keep_memory()
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if config.precision == "bf16" and on_gpu and not has_bf16:
        raise BertpipeError("--precision bf16: this GPU has no bf16 arithmetic; use fp32.")
    use_bf16 = config.precision == "bf16" or (config.precision == "auto" and has_bf16)
    accelerator = Accelerator(
        mixed_precision="bf16" if use_bf16 else "no", cpu=not on_gpu, project_dir=config.out
    )
    accelerator.gradient_accumulation_steps = (
        1  # a launcher's setting would divide the loss; --accumulate does not
    )
    return accelerator


def find_strategy(config: PretrainConfig) -> Literal["ddp", "fsdp"]:
    """How to spread the model: as asked for, here or of `accelerate launch --use_fsdp`."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1", "yes")
    return "fsdp" if asked else config.distribute


def distribute(
    model: nn.Module, layers: Sequence[nn.Module], ranks: Ranks, strategy: Literal["ddp", "fsdp"]
) -> nn.Module:
    """The model as it is trained: on its device, and, with several processes, wrapped.

    FSDP2 (`fully_shard`) keeps each of the `layers` and the rest of the model in shards, with their gradients and
    optimizer state; parameters are replaced, so optimizers are made afterwards. Its arithmetic is DDP's: autocast over
    weights that are gathered in the autocast dtype and reduced in fp32.
    """
    accelerator = ranks.accelerator
    if strategy == "ddp" or ranks.count == 1:
        wrapped: nn.Module = accelerator.prepare(model.to(accelerator.device))
        return wrapped
    model.to(accelerator.device)
    # Each rank keeps its part of its own copy: the copies must be one.
    for parameter in model.parameters():
        dist.broadcast(parameter.data, src=0)
    use_bf16 = accelerator.mixed_precision == "bf16"
    types = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if use_bf16 else {}
    policy = MixedPrecisionPolicy(**types, cast_forward_inputs=False)
    for part in (*layers, model):
        fully_shard(part, mp_policy=policy)
    return model


@contextmanager
def accumulating(model: nn.Module, accelerator: Accelerator, last: bool) -> Iterator[None]:
    """Ranks add up their gradients after the last part of a step only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        yield
    elif last:
        yield
    else:
        with accelerator.no_sync(model):
            yield


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor out of its shards; all ranks must ask at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def place(part: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """This rank's shard as one of a tensor that is laid out as `example` is."""
    if not isinstance(example, DTensor):
        return part
    shape, stride = example.shape, example.stride()
    return DTensor.from_local(
        part, example.device_mesh, example.placements, shape=shape, stride=stride
    )


def sharded_like(full: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """`full`, which every rank has, laid out over the ranks as `example` is."""
    full = full.to(example.device, example.dtype)
    if not isinstance(example, DTensor):
        return full
    return distribute_tensor(full, example.device_mesh, example.placements, src_data_rank=None)


def gradient_norm(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """The norm of all gradients together, a scalar on the device."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return whole(norm)


def usable_gradients(
    parameters: Sequence[torch.Tensor],
    grad_scale: torch.Tensor | None,
    found_inf: torch.Tensor | None,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """This rank's gradients divided by `grad_scale`, all 0 where `found_inf`; and 1.0 to go on, 0.0 to leave all be.

    No value is read back from the device.
    """
    grads = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    go = torch.ones((), device=grads[0].device) if found_inf is None else 1.0 - found_inf
    scale = (
        go if grad_scale is None else torch.where(go > 0, 1.0 / grad_scale, torch.zeros_like(go))
    )
    return [torch.where(go > 0, grad * scale, torch.zeros_like(grad)) for grad in grads], go


def _keep_memory() -> None:
    """Keep glibc from handing large tensors back to the kernel and faulting them in again at every step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        for option, value in (
            (-3, 1 << 30),
            (-1, 2**31 - 1),
            (-2, 256 << 20),
        ):  # mmap and trim thresholds, top pad
            libc.mallopt(option, value)
    except (OSError, AttributeError):
        pass  # another C library: only slower
