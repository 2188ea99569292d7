"""The network that is fine-tuned: a pretrained encoder with a new head."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.finetuning.config import FinetuneConfig
from bert_pipeline.model.architectures import set_dropout
from bert_pipeline.model.padded import encoder_layers
from bert_pipeline.predict.load import load_config, load_with_new_heads
from bert_pipeline.tasks.task import Task


def make_network(config: FinetuneConfig, folder: Path, task: Task) -> tuple[Any, list[str]]:
    """A stock network with the head of a task, and the names of its random weights."""
    auto_class = getattr(transformers, task.auto_class)
    model_config = load_config(folder)
    for name, value in task.config_fields().items():
        setattr(model_config, name, value)
    set_dropout(model_config, config.dropout)
    torch.manual_seed(config.seed)
    if type(model_config) not in auto_class._model_mapping:
        raise BertpipeError(
            f"{folder}: transformers has no {config.task} head for {model_config.model_type}."
        )
    if config.init == "random":
        network = auto_class.from_config(model_config, dtype=torch.float32)
        return network, [name for name, _ in network.named_parameters()]
    return load_with_new_heads(folder, auto_class, model_config)


def freeze(network: Any, what: str | None) -> None:
    """Freeze the encoder, or the embeddings and the first layers (`--freeze`).

    The pooler, which is a head, is trained. Raises `UsageError` if there are fewer layers.
    """
    if what is None:
        return
    body = network.base_model
    layers = encoder_layers(body)
    count = len(layers) if what == "encoder" else int(what)
    if count > len(layers):
        raise UsageError(f"--freeze {what}: the model has {len(layers)} layers.")
    above = {id(parameter) for layer in layers[count:] for parameter in layer.parameters()}
    pooler = getattr(body, "pooler", None)
    if isinstance(pooler, nn.Module):
        above |= {id(parameter) for parameter in pooler.parameters()}
    for parameter in body.parameters():
        parameter.requires_grad_(id(parameter) in above)


def layer_scales(network: Any, decay: float) -> dict[str, float]:
    """Factors of the learning rate by parameter name: `decay` per layer below the top one.

    The embeddings are below the first layer, and heads above the last one (Howard & Ruder 2018,
    discriminative fine-tuning, https://arxiv.org/abs/1801.06146).
    """
    body = network.base_model
    layers = encoder_layers(body)
    depth = {id(p): number for number, layer in enumerate(layers) for p in layer.parameters()}
    pooler = getattr(body, "pooler", None)
    heads = {id(p) for p in pooler.parameters()} if isinstance(pooler, nn.Module) else set()
    of_body = {id(parameter) for parameter in body.parameters()} - heads
    return {
        name: decay ** (len(layers) - 1 - depth.get(id(parameter), -1) + 1)
        for name, parameter in network.named_parameters()
        if id(parameter) in of_body
    }
