"""AdamW, torch's fused one (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from bert_pipeline.training.optimizers.groups import ParameterGroup

if TYPE_CHECKING:
    from bert_pipeline.training.config import TrainConfig
    from bert_pipeline.training.precision import Precision


def build(
    groups: Sequence[ParameterGroup], config: "TrainConfig", precision: "Precision"
) -> dict[str, torch.optim.Optimizer]:
    """AdamW over all parameters."""
    rate = config.find_learning_rate()
    settings = [group.settings(rate, config.weight_decay) for group in groups]
    adamw = torch.optim.AdamW(
        settings,
        lr=rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )
    return {"adamw": adamw}
