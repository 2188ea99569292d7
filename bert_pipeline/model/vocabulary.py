"""Weights for another vocabulary: rows of embeddings and decoder by the tokens they stand for."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

VocabularySources = Sequence[Sequence[int]]
"""For each id of the new vocabulary, the ids of the old one whose rows it is the mean of."""


@torch.no_grad()
def copy_weights(
    old: Any, new: Any, sources: VocabularySources | None, missing: Collection[str] = ()
) -> None:
    """Copy the weights of a network to one with the same layers and another vocabulary.

    Rows of the embeddings, of an untied decoder and of its bias are taken by `sources`; None stands
    for the same ids. Entries without sources get the mean of all rows. Ids after the last entry (of
    a padded vocabulary) keep the old row of their id, if there is one. Weights named in `missing`
    stay as they are in `new`.
    """
    by_vocabulary = _vocabulary_tensors(old)
    rows = len(new.get_input_embeddings().weight)
    weights = dict(old.named_parameters())
    for name, parameter in new.named_parameters():
        if name in missing:
            continue
        if weights[name] in by_vocabulary:
            parameter.copy_(_take_means(weights[name], sources or (), rows))
        else:
            parameter.copy_(weights[name])


def _vocabulary_tensors(network: Any) -> set[Tensor]:
    decoder = network.get_output_embeddings()
    candidates = [
        network.get_input_embeddings().weight,
        getattr(decoder, "weight", None),
        getattr(decoder, "bias", None),
    ]
    return {tensor for tensor in candidates if tensor is not None}


def _take_means(old: Tensor, sources: VocabularySources, rows: int) -> Tensor:
    """New rows `[rows, ...]` of a tensor `[old rows, ...]`."""
    result = old.mean(0, keepdim=True).repeat(rows, *[1] * (old.dim() - 1))
    kept = min(rows, len(old))
    result[:kept] = old[:kept]
    for number, ids in enumerate(sources):
        result[number] = old[list(ids)].mean(0) if ids else old.mean(0)
    return result
