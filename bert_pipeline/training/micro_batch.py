"""The forward and backward pass of a micro-batch, as it is or replayed as a CUDA graph."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bert_pipeline.training.distributed import Ranks
from bert_pipeline.training.task import Batch

MOST_GRAPHS = 8
"""Shapes of batches that get a graph."""
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
    """Records work on the GPU, to do it again without the host's part.

    The graphs share their memory: they run one after the other, and nothing that one has computed
    is needed once another runs.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Replay) -> Replay:
        """Record what `run` does; the result does it again."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # Libraries set themselves up for a stream when it is first used.
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Another thread prepares the next batches in page-locked memory meanwhile.
        mode = "thread_local"
        with torch.cuda.graph(graph, self._pool, stream, capture_error_mode=mode):
            losses = run()

        def replay() -> Tensor:
            graph.replay()
            return losses

        return replay


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A recorded pass, and the tensors that it reads."""

    inputs: list[Tensor]
    weights: Tensor
    replay: Replay


class GraphedForwardBackward:
    """`ForwardBackward` that records a graph for each shape of batches.

    A graph reads its batch from fixed memory, and adds to the gradients where they were when it was
    recorded: they must be set to zero, not to None. Shapes seen once only, and those after
    `MOST_GRAPHS`, are computed as they are.
    """

    def __init__(
        self, plain: ForwardBackward, record: Callable[[Replay], Replay] | None = None
    ) -> None:
        """`record` is by default that of `CudaGraphs`."""
        self._plain = plain
        self._record = record or CudaGraphs().record
        self._recorded: dict[Any, _Recorded] = {}
        self._seen: set[Any] = set()

    def __call__(self, batch: Batch, weights: Tensor) -> Tensor:
        """As `ForwardBackward`."""
        key = _describe(batch)
        recorded = self._recorded.get(key)
        if recorded is None and (key not in self._seen or len(self._recorded) >= MOST_GRAPHS):
            self._seen.add(key)
            return self._plain(batch, weights)
        if recorded is None:
            recorded = self._record_pass(batch, weights)
            self._recorded[key] = recorded
        for own, given in zip(recorded.inputs, _tensors(batch), strict=True):
            own.copy_(given, non_blocking=True)
        recorded.weights.copy_(weights)
        return recorded.replay().clone()

    def _record_pass(self, batch: Batch, weights: Tensor) -> _Recorded:
        """Record the pass for batches like this one; gradients and random numbers stay as are."""
        device = self._plain.ranks.device
        on_device = batch.map(lambda tensor: tensor.to(device, copy=True))
        fixed_weights = weights.clone()
        parameters = list(self._plain.model.parameters())
        before = [None if p.grad is None else p.grad.clone() for p in parameters]
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            replay = self._record(lambda: self._plain.compute(on_device, fixed_weights))
        for parameter, gradient in zip(parameters, before, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad.copy_(gradient)
            elif parameter.grad is not None:
                parameter.grad.zero_()
        return _Recorded(_tensors(on_device), fixed_weights, replay)


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
