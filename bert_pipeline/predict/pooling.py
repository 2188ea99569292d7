"""How the hidden states of a text become vectors."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

LAST4, MEAN, CLS = "last4-concat", "mean", "cls"
CONCATENATED = 4
"""Layers of `last4-concat` (Devlin et al. 2019, section 5.3, https://arxiv.org/abs/1810.04805)."""


def select_layers(states: Iterable[Tensor], pooling: str) -> Tensor:
    """The vectors of tokens `[T, dimension]` from the embeddings and the output of each layer.

    They are the last hidden states, or the concatenation of those of the last four layers; a model
    with fewer layers gives all of them.
    """
    _, *layers = states
    return torch.cat(layers[-CONCATENATED:] if pooling == LAST4 else layers[-1:], dim=1)


def pool(vectors: Tensor, cu_seqlens: Tensor, pooling: str) -> Tensor:
    """One vector per text `[B, dimension]`: that of the first token, or the mean of all."""
    if pooling == CLS:
        return vectors[cu_seqlens[:-1]]
    lengths = cu_seqlens.diff()
    texts = torch.repeat_interleave(lengths, output_size=len(vectors))
    sums = vectors.new_zeros(len(lengths), vectors.shape[1]).index_add_(0, texts, vectors)
    return sums / lengths[:, None]


def normalize(vectors: Tensor) -> Tensor:
    """Vectors of length 1; a zero vector stays."""
    return F.normalize(vectors, dim=-1)
