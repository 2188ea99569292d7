"""Optimizers and their parameter groups."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from bert_pipeline.model.parameters import parameter_kinds
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.training.distributed import sharded_like
from bert_pipeline.training.lamb import Lamb
from bert_pipeline.training.muon import BatchedMuon
from bert_pipeline.training.schedule import Schedule


class Optimizers:
    """AdamW or LAMB over everything, or Muon over the encoder's matrices and AdamW over the rest, stepped as one."""

    def __init__(self, network: nn.Module, config: PretrainConfig) -> None:
        """`network` is the stock model as it is trained: a sharded one's parameters are others than before."""
        self.names: dict[torch.Tensor, str] = {
            parameter: name for name, parameter in network.named_parameters()
        }
        self._schedule = Schedule(config.schedule, config.find_warmup(), config.decay)
        self._max_grad_norm = config.max_grad_norm
        kinds = parameter_kinds(network)
        with_muon = config.optimizer == "muon"
        on_muon = [
            p for p, name in self.names.items() if with_muon and kinds[name].is_hidden_matrix
        ]
        others = [
            p for p, name in self.names.items() if not (with_muon and kinds[name].is_hidden_matrix)
        ]
        decayed = [p for p in others if kinds[self.names[p]].decays]
        undecayed = [p for p in others if not kinds[self.names[p]].decays]
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": undecayed, "weight_decay": 0.0},
        ]
        common: dict[str, Any] = {
            "lr": config.find_learning_rate(),
            "betas": (config.adam_beta1, config.adam_beta2),
            "eps": config.adam_epsilon,
        }
        self.members: dict[str, torch.optim.Optimizer] = {}
        if config.optimizer == "lamb":
            groups[1] |= {"adapt": False}
            self.members["lamb"] = Lamb(groups, weight_decay=config.weight_decay, **common)
        else:
            self.members["adamw"] = torch.optim.AdamW(groups, fused=True, **common)
        if on_muon:
            self.members["muon"] = BatchedMuon(
                on_muon,
                lr=config.muon_learning_rate,
                momentum=config.muon_momentum,
                ns_steps=config.muon_iterations,
                weight_decay=config.weight_decay,
            )
        self._peaks = {name: member.defaults["lr"] for name, member in self.members.items()}

    def set_progress(self, progress: float) -> float:
        """Set the learning rates for a share of the run that lies behind; return AdamW's or LAMB's."""
        factor = self._schedule.factor(progress)
        for name, member in self.members.items():
            for group in member.param_groups:
                group["lr"] = self._peaks[name] * factor
        return float(next(iter(self._peaks.values())) * factor)

    def step(self, norm: torch.Tensor, good: torch.Tensor) -> None:
        """Update the weights from their gradients, of total norm `norm`, unless `good` is False; then forget them.

        Both are scalars on the device and stay there: gradients beyond the largest norm are scaled down, and a bad step
        leaves weights and state as they are, without the host knowing.
        """
        scale = (norm / self._max_grad_norm).clamp(min=1.0).float()
        bad = (~good).float()
        for member in self.members.values():
            member.grad_scale, member.found_inf = scale, bad  # type: ignore[attr-defined]
            member.step()
            member.zero_grad(set_to_none=True)

    def state_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All state, as `OPTIMIZER/PARAMETER/KEY`, in the same order on all ranks."""
        for optimizer, parameter, state in self._states():
            for key, value in state.items():
                yield f"{optimizer}/{self.names[parameter]}/{key}", value

    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Become what `state_tensors` gave, whole tensors; of nothing, what a new optimizer is."""
        for member in self.members.values():
            member.state.clear()
        by_name = {name: parameter for parameter, name in self.names.items()}
        for path, value in tensors.items():
            optimizer, name, key = path.split("/")
            parameter = by_name[name]
            laid_out = sharded_like(value, parameter) if value.dim() else value.to(parameter.device)
            self.members[optimizer].state[parameter][key] = laid_out

    def _states(self) -> Iterator[tuple[str, torch.Tensor, dict[str, Any]]]:
        for name, member in self.members.items():
            for group in member.param_groups:
                for parameter in group["params"]:
                    if parameter in member.state:
                        yield name, parameter, member.state[parameter]
