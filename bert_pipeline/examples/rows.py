"""Writing examples out as rows: `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`, as flat arrays."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bert_pipeline.examples.segments import SegmentedIds
from bert_pipeline.ragged import BoolArray, Int32Array, Int64Array, expand, offsets_of
from bert_pipeline.tokenizer.load import SpecialIds


@dataclass(frozen=True, slots=True)
class UnpaddedRows:
    """Rows end to end: row r is `tokens[offsets[r]:offsets[r + 1]]`.

    `word_starts` marks the tokens that begin a word (special tokens do); None if that is unknown.
    """

    tokens: Int32Array
    segment_ids: npt.NDArray[np.int8]
    is_special: BoolArray
    word_starts: BoolArray | None
    offsets: Int64Array


def write_rows(segmented: SegmentedIds, special: SpecialIds) -> UnpaddedRows:
    """Lay the examples out as rows, with a separator after every segment."""
    segments = segmented.segments
    offsets = offsets_of(segments.row_lengths)
    tokens = np.full(offsets[-1], special.sep, dtype=np.int32)
    tokens[offsets[:-1]] = special.cls
    row_of_segment = np.repeat(np.arange(len(segments)), np.diff(segments.first))
    segment_starts = np.cumsum(segments.length + 1) - segments.length + row_of_segment
    targets = expand(segment_starts, segments.length)
    sources = expand(segments.start, segments.length)
    tokens[targets] = segmented.ids[sources]
    is_special = np.ones(offsets[-1], dtype=np.bool_)
    is_special[targets] = False
    word_starts = None
    if segmented.word_starts is not None:
        word_starts = np.ones(offsets[-1], dtype=np.bool_)
        word_starts[targets] = segmented.word_starts[sources]
        word_starts[segment_starts] = True  # the rest of a truncated word counts as a word
    segment_ids = np.zeros(offsets[-1], dtype=np.int8)
    if segments.label is not None:
        second = offsets[:-1] + 2 + segments.length[segments.first[:-1]]
        segment_ids[expand(second, offsets[1:] - second)] = 1
    return UnpaddedRows(tokens, segment_ids, is_special, word_starts, offsets)
