"""Weights and optimizer of a run: whole in its checkpoints, and in memory as its processes share them out."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn

from bert_pipeline.progress import print_line
from bert_pipeline.training.checkpoint import Loaded, Position, load_newest, save_checkpoint
from bert_pipeline.training.distributed import Ranks, local, sharded_like, whole
from bert_pipeline.training.optimizers import Optimizers


class TrainingState:
    """What a checkpoint holds. All processes call each method together; the main one alone reads and writes.

    Checkpoints are copied to the CPU's memory, and written from there while training goes on.
    """

    def __init__(
        self, ranks: Ranks, network: nn.Module, optimizer: Optimizers, folder: Path, keep: int
    ) -> None:
        """`network` and `optimizer` as they are trained; checkpoints lie in `folder`, the newest `keep` of them."""
        self._ranks, self._network, self._optimizer = ranks, network, optimizer
        self._folder, self._keep = folder, keep
        self._writer, self._writing = ThreadPoolExecutor(1), Future[None]()
        self._writing.set_result(None)

    def load_newest(self, *, regular: bool = False, quiet: bool = True) -> Position | None:
        """Take over the newest checkpoint, or the newest regular one; None, and nothing happens, without any."""
        found: Loaded | None = None

        def read() -> Position | None:
            nonlocal found
            self._writing.result()
            found = load_newest(self._folder, regular=regular)
            if found and found.damaged:
                print_line(f"damaged, and passed over: {', '.join(found.damaged)}", quiet=quiet)
            return found.position if found else None

        position = self._ranks.share(read)
        if position is not None:
            self._set_weights(self._ranks.spread(found.model if found else {}))
            self._optimizer.load_state_tensors(self._ranks.spread(found.optimizer if found else {}))
        return position

    def save(self, position: Position) -> None:
        """Write a checkpoint, as soon as the one before is written; raises as `settle` does."""
        self.settle()
        weights, state = self.gather_weights(), self._gather(self._optimizer.state_tensors())
        if self._ranks.main:
            self._writing = self._writer.submit(
                save_checkpoint, self._folder, position, weights, state, self._keep
            )

    def settle(self) -> None:
        """Wait until the last checkpoint is written, and raise what kept it from that."""
        self._ranks.share(self._writing.result)

    def close(self) -> None:
        """Wait until nothing is written any more, whatever became of it."""
        self._writer.shutdown()

    def has_failed(self) -> bool:
        """Whether the main process knows already that `settle` will raise."""
        return self._writing.done() and self._writing.exception() is not None

    def reset(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Begin with these weights, which every process has, and a new optimizer."""
        self._set_weights(weights)
        self._optimizer.load_state_tensors({})

    def gather_weights(self) -> dict[str, torch.Tensor]:
        """Whole weights on the CPU, on the main process; none on the others."""
        return self._gather(self._network.named_parameters())

    @torch.no_grad()
    def _set_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self._network.named_parameters():
            local(parameter).copy_(local(sharded_like(weights[name], parameter)))

    def _gather(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        gathered = ((name, whole(tensor.detach())) for name, tensor in tensors)
        return {
            name: tensor.to("cpu", copy=True).contiguous()
            for name, tensor in gathered
            if self._ranks.main
        }
