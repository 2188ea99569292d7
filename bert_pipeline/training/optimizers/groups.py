"""Groups of parameters with the same treatment by the optimizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn


class ParameterKindProtocol(Protocol):
    """What an optimizer needs to know about a parameter."""

    @property
    def is_hidden_matrix(self) -> bool:
        """Whether it is a matrix between hidden states, which Muon updates."""

    @property
    def decays(self) -> bool:
        """Whether weight decay applies."""


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that share weight decay, learning rate and algorithm."""

    parameters: Sequence[nn.Parameter]
    decays: bool
    is_hidden_matrix: bool = False
    learning_rate_scale: float = 1.0
    """Factor of the scheduled learning rate, such as that of layer-wise decay."""

    def settings(self, learning_rate: float, weight_decay: float) -> dict[str, object]:
        """The group as torch's optimizers take it, with the peak of its learning rate."""
        peak = learning_rate * self.learning_rate_scale
        return {
            "params": list(self.parameters),
            "weight_decay": weight_decay if self.decays else 0.0,
            "lr": peak,
            "peak_lr": peak,
        }


def group_parameters(
    network: nn.Module,
    kinds: Mapping[str, ParameterKindProtocol],
    learning_rate_scales: Mapping[str, float] | None = None,
) -> list[ParameterGroup]:
    """The parameters of a network in groups, hidden matrices last.

    `kinds` and `learning_rate_scales` (1 where missing) are by parameter name.
    """
    scales = learning_rate_scales or {}
    members: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        kind = kinds[name]
        key = (kind.is_hidden_matrix, not kind.decays, scales.get(name, 1.0))
        members.setdefault(key, []).append(parameter)
    return [ParameterGroup(members[key], not key[1], key[0], key[2]) for key in sorted(members)]
