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
from bert_pipeline.model.unpadded import BERT_BODIES
from bert_pipeline.predict.load import load_config, load_with_new_heads
from bert_pipeline.tasks.task import Task

CLS_TASKS = ("classification", "multiple-choice")
"""Tasks whose heads read `[CLS]`."""
NARROW = 256
"""Hidden size up to which `[CLS]` and embeddings start so that small budgets of pretraining pay:
measured for 128 (docs/benchmarks.md)."""


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
    network, new = load_with_new_heads(folder, auto_class, model_config)
    if _starts_with_mean(config, network):
        new = sorted({*new, *_start_with_mean(network)})
    return network, new


def _starts_with_mean(config: FinetuneConfig, network: Any) -> bool:
    """Whether `[CLS]` starts as the mean of all tokens (`--cls-start`).

    Raises `UsageError` if it cannot in this architecture.
    """
    reads_cls = isinstance(network.base_model, BERT_BODIES) and config.task in CLS_TASKS
    if config.cls_start == "mean" and not reads_cls:
        raise UsageError("--cls-start mean is for classifiers and choices on a BERT or RoBERTa.")
    if config.cls_start != "auto":
        return config.cls_start == "mean"
    return reads_cls and config.freeze is None and network.config.hidden_size <= NARROW


@torch.no_grad()
def _start_with_mean(network: Any) -> list[str]:
    """Let the last layer mix all tokens equally; return the names of the changed weights.

    Only `[CLS]` is read of that layer, so its queries serve nothing else. A small budget trains
    them for masked tokens: they look near their position, where a classifier has nothing to see.
    """
    query = network.base_model.encoder.layer[-1].attention.self.query
    pooler = getattr(network.base_model, "pooler", None)
    query.weight.zero_()
    query.bias.zero_()
    changed = [query.weight, query.bias]
    if pooler is not None:
        network._init_weights(pooler.dense)
        changed += [pooler.dense.weight, pooler.dense.bias]
    ids = {id(parameter) for parameter in changed}
    return [name for name, parameter in network.named_parameters() if id(parameter) in ids]


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
    """Factors of the learning rate by parameter name: `decay` per layer from the head down.

    The embeddings are below the first layer, and heads above the last one (Howard & Ruder 2018,
    discriminative fine-tuning, https://arxiv.org/abs/1801.06146).
    """
    body = network.base_model
    layers = encoder_layers(body)
    depth = {id(p): number for number, layer in enumerate(layers) for p in layer.parameters()}
    pooler = getattr(body, "pooler", None)
    heads = {id(p) for p in pooler.parameters()} if isinstance(pooler, nn.Module) else set()
    of_body = {id(parameter) for parameter in body.parameters()} - heads
    large = _scale_of_embeddings(network)
    scales = {}
    for name, parameter in network.named_parameters():
        if id(parameter) not in of_body:
            continue
        number = depth.get(id(parameter))
        scale = 1.0 if number is not None or parameter.dim() < 2 else large
        below = len(layers) - (-1 if number is None else number)
        scales[name] = scale * decay**below
    return scales


def _scale_of_embeddings(network: Any) -> float:
    """How much larger the embeddings of a narrow model are than those of the initialization.

    A small budget with large learning rates leaves them about five times as large. A layer norm
    follows them, so AdamW has to make larger steps for the same effect.
    """
    embeddings = network.get_input_embeddings().weight.detach()
    deviation = getattr(network.config, "initializer_range", None)
    if network.config.hidden_size > NARROW or not deviation:
        return 1.0
    return max(1.0, float(embeddings.square().mean().sqrt()) / float(deviation))
