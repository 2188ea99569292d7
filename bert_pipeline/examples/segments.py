"""Segments of examples: ranges of an array of ids, before `rows.py` writes them out as rows."""

from dataclasses import dataclass

import numpy as np

from bert_pipeline.ragged import Array, BoolArray, Int64Array, expand, offsets_of


@dataclass(frozen=True, slots=True)
class Segments:
    """Segments of examples, as ranges `start:start + length` of one array of ids.

    Example e has segments `first[e]`..`first[e + 1] - 1`. With pairs, the second one is segment B
    and `label` says whether it is a random or a swapped one. `truncated` marks examples that were
    shortened to the maximum length.
    """

    start: Int64Array
    length: Int64Array
    first: Int64Array
    label: BoolArray | None
    truncated: BoolArray

    @property
    def row_lengths(self) -> Int64Array:
        """Tokens in each row, including `[CLS]` and a `[SEP]` after each segment."""
        before = offsets_of(self.length + 1)
        lengths: Int64Array = 1 + np.diff(before[self.first])
        return lengths

    @property
    def row_starts(self) -> Int64Array:
        """Where the first segment of each example starts in the ids."""
        return self.start[self.first[:-1]]

    def take(self, examples: Int64Array) -> "Segments":
        """The given examples, in the given order."""
        counts = self.first[examples + 1] - self.first[examples]
        indices = expand(self.first[examples], counts)
        return Segments(
            start=self.start[indices],
            length=self.length[indices],
            first=offsets_of(counts),
            label=None if self.label is None else self.label[examples],
            truncated=self.truncated[examples],
        )

    def __len__(self) -> int:
        return len(self.first) - 1


@dataclass(frozen=True, slots=True)
class SegmentedIds:
    """Segments, and the ids that they are ranges of."""

    segments: Segments
    ids: Array
    word_starts: BoolArray | None
    """Which ids begin a word, where that is stored."""

    def take(self, examples: Int64Array) -> "SegmentedIds":
        """The given examples, in the given order."""
        return SegmentedIds(self.segments.take(examples), self.ids, self.word_starts)
