"""Pseudo-log-likelihood: the log-probability of each token where it is masked.

Salazar et al. 2020 (https://arxiv.org/abs/1910.14659) mask one token at a time. The other tokens of
its word then tell most of it, so words of many sub-tokens score too high, and a tokenizer with
shorter entries looks better. Kauf and Ivanova 2023 (https://arxiv.org/abs/2305.10588) mask the
later sub-tokens of the word too, so that those of a word add up to its log-probability.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bert_pipeline.model.unpadded_batch import PretrainingBatch
from bert_pipeline.pretraining.text_batch import make_text_batch
from bert_pipeline.pretraining.zero_shot.masked_lm import MaskedLM, split_by_tokens
from bert_pipeline.progress import bar
from bert_pipeline.ragged import BoolArray, FloatArray, Int32Array, Int64Array, offsets_of
from bert_pipeline.tokenizer.encode import SentenceEncoder
from bert_pipeline.tokenizer.load import SpecialIds

Pll = Literal["original", "word-l2r"]
"""What is masked to score a token: it alone, or it and the later ones of its word."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A text in tokens, without special ones."""

    ids: Int32Array
    word_starts: BoolArray

    def cut(self, size: int) -> Iterator[Self]:
        """Parts of at most `size` tokens, which are scored apart."""
        for start in range(0, len(self.ids), size):
            end = start + size
            yield type(self)(self.ids[start:end], self.word_starts[start:end])

    def masks(self, pll: Pll) -> BoolArray:
        """Which tokens are masked to score each, `[tokens, tokens]`: a row for each scored one."""
        count = len(self.ids)
        if pll == "original":
            return np.eye(count, dtype=np.bool_)
        words = np.cumsum(self.word_starts)
        return np.triu(words[:, None] == words[None, :])


def encode_sentences(encoder: SentenceEncoder, texts: Sequence[str]) -> list[Sentence]:
    """The sentences that texts are encoded to, by an encoder with word starts."""
    encoded = encoder.encode([encoder.text_prefix + text for text in texts])
    assert encoded.word_starts is not None
    bounds = np.cumsum(encoded.lengths)[:-1]
    pieces = (np.split(values, bounds) for values in (encoded.ids, encoded.word_starts))
    return [Sentence(*both) for both in zip(*pieces, strict=True)]


def score_sentences(
    lm: MaskedLM, sentences: Sequence[Sentence], pll: Pll, *, quiet: bool = True
) -> FloatArray:
    """The pseudo-log-likelihood of each sentence in nats, float64 `[sentences]`.

    Equal sentences are scored once. Those longer than the model's positions are scored in parts.
    """
    keys = [each.ids.tobytes() + each.word_starts.tobytes() for each in sentences]
    unique = dict(zip(keys, sentences, strict=True))
    parts = [list(each.cut(lm.max_length - 2)) for each in unique.values()]
    rows = [row for own in parts for row in own]
    lengths = np.array([len(row.ids) for row in rows], dtype=np.int64)
    row_of = np.repeat(np.arange(len(rows)), lengths)
    places = np.arange(len(row_of)) - np.repeat(offsets_of(lengths)[:-1], lengths)
    found = score_tokens(lm, rows, row_of, places, pll, quiet=quiet)
    sentence_of = np.repeat(np.arange(len(parts)), [len(own) for own in parts])[row_of]
    sums: FloatArray = np.bincount(sentence_of, found, len(parts)).astype(np.float64)
    numbers = {key: number for number, key in enumerate(unique)}
    return sums[[numbers[key] for key in keys]]


def score_tokens(
    lm: MaskedLM,
    rows: Sequence[Sentence],
    row_of: Int64Array,
    places: Int64Array,
    pll: Pll,
    *,
    quiet: bool = True,
) -> FloatArray:
    """The log-probability of some tokens, where they are masked; float64 `[tokens]`.

    The tokens are given by the number of their row (ascending) and their place in it.
    """
    if not len(row_of):
        return np.empty(0)
    copies = _Copies(rows, row_of, places, pll, lm.tokenizer.special)
    lengths = np.array([len(row.ids) + 2 for row in rows], dtype=np.int64)
    pairs = zip(row_of.tolist(), places.tolist(), strict=True)
    labels = torch.tensor([int(rows[row].ids[place]) for row, place in pairs])

    def log_probabilities(scores: Tensor, part: Int64Array) -> Tensor:
        own = labels[torch.from_numpy(part)].to(scores.device)
        return -F.cross_entropy(scores, own, reduction="none")[:, None]

    parts = split_by_tokens(lengths[row_of])
    with bar("scoring tokens", len(row_of), quiet=quiet) as progress:
        return lm.measure(parts, copies.make_batch, log_probabilities, progress)[:, 0]


@dataclass(frozen=True, slots=True)
class _Copies:
    """Rows as often as tokens of them are scored, each time with other masks."""

    rows: Sequence[Sentence]
    row_of: Int64Array
    places: Int64Array
    pll: Pll
    special: SpecialIds

    def make_batch(self, copies: Int64Array) -> PretrainingBatch:
        """A batch of some of the copies; those of a row are neighbours."""
        rows = self.row_of[copies]
        bounds = np.flatnonzero(np.diff(rows)) + 1
        made = [self._mask(group) for group in np.split(copies, bounds)]
        counts = np.concatenate([np.full(len(each), each.shape[1]) for each in made])
        offsets = offsets_of(counts)
        tokens = np.concatenate([each.ravel() for each in made])
        return make_text_batch(tokens, offsets, offsets[:-1] + 1 + self.places[copies], None)

    def _mask(self, copies: Int64Array) -> Int32Array:
        """Copies of one row, `[copies, tokens of the row with the special ones]`."""
        row = self.rows[self.row_of[copies[0]]]
        masks = row.masks(self.pll)[self.places[copies]]
        tokens = np.empty((len(copies), len(row.ids) + 2), dtype=np.int32)
        tokens[:, 0] = self.special.cls
        tokens[:, 1:-1] = np.where(masks, self.special.mask, row.ids)
        tokens[:, -1] = self.special.sep
        return tokens
