"""Weights and optimizer state: full in checkpoints, distributed over the processes in memory."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn

from bert_pipeline.progress import print_line
from bert_pipeline.training.checkpoint import Checkpoint, load_best, load_newest, save_checkpoint
from bert_pipeline.training.distributed import Ranks, full_tensor, local_shard, sharded_like
from bert_pipeline.training.optimizers.combined import Optimizer
from bert_pipeline.training.position import Position


class TrainingState:
    """Saves and loads weights and optimizer state.

    All processes call each method together; only the main one reads and writes files. Checkpoints
    are copied to the CPU and written from there while training continues.
    """

    def __init__(
        self, ranks: Ranks, network: nn.Module, optimizer: Optimizer, folder: Path, keep: int
    ) -> None:
        """`network` and `optimizer` as they are trained; the newest `keep` checkpoints are kept."""
        self._ranks = ranks
        self._network = network
        self._optimizer = optimizer
        self._folder = folder
        self._keep = keep
        self._writer = ThreadPoolExecutor(1)
        self._writing = Future[None]()
        self._writing.set_result(None)

    def load_newest(self, *, regular: bool = False, quiet: bool = True) -> Position | None:
        """Load the newest checkpoint, or the newest regular one; None without one."""
        return self._load(lambda: load_newest(self._folder, regular=regular), quiet)

    def load_best(self) -> Position | None:
        """Load the checkpoint with the best value of the selecting metric; None without one."""
        return self._load(lambda: load_best(self._folder), quiet=True)

    def _load(self, find: Callable[[], Checkpoint | None], quiet: bool) -> Position | None:
        found: Checkpoint | None = None

        def read() -> Position | None:
            nonlocal found
            self._writing.result()
            found = find()
            if found and found.damaged:
                print_line(f"skipped damaged checkpoints: {', '.join(found.damaged)}", quiet=quiet)
            return found.position if found else None

        position = self._ranks.broadcast(read)
        if position is not None:
            model = found.model if found else {}
            optimizer = found.optimizer if found else {}
            self._set_weights(self._ranks.broadcast_tensors(model))
            self._optimizer.load_state_tensors(self._ranks.broadcast_tensors(optimizer))
        return position

    def save(self, position: Position) -> None:
        """Start to write a checkpoint once the previous one is written; raises as `wait` does."""
        self.wait()
        weights = self.gather_weights()
        state = self._gather(self._optimizer.state_tensors())
        if self._ranks.is_main:
            self._writing = self._writer.submit(
                save_checkpoint, self._folder, position, weights, state, self._keep
            )

    def wait(self) -> None:
        """Wait until the last checkpoint is written, and raise the error if that failed."""
        self._ranks.broadcast(self._writing.result)

    def close(self) -> None:
        """Wait until nothing is being written, whether it succeeded or not."""
        self._writer.shutdown()

    def has_failed(self) -> bool:
        """Whether the main process knows already that `wait` will raise an error."""
        return self._writing.done() and self._writing.exception() is not None

    def reset(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Start from these weights, which every process has, and a new optimizer state."""
        self._set_weights(weights)
        self._optimizer.load_state_tensors({})

    def gather_weights(self) -> dict[str, torch.Tensor]:
        """Full weights on the CPU in the main process; nothing in the others."""
        return self._gather(self._network.named_parameters())

    @torch.no_grad()
    def _set_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self._network.named_parameters():
            local_shard(parameter).copy_(local_shard(sharded_like(weights[name], parameter)))

    def _gather(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        gathered = ((name, full_tensor(tensor.detach())) for name, tensor in tensors)
        return {
            name: tensor.to("cpu", copy=True).contiguous()
            for name, tensor in gathered
            if self._ranks.is_main
        }
