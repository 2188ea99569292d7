"""Stored rows as flat batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bert_pipeline.examples.counter_rng import as_share, make_key, random_bits
from bert_pipeline.examples.dynamic_masking import DynamicMasks
from bert_pipeline.examples.splits import Split
from bert_pipeline.model.unpadded_batch import UnpaddedBatch
from bert_pipeline.pretraining.memmap_rows import Source, StoredRows, open_rows
from bert_pipeline.ragged import Array, BoolArray, Int32Array, Int64Array, expand, offsets_of
from bert_pipeline.storage.manifest import Manifest


@dataclass(frozen=True, slots=True)
class KeptMasks:
    """A random share of the masks of a step: a pure function of seed, step and number, so that all ranks agree."""

    share: float
    seed: int
    step: int

    def choose(self, numbers: Int64Array) -> BoolArray:
        """Which of the masks with these numbers are kept."""
        return (
            as_share(random_bits(make_key("kept masks", self.seed, self.step), numbers))
            < self.share
        )


@dataclass(frozen=True, slots=True)
class _Laid:
    """Rows end to end: row r has tokens `starts[r]`..`starts[r + 1] - 1`."""

    lengths: Int64Array
    starts: Int64Array
    positions: Int64Array
    """Of each token in its row."""
    places: Int64Array
    """Of each token in the store."""


@dataclass(frozen=True, slots=True)
class _Masks:
    """Masked tokens of rows end to end: where the masks are, what they hide, and the numbers that they go by."""

    tokens: Array
    index: Int64Array
    labels: Array
    numbers: Int64Array


class Examples:
    """All rows of one split."""

    def __init__(self, rows: StoredRows, dynamic: DynamicMasks | None = None) -> None:
        """`dynamic` draws the masks of rows that hold none."""
        self._rows, self._dynamic = rows, dynamic
        self.has_pairs = rows.is_random_next is not None

    @classmethod
    def open(
        cls, folder: Path, manifest: Manifest, split: Split, vocab_size: int, *, seed: int = 0,
        store: Path | None = None, quiet: bool = False,
    ) -> "Examples":  # fmt: skip
        """One split of an examples folder for a model of `vocab_size` token embeddings, by way of a store.

        `seed` is that of dynamic masks. Raises `BertpipeError` as `open_rows` does.
        """
        dynamic = DynamicMasks.of(manifest, seed) if split == "train" else None
        return cls(
            open_rows(Source.of(folder, manifest, split, vocab_size), store, quiet=quiet), dynamic
        )

    def __len__(self) -> int:
        return len(self._rows)

    def count_tokens(self, rows: Int64Array) -> int:
        """Number of tokens of the rows."""
        return int(self._rows.tokens.lengths(rows).sum())

    def unmasked(self, limit: int) -> tuple[Int32Array, Int64Array]:
        """The tokens of the first rows as they were before masking, at least `limit` if there are so many.

        Returns them end to end, and the offsets where the rows begin and the last one ends.
        """
        stored, masked = self._rows.tokens, self._rows.masked_positions
        rows = min(len(self), max(1, int(np.searchsorted(stored.offsets, limit))))
        offsets = stored.offsets[: rows + 1]
        tokens = stored.values[: offsets[-1]].astype(np.int32)
        begins = np.repeat(offsets[:-1], np.diff(masked.offsets[: rows + 1]))
        tokens[begins + masked.values[: len(begins)]] = self._rows.masked_labels[: len(begins)]
        return tokens, offsets

    def collate(
        self, rows: Int64Array, keep: KeptMasks | None = None, epochs: Int64Array | None = None
    ) -> UnpaddedBatch:
        """Lay the rows end to end; masks that are not kept give way to the tokens they hide.

        Dynamic masks are those of each row's epoch (by default the first). No rows make a batch without tokens.
        """
        laid, stored = self._lay(rows), self._rows
        masks = self._mask(rows, laid, epochs)
        tokens, index, labels = masks.tokens, masks.index, masks.labels
        if keep is not None and keep.share < 1:
            kept = keep.choose(masks.numbers)
            tokens[index[~kept]] = labels[~kept]
            index, labels = index[kept], labels[kept]
        return UnpaddedBatch(
            tokens=_long(tokens),
            segment_ids=_long(
                laid.positions >= np.repeat(stored.first_segment[rows], laid.lengths)
            ),
            positions=torch.from_numpy(laid.positions),
            cu_seqlens=torch.from_numpy(laid.starts),
            max_seqlen=int(laid.lengths.max(initial=0)),
            masked_index=_long(index),
            masked_labels=_long(labels),
            is_random_next=None
            if stored.is_random_next is None
            else _long(stored.is_random_next[rows]),
        )

    def _lay(self, rows: Int64Array) -> _Laid:
        begins, lengths = self._rows.tokens.offsets[rows], self._rows.tokens.lengths(rows)
        starts = offsets_of(lengths)
        places = expand(begins, lengths)
        return _Laid(lengths, starts, places - np.repeat(begins, lengths), places)

    def _mask(self, rows: Int64Array, laid: _Laid, epochs: Int64Array | None) -> _Masks:
        tokens = self._rows.tokens.values[laid.places]
        if self._dynamic is None:
            stored = self._rows.masked_positions
            counts = stored.lengths(rows)
            numbers = expand(stored.offsets[rows], counts)
            index = stored.values[numbers] + np.repeat(laid.starts[:-1], counts)
            return _Masks(tokens, index, self._rows.masked_labels[numbers], numbers)
        word_starts = self._rows.word_starts
        flags = None if word_starts is None else word_starts[laid.places]
        epochs = np.zeros_like(rows) if epochs is None else epochs
        masks = self._dynamic.draw(tokens.astype(np.int32), flags, laid.starts, rows, epochs)
        index = np.repeat(laid.starts[:-1], np.diff(masks.offsets)) + masks.positions
        return _Masks(masks.tokens, index, masks.labels, laid.places[index])


def _long(array: npt.NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64, copy=False))


def chunks(rows: Int64Array, size: int) -> Iterator[Int64Array]:
    """Consecutive parts of at most `size` rows."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
