"""Informed initialization: weights from counts over the examples, for small budgets.

A small BERT spends most of a small budget on a plateau where it knows little more than token
frequencies. This initialization gives it what it has to learn there: the frequencies, which tokens
occur in similar contexts, and attention to neighbouring positions. All weights stay trainable, and
the architecture is BERT's.
"""

import math
from typing import Any

import numpy as np
import torch

from bert_pipeline.errors import UsageError
from bert_pipeline.model.unpadded import has_bert_layers
from bert_pipeline.ragged import Int32Array, Int64Array
from bert_pipeline.tokenizer.load import SpecialIds

EMBEDDING_RMS = 0.09
NEIGHBOURS = (-1, 1, -2, 2)
COUNTED_TOKENS = 4_000_000
CONTEXTS = 2048
TABLE_ENTRIES = 2**26  # of a token × context table: 256 MiB
ROWS_AT_A_TIME = 1024
SHRINKAGE = 10.0
CONTEXT_SMOOTHING = 0.75


def check_informed(config: Any) -> None:
    """Raise `UsageError` if the architecture lacks the parts that are initialized from counts."""
    if not has_bert_layers(config):
        raise UsageError(
            f"--initialization informed supports BERT and RoBERTa, not {config.model_type}."
        )


@torch.no_grad()
def initialize_informed(
    network: Any,
    tokens: Int32Array,
    offsets: Int64Array,
    unigram: torch.Tensor,
    special: SpecialIds,
) -> None:
    """Replace some random weights by statistics of `tokens`.

    `tokens` are unmasked examples end to end, with bounds `offsets`.

    - The decoder's bias becomes the log-frequency of each token (`unigram`).
    - Word embeddings come from co-occurrence counts (`embed_contexts`).
    - Position embeddings are sinusoids (Vaswani et al. 2017, section 3.5,
      https://arxiv.org/abs/1706.03762).
    - Heads of the first layer attend to neighbouring tokens (`attend_to_neighbours`).
    """
    embeddings = network.base_model.embeddings
    network.get_output_embeddings().bias.copy_(unigram)
    words = embeddings.word_embeddings.weight
    vocab_size, size = words.shape
    words.copy_(embed_contexts(tokens, offsets, vocab_size, size, special))
    positions = embeddings.position_embeddings.weight
    positions.copy_(_sinusoids(*positions.shape) * math.sqrt(2) * EMBEDDING_RMS)
    attend_to_neighbours(network.base_model.encoder.layer[0].attention.self)


def embed_contexts(
    tokens: Int32Array, offsets: Int64Array, vocab_size: int, size: int, special: SpecialIds
) -> torch.Tensor:
    """Embeddings `[vocab_size, size]` of tokens by their contexts; unseen tokens get random ones.

    Positive pointwise mutual information of each token with the most frequent tokens one and two
    positions before and after it, factored by a truncated SVD with the square root of the singular
    values (Levy, Goldberg & Dagan 2015, section 3, https://aclanthology.org/Q15-1016). Rows with
    few counts are shrunk; all are centred and normalized to one length.
    """
    # Ordinary tokens of the first examples, and the most frequent ones as contexts.
    examples = max(1, int(np.searchsorted(offsets, COUNTED_TOKENS)))
    ids = tokens[: offsets[min(examples, len(offsets) - 1)]].astype(np.int64)
    example_of = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[: len(ids)]
    specials = [special.pad, special.unk, special.cls, special.sep, special.mask]
    ordinary = ~np.isin(ids, [number for number in specials if number is not None])
    counts = np.bincount(ids[ordinary], minlength=vocab_size)
    limit = min(CONTEXTS, vocab_size, TABLE_ENTRIES // vocab_size)
    contexts = np.argsort(-counts, kind="stable")[:limit]
    column = np.full(vocab_size, -1)
    column[contexts] = np.arange(len(contexts))
    # One table of counts [vocab_size, contexts] per relative position, side by side.
    width = len(contexts)
    table = torch.empty(vocab_size, 4 * width)
    number = 0
    for distance in (1, 2):
        near = ids[:-distance]
        far = ids[distance:]
        same_example = example_of[:-distance] == example_of[distance:]
        paired = same_example & ordinary[:-distance] & ordinary[distance:]
        for token, context in ((near, far), (far, near)):
            counted = paired & (column[context] >= 0)
            part = table[:, number * width : (number + 1) * width]
            _count_cells(part, token[counted], column[context[counted]])
            _to_positive_information(part)
            number += 1
    # Factor, centre and normalize.
    factors = _factor(table, size)
    known = torch.from_numpy(counts > 0) & (factors.norm(dim=1) > 1e-6)
    result = torch.randn(vocab_size, size) * EMBEDDING_RMS
    centred = factors[known] - factors[known].mean(0)
    # The leading singular vectors would fill the first dimensions, which positions use too: a
    # rotation spreads them.
    rotation = torch.linalg.qr(torch.randn(size, size)).Q[: centred.shape[1]]
    directions = torch.nn.functional.normalize(centred @ rotation, dim=1)
    result[known] = directions * math.sqrt(size) * EMBEDDING_RMS
    return result


def _factor(table: torch.Tensor, size: int) -> torch.Tensor:
    """Leading `size` left singular vectors times the square roots of their singular values.

    Subspace iteration (Halko, Martinsson & Tropp 2011, algorithm 4.4,
    https://arxiv.org/abs/0909.4061), with small eigenproblems in place of LAPACK's QR and SVD of
    tall matrices, which take longer on a CPU than all the rest.
    """
    basis = torch.randn(table.shape[1], min(size + 32, *table.shape))
    for _ in range(3):
        basis = _orthonormalize(table.T @ _orthonormalize(table @ basis))
    image = table @ basis
    values, vectors = torch.linalg.eigh((image.T @ image).double())
    scales = values.flip(0)[:size].clamp(min=1e-12) ** -0.25
    leading: torch.Tensor = vectors.flip(1)[:, :size] * scales
    return image @ leading.float()


def _orthonormalize(columns: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh((columns.T @ columns).double())
    scaled: torch.Tensor = vectors * values.clamp(min=float(values[-1]) * 1e-10).rsqrt()
    return columns @ scaled.float()


def _count_cells(table: torch.Tensor, tokens: Int64Array, contexts: Int64Array) -> None:
    """Fill a table `[tokens, contexts]` with the numbers of the pairs, some rows at a time."""
    width = table.shape[1]
    order = np.argsort(tokens, kind="stable")
    cells = tokens[order] * width + contexts[order]
    for first in range(0, len(table), ROWS_AT_A_TIME):
        last = min(len(table), first + ROWS_AT_A_TIME)
        begin, end = np.searchsorted(cells, (first * width, last * width))
        counts = np.bincount(cells[begin:end] - first * width, minlength=(last - first) * width)
        table[first:last] = torch.from_numpy(counts.reshape(-1, width))


def _to_positive_information(table: torch.Tensor) -> None:
    """Replace counts `[tokens, contexts]` by shrunk positive pointwise mutual information."""
    of_token = table.sum(1, keepdim=True).clamp(min=1)
    of_context = table.sum(0, keepdim=True).clamp(min=1) ** CONTEXT_SMOOTHING
    table /= of_token
    table /= of_context / of_context.sum()
    table.clamp_(min=1).log_()
    table *= of_token / (of_token + SHRINKAGE)


def _sinusoids(positions: int, size: int) -> torch.Tensor:
    angles = torch.arange(positions)[:, None] * _frequencies(size)
    table = torch.zeros(positions, size)
    table[:, 0::2] = angles.sin()
    table[:, 1::2] = angles.cos()[:, : size // 2]
    return table


def _frequencies(size: int) -> torch.Tensor:
    return 10_000.0 ** (-torch.arange(0, size, 2) / size)


def attend_to_neighbours(attention: Any) -> None:
    """Make the query of head h at position i match the key at position i + `NEIGHBOURS[h]`.

    On sinusoidal positions, a shift is a rotation of each pair of sine and cosine: keys take such
    pairs unchanged, queries rotate them. The faster half of the frequencies is used, which
    separates nearby positions. The rotation is added to the random weights.
    """
    width = attention.attention_head_size
    size = attention.query.weight.shape[1]
    frequencies = _frequencies(size)
    planes = torch.linspace(0, 0.6 * (size // 2) - 1, width // 2).long().tolist()
    for head, shift in zip(range(attention.num_attention_heads), NEIGHBOURS, strict=False):
        for pair, plane in enumerate(planes):
            angle = shift * float(frequencies[plane])
            cosine = math.cos(angle)
            sine = math.sin(angle)
            first_row = head * width + 2 * pair
            rows = slice(first_row, first_row + 2)
            columns = slice(2 * plane, 2 * plane + 2)
            attention.query.weight[rows, columns] += torch.tensor([[cosine, sine], [-sine, cosine]])
            attention.key.weight[rows, columns] += torch.eye(2)
