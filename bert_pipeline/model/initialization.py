"""Where training starts: BERT's random weights, or weights that know what can be counted in a corpus.

A small BERT spends most of a small budget on a plateau where it knows little more than how frequent each token is. What
it has to find there, it can be given: the tokens' frequencies, which tokens occur in like company, and where its
neighbours stand. Everything stays trainable, and the architecture is BERT's.
"""

import math
from typing import Any

import numpy as np
import torch

from bert_pipeline.errors import UsageError
from bert_pipeline.model.unpadded import supports_unpadded
from bert_pipeline.ragged import Int32Array, Int64Array
from bert_pipeline.tokenizer.load import SpecialIds

EMBEDDING_RMS = 0.09
NEIGHBOURS = (-1, 1, -2, 2)
COUNTED_TOKENS = 4_000_000
CONTEXTS = 2048
TABLE_ENTRIES = 2**26  # of a token × context table: 256 MiB
SHRINKAGE = 10.0
CONTEXT_SMOOTHING = 0.75


def check_informed(config: Any) -> None:
    """Raise `UsageError` where the architecture of a config has not the parts that can be informed."""
    if not supports_unpadded(config):
        raise UsageError(
            f"--initialization informed: for BERT and RoBERTa, not for {config.model_type}."
        )


@torch.no_grad()
def initialize_informed(
    network: Any,
    tokens: Int32Array,
    offsets: Int64Array,
    unigram: torch.Tensor,
    special: SpecialIds,
) -> None:
    """Replace some of the random weights by what `tokens` (unmasked rows end to end, bounded by `offsets`) tell.

    - the decoder's bias becomes the log-frequency of each token (`unigram`);
    - word embeddings come from co-occurrence counts (`embed_contexts`);
    - position embeddings are sinusoids (Vaswani et al. 2017, section 3.5);
    - the heads of the first layer look at the tokens beside (`look_at_neighbours`).
    """
    embeddings = network.base_model.embeddings
    network.get_output_embeddings().bias.copy_(unigram)
    words = embeddings.word_embeddings.weight
    vocab_size, size = words.shape
    words.copy_(embed_contexts(tokens, offsets, vocab_size, size, special))
    positions = embeddings.position_embeddings.weight
    positions.copy_(_sinusoids(*positions.shape) * math.sqrt(2) * EMBEDDING_RMS)
    look_at_neighbours(network.base_model.encoder.layer[0].attention.self)


def embed_contexts(
    tokens: Int32Array, offsets: Int64Array, vocab_size: int, size: int, special: SpecialIds
) -> torch.Tensor:
    """Embeddings `[vocab_size, size]` of tokens by the company they keep; tokens without company get random ones.

    Positive pointwise mutual information of each token with the most frequent tokens one and two places before and
    after it, factored by a truncated SVD with the square root of the singular values (Levy, Goldberg & Dagan 2015,
    section 3); rows of little evidence are shrunk, and all are centred and brought to one length.
    """
    rows = max(1, int(np.searchsorted(offsets, COUNTED_TOKENS)))
    ids = tokens[: offsets[min(rows, len(offsets) - 1)]].astype(np.int64)
    row_of = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[: len(ids)]
    specials = [special.pad, special.unk, special.cls, special.sep, special.mask]
    ordinary = ~np.isin(ids, [number for number in specials if number is not None])
    counts = np.bincount(ids[ordinary], minlength=vocab_size)
    contexts = np.argsort(-counts, kind="stable")[
        : min(CONTEXTS, vocab_size, TABLE_ENTRIES // vocab_size)
    ]
    column = np.full(vocab_size, -1)
    column[contexts] = np.arange(len(contexts))
    blocks = []
    for distance in (1, 2):
        near, far = ids[:-distance], ids[distance:]
        paired = (
            (row_of[:-distance] == row_of[distance:]) & ordinary[:-distance] & ordinary[distance:]
        )
        for token, context in ((near, far), (far, near)):
            both = paired & (column[context] >= 0)
            places = token[both] * len(contexts) + column[context[both]]
            table = np.bincount(places, minlength=vocab_size * len(contexts)).reshape(
                vocab_size, -1
            )
            blocks.append(_positive_information(torch.from_numpy(table).float()))
    found = _factor(torch.cat(blocks, 1), size)
    known = torch.from_numpy(counts > 0) & (found.norm(dim=1) > 1e-6)
    result = torch.randn(vocab_size, size) * EMBEDDING_RMS
    centred = found[known] - found[known].mean(0)
    # The leading singular vectors would fill the first dimensions, which positions use too: a rotation spreads them.
    rotation = torch.linalg.qr(torch.randn(size, size)).Q[: centred.shape[1]]
    result[known] = (
        torch.nn.functional.normalize(centred @ rotation, dim=1) * math.sqrt(size) * EMBEDDING_RMS
    )
    return result


def _factor(table: torch.Tensor, size: int) -> torch.Tensor:
    """Leading `size` left singular vectors times the square roots of their singular values.

    By subspace iteration (Halko, Martinsson & Tropp 2011, algorithm 4.4), with small eigenproblems in place of LAPACK's
    QR and SVD of tall matrices, which take longer on a CPU than all the rest.
    """
    basis = torch.randn(table.shape[1], min(size + 32, *table.shape))
    for _ in range(3):
        basis = _orthonormalise(table.T @ _orthonormalise(table @ basis))
    image = table @ basis
    values, vectors = torch.linalg.eigh((image.T @ image).double())
    leading: torch.Tensor = (
        vectors.flip(1)[:, :size] * values.flip(0)[:size].clamp(min=1e-12) ** -0.25
    )
    return image @ leading.float()


def _orthonormalise(columns: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh((columns.T @ columns).double())
    scaled: torch.Tensor = vectors * values.clamp(min=float(values[-1]) * 1e-10).rsqrt()
    return columns @ scaled.float()


def _positive_information(table: torch.Tensor) -> torch.Tensor:
    """Shrunk positive pointwise mutual information of a table of counts `[tokens, contexts]`."""
    of_token = table.sum(1, keepdim=True).clamp(min=1)
    of_context = table.sum(0, keepdim=True).clamp(min=1) ** CONTEXT_SMOOTHING
    expected = of_token * (of_context / of_context.sum())
    return (table / expected).clamp(min=1).log() * (of_token / (of_token + SHRINKAGE))


def _sinusoids(positions: int, size: int) -> torch.Tensor:
    angles = torch.arange(positions)[:, None] * _frequencies(size)
    table = torch.zeros(positions, size)
    table[:, 0::2], table[:, 1::2] = angles.sin(), angles.cos()[:, : size // 2]
    return table


def _frequencies(size: int) -> torch.Tensor:
    return 10_000.0 ** (-torch.arange(0, size, 2) / size)


def look_at_neighbours(attention: Any) -> None:
    """Let the query of head h at position i fit best the key at position i + `NEIGHBOURS[h]`.

    On a sinusoidal position, a shift is a rotation of each pair of sine and cosine: keys take such pairs as they are,
    queries rotate them. The fast half of the frequencies is used, which tells near positions apart. The random
    weights stay underneath.
    """
    heads, width = attention.num_attention_heads, attention.attention_head_size
    size = attention.query.weight.shape[1]
    frequencies = _frequencies(size)
    planes = torch.linspace(0, 0.6 * (size // 2) - 1, width // 2).long().tolist()
    for head, shift in zip(range(heads), NEIGHBOURS, strict=False):
        for pair, plane in enumerate(planes):
            angle = shift * float(frequencies[plane])
            rows = slice(head * width + 2 * pair, head * width + 2 * pair + 2)
            columns = slice(2 * plane, 2 * plane + 2)
            turn = torch.tensor(
                [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
            )
            attention.query.weight[rows, columns] += turn
            attention.key.weight[rows, columns] += torch.eye(2)
