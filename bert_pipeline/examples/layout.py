"""From planned examples to segments: second sentences of random pairs, and truncation."""

from dataclasses import dataclass

import numpy as np

from bert_pipeline.examples.objective import PackedSentences, Pair
from bert_pipeline.examples.segments import SegmentedIds, Segments
from bert_pipeline.examples.splits import Split, Splits
from bert_pipeline.examples.token_store import IdRanges, TokenStore
from bert_pipeline.ragged import Array, BoolArray, Int64Array


def lay_out_packed(packed: PackedSentences) -> Segments:
    """The segments of examples without pairs."""
    start = np.array(packed.start, dtype=np.int64)
    stop = np.array(packed.stop, dtype=np.int64)
    first = np.array([*packed.first_run, len(start)], dtype=np.int64)
    return Segments(start, stop - start, first, None, np.zeros(len(first) - 1, dtype=np.bool_))


@dataclass(frozen=True, slots=True)
class PairLayout:
    """Lays out the pairs of one piece; draws second sentences from other documents of the split."""

    store: TokenStore
    splits: Splits
    split: Split
    max_tokens: int
    """Most tokens in one pair, without special tokens."""
    random: np.random.Generator

    def lay_out(self, pairs: list[Pair], ids: Array, word_starts: BoolArray | None) -> SegmentedIds:
        """Draw the missing second segments, append their ids to `ids` and truncate each pair."""
        columns = np.array(pairs, dtype=np.int64).reshape(-1, 7).T
        a_start, a_stop, b_start, b_stop, label, wanted, document = columns
        elsewhere = np.flatnonzero(wanted)
        if len(elsewhere):
            others = self.splits.draw_others(
                self.split, document[elsewhere], self.store.first, self.random
            )
            shares = self.random.random(len(others))
            ranges = self.store.find_sentences(others, shares, wanted[elsewhere])
            b_start[elsewhere] = ranges.start
            b_stop[elsewhere] = ranges.stop
        cut = truncate(a_stop - a_start, b_stop - b_start, self.max_tokens, self.random)
        a_start = a_start + cut.front_a
        a_stop = a_stop - cut.back_a
        b_start = b_start + cut.front_b
        b_stop = b_stop - cut.back_b
        if len(elsewhere):
            # Read after truncation, which drops most of a long sentence.
            found = self.store.read(IdRanges(ranges.piece, b_start[elsewhere], b_stop[elsewhere]))
            b_start[elsewhere] = len(ids) + found.offsets[:-1]
            b_stop[elsewhere] = len(ids) + found.offsets[1:]
            ids = np.concatenate([ids, found.ids])
            if word_starts is not None and found.word_starts is not None:
                word_starts = np.concatenate([word_starts, found.word_starts])
        start = np.stack([a_start, b_start], axis=1)
        stop = np.stack([a_stop, b_stop], axis=1)
        segments = Segments(
            start=start.ravel(),
            length=(stop - start).ravel(),
            first=np.arange(len(a_start) + 1) * 2,
            label=label.astype(np.bool_),
            truncated=cut.total > 0,
        )
        return SegmentedIds(segments, ids, word_starts)


@dataclass(frozen=True, slots=True)
class Truncation:
    """Tokens that each pair loses at both ends of both segments; int64 of shape (pairs,)."""

    front_a: Int64Array
    back_a: Int64Array
    front_b: Int64Array
    back_b: Int64Array

    @property
    def total(self) -> Int64Array:
        """All tokens that a pair loses."""
        return self.front_a + self.back_a + self.front_b + self.back_b


def truncate(
    a: Int64Array, b: Int64Array, max_tokens: int, random: np.random.Generator
) -> Truncation:
    """What pairs of segments with `a` and `b` tokens lose, so that at most `max_tokens` remain.

    `truncate_seq_pair` of the BERT release drops tokens one by one from the longer segment (from B
    if both are equal), from its front or back with probability 0.5 each. So the number that each
    segment loses is fixed, and the number of those that come from the front is binomial:
    https://github.com/google-research/bert/blob/master/create_pretraining_data.py
    """
    excess = np.maximum(0, a + b - max_tokens)
    levelled = np.minimum(excess, np.abs(a - b))
    from_a = np.where(a > b, levelled, 0) + (excess - levelled) // 2
    from_b = excess - from_a
    front_a = random.binomial(from_a, 0.5)
    front_b = random.binomial(from_b, 0.5)
    return Truncation(front_a, from_a - front_a, front_b, from_b - front_b)
