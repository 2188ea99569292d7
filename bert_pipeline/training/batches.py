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

    def count_masked(self, rows: Rows, keep: "KeptMasks") -> int:
        """Number of tokens to predict in the rows."""
        return int(keep.choose(self.masked_labels.places(rows)).sum())

    def collate(self, rows: Rows, keep: "KeptMasks | None" = None) -> FlatBatch:
        """Lay the rows end to end; masks that are not kept give way to the tokens they hide."""
        lengths = self.tokens.lengths(rows)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        tokens = _long(self.tokens.values[self.tokens.places(rows)])
        places = self.masked_positions.places(rows)
        index = _long(
            self.masked_positions.values[places] + np.repeat(starts[:-1], self.masked_positions.lengths(rows))
        )
        labels = _long(self.masked_labels.values[places])
        if keep is not None:
            kept = torch.from_numpy(keep.choose(places))
            tokens[index[~kept]] = labels[~kept]
            index, labels = index[kept], labels[kept]
        is_random_next = None if self.is_random_next is None else torch.from_numpy(self.is_random_next[rows])
        return FlatBatch(
            tokens=tokens,
            segment_ids=_long(self.segment_ids.values[self.segment_ids.places(rows)]),
            positions=_long(np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)),
            cu_seqlens=_long(starts),
            max_seqlen=int(lengths.max()),
            masked_index=index,
            masked_labels=labels,
            is_random_next=is_random_next,
        )


@dataclass(frozen=True, slots=True)
class KeptMasks:
    """A random share of the masks of a step: a pure function of seed, step and place, so that all ranks agree."""

    share: float
    seed: int
    step: int

    def choose(self, places: Rows) -> npt.NDArray[np.bool_]:
        """Which of the masks at these places of the column are kept."""
        if self.share >= 1.0:
            return np.ones(len(places), dtype=np.bool_)
        key = np.random.SeedSequence([self.seed, self.step]).generate_state(1, np.uint64)
        # SplitMix64 (Steele, Lea & Flood 2014): a hash whose values are as good as random numbers.
        bits = (places.astype(np.uint64) + key) * np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        uniform: npt.NDArray[np.float64] = (bits ^ (bits >> np.uint64(31))) / 2.0**64
        return uniform < self.share


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
