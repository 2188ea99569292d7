"""LAMB: Adam with a trust ratio per layer, for very large batches."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from bert_pipeline.training.distributed import local_shard, scaled_gradients
from bert_pipeline.training.optimizers.groups import ParameterGroup

if TYPE_CHECKING:
    from bert_pipeline.training.config import TrainConfig
    from bert_pipeline.training.precision import Precision


def build(
    groups: Sequence[ParameterGroup], config: "TrainConfig", precision: "Precision"
) -> dict[str, torch.optim.Optimizer]:
    """LAMB over all parameters; those without weight decay are not adapted."""
    rate = config.find_learning_rate()
    settings = [
        group.settings(rate, config.weight_decay) | {"adapt": group.decays} for group in groups
    ]
    lamb = Lamb(
        settings,
        lr=rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
    )
    return {"lamb": lamb}


class Lamb(torch.optim.Optimizer):
    """You et al. 2020, algorithm 2 (https://arxiv.org/abs/1904.00962).

    Bias-corrected Adam with decoupled weight decay and a trust ratio per tensor:
    `norm(weight) / norm(update)`, and 1 where either is 0 and in groups with `adapt=False` (biases
    and norms, as in the authors' code). `grad_scale` divides the gradients and `found_inf` (1.0)
    skips the step, both tensors on the device, as in torch's fused AdamW.
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
        grads, go = scaled_gradients(parameters, self.grad_scale, self.found_inf)
        beta1, beta2 = group["betas"]
        steps = [state["step"] for state in states]
        first = [local_shard(state["exp_avg"]) for state in states]
        second = [local_shard(state["exp_avg_sq"]) for state in states]
        torch._foreach_add_(steps, [go] * len(steps))
        # Moments. With `go` 0 they do not change: the decay of both becomes 1.
        kept1 = 1 - (1 - beta1) * go
        kept2 = 1 - (1 - beta2) * go
        torch._foreach_mul_(first, kept1)
        torch._foreach_add_(first, torch._foreach_mul(grads, (1 - beta1) * go))
        torch._foreach_mul_(second, kept2)
        squares = torch._foreach_mul(grads, grads)
        torch._foreach_add_(second, torch._foreach_mul(squares, (1 - beta2) * go))
        # Adam's update with bias correction, and decoupled weight decay.
        count = steps[0].clamp(min=1)  # the same for the whole group
        denominators = torch._foreach_sqrt(torch._foreach_div(second, 1 - beta2**count))
        torch._foreach_add_(denominators, group["eps"])
        corrected = torch._foreach_div(first, 1 - beta1**count)
        updates = list(torch._foreach_div(corrected, denominators))
        weights = [local_shard(parameter) for parameter in parameters]
        torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        # Trust ratios.
        if group["adapt"]:
            sharded = isinstance(parameters[0], DTensor)
            of_weight = _norms(weights, sharded)
            of_update = _norms(updates, sharded)
            known = (of_weight > 0) & (of_update > 0)
            ratios = torch.where(known, of_weight / of_update, torch.ones_like(of_weight))
            torch._foreach_mul_(updates, list(ratios.unbind()))
        torch._foreach_mul_(updates, -group["lr"] * go)
        torch._foreach_add_(weights, updates)


def _norms(parts: list[Tensor], sharded: bool) -> Tensor:
    """Norms of the full tensors that `parts` are, or are this rank's shards of."""
    norms = torch.stack(list(torch._foreach_norm(parts)))
    if not sharded:
        return norms
    squares = norms.square()
    dist.all_reduce(squares)
    return squares.sqrt()
