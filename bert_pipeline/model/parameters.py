"""What an optimizer has to know of a network's parameters, whatever its architecture calls them."""

from typing import Any, NamedTuple

import torch
from torch import nn


class Kind(NamedTuple):
    """What a parameter is."""

    is_hidden_matrix: bool
    """A matrix between hidden states: no embedding, nothing that scores the vocabulary or sentence pairs."""
    decays: bool
    """Under weight decay: all but biases and the weights of norms."""


def parameter_kinds(network: Any) -> dict[str, Kind]:
    """The kind of each of a stock model's parameters, by name, in its order.

    Muon is for hidden matrices (Jordan 2024); decay as in the BERT release's optimization.py.
    """
    outside = _outside_of_encoder(network)
    hidden = {
        module.weight
        for module in network.modules()
        if isinstance(module, nn.Linear) and module.out_features != network.config.vocab_size
    }
    result = {}
    for name, parameter in network.named_parameters():
        is_matrix = parameter.dim() == 2 and parameter in hidden and parameter not in outside
        result[name] = Kind(is_matrix, decays=parameter.dim() > 1 and not name.endswith("bias"))
    return result


def _outside_of_encoder(network: Any) -> set[torch.Tensor]:
    """Parameters of embeddings, of what scores the vocabulary, and of BERT's head for sentence pairs."""
    modules: list[nn.Module | None] = [
        it for it in network.modules() if isinstance(it, nn.Embedding)
    ]
    modules += [network.get_output_embeddings(), getattr(network.base_model, "pooler", None)]
    modules.append(getattr(getattr(network, "cls", None), "seq_relationship", None))
    return {
        parameter for module in modules if module is not None for parameter in module.parameters()
    }
