"""Stored examples as unpadded batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from bert_pipeline.examples.counter_rng import as_share, make_key, random_bits
from bert_pipeline.examples.dynamic_masking import DynamicMasks
from bert_pipeline.examples.splits import Split
from bert_pipeline.model.unpadded_batch import PretrainingBatch
from bert_pipeline.pretraining.memmap_rows import SplitFiles, StoredRows, open_rows
from bert_pipeline.pretraining.sampler import choose_rows
from bert_pipeline.ragged import Array, BoolArray, Int32Array, Int64Array, expand, offsets_of
from bert_pipeline.storage.manifest import Manifest

LENGTH_SAMPLE = 1 << 18
"""Rows among which the longest are searched for."""


@dataclass(frozen=True, slots=True)
class MaskSubset:
    """A random share of a step's masks: a pure function of seed, step and mask, on all ranks."""

    share: float
    seed: int
    step: int

    def contains(self, masks: Int64Array) -> BoolArray:
        """Which of the masks with these numbers are kept."""
        bits = random_bits(make_key("kept masks", self.seed, self.step), masks)
        return as_share(bits) < self.share


@dataclass(frozen=True, slots=True)
class _Layout:
    """Rows end to end: row r has tokens `starts[r]`..`starts[r + 1] - 1`."""

    lengths: Int64Array
    starts: Int64Array
    positions: Int64Array
    """Of each token in its row."""
    stored_at: Int64Array
    """Of each token in the store."""


@dataclass(frozen=True, slots=True)
class _MaskedRows:
    """Rows end to end with masks applied."""

    tokens: Array
    index: Int64Array
    """Where the masked tokens are."""
    labels: Array
    numbers: Int64Array
    """Numbers of the masks, for `MaskSubset`."""


class Examples:
    """All examples of one split."""

    def __init__(
        self,
        rows: StoredRows,
        dynamic: DynamicMasks | None = None,
        bytes_per_token: float | None = None,
        sources: tuple[str, ...] = (),
    ) -> None:
        """`dynamic` draws the masks of rows that have none."""
        self.sources = sources
        """The sources that rows can have; empty if that is not known."""
        self.bytes_per_token = bytes_per_token
        """UTF-8 bytes of the corpus per token; None for examples that an older version made."""
        self._rows = rows
        self._dynamic = dynamic
        self.has_pairs = rows.is_random_next is not None

    @classmethod
    def open(
        cls,
        folder: Path,
        manifest: Manifest,
        split: Split,
        vocab_size: int,
        *,
        seed: int = 0,
        store: Path | None = None,
        quiet: bool = False,
    ) -> Self:
        """One split of an examples folder for a model of `vocab_size` token embeddings.

        `seed` is that of dynamic masks. Raises `BertpipeError` as `open_rows` does.
        """
        dynamic = DynamicMasks.from_manifest(manifest, seed) if split == "train" else None
        files = SplitFiles.from_manifest(folder, manifest, split, vocab_size)
        size = manifest.counts.get("bytes")
        bytes_per_token = None if size is None else size / manifest.counts["tokens"]
        return cls(open_rows(files, store, quiet=quiet), dynamic, bytes_per_token, files.sources)

    def __len__(self) -> int:
        return len(self._rows)

    def count_tokens(self, rows: Int64Array) -> int:
        """Number of tokens of the rows."""
        return int(self._rows.tokens.lengths(rows).sum())

    def count_tokens_of_each(self, rows: Int64Array) -> Int64Array:
        """Number of tokens of each of the rows."""
        return self._rows.tokens.lengths(rows)

    def longest(self, count: int) -> Int64Array:
        """The `count` longest rows of a large sample; repeated if there are fewer."""
        rows = choose_rows(len(self), LENGTH_SAMPLE)
        order = np.argsort(-self._rows.tokens.lengths(rows), kind="stable")
        return np.resize(rows[order[:count]], count)

    def sample_unmasked(self, tokens: int) -> tuple[Int32Array, Int64Array]:
        """The original tokens of a fixed random sample of rows, about `tokens` in total.

        Returns them end to end, and the offsets at which the rows begin and the last one ends.
        """
        stored = self._rows.tokens
        masked = self._rows.masked_positions
        rows = choose_rows(len(self), max(1, tokens * len(self) // max(1, len(stored.values))))
        lengths = stored.lengths(rows)
        offsets = offsets_of(lengths)
        ids = stored.values[expand(stored.offsets[rows], lengths)].astype(np.int32)
        predictions = masked.lengths(rows)
        places = expand(masked.offsets[rows], predictions)
        row_starts = np.repeat(offsets[:-1], predictions)
        ids[row_starts + masked.values[places]] = self._rows.masked_labels[places]
        return ids, offsets

    def collate(
        self, rows: Int64Array, subset: MaskSubset | None = None, epochs: Int64Array | None = None
    ) -> PretrainingBatch:
        """A batch of the rows; masks outside of `subset` are replaced by the original tokens.

        Dynamic masks are those of each row's epoch (by default the first). Without rows the batch
        has no tokens.
        """
        layout = self._lay_out(rows)
        masked = self._mask(rows, layout, epochs)
        tokens = masked.tokens
        index = masked.index
        labels = masked.labels
        if subset is not None and subset.share < 1:
            kept = subset.contains(masked.numbers)
            tokens[index[~kept]] = labels[~kept]
            index = index[kept]
            labels = labels[kept]
        stored = self._rows
        is_second = layout.positions >= np.repeat(stored.first_segment[rows], layout.lengths)
        labels_of_pairs = None
        if stored.is_random_next is not None:
            labels_of_pairs = _long_tensor(stored.is_random_next[rows])
        return PretrainingBatch(
            tokens=_long_tensor(tokens),
            segment_ids=_long_tensor(is_second),
            positions=torch.from_numpy(layout.positions),
            cu_seqlens=torch.from_numpy(layout.starts),
            max_seqlen=int(layout.lengths.max(initial=0)),
            masked_index=_long_tensor(index),
            masked_labels=_long_tensor(labels),
            is_random_next=labels_of_pairs,
        )

    def masks_of_sources(self, rows: Int64Array) -> BoolArray:
        """Which of the rows' stored masks are of which source, `[sources, masked tokens]`.

        Only for examples with sources.
        """
        assert self._rows.sources is not None
        of_mask = np.repeat(self._rows.sources[rows], self._rows.masked_positions.lengths(rows))
        found: BoolArray = of_mask == np.arange(len(self.sources))[:, None]
        return found

    def _lay_out(self, rows: Int64Array) -> _Layout:
        begins = self._rows.tokens.offsets[rows]
        lengths = self._rows.tokens.lengths(rows)
        stored_at = expand(begins, lengths)
        positions = stored_at - np.repeat(begins, lengths)
        return _Layout(lengths, offsets_of(lengths), positions, stored_at)

    def _mask(self, rows: Int64Array, layout: _Layout, epochs: Int64Array | None) -> _MaskedRows:
        tokens = self._rows.tokens.values[layout.stored_at]
        starts = layout.starts[:-1]
        if self._dynamic is None:
            stored = self._rows.masked_positions
            counts = stored.lengths(rows)
            numbers = expand(stored.offsets[rows], counts)
            index = stored.values[numbers] + np.repeat(starts, counts)
            return _MaskedRows(tokens, index, self._rows.masked_labels[numbers], numbers)
        word_starts = self._rows.word_starts
        flags = None if word_starts is None else word_starts[layout.stored_at]
        epochs = np.zeros_like(rows) if epochs is None else epochs
        masks = self._dynamic.draw(tokens.astype(np.int32), flags, layout.starts, rows, epochs)
        index = np.repeat(starts, np.diff(masks.offsets)) + masks.positions
        return _MaskedRows(masks.tokens, index, masks.labels, layout.stored_at[index])


def _long_tensor(array: npt.NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64, copy=False))


def chunks(rows: Int64Array, size: int) -> Iterator[Int64Array]:
    """Consecutive parts of at most `size` rows."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
