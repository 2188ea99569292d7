"""The optimizer of a run: one or more torch optimizers with one schedule, stepped as one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bert_pipeline.training.config import TrainConfig
from bert_pipeline.training.distributed import sharded_like
from bert_pipeline.training.optimizers.groups import ParameterGroup
from bert_pipeline.training.optimizers.registry import OPTIMIZERS
from bert_pipeline.training.precision import FP32, LossScale, Precision

LOSS_SCALE = "loss_scale"


class Optimizer:
    """The optimizer that a config asks for, over groups of a network's parameters."""

    def __init__(
        self,
        network: nn.Module,
        groups: Sequence[ParameterGroup],
        config: TrainConfig,
        precision: Precision = FP32,
        *,
        keeps_gradients: bool = False,
    ) -> None:
        """`network` as it is trained: sharding replaces parameters, so it comes before.

        With `keeps_gradients`, `step` sets gradients to zero instead of None.
        """
        self.names: dict[torch.Tensor, str] = {
            parameter: name for name, parameter in network.named_parameters()
        }
        self.members = OPTIMIZERS[config.optimizer].build(groups, config, precision)
        self._schedule = config.learning_rate_schedule()
        self._max_grad_norm = config.max_grad_norm
        self._keeps_gradients = keeps_gradients
        device = next(network.parameters()).device
        self._dynamic_scale = LossScale(device) if precision.name == "fp16" else None
        self._fixed_scale = torch.ones((), device=device)
        self._reported_rate = next(iter(self.members.values())).defaults["lr"]

    @property
    def loss_scale(self) -> torch.Tensor:
        """The factor of the loss whose gradients `step` takes, on the device; 1 without fp16."""
        dynamic = self._dynamic_scale
        return self._fixed_scale if dynamic is None else dynamic.factor

    def set_progress(self, progress: float) -> float:
        """Set the learning rates for a completed share of the run; return the reported one."""
        factor = self._schedule.factor(progress)
        for member in self.members.values():
            for group in member.param_groups:
                group["lr"] = group["peak_lr"] * factor
        return float(self._reported_rate * factor)

    def step(self, norm: torch.Tensor, finite: torch.Tensor) -> None:
        """Update the weights from their gradients if `finite`, and clear the gradients.

        `norm` is the norm of all gradients without the loss scale; larger ones are scaled down to
        the maximum. Both are scalars on the device and stay there: a step that is not finite
        changes neither weights nor state, without the host waiting.
        """
        scale = (norm / self._max_grad_norm).clamp(min=1.0).float() * self.loss_scale
        found_inf = (~finite).float()
        for member in self.members.values():
            member.grad_scale = scale  # type: ignore[attr-defined]
            member.found_inf = found_inf  # type: ignore[attr-defined]
            member.step()
            if not self._keeps_gradients:
                member.zero_grad(set_to_none=True)
        if self._keeps_gradients:
            torch._foreach_zero_([p.grad for p in self.names if p.grad is not None])
        if self._dynamic_scale is not None:
            self._dynamic_scale.update(found_inf)

    def state_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All state as `OPTIMIZER/PARAMETER/KEY`, in the same order on all ranks.

        That of the loss scale is `loss_scale/KEY`.
        """
        for optimizer, parameter, state in self._states():
            for key, value in state.items():
                yield f"{optimizer}/{self.names[parameter]}/{key}", value
        if self._dynamic_scale is not None:
            for key, value in self._dynamic_scale.state().items():
                yield f"{LOSS_SCALE}/{key}", value

    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore full tensors from `state_tensors`; without any, reset to a new optimizer."""
        for member in self.members.values():
            member.state.clear()
        of_scale = {key: value for key, value in tensors.items() if key.startswith(LOSS_SCALE)}
        if self._dynamic_scale is not None:
            self._dynamic_scale.load({key.split("/")[1]: v for key, v in of_scale.items()})
        by_name = {name: parameter for parameter, name in self.names.items()}
        for path, value in tensors.items():
            if path in of_scale:
                continue
            optimizer, name, key = path.split("/")
            parameter = by_name[name]
            is_scalar = not value.dim()
            restored = value.to(parameter.device) if is_scalar else sharded_like(value, parameter)
            self.members[optimizer].state[parameter][key] = restored

    def _states(self) -> Iterator[tuple[str, torch.Tensor, dict[str, Any]]]:
        for name, member in self.members.items():
            for group in member.param_groups:
                for parameter in group["params"]:
                    if parameter in member.state:
                        yield name, parameter, member.state[parameter]
