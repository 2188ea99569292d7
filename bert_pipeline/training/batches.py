"""Example shards as flat batches, in an order that is a pure function of seed and step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from bert_pipeline.errors import BertpipeError
from bert_pipeline.examples.random_bits import as_share, make_key, random_bits
from bert_pipeline.examples.redraw import DynamicMasks
from bert_pipeline.examples.schema import SCHEMA, WORD_STARTS
from bert_pipeline.model.flat_batch import FlatBatch
from bert_pipeline.ragged import expand, offsets_of
from bert_pipeline.shards import read_columns

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Lists:
    """A column of lists: row r is `values[offsets[r]:offsets[r + 1]]`."""

    values: npt.NDArray[Any]
    offsets: Rows

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "Lists":
        """Numpy copies of Arrow's arrays, chunks end to end."""
        chunks = column.chunks
        lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in chunks]
        values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
        return cls(np.concatenate(values), offsets_of(np.concatenate(lengths)))

    def lengths(self, rows: Rows) -> Rows:
        """Number of values in each of the rows."""
        lengths: Rows = self.offsets[rows + 1] - self.offsets[rows]
        return lengths

    def places(self, rows: Rows) -> Rows:
        """Indices into `values` of the rows' values, end to end."""
        return expand(self.offsets[rows], self.lengths(rows))

    def keep(self, kept: npt.NDArray[np.bool_]) -> "Lists":
        """The lists without the values that are not kept."""
        return Lists(self.values[kept], offsets_of(kept)[self.offsets])


class Examples:
    """All rows of one split in memory, as a few flat arrays, padding left out."""

    def __init__(self, shards: Sequence[Path], dynamic: DynamicMasks | None = None) -> None:
        """`dynamic` draws the masks of shards that hold none.

        Raises `BertpipeError` when a shard is damaged or there is no row.
        """
        with_starts = dynamic is not None and dynamic.needs_starts
        names = [*SCHEMA.names, *([WORD_STARTS.name] if with_starts else [])]
        table = pa.concat_tables([read_columns(path, names) for path in shards]) if shards else None
        if table is None or not table.num_rows:
            raise BertpipeError(
                "The examples hold no row of this split; make them with a --validation-fraction above 0."
            )
        self.tokens = Lists.of(table["tokens"])
        self.segment_ids = Lists.of(table["segment_ids"])
        self.masked_positions = Lists.of(table["masked_positions"])
        self.masked_labels = Lists.of(table["masked_labels"])
        self._dynamic = dynamic
        self._word_starts = Lists.of(table[WORD_STARTS.name]) if with_starts else None
        real = self.segment_ids.values >= 0
        if not real.all():
            self.tokens, self.segment_ids = self.tokens.keep(real), self.segment_ids.keep(real)
            self._word_starts = self._word_starts and self._word_starts.keep(real)
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

    def count_masked(self, rows: Rows, keep: "KeptMasks", epochs: Rows | None = None) -> int:
        """Number of tokens to predict in the rows."""
        return int(keep.choose(self._mask(rows, epochs)[1]).sum())

    def _mask(self, rows: Rows, epochs: Rows | None) -> tuple[npt.NDArray[Any], Rows, Rows, npt.NDArray[Any]]:
        """The rows' tokens end to end with masks; which numbers the masks have, where they are, and what they hide."""
        starts = offsets_of(self.tokens.lengths(rows))
        tokens = self.tokens.values[self.tokens.places(rows)]
        if self._dynamic is not None:
            word_starts = self._word_starts
            flags = None if word_starts is None else word_starts.values[word_starts.places(rows)]
            epochs = np.zeros(len(rows), dtype=np.int64) if epochs is None else epochs
            masks = self._dynamic.draw(tokens, flags, starts, rows, epochs)
            in_row, row = masks.positions, np.repeat(np.arange(len(rows)), np.diff(masks.offsets))
            return masks.tokens, self.tokens.offsets[rows[row]] + in_row, starts[row] + in_row, masks.labels
        places = self.masked_positions.places(rows)
        index = self.masked_positions.values[places] + np.repeat(starts[:-1], self.masked_positions.lengths(rows))
        return tokens, places, index, self.masked_labels.values[places]

    def collate(self, rows: Rows, keep: "KeptMasks | None" = None, epochs: Rows | None = None) -> FlatBatch:
        """Lay the rows end to end; masks that are not kept give way to the tokens they hide.

        Dynamic masks are those of each row's epoch (by default the first).
        """
        lengths = self.tokens.lengths(rows)
        starts = offsets_of(lengths)
        masked_tokens, numbers, where, hidden = self._mask(rows, epochs)
        tokens, index, labels = _long(masked_tokens), _long(where), _long(hidden)
        if keep is not None:
            kept = torch.from_numpy(keep.choose(numbers))
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
    """A random share of the masks of a step: a pure function of seed, step and number, so that all ranks agree."""

    share: float
    seed: int
    step: int

    def choose(self, numbers: Rows) -> npt.NDArray[np.bool_]:
        """Which of the masks with these numbers are kept."""
        if self.share >= 1.0:
            return np.ones(len(numbers), dtype=np.bool_)
        return as_share(random_bits(make_key("kept masks", self.seed, self.step), numbers)) < self.share


def _long(array: npt.NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64))


def step_rows(rows: int, batch_size: int, seed: int, step: int) -> Rows:
    """The rows of a step (from 0), over all ranks: rank r of w takes `[r::w]`.

    Each epoch is its own permutation of all rows and the epochs follow one another without a gap, so that no batch is
    short. Nothing has to be saved or replayed to know any step's rows.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = step_epochs(rows, batch_size, step)
    result = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs).tolist():
        inside = epochs == epoch
        result[inside] = _permutation(rows, seed, epoch)[places[inside] % rows]
    return result


def step_epochs(rows: int, batch_size: int, step: int) -> Rows:
    """For each row of a step, the epoch (from 0) that it belongs to."""
    return np.arange(step * batch_size, (step + 1) * batch_size) // rows


@lru_cache(maxsize=2)
def _permutation(rows: int, seed: int, epoch: int) -> Rows:
    return np.random.default_rng([seed, epoch]).permutation(rows)


def chunks(rows: Rows, size: int) -> Iterator[Rows]:
    """Consecutive parts of at most `size` rows."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
