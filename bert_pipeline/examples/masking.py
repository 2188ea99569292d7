"""BERT's masks: which tokens of each row are to be predicted, and what stands in their place.

Every choice is a pure function of the row's key and the position, so masks written into shards and masks drawn anew in
each epoch of training are made by the same code, for any rows in any order.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.examples.counter_rng import as_choice, as_share, random_bits
from bert_pipeline.examples.rows import UnpaddedRows
from bert_pipeline.examples.splits import Split
from bert_pipeline.ragged import BoolArray, Int32Array, Int64Array, UInt64Array, expand, offsets_of

SPAN_STOP, LONGEST_SPAN = 0.2, 10
"""Spans have 1 to 10 words, geometrically fewer long ones (SpanBERT, Joshi et al. 2020, section 3.1)."""

# Counters of a row's key: positions lie below, so that no two draws share a counter.
_KIND, _IDENTITY, _SPAN = (np.uint64(stream << 40) for stream in (1, 2, 3))


@dataclass(frozen=True, slots=True)
class MaskRule:
    """How to mask: the settings of `bertpipe examples` and the ids that they stand for."""

    unit: str
    """`token`, `whole-word` or `span`."""
    rate: float
    max_predictions: int
    mask_share: float
    random_share: float
    mask_id: int
    vocab_size: int

    @classmethod
    def of(cls, config: ExamplesConfig, split: Split, mask_id: int, vocab_size: int) -> "MaskRule":
        """The rule for the examples of a split."""
        rate = config.mask_rate if split == "train" else config.validation_mask_rate
        limit = config.max_predictions or math.ceil(rate * config.max_seq_length)
        return cls(
            config.mask_unit,
            rate,
            limit,
            config.mask_share,
            config.random_share,
            mask_id,
            vocab_size,
        )


@dataclass(frozen=True, slots=True)
class Masks:
    """Row r's `positions[offsets[r]:offsets[r + 1]]` ascend within the row; `labels` are the ids that stood there.

    `tokens` are all rows' tokens with the masks applied, int32 of shape (tokens,).
    """

    tokens: Int32Array
    positions: Int32Array
    labels: Int32Array
    offsets: Int64Array


def draw_masks(rows: UnpaddedRows, keys: UInt64Array, rule: MaskRule) -> Masks:
    """Mask the rows; `keys` is uint64 of shape (rows,).

    A row of length n gets min(max_predictions, max(1, round(rate · n))) tokens to predict, never more than it has.
    Whole words stop short of that where no further word fits; spans end within a word where they must.
    """
    lengths = np.diff(rows.offsets)
    wanted = np.maximum(1, np.rint(rule.rate * lengths)).astype(np.int64)
    wanted = np.minimum(
        np.minimum(wanted, rule.max_predictions), _sum_rows(~rows.is_special, rows.offsets)
    )
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    if rule.unit == "token":
        chosen = _choose_tokens(rows, keys, row_of, wanted)
        where = np.flatnonzero(chosen)
        unit = where
    else:
        words = _Words.of(rows, keys, row_of)
        whole = rule.unit == "whole-word"
        anchor = (
            _choose_words(rows, words, wanted, rule)
            if whole
            else _choose_spans(rows, keys, words, wanted)
        )
        where = np.flatnonzero(anchor >= 0)
        unit = where if whole else anchor[where]
    row, labels = row_of[where], rows.tokens[where]
    position = where - rows.offsets[row]
    tokens = rows.tokens.copy()
    # The tokens of a span share one fate (SpanBERT, 3.1); others have each their own (Devlin et al. 2019, 3.1).
    kind = as_share(random_bits(keys[row], (unit - rows.offsets[row]).astype(np.uint64) + _KIND))
    identity = as_choice(
        random_bits(keys[row], position.astype(np.uint64) + _IDENTITY), rule.vocab_size
    )
    replaced = np.where(kind < rule.mask_share + rule.random_share, identity, labels)
    tokens[where] = np.where(kind < rule.mask_share, rule.mask_id, replaced)
    offsets = offsets_of(np.bincount(row, minlength=len(lengths)))
    return Masks(tokens, position.astype(np.int32), labels, offsets)


def _sum_rows(values: npt.NDArray[np.generic], offsets: Int64Array) -> Int64Array:
    return np.diff(offsets_of(values)[offsets])


def _choose_tokens(
    rows: UnpaddedRows, keys: UInt64Array, row_of: Int64Array, wanted: Int64Array
) -> BoolArray:
    """Evenly, `wanted` of each row's ordinary tokens; bool of shape (tokens,)."""
    position = np.arange(len(row_of)) - np.repeat(rows.offsets[:-1], np.diff(rows.offsets))
    bits = random_bits(keys[row_of], position)
    # Sorting (row, is special, random, position) packed in one integer shuffles every row at once. The position makes
    # keys unique, so the order does not hang on the sorting algorithm.
    order = _pack(row_of, rows.is_special, bits, position, len(wanted))
    order.sort()
    first = order[expand(rows.offsets[:-1], wanted)] & np.uint64(_POSITION)
    chosen = np.zeros(len(row_of), dtype=np.bool_)
    chosen[np.repeat(rows.offsets[:-1], wanted) + first.astype(np.int64)] = True
    return chosen


# The same number of random bits beside any number of rows: with fewer, others would tie, and order a row otherwise. Of
# two positions with the same 24 bits (one pair in 17 million) the first comes first.
_POSITION_BITS, _RANDOM_BITS = 16, 24
_POSITION = (1 << _POSITION_BITS) - 1
_ROWS_TOGETHER = 1 << (64 - 1 - _RANDOM_BITS - _POSITION_BITS)


def _pack(
    row: Int64Array, last: BoolArray | None, bits: UInt64Array, position: Int64Array, rows: int
) -> UInt64Array:
    """Integers that sort by row, then randomly (those marked `last` after the others), and end in the position."""
    assert rows <= _ROWS_TOGETHER
    packed = bits >> np.uint64(64 - _RANDOM_BITS)
    if last is not None:
        packed |= last.astype(np.uint64) << np.uint64(_RANDOM_BITS)
    packed <<= np.uint64(_POSITION_BITS)
    packed |= position.astype(np.uint64)
    packed |= row.astype(np.uint64) << np.uint64(_POSITION_BITS + _RANDOM_BITS + 1)
    return packed


@dataclass(frozen=True, slots=True)
class _Words:
    """The words of all rows, within each row in random order."""

    start: Int64Array
    """First token, numbered through all rows."""
    length: Int64Array
    row: Int64Array
    first: Int64Array
    """Row r's words are `first[r]`..`first[r + 1] - 1`."""

    @classmethod
    def of(cls, rows: UnpaddedRows, keys: UInt64Array, row_of: Int64Array) -> "_Words":
        assert rows.starts is not None
        edges = np.flatnonzero(rows.starts | rows.is_special)
        length = np.diff(np.append(edges, len(row_of)))
        ordinary = ~rows.is_special[edges]
        start, length = edges[ordinary], length[ordinary]
        row = row_of[start]
        position = start - rows.offsets[row]
        order = np.argsort(
            _pack(row, None, random_bits(keys[row], position), position, len(rows.offsets) - 1)
        )
        start, length, row = start[order], length[order], row[order]
        return cls(start, length, row, np.searchsorted(row, np.arange(len(rows.offsets))))


def _choose_words(
    rows: UnpaddedRows, words: _Words, wanted: Int64Array, rule: MaskRule
) -> Int64Array:
    """Words in random order, passing over each that would exceed what is still wanted (the release's
    `do_whole_word_mask`). A row in which no word fits gets its first shortest word, if `max_predictions` has room.

    Returns the first token of the word that each chosen token belongs to, -1 for the others; int64 of shape (tokens,).
    """
    left = wanted.copy()
    alive = np.arange(len(words.start))
    taken = []
    while True:
        alive = alive[words.length[alive] <= left[words.row[alive]]]
        if not len(alive):
            break
        # The words up to the first one that does not fit are just those that the release takes one by one.
        row, length = words.row[alive], words.length[alive]
        before = np.cumsum(length) - length
        row_first = np.searchsorted(row, row)
        fits = before - before[row_first] + length <= left[row]
        taken.append(alive[fits])
        left -= np.bincount(row[fits], length[fits], minlength=len(left)).astype(np.int64)
        alive = alive[~fits]
    empty = np.flatnonzero((left == wanted) & (wanted > 0))
    if len(empty):
        shortest = np.lexsort((np.arange(len(words.row)), words.length, words.row))[
            words.first[empty]
        ]
        taken.append(shortest[words.length[shortest] <= rule.max_predictions])
    chosen = np.concatenate(taken) if taken else np.empty(0, np.int64)
    return _mark(len(rows.tokens), words.start[chosen], words.length[chosen])


def _mark(tokens: int, start: Int64Array, length: Int64Array) -> Int64Array:
    anchor = np.full(tokens, -1, dtype=np.int64)
    anchor[expand(start, length)] = np.repeat(start, length)
    return anchor


def _choose_spans(
    rows: UnpaddedRows, keys: UInt64Array, words: _Words, wanted: Int64Array
) -> Int64Array:
    """Spans of whole words from random words on, until `wanted` tokens are covered; the last span is cut there.

    Words are tried as beginnings in random order, those that are covered already are passed over, and no span reaches
    over a special token. Returns the first token of each chosen token's span, -1 for the others.
    """
    chances = SPAN_STOP * (1 - SPAN_STOP) ** np.arange(LONGEST_SPAN)
    longer_than = np.cumsum(chances / chances.sum())[:-1]
    bits = random_bits(
        keys[words.row], (words.start - rows.offsets[words.row]).astype(np.uint64) + _SPAN
    )
    span_words = 1 + np.searchsorted(longer_than, as_share(bits), side="right")
    edges = (
        np.flatnonzero(rows.starts | rows.is_special) if rows.starts is not None else words.start
    )
    special = np.flatnonzero(rows.is_special)
    last_edge = np.minimum(np.searchsorted(edges, words.start) + span_words, len(edges) - 1)
    end = np.minimum(
        edges[last_edge], special[np.searchsorted(special, words.start)]
    )  # every row ends in a separator

    anchor = np.full(len(rows.tokens), -1, dtype=np.int64)
    left, word = wanted.copy(), words.first[:-1].copy()
    active = np.arange(len(left))
    while len(active := active[(left[active] > 0) & (word[active] < words.first[active + 1])]):
        row = active[anchor[words.start[word[active]]] < 0]
        start = words.start[word[row]]
        length = end[word[row]] - start
        places, row_of = expand(start, length), np.repeat(row, length)
        free = anchor[places] < 0
        places, row_of, begins = places[free], row_of[free], np.repeat(start, length)[free]
        nth = np.arange(len(row_of)) - np.searchsorted(row_of, row_of)
        covered = nth < left[row_of]
        anchor[places[covered]] = begins[covered]
        left -= np.bincount(row_of[covered], minlength=len(left))
        word[active] += 1
    return anchor
