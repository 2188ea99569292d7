"""Writing examples out as rows: special tokens, segments, and BERT's masks, for a whole shard at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bert_pipeline.examples.pairs import Example
from bert_pipeline.examples.schema import SCHEMA
from bert_pipeline.tokenizer.load import SpecialIds

Ids = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]

MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1
"""Of the tokens to predict, 80% become `[MASK]`, 10% a random id, 10% stay (Devlin et al. 2019, section 3.1)."""


@dataclass(frozen=True, slots=True)
class FlatRows:
    """Rows end to end: row r is `tokens[offsets[r]:offsets[r + 1]]`."""

    tokens: Ids
    segment_ids: npt.NDArray[np.int8]
    is_special: npt.NDArray[np.bool_]
    offsets: Offsets


@dataclass(frozen=True, slots=True)
class Masks:
    """Row r's `positions[offsets[r]:offsets[r + 1]]` ascend within the row; `labels` are the ids that stood there."""

    positions: Ids
    labels: Ids
    offsets: Offsets


def write_rows(examples: Sequence[Example], shards: Sequence[Ids], special: SpecialIds) -> FlatRows:
    """Lay examples out as `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`."""
    lengths = [len(e.first) + 2 + (len(e.second) + 1 if e.second else 0) for e in examples]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    tokens = np.full(offsets[-1], special.sep, dtype=np.int32)
    segment_ids = np.zeros(offsets[-1], dtype=np.int8)
    is_special = np.ones(offsets[-1], dtype=np.bool_)
    tokens[offsets[:-1]] = special.cls
    for example, row_start, row_end in zip(examples, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        a, b = example.first, example.second
        middle = row_start + 1 + len(a)
        tokens[row_start + 1 : middle] = shards[a.shard][a.start : a.stop]
        is_special[row_start + 1 : middle] = False
        if b:
            tokens[middle + 1 : row_end - 1] = shards[b.shard][b.start : b.stop]
            is_special[middle + 1 : row_end - 1] = False
            segment_ids[middle + 1 : row_end] = 1
    return FlatRows(tokens, segment_ids, is_special, offsets)


def draw_masks(rows: FlatRows, rate: float, max_predictions: int, draw: np.random.Generator) -> Masks:
    """Choose positions evenly among each row's ordinary tokens.

    A row of length n gets min(max_predictions, max(1, round(rate · n))) of them, never more than it has.
    """
    lengths = np.diff(rows.offsets)
    ordinary = np.add.reduceat(~rows.is_special, rows.offsets[:-1], dtype=np.int64)
    wanted = np.maximum(1, np.rint(rate * lengths)).astype(np.int64)
    wanted = np.minimum(np.minimum(wanted, max_predictions), ordinary)
    # Sorting (row, random, position) packed in one integer shuffles every row at once; special tokens sort last.
    # The position makes keys unique, so the order does not hang on the sorting algorithm.
    row = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
    position = np.arange(len(rows.tokens), dtype=np.uint64) - np.repeat(rows.offsets[:-1].astype(np.uint64), lengths)
    shuffle = draw.integers(0, 2**24 - 1, len(rows.tokens), dtype=np.uint64)
    shuffle[rows.is_special] = 2**24 - 1
    keys = np.sort((row << np.uint64(40)) | (shuffle << np.uint64(16)) | position)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(wanted)])
    rank = np.arange(offsets[-1]) - np.repeat(offsets[:-1], wanted)
    chosen = keys[np.repeat(rows.offsets[:-1], wanted) + rank]
    chosen = np.sort((chosen >> np.uint64(40) << np.uint64(16)) | (chosen & np.uint64(0xFFFF)))
    positions = (chosen & np.uint64(0xFFFF)).astype(np.int64)
    labels = rows.tokens[np.repeat(rows.offsets[:-1], wanted) + positions]
    return Masks(positions.astype(np.int32), labels, offsets)


def apply_masks(rows: FlatRows, masks: Masks, mask_id: int, vocab_size: int, draw: np.random.Generator) -> Ids:
    """The tokens with 80% of the chosen positions masked, 10% replaced by any id of the vocabulary, 10% kept."""
    tokens = rows.tokens.copy()
    where = np.repeat(rows.offsets[:-1], np.diff(masks.offsets)) + masks.positions
    kind = draw.random(len(where))
    random_ids = draw.integers(0, vocab_size, len(where), dtype=np.int32)
    tokens[where] = np.where(
        kind < MASKED_SHARE, mask_id, np.where(kind < MASKED_SHARE + RANDOM_SHARE, random_ids, masks.labels)
    )
    return tokens


def to_batch(examples: Sequence[Example], rows: FlatRows, tokens: Ids, masks: Masks) -> pa.RecordBatch:
    """The rows as Arrow columns, without a Python object for any token."""

    def lists(offsets: Offsets, values: npt.NDArray[np.int32] | npt.NDArray[np.int8]) -> pa.Array:
        return pa.ListArray.from_arrays(offsets.astype(np.int32), values)

    columns = [
        lists(rows.offsets, tokens),
        lists(rows.offsets, rows.segment_ids),
        pa.array([example.is_random_next for example in examples], pa.bool_()),
        lists(masks.offsets, masks.positions),
        lists(masks.offsets, masks.labels),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
