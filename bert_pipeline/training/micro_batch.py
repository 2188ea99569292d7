"""The forward and backward pass of a micro-batch, called directly or captured as a CUDA graph."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bert_pipeline.training.distributed import Ranks
from bert_pipeline.training.task import Batch

MOST_GRAPHS = 8
"""The most batch shapes for which a graph is captured."""
Replay = Callable[[], Tensor]


class ForwardBackward:
    """Adds the gradients of a micro-batch to those of the parameters."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        """`model` returns a tuple of summed losses for a batch."""
        self.model = model
        self.ranks = ranks

    def __call__(self, batch: Batch, weights: Tensor) -> Tensor:
        """The losses of a batch on the host; their gradients are multiplied by `weights`.

        Losses and weights are vectors on the device.
        """
        return self.compute(batch.to(self.ranks.device), weights)

    def compute(self, batch: Batch, weights: Tensor) -> Tensor:
        """The same for a batch on the device."""
        with self.ranks.precision.autocast(self.ranks.device):
            losses = torch.stack(self.model(batch))
        self.ranks.accelerator.backward((losses * weights).sum())
        return losses.detach()


class CudaGraphs:
    """Captures CUDA graphs.

    All graphs use one memory pool: they are never replayed concurrently, and their outputs are
    copied before the next replay
    (https://docs.pytorch.org/docs/stable/notes/cuda.html#graph-memory-management).
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, run: Replay) -> Replay:
        """Capture the kernels that `run` launches, after one warm-up call; return the replay."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # Warm-up: cuBLAS and others allocate workspaces when they first run on a stream.
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # The prefetching thread allocates pinned memory meanwhile, which "global" forbids.
        mode = "thread_local"
        with torch.cuda.graph(graph, self._pool, stream, capture_error_mode=mode):
            losses = run()

        def replay() -> Tensor:
            graph.replay()
            return losses

        return replay


@dataclass(frozen=True, slots=True)
class _Captured:
    """A captured forward and backward pass, and its static input tensors."""

    inputs: list[Tensor]
    weights: Tensor
    replay: Replay


class GraphedForwardBackward:
    """`ForwardBackward` that captures a graph for each batch shape.

    A graph reads static input tensors and accumulates into the gradients that existed at capture,
    so gradients must be set to zero, not to None. A shape is captured when it is seen again; other
    shapes, and those beyond `MOST_GRAPHS`, run eagerly.
    """

    def __init__(
        self, eager: ForwardBackward, capture: Callable[[Replay], Replay] | None = None
    ) -> None:
        """`capture` is by default that of `CudaGraphs`."""
        self._eager = eager
        self._capture = capture or CudaGraphs().capture
        self._captured: dict[Any, _Captured] = {}
        self._seen: set[Any] = set()

    def __call__(self, batch: Batch, weights: Tensor) -> Tensor:
        """As `ForwardBackward`."""
        key = _describe(batch)
        captured = self._captured.get(key)
        if captured is None and (key not in self._seen or len(self._captured) >= MOST_GRAPHS):
            self._seen.add(key)
            return self._eager(batch, weights)
        if captured is None:
            captured = self._capture_like(batch, weights)
            self._captured[key] = captured
        for own, given in zip(captured.inputs, _tensors(batch), strict=True):
            own.copy_(given, non_blocking=True)
        captured.weights.copy_(weights)
        return captured.replay().clone()

    def _capture_like(self, batch: Batch, weights: Tensor) -> _Captured:
        """Capture for batches of this shape; gradients and the RNG state are restored."""
        device = self._eager.ranks.device
        on_device = batch.map(lambda tensor: tensor.to(device, copy=True))
        fixed_weights = weights.clone()
        parameters = list(self._eager.model.parameters())
        before = [None if p.grad is None else p.grad.clone() for p in parameters]
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            replay = self._capture(lambda: self._eager.compute(on_device, fixed_weights))
        for parameter, gradient in zip(parameters, before, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad.copy_(gradient)
            elif parameter.grad is not None:
                parameter.grad.zero_()
        return _Captured(_tensors(on_device), fixed_weights, replay)


def _tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    batch.map(note)
    return found


def _describe(batch: Batch) -> Any:
    """What a graph cannot change: shapes, and all values that are not in tensors."""
    shapes = tuple((tensor.shape, tensor.dtype) for tensor in _tensors(batch))
    return shapes, batch.map(lambda tensor: None)
