"""Muon (`torch.optim.Muon`) with a batched Newton-Schulz iteration, in the run's precision.

The stock optimizer orthogonalizes one matrix at a time in bfloat16. A CPU without bfloat16
instructions takes tens of milliseconds per matrix for that, more than the rest of a small model's
step. Here matrices of equal shape go through the iteration together, in bfloat16 only where the
run's matrix products are. Options, state and mathematics are those of `torch.optim.Muon` (momentum
buffers are interchangeable).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bert_pipeline.training.distributed import (
    full_tensor,
    local_shard,
    scaled_gradients,
    shard_of,
    sharded_like,
)
from bert_pipeline.training.optimizers import adamw
from bert_pipeline.training.optimizers.groups import ParameterGroup

if TYPE_CHECKING:
    from bert_pipeline.training.config import TrainConfig
    from bert_pipeline.training.precision import Precision


def build(
    groups: Sequence[ParameterGroup], config: "TrainConfig", precision: "Precision"
) -> dict[str, torch.optim.Optimizer]:
    """Muon over the matrices between hidden states, AdamW over the rest."""
    hidden = [group for group in groups if group.is_hidden_matrix]
    others = [group for group in groups if not group.is_hidden_matrix]
    members = adamw.build(others, config, precision)
    if hidden:
        rate = config.muon_learning_rate
        muon = BatchedMuon(
            [group.settings(rate, config.weight_decay) for group in hidden],
            lr=rate,
            momentum=config.muon_momentum,
            ns_steps=config.muon_iterations,
            weight_decay=config.weight_decay,
        )
        if precision.name == "bf16":
            muon.iteration_dtype = torch.bfloat16
        members["muon"] = muon
    return members


def orthogonalize(
    updates: Tensor,
    coefficients: tuple[float, float, float],
    steps: int,
    eps: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Push the singular values of each `[n, rows, columns]` matrix towards 1.

    `steps` iterations of the odd quintic `a X + (b A + c A A) X` with `A = X X'` (Jordan 2024,
    "Muon: An optimizer for hidden layers in neural networks",
    https://kellerjordan.github.io/posts/muon/).
    """
    a, b, c = coefficients
    tall = updates.shape[1] > updates.shape[2]
    x = updates.transpose(1, 2) if tall else updates  # the smaller Gram matrix
    x = x.to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)  # spectral norm at most 1
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    x = x.to(updates.dtype)
    return x.transpose(1, 2) if tall else x


def _learning_rate(lr: float, adjust: str | None, rows: int, columns: int) -> float:
    """`lr` adjusted to the matrix shape, as `torch.optim.Muon` documents it."""
    if adjust == "match_rms_adamw":
        return lr * 0.2 * math.sqrt(max(rows, columns))
    return lr * math.sqrt(max(1.0, rows / columns))


class BatchedMuon(torch.optim.Muon):
    """Drop-in `torch.optim.Muon` with a cheap step on a CPU.

    As torch's fused AdamW it takes `grad_scale`, which divides the gradients, and `found_inf`,
    which skips the step at 1.0; weights may be sharded (FSDP2).
    """

    iteration_dtype: torch.dtype = torch.float32
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._step_alike(parameters, group)
        return loss

    def _step_alike(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters of one shape."""
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        grads, go = scaled_gradients(parameters, self.grad_scale, self.found_inf)
        buffers = [
            local_shard(self.state[parameter]["momentum_buffer"]) for parameter in parameters
        ]
        momentum = group["momentum"]
        lr = float(group["lr"])
        # Momentum. With `go` 0 nothing changes.
        torch._foreach_lerp_(buffers, grads, [(1 - momentum) * go] * len(grads))
        updates = buffers
        if group["nesterov"]:
            updates = list(torch._foreach_lerp(grads, buffers, momentum))
        # Orthogonalization needs full matrices: shards are gathered, and each rank takes its own.
        full = [
            full_tensor(shard_of(update, parameter))
            for update, parameter in zip(updates, parameters, strict=True)
        ]
        update = orthogonalize(
            torch.stack(full),
            group["ns_coefficients"],
            group["ns_steps"],
            group["eps"],
            self.iteration_dtype,
        )
        parts = [
            local_shard(sharded_like(matrix, parameter))
            for matrix, parameter in zip(update.unbind(), parameters, strict=True)
        ]
        # Weight decay and update.
        rows, columns = parameters[0].shape
        step = _learning_rate(lr, group["adjust_lr_fn"], rows, columns) * go
        weights = [local_shard(parameter) for parameter in parameters]
        torch._foreach_mul_(weights, 1 - lr * group["weight_decay"] * go)
        torch._foreach_add_(weights, torch._foreach_mul(parts, -step))
