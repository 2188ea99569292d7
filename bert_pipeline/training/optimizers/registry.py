"""The registry of optimizers, light to import: torch is loaded when an optimizer is built."""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from bert_pipeline.training.config import TrainConfig
    from bert_pipeline.training.optimizers.groups import ParameterGroup
    from bert_pipeline.training.precision import Precision


@dataclass(frozen=True, slots=True)
class OptimizerKind:
    """An optimizer by name.

    `module` has `build(groups, config, precision)`, which returns the torch optimizers that are
    stepped together, by name; the learning rate of the first one is the one that is reported.
    """

    module: str
    learning_rate: Callable[[int], float]
    """The default peak learning rate for a batch size."""
    warmup: Callable[[int], float]
    """The default warm-up share of the run for a batch size."""
    options: frozenset[str] = frozenset()
    """Options of `TrainConfig` that only this optimizer reads."""

    def build(
        self, groups: "Sequence[ParameterGroup]", config: "TrainConfig", precision: "Precision"
    ) -> "dict[str, torch.optim.Optimizer]":
        """The torch optimizers for some groups of parameters."""
        module: Any = importlib.import_module(f"bert_pipeline.training.optimizers.{self.module}")
        built: dict[str, torch.optim.Optimizer] = module.build(groups, config, precision)
        return built


# The defaults of AdamW: Devlin et al. 2019, appendix A.2 (https://arxiv.org/abs/1810.04805).
# The defaults of LAMB: You et al. 2020, table 4 (https://arxiv.org/abs/1904.00962).
LAMB_BATCH = 32_768

OPTIMIZERS: dict[str, OptimizerKind] = {
    "adamw": OptimizerKind("adamw", learning_rate=lambda batch: 1e-4, warmup=lambda batch: 0.01),
    "lamb": OptimizerKind(
        "lamb",
        learning_rate=lambda batch: 5e-3 * math.sqrt(batch / LAMB_BATCH),
        warmup=lambda batch: min(0.2, 0.2 * batch / LAMB_BATCH),
    ),
    "muon": OptimizerKind(
        "muon",
        learning_rate=lambda batch: 1e-4,
        warmup=lambda batch: 0.01,
        options=frozenset({"muon_learning_rate", "muon_momentum", "muon_iterations"}),
    ),
}
