"""Processes of a run: communication, and replicated (DDP) or sharded (FSDP2) models."""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from bert_pipeline.errors import ReportedByMain
from bert_pipeline.training.config import TrainConfig
from bert_pipeline.training.precision import FP32, Precision, resolve_precision

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a run, and a process group for values on the host."""

    accelerator: Accelerator
    host_group: dist.ProcessGroup | None
    """Gloo: with NCCL every exchange would synchronize the device."""
    precision: Precision = FP32
    """Of the matrix products, the same in all processes."""

    @classmethod
    def from_accelerator(cls, accelerator: Accelerator, precision: Precision = FP32) -> Self:
        """The processes that this one was started with."""
        is_distributed = accelerator.num_processes > 1
        group = dist.new_group(backend="gloo") if is_distributed else None
        return cls(accelerator, group, precision)

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return bool(self.accelerator.is_main_process)

    def gather(self, values: Sequence[float]) -> torch.Tensor:
        """The values of all processes, float64 `[world_size, len(values)]`."""
        own = torch.tensor(values, dtype=torch.float64)
        if self.host_group is None:
            return own.unsqueeze(0)
        gathered = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(gathered, own, group=self.host_group)
        return torch.stack(gathered)

    def broadcast(self, make: Callable[[], T]) -> T:
        """What `make` returns in the main process, or its error, in all of them.

        The other processes do not call `make`.
        """
        if self.host_group is None:
            return make()
        shared: list[Any] = [None, None]
        failure: Exception | None = None
        if self.is_main:
            try:
                shared[0] = make()
            except Exception as error:
                failure = error
                shared[1] = getattr(error, "exit_code", 1)
        dist.broadcast_object_list(shared, src=0, group=self.host_group)
        if failure is not None:
            raise failure
        if shared[1] is not None:
            raise ReportedByMain(shared[1])
        result: T = shared[0]
        return result

    def gather_objects(self, own: T) -> list[T]:
        """The objects of all processes, in the order of their ranks."""
        if self.host_group is None:
            return [own]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, own, group=self.host_group)
        return gathered

    def broadcast_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The main process's tensors in all of them."""
        if self.host_group is None:
            return dict(tensors)
        described = self.broadcast(
            lambda: {name: (value.shape, value.dtype) for name, value in tensors.items()}
        )
        received = {}
        for name, (shape, dtype) in described.items():
            value = tensors[name].contiguous() if self.is_main else torch.empty(shape, dtype=dtype)
            dist.broadcast(value, src=0, group=self.host_group)
            received[name] = value
        return received

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, on the device; the host does not wait."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values


def start_ranks(config: TrainConfig) -> Ranks:
    """The processes on this machine's GPUs or CPU, with fixed threads and precision."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        # cuDNN builds an execution plan for each new shape, and shapes change with every batch.
        torch.backends.cuda.enable_cudnn_sdp(False)
    else:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        threads = max(1, config.threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # Accelerate warns without
        torch.set_num_threads(threads)
        _keep_memory()
    # Autocast is the engine's own: Accelerate has no fp16 on a CPU.
    accelerator = Accelerator(mixed_precision="no", cpu=not on_gpu, project_dir=config.out)
    accelerator.gradient_accumulation_steps = (
        1  # a launcher's setting would divide the loss; --accumulate does not
    )
    ranks = Ranks.from_accelerator(accelerator)
    precision = ranks.broadcast(lambda: resolve_precision(config.precision, ranks.device))
    if precision.name == "tf32":
        torch.set_float32_matmul_precision("high")
    return replace(ranks, precision=precision)


def find_strategy(config: TrainConfig) -> Literal["ddp", "fsdp"]:
    """How to distribute the model: --distribute, or `accelerate launch --use_fsdp`."""
    launched_with_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1", "yes")
    return "fsdp" if launched_with_fsdp else config.distribute


def distribute(
    model: nn.Module, layers: Sequence[nn.Module], ranks: Ranks, strategy: Literal["ddp", "fsdp"]
) -> nn.Module:
    """The model as it is trained: on its device and, with several processes, wrapped.

    FSDP2 (`fully_shard`) shards each of the `layers` and the rest of the model, with their
    gradients and optimizer state. It replaces parameters, so optimizers are made afterwards. The
    arithmetic is DDP's: autocast over weights that are gathered in the autocast dtype, gradients
    reduced in fp32.
    """
    accelerator = ranks.accelerator
    if strategy == "ddp" or ranks.world_size == 1:
        wrapped: nn.Module = accelerator.prepare(model.to(accelerator.device))
        return wrapped
    model.to(accelerator.device)
    # Each rank shards its own copy: the copies must be equal.
    for parameter in model.parameters():
        dist.broadcast(parameter.data, src=0)
    half = ranks.precision.half_dtype
    types = {"param_dtype": half, "reduce_dtype": torch.float32} if half else {}
    policy = MixedPrecisionPolicy(**types, cast_forward_inputs=False)
    for part in (*layers, model):
        fully_shard(part, mp_policy=policy)
    return model


def freeze_unused(model: nn.Module, batch: Any, ranks: Ranks) -> None:
    """Freeze the parameters that the losses do not depend on, such as ESM's contact head.

    DDP would wait for their gradients. `model` returns losses for a batch.
    """
    losses = model.to(ranks.device)(batch.to(ranks.device))
    torch.autograd.backward(torch.stack(losses).sum())
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


@contextmanager
def synchronize_if(last: bool, model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Synchronize gradients only after the last micro-batch of a step."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        yield
    elif last:
        yield
    else:
        with accelerator.no_sync(model):
            yield


def reshard(model: nn.Module) -> None:
    """Free what a forward pass without a backward pass gathered.

    FSDP2 leaves its root group gathered after one, and the parameters then are its copies in the
    autocast dtype: what reads the weights would get them rounded.
    """
    if isinstance(model, FSDPModule):
        model.reshard()


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of shards; all ranks must call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_of(part: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """This rank's shard as part of a tensor that is distributed as `example` is."""
    if not isinstance(example, DTensor):
        return part
    return DTensor.from_local(
        part,
        example.device_mesh,
        example.placements,
        shape=example.shape,
        stride=example.stride(),
    )


def sharded_like(full: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """`full`, which every rank has, distributed over the ranks as `example` is."""
    full = full.to(example.device, example.dtype)
    if not isinstance(example, DTensor):
        return full
    return distribute_tensor(full, example.device_mesh, example.placements, src_data_rank=None)


def gradient_norm(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """The norm of all gradients, a scalar on the device."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return full_tensor(norm)


def scaled_gradients(
    parameters: Sequence[torch.Tensor],
    grad_scale: torch.Tensor | None,
    found_inf: torch.Tensor | None,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """This rank's gradients divided by `grad_scale`, all 0 if `found_inf`.

    Also returns 1.0 to update the weights or 0.0 to skip the step. No value is read back from the
    device.
    """
    grads = [local_shard(parameter.grad) for parameter in parameters if parameter.grad is not None]
    go = torch.ones((), device=grads[0].device) if found_inf is None else 1.0 - found_inf
    scale = go if grad_scale is None else 1.0 / grad_scale
    is_taken = go > 0
    scaled = torch._foreach_mul(grads, scale)
    return [torch.where(is_taken, grad, 0.0) for grad in scaled], go


def _keep_memory() -> None:
    """Keep glibc from returning large tensors to the kernel and faulting them in at every step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        # Mmap threshold, trim threshold, top pad.
        for option, value in (
            (-3, 1 << 30),
            (-1, 2**31 - 1),
            (-2, 256 << 20),
        ):
            libc.mallopt(option, value)
    except (OSError, AttributeError):
        pass  # another C library: only slower
