"""`torch.optim.Muon` with its Newton-Schulz iteration batched, and in fp32 off the GPU.

The stock optimizer orthogonalises one matrix at a time in bfloat16.  A CPU without bfloat16
instructions takes tens of milliseconds per matrix for that, more than the rest of a small
model's step.  Here matrices of equal shape go through the iteration together, and off the
GPU in fp32, which such a CPU multiplies at full speed.  Options, state and mathematics are
those of `torch.optim.Muon` (momentum buffers are interchangeable).
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def orthogonalize(updates: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Push the singular values of each `[n, rows, columns]` matrix towards 1.

    `steps` rounds of the odd quintic `a X + (b A + c A A) X` with `A = X X'`; see Keller
    Jordan, "Muon: An optimizer for hidden layers in neural networks" (2024).
    """
    a, b, c = coefficients
    tall = updates.shape[1] > updates.shape[2]
    x = updates.transpose(1, 2) if tall else updates  # the smaller Gram matrix
    x = x.bfloat16() if x.is_cuda else x.float()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)  # spectral norm at most 1
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.transpose(1, 2) if tall else x


def _learning_rate(lr: float, adjust: str | None, rows: int, columns: int) -> float:
    """`lr` adjusted to the matrix shape, as `torch.optim.Muon` documents it."""
    if adjust == "match_rms_adamw":
        return lr * 0.2 * math.sqrt(max(rows, columns))
    return lr * math.sqrt(max(1.0, rows / columns))


class BatchedMuon(torch.optim.Muon):
    """Drop-in `torch.optim.Muon` whose step costs little on a CPU."""

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
        grads: list[Tensor] = []
        buffers: list[Tensor] = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            grads.append(parameter.grad)
            buffers.append(state["momentum_buffer"])
        momentum, lr = group["momentum"], float(group["lr"])
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        update = torch.stack(buffers)
        if group["nesterov"]:
            update = torch.stack(grads).lerp(update, momentum)
        update = orthogonalize(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = parameters[0].shape
        step = _learning_rate(lr, group["adjust_lr_fn"], rows, columns)
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_add_(parameters, list(update.to(parameters[0].dtype).unbind()), alpha=-step)
