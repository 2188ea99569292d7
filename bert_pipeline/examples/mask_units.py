"""Which tokens to mask: single tokens, whole words or spans of words."""

from dataclasses import dataclass

import numpy as np

from bert_pipeline.examples.counter_rng import as_share, random_bits
from bert_pipeline.examples.rows import UnpaddedRows
from bert_pipeline.ragged import BoolArray, Int64Array, UInt64Array, expand

SPAN_STOP_PROBABILITY = 0.2
"""Parameter of the geometric distribution of span lengths (SpanBERT, Joshi et al. 2020, section
3.1: https://arxiv.org/abs/1907.10529)."""
MAX_SPAN_WORDS = 10
"""Words in the longest span (SpanBERT, section 3.1)."""

_SPAN_STREAM = np.uint64(3 << 40)
"""Counters of the span lengths, above those of positions and of `masking.py`."""

# Bits of a sort key. Ties of the random bits (one pair of positions in 17 million) are broken by
# position. Fewer random bits would fit with more rows, but would then order a row differently.
_POSITION_BITS = 16
_RANDOM_BITS = 24
_POSITION_MASK = (1 << _POSITION_BITS) - 1
_MAX_ROWS = 1 << (64 - 1 - _RANDOM_BITS - _POSITION_BITS)


def choose_tokens(
    rows: UnpaddedRows, keys: UInt64Array, row_of: Int64Array, wanted: Int64Array
) -> BoolArray:
    """Choose `wanted` ordinary tokens of each row uniformly; bool of shape (tokens,)."""
    position = np.arange(len(row_of)) - np.repeat(rows.offsets[:-1], np.diff(rows.offsets))
    bits = random_bits(keys[row_of], position)
    # One sort of packed integers (row, is special, random, position) shuffles all rows at once. The
    # position makes the integers unique, so any sorting algorithm gives the same order.
    order = _pack_sort_keys(row_of, rows.is_special, bits, position, len(wanted))
    order.sort()
    first = order[expand(rows.offsets[:-1], wanted)] & np.uint64(_POSITION_MASK)
    chosen = np.zeros(len(row_of), dtype=np.bool_)
    chosen[np.repeat(rows.offsets[:-1], wanted) + first.astype(np.int64)] = True
    return chosen


def _pack_sort_keys(
    row: Int64Array, last: BoolArray | None, bits: UInt64Array, position: Int64Array, rows: int
) -> UInt64Array:
    """Integers that sort by row, then by `last`, then randomly; the low bits are the position."""
    assert rows <= _MAX_ROWS
    packed = bits >> np.uint64(64 - _RANDOM_BITS)
    if last is not None:
        packed |= last.astype(np.uint64) << np.uint64(_RANDOM_BITS)
    packed <<= np.uint64(_POSITION_BITS)
    packed |= position.astype(np.uint64)
    packed |= row.astype(np.uint64) << np.uint64(_POSITION_BITS + _RANDOM_BITS + 1)
    return packed


@dataclass(frozen=True, slots=True)
class ShuffledWords:
    """The words of all rows, in random order within each row."""

    start: Int64Array
    """First token of each word, an index into the tokens of all rows."""
    length: Int64Array
    row: Int64Array
    first: Int64Array
    """Row r has words `first[r]`..`first[r + 1] - 1`."""


def find_words(rows: UnpaddedRows, keys: UInt64Array, row_of: Int64Array) -> ShuffledWords:
    """Find the words of all rows and shuffle them within each row."""
    assert rows.word_starts is not None
    edges = np.flatnonzero(rows.word_starts | rows.is_special)
    length = np.diff(np.append(edges, len(row_of)))
    ordinary = ~rows.is_special[edges]
    start = edges[ordinary]
    length = length[ordinary]
    row = row_of[start]
    position = start - rows.offsets[row]
    bits = random_bits(keys[row], position)
    order = np.argsort(_pack_sort_keys(row, None, bits, position, len(rows.offsets) - 1))
    row = row[order]
    first = np.searchsorted(row, np.arange(len(rows.offsets)))
    return ShuffledWords(start[order], length[order], row, first)


def choose_words(
    rows: UnpaddedRows, words: ShuffledWords, wanted: Int64Array, max_predictions: int
) -> Int64Array:
    """Choose words in random order, skipping each word that exceeds what is still wanted.

    This is `do_whole_word_mask` of the BERT release. A row in which no word fits gets its shortest
    word (the first of several), if `max_predictions` allows.
    https://github.com/google-research/bert/blob/master/create_pretraining_data.py

    Returns int64 of shape (tokens,): the first token of the chosen word, -1 where none is chosen.
    """
    left = wanted.copy()
    candidates = np.arange(len(words.start))
    chosen = [np.empty(0, np.int64)]
    while True:
        candidates = candidates[words.length[candidates] <= left[words.row[candidates]]]
        if not len(candidates):
            break
        # The release takes words one by one: up to the first that does not fit, it takes them all.
        row = words.row[candidates]
        length = words.length[candidates]
        before = np.cumsum(length) - length
        row_first = np.searchsorted(row, row)
        fits = before - before[row_first] + length <= left[row]
        chosen.append(candidates[fits])
        left -= np.bincount(row[fits], length[fits], minlength=len(left)).astype(np.int64)
        candidates = candidates[~fits]
    empty = np.flatnonzero((left == wanted) & (wanted > 0))
    if len(empty):
        by_length = np.lexsort((np.arange(len(words.row)), words.length, words.row))
        shortest = by_length[words.first[empty]]
        chosen.append(shortest[words.length[shortest] <= max_predictions])
    taken = np.concatenate(chosen)
    start = words.start[taken]
    length = words.length[taken]
    word_of = np.full(len(rows.tokens), -1, dtype=np.int64)
    word_of[expand(start, length)] = np.repeat(start, length)
    return word_of


def choose_spans(
    rows: UnpaddedRows, keys: UInt64Array, words: ShuffledWords, wanted: Int64Array
) -> Int64Array:
    """Choose spans of whole words until `wanted` tokens are covered; the last span is cut there.

    Words are tried as the first word of a span in random order; words that are covered already are
    skipped, and no span crosses a special token (SpanBERT, Joshi et al. 2020, section 3.1:
    https://arxiv.org/abs/1907.10529).

    Returns int64 of shape (tokens,): the first token of the chosen span, -1 where none is chosen.
    """
    end = _span_ends(rows, keys, words)
    span_of = np.full(len(rows.tokens), -1, dtype=np.int64)
    left = wanted.copy()
    word = words.first[:-1].copy()  # the next word of each row to try
    active = np.arange(len(left))
    while len(active := active[(left[active] > 0) & (word[active] < words.first[active + 1])]):
        row = active[span_of[words.start[word[active]]] < 0]
        start = words.start[word[row]]
        length = end[word[row]] - start
        tokens = expand(start, length)
        free = span_of[tokens] < 0
        tokens = tokens[free]
        row_of = np.repeat(row, length)[free]
        span_start = np.repeat(start, length)[free]
        nth_in_row = np.arange(len(row_of)) - np.searchsorted(row_of, row_of)
        covered = nth_in_row < left[row_of]
        span_of[tokens[covered]] = span_start[covered]
        left -= np.bincount(row_of[covered], minlength=len(left))
        word[active] += 1
    return span_of


def _span_ends(rows: UnpaddedRows, keys: UInt64Array, words: ShuffledWords) -> Int64Array:
    """Where a span that begins with each word ends; int64 of shape (words,)."""
    assert rows.word_starts is not None
    lengths = np.arange(MAX_SPAN_WORDS)
    probabilities = SPAN_STOP_PROBABILITY * (1 - SPAN_STOP_PROBABILITY) ** lengths
    cumulative = np.cumsum(probabilities / probabilities.sum())[:-1]
    position = words.start - rows.offsets[words.row]
    bits = random_bits(keys[words.row], position.astype(np.uint64) + _SPAN_STREAM)
    span_words = 1 + np.searchsorted(cumulative, as_share(bits), side="right")
    edges = np.flatnonzero(rows.word_starts | rows.is_special)
    last_edge = np.minimum(np.searchsorted(edges, words.start) + span_words, len(edges) - 1)
    # Every row ends in a separator, so each word has a special token after it.
    special = np.flatnonzero(rows.is_special)
    next_special = special[np.searchsorted(special, words.start)]
    ends: Int64Array = np.minimum(edges[last_edge], next_special)
    return ends
