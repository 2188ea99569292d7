"""Example shards as flat batches, in an order that is a pure function of seed and step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from bert_pipeline.errors import BertpipeError
from bert_pipeline.model.bert import FlatBatch
from bert_pipeline.shards import read_columns

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Lists:
    """A column of lists: row r is `values[offsets[r]:offsets[r + 1]]`."""

    values: npt.NDArray[np.int32] | npt.NDArray[np.int8]
    offsets: Rows

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "Lists":
        """Numpy copies of Arrow's arrays, chunks end to end."""
        chunks = column.chunks
        lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in chunks]
        values = [chunk.flatten().to_numpy() for chunk in chunks]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths), dtype=np.int64)])
        return cls(np.concatenate(values), offsets)

    def lengths(self, rows: Rows) -> Rows:
        """Number of values in each of the rows."""
        lengths: Rows = self.offsets[rows + 1] - self.offsets[rows]
        return lengths

    def places(self, rows: Rows) -> Rows:
        """Indices into `values` of the rows' values, end to end."""
        lengths = self.lengths(rows)
        starts = np.cumsum(lengths) - lengths
        places: Rows = np.arange(lengths.sum()) + np.repeat(self.offsets[rows] - starts, lengths)
        return places


class Examples:
    """All rows of one split in memory, as a few flat arrays."""

    def __init__(self, shards: Sequence[Path]) -> None:
        """Raises `BertpipeError` when a shard is damaged or there is no row."""
        names = ["tokens", "segment_ids", "is_random_next", "masked_positions", "masked_labels"]
        table = pa.concat_tables([read_columns(path, names) for path in shards]) if shards else None
        if table is None or not table.num_rows:
            raise BertpipeError(
                "The examples hold no row of this split; make them with a --validation-fraction above 0."
            )
        self.tokens = Lists.of(table["tokens"])
        self.segment_ids = Lists.of(table["segment_ids"])
        self.masked_positions = Lists.of(table["masked_positions"])
        self.masked_labels = Lists.of(table["masked_labels"])
        # Null in every row when the objective has no sentence pairs.
        column = table["is_random_next"].combine_chunks()
        self.is_random_next = None if column.null_count else column.to_numpy(zero_copy_only=False).astype(np.int64)

    def __len__(self) -> int:
        return len(self.tokens.offsets) - 1

    def unmasked(self) -> npt.NDArray[np.int32]:
        """The tokens of all rows as they were before masking."""
        tokens = self.tokens.values.astype(np.int32)
        rows = np.repeat(self.tokens.offsets[:-1], np.diff(self.masked_positions.offsets))
        tokens[rows + self.masked_positions.values] = self.masked_labels.values
        return tokens

    def collate(self, rows: Rows) -> FlatBatch:
        """Lay the rows end to end."""
        lengths = self.tokens.lengths(rows)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        places = self.tokens.places(rows)
        masked_lengths = self.masked_positions.lengths(rows)
        masked = self.masked_positions.places(rows)
        is_random_next = None if self.is_random_next is None else torch.from_numpy(self.is_random_next[rows])
        return FlatBatch(
            tokens=_long(self.tokens.values[places]),
            segment_ids=_long(self.segment_ids.values[places]),
            positions=_long(np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)),
            cu_seqlens=_long(starts),
            max_seqlen=int(lengths.max()),
            masked_index=_long(self.masked_positions.values[masked] + np.repeat(starts[:-1], masked_lengths)),
            masked_labels=_long(self.masked_labels.values[masked]),
            is_random_next=is_random_next,
        )


def _long(array: npt.NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64))


def step_rows(rows: int, batch_size: int, seed: int, step: int) -> Rows:
    """The rows of a step (from 0), over all ranks: rank r of w takes `[r::w]`.

    Each epoch is its own permutation of all rows and the epochs follow one another without a gap, so that no batch is
    short. Nothing has to be saved or replayed to know any step's rows.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    result = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(places // rows).tolist():
        inside = places // rows == epoch
        result[inside] = _permutation(rows, seed, epoch)[places[inside] % rows]
    return result


@lru_cache(maxsize=2)
def _permutation(rows: int, seed: int, epoch: int) -> Rows:
    return np.random.default_rng([seed, epoch]).permutation(rows)


def chunks(rows: Rows, size: int) -> Iterator[Rows]:
    """Consecutive parts of at most `size` rows."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
