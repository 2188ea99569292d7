"""LAMB: Adam's direction, with a step as long as a share of each weight's own norm, for very large batches."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from bert_pipeline.training.distributed import local, usable_gradients


class Lamb(torch.optim.Optimizer):
    """You et al. 2020, algorithm 2: bias-corrected Adam, decoupled decay, and a trust ratio for each tensor.

    The ratio is `norm(weight) / norm(update)`, and 1 where either is 0 and in groups with `adapt=False` (biases and
    norms, as in the authors' code). `grad_scale` divides the gradients and `found_inf` (1.0) leaves everything as it
    is, both tensors on the device, like those of torch's fused AdamW.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "adapt": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._step_group(parameters, group)
        return loss

    def _step_group(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] |= {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in parameters]
        grads, go = usable_gradients(parameters, self.grad_scale, self.found_inf)
        beta1, beta2 = group["betas"]
        steps = [state["step"] for state in states]
        first, second = (
            [local(state[key]) for state in states] for key in ("exp_avg", "exp_avg_sq")
        )
        torch._foreach_add_(steps, [go] * len(steps))
        # With `go` 0 the moments stay as they are: the decay of both becomes 1.
        kept1, kept2 = 1 - (1 - beta1) * go, 1 - (1 - beta2) * go
        torch._foreach_mul_(first, kept1)
        torch._foreach_add_(first, torch._foreach_mul(grads, (1 - beta1) * go))
        torch._foreach_mul_(second, kept2)
        torch._foreach_add_(
            second, torch._foreach_mul(torch._foreach_mul(grads, grads), (1 - beta2) * go)
        )
        count = steps[0].clamp(min=1)  # the same for all of a group
        denominators = torch._foreach_sqrt(torch._foreach_div(second, 1 - beta2**count))
        torch._foreach_add_(denominators, group["eps"])
        updates = list(
            torch._foreach_div(torch._foreach_div(first, 1 - beta1**count), denominators)
        )
        weights = [local(parameter) for parameter in parameters]
        torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        if group["adapt"]:
            sharded = isinstance(parameters[0], DTensor)
            of_weight, of_update = _norms(weights, sharded), _norms(updates, sharded)
            known = (of_weight > 0) & (of_update > 0)
            ratios = torch.where(known, of_weight / of_update, torch.ones_like(of_weight))
            torch._foreach_mul_(updates, list(ratios.unbind()))
        torch._foreach_mul_(updates, -group["lr"] * go)
        torch._foreach_add_(weights, updates)


def _norms(parts: list[Tensor], sharded: bool) -> Tensor:
    """Norms of the whole tensors that `parts` are, or are this rank's shards of."""
    norms = torch.stack(list(torch._foreach_norm(parts)))
    if not sharded:
        return norms
    squares = norms.square()
    dist.all_reduce(squares)
    return squares.sqrt()
