"""Optimizers and their parameter groups."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from bert_pipeline.training.config import PretrainConfig
from bert_pipeline.training.muon import BatchedMuon
from bert_pipeline.training.schedule import warm_up_then_linear


class Optimizers:
    """AdamW over everything, or Muon over the encoder's matrices and AdamW over the rest, stepped as one."""

    def __init__(self, model: nn.Module, config: PretrainConfig) -> None:
        self.names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        self._warmup = config.warmup
        on_muon = {p for p, name in self.names.items() if config.optimizer == "muon" and _is_hidden_matrix(name, p)}
        decayed = [p for p, name in self.names.items() if p not in on_muon and _is_decayed(name)]
        undecayed = [p for p, name in self.names.items() if p not in on_muon and not _is_decayed(name)]
        self.members: dict[str, torch.optim.Optimizer] = {
            "adamw": torch.optim.AdamW(
                [{"params": decayed, "weight_decay": config.weight_decay}, {"params": undecayed, "weight_decay": 0.0}],
                lr=config.learning_rate,
                betas=(config.adam_beta1, config.adam_beta2),
                eps=config.adam_epsilon,
                fused=True,
            )
        }
        if on_muon:
            self.members["muon"] = BatchedMuon(
                [p for p in self.names if p in on_muon],
                lr=config.muon_learning_rate,
                momentum=config.muon_momentum,
                ns_steps=config.muon_iterations,
                weight_decay=config.weight_decay,
            )
        self._peaks = {name: member.defaults["lr"] for name, member in self.members.items()}

    def set_progress(self, progress: float) -> float:
        """Set the learning rates for a share of the run that lies behind; return AdamW's."""
        factor = warm_up_then_linear(progress, self._warmup)
        for name, member in self.members.items():
            for group in member.param_groups:
                group["lr"] = self._peaks[name] * factor
        return float(self._peaks["adamw"] * factor)

    def step(self) -> None:
        """Update the weights from their gradients."""
        for member in self.members.values():
            member.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for member in self.members.values():
            member.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """All state, as `OPTIMIZER/PARAMETER/KEY`, for a safetensors file."""
        return {
            f"{optimizer}/{self.names[parameter]}/{key}": value
            for optimizer, parameter, state in self._states()
            for key, value in state.items()
        }

    def load_state_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take back what `state_tensors` gave."""
        by_name = {name: parameter for parameter, name in self.names.items()}
        for path, value in tensors.items():
            optimizer, name, key = path.split("/")
            parameter = by_name[name]
            self.members[optimizer].state[parameter][key] = value.to(parameter.device)

    def _states(self) -> Iterator[tuple[str, torch.Tensor, dict[str, Any]]]:
        for name, member in self.members.items():
            for parameter, state in member.state.items():
                yield name, parameter, state


def _is_decayed(name: str) -> bool:
    """Weights decay; biases and layer norms do not (the release's optimization.py)."""
    return not name.endswith("bias") and "LayerNorm" not in name


def _is_hidden_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Muon is for matrices between hidden states: not embeddings, not the heads' last ones (Jordan 2024)."""
    return parameter.dim() == 2 and (".encoder." in name or ".transform." in name)
