"""What an optimizer needs to know about a network's parameters, for any architecture."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class ParameterKind:
    """What a parameter is."""

    is_hidden_matrix: bool
    """A matrix between hidden states: no embedding and no output layer."""
    decays: bool
    """Under weight decay: all but biases and the weights of norms."""


def parameter_kinds(network: Any) -> dict[str, ParameterKind]:
    """The kind of each parameter of a stock model, by name, in the model's order.

    Muon is for hidden matrices (Jordan 2024, https://kellerjordan.github.io/posts/muon/). Weight
    decay as in the BERT release's
    [optimization.py](https://github.com/google-research/bert/blob/master/optimization.py).
    """
    hidden = _hidden_weights(network)
    result = {}
    for name, parameter in network.named_parameters():
        decays = parameter.dim() > 1 and not name.endswith("bias")
        result[name] = ParameterKind(parameter in hidden, decays)
    return result


def _hidden_weights(network: Any) -> set[torch.Tensor]:
    """Weights of the linear layers between hidden states.

    Those are inside the base model, and before the decoder of a masked-LM head. A network without a
    decoder has a classifier, tagger or span head, which is an output layer.
    """
    decoder = network.get_output_embeddings()
    scope = network if decoder is not None else network.base_model
    linear = {module.weight for module in scope.modules() if isinstance(module, nn.Linear)}
    return {weight for weight in linear if weight.dim() == 2} - _outer_weights(network, decoder)


def _outer_weights(network: Any, decoder: nn.Module | None) -> set[torch.Tensor]:
    """Weights of embeddings, of layers that score the vocabulary, and of the sentence-pair head."""
    vocab_size = network.config.vocab_size
    modules: list[nn.Module | None] = [
        module
        for module in network.modules()
        if isinstance(module, nn.Embedding)
        or (isinstance(module, nn.Linear) and module.out_features == vocab_size)
    ]
    modules += [decoder, getattr(network.base_model, "pooler", None)]
    modules.append(getattr(getattr(network, "cls", None), "seq_relationship", None))
    found = (module for module in modules if module is not None)
    return {parameter for module in found for parameter in module.parameters()}
