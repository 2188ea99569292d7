"""Writing examples out as rows: `[CLS] A [SEP]`, `[CLS] A [SEP] B [SEP]`, many rows at once as flat arrays."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bert_pipeline.ragged import Array, BoolArray, Int32Array, Int64Array, expand, offsets_of
from bert_pipeline.tokenizer.load import SpecialIds


@dataclass(frozen=True, slots=True)
class Segments:
    """Segments of examples, as runs `start:start + length` of one array of ids.

    Example e has segments `first[e]`..`first[e + 1] - 1`; with pairs, the second is sentence B, and `label` says
    whether it is a random or swapped one. `truncated` marks examples that lost tokens.
    """

    start: Int64Array
    length: Int64Array
    first: Int64Array
    label: BoolArray | None
    truncated: BoolArray

    @property
    def row_lengths(self) -> Int64Array:
        """Tokens of each row, special ones included: one before all and one after each segment."""
        before = offsets_of(self.length + 1)
        lengths: Int64Array = 1 + np.diff(before[self.first])
        return lengths

    def take(self, examples: Int64Array) -> "Segments":
        """Some of the examples, in the order given."""
        counts = self.first[examples + 1] - self.first[examples]
        places = expand(self.first[examples], counts)
        first = offsets_of(counts)
        label = None if self.label is None else self.label[examples]
        return Segments(
            self.start[places], self.length[places], first, label, self.truncated[examples]
        )

    def __len__(self) -> int:
        return len(self.first) - 1


@dataclass(frozen=True, slots=True)
class UnpaddedRows:
    """Rows end to end: row r is `tokens[offsets[r]:offsets[r + 1]]`.

    `starts` marks the tokens that begin a word of the tokenizer's (special tokens do), where that is known.
    """

    tokens: Int32Array
    segment_ids: npt.NDArray[np.int8]
    is_special: BoolArray
    starts: BoolArray | None
    offsets: Int64Array


def write_rows(
    segments: Segments, ids: Array, starts: BoolArray | None, special: SpecialIds
) -> UnpaddedRows:
    """Lay the examples out, a separator after every segment."""
    offsets = offsets_of(segments.row_lengths)
    tokens = np.full(offsets[-1], special.sep, dtype=np.int32)
    tokens[offsets[:-1]] = special.cls
    row_of_segment = np.repeat(np.arange(len(segments)), np.diff(segments.first))
    begins = np.cumsum(segments.length + 1) - segments.length + row_of_segment
    targets = expand(begins, segments.length)
    sources = expand(segments.start, segments.length)
    tokens[targets] = ids[sources]
    is_special = np.ones(offsets[-1], dtype=np.bool_)
    is_special[targets] = False
    word_starts = None
    if starts is not None:
        word_starts = np.ones(offsets[-1], dtype=np.bool_)
        word_starts[targets] = starts[sources]
        word_starts[begins] = True  # what a cut has left of a word is a word
    segment_ids = np.zeros(offsets[-1], dtype=np.int8)
    if segments.label is not None:
        middle = offsets[:-1] + 2 + segments.length[segments.first[:-1]]
        segment_ids[expand(middle, offsets[1:] - middle)] = 1
    return UnpaddedRows(tokens, segment_ids, is_special, word_starts, offsets)
