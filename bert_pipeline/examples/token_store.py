"""The token store: the tokenized corpus on disk, with random access to any document.

Each piece of the corpus is one Arrow file of flat arrays, which are read as numpy views of the
memory-mapped file. Files are opened one at a time and closed again, so that a worker holds one
piece in memory, and of other pieces only the sentences that it reads, however large the corpus is.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from bert_pipeline.examples.long_sentences import divide_long_sentences
from bert_pipeline.ragged import (
    Array,
    BoolArray,
    FloatArray,
    Int32Array,
    Int64Array,
    expand,
    offsets_of,
)
from bert_pipeline.storage.atomic import checked, is_intact
from bert_pipeline.storage.shards import COUNTS

NO_TAILS: Int64Array = np.empty((0, 2), dtype=np.int64)


def piece_path(folder: Path, number: int) -> Path:
    """The file of a piece of the token store."""
    return folder / f"{number:05}.arrow"


def write_piece(path: Path, arrays: dict[str, Array], counts: dict[str, int]) -> None:
    """Write the arrays of one piece, and its counts as metadata."""
    columns = [
        pa.LargeListArray.from_arrays([0, len(array)], pa.array(array)) for array in arrays.values()
    ]
    batch = pa.record_batch(columns, names=list(arrays))
    schema = batch.schema.with_metadata({COUNTS: json.dumps(counts)})
    with checked(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def finished_piece_counts(path: Path) -> dict[str, int] | None:
    """The counts of a piece that an earlier run wrote; None when it must be written."""
    if not is_intact(path):
        return None
    with pa.memory_map(str(path)) as file:
        counts: dict[str, int] = json.loads(pa.ipc.open_file(file).schema.metadata[COUNTS])
        return counts


class Piece:
    """The arrays of one piece, each mapped into memory on first access.

    With `max_sentence`, sentences that have more ids may be divided (`divide_long_sentences`).
    `tails` divides documents, by their numbers in the piece (see `TokenStore`).
    """

    def __init__(
        self, path: Path, max_sentence: int | None = None, tails: Int64Array = NO_TAILS
    ) -> None:
        self._max_sentence = max_sentence
        self._tails = tails
        # The map must outlive the numpy views of it.
        self._map = pa.memory_map(str(path))
        self._batch = pa.ipc.open_file(self._map).get_batch(0)

    def _view(self, name: str) -> Array:
        array: Array = self._batch.column(name).values.to_numpy()
        return array

    @cached_property
    def ids(self) -> Array:
        """All ids, uint16 or int32 of shape (ids,)."""
        return self._view("ids")

    @cached_property
    def _bounds(self) -> tuple[Int64Array, Int64Array]:
        sentences: Int64Array = self._view("sentences")
        documents: Int64Array = self._view("documents")
        if self._max_sentence is not None:
            sentences, documents = divide_long_sentences(sentences, documents, self._max_sentence)
        if not len(self._tails):
            return sentences, documents
        number, start = self._tails.T
        bounds = np.insert(sentences[documents], number + 1, start)
        sentences = np.union1d(sentences, start)
        return sentences, np.searchsorted(sentences, bounds)

    @property
    def sentences(self) -> Int64Array:
        """Where sentences begin in the ids, and where the last one ends."""
        return self._bounds[0]

    @property
    def documents(self) -> Int64Array:
        """Where documents begin in the sentences, and where the last one ends."""
        return self._bounds[1]

    @cached_property
    def word_starts(self) -> BoolArray | None:
        """Which ids begin a word; None if the store was written without them."""
        if "starts" not in self._batch.schema.names:
            return None
        return self._view("starts").view(np.bool_)

    def find_sources(self, indices: Int64Array) -> Array:
        """The numbers of the sources of some ids, by their indices in the piece.

        Only for a store with the sources of documents. Parts of a divided document have its source.
        """
        starts = self._view("sentences")[self._view("documents")]
        sources: Array = self._view("sources")[np.searchsorted(starts, indices, side="right") - 1]
        return sources


@dataclass(frozen=True, slots=True)
class StoredIds:
    """Several ranges of ids end to end: range r is `ids[offsets[r]:offsets[r + 1]]`."""

    ids: Int32Array
    word_starts: BoolArray | None
    """Which ids begin a word; None if the store was written without them."""
    offsets: Int64Array


@dataclass(frozen=True, slots=True)
class IdRanges:
    """Ranges of ids in the store: range r is ids `start[r]:stop[r]` of piece `piece[r]`."""

    piece: Int64Array
    start: Int64Array
    stop: Int64Array


class TokenStore:
    """All pieces. Piece p holds documents `first[p]`..`first[p + 1] - 1` of the corpus.

    Each row of `tails` divides one document: it has the number of the document in the corpus, and
    where the tail starts in the ids of its piece, ascending. The parts are numbered as documents,
    and `heads` are the numbers of the first parts; each is followed by its tail.
    """

    def __init__(
        self,
        folder: Path,
        documents: Sequence[int] | Int64Array,
        max_sentence: int | None = None,
        tails: Int64Array = NO_TAILS,
    ) -> None:
        self._folder = folder
        self._max_sentence = max_sentence
        self._tails = tails
        self._undivided = offsets_of(np.asarray(documents, dtype=np.int64))
        self.first = self._undivided + np.searchsorted(tails[:, 0], self._undivided)
        self.heads: Int64Array = tails[:, 0] + np.arange(len(tails))

    def __len__(self) -> int:
        return int(self.first[-1])

    def open(self, piece: int) -> Piece:
        """Map a piece into memory, for as long as the result is referenced."""
        first, end = self._undivided[piece : piece + 2]
        low, high = np.searchsorted(self._tails[:, 0], (first, end))
        tails = self._tails[low:high] - (first, 0)
        return Piece(piece_path(self._folder, piece), self._max_sentence, tails)

    def find_sentences(
        self, documents: Int64Array, shares: FloatArray, wanted: Int64Array
    ) -> IdRanges:
        """For each document, the range of its sentences from a relative position on.

        The range begins with the sentence at `share` (0 to 1) of the document, and ends after the
        sentence that reaches `wanted` ids, or at the end of the document.
        """
        piece_of = np.searchsorted(self.first, documents, side="right") - 1
        start, stop = np.zeros((2, len(documents)), dtype=np.int64)
        for number in np.unique(piece_of).tolist():
            here = np.flatnonzero(piece_of == number)
            piece = self.open(number)
            local = documents[here] - self.first[number]
            first = piece.documents[local]
            end = piece.documents[local + 1]
            begin = first + (shares[here] * (end - first)).astype(np.int64)
            start[here] = piece.sentences[begin]
            last = np.searchsorted(piece.sentences, start[here] + wanted[here], side="left")
            stop[here] = piece.sentences[np.clip(last, begin + 1, end)]
        return IdRanges(piece_of, start, stop)

    def read(self, ranges: IdRanges) -> StoredIds:
        """The ids in these ranges."""
        lengths = ranges.stop - ranges.start
        offsets = offsets_of(lengths)
        ids = np.empty(offsets[-1], dtype=np.int32)
        word_starts = np.empty(offsets[-1], dtype=np.bool_)
        with_word_starts = False
        for number in np.unique(ranges.piece).tolist():
            here = np.flatnonzero(ranges.piece == number)
            piece = self.open(number)
            targets = expand(offsets[here], lengths[here])
            sources = expand(ranges.start[here], lengths[here])
            ids[targets] = piece.ids[sources]
            if piece.word_starts is not None:
                word_starts[targets] = piece.word_starts[sources]
                with_word_starts = True
        return StoredIds(ids, word_starts if with_word_starts else None, offsets)

    def count_document_tokens(self, piece: int) -> Int64Array:
        """Tokens in each document of a piece; int64 of shape (documents,)."""
        arrays = self.open(piece)
        return np.diff(arrays.sentences[arrays.documents])

    def read_sentence_bounds(self, piece: int, local: int) -> Int64Array:
        """Where the sentences of a piece's document begin in the ids, and where the last ends."""
        arrays = self.open(piece)
        first, end = arrays.documents[local : local + 2].tolist()
        return arrays.sentences[first : end + 1].copy()  # the file is closed

    def count_tokens(self, piece: int, excluded: Int64Array, vocab_size: int) -> Int64Array:
        """Occurrences of each id in a piece, except in the excluded documents.

        Returns int64 of shape (vocab_size,).
        """
        arrays = self.open(piece)
        counts = np.bincount(arrays.ids, minlength=vocab_size)
        bounds = arrays.sentences[arrays.documents]
        local = excluded - self.first[piece]
        indices = expand(bounds[local], bounds[local + 1] - bounds[local])
        counts -= np.bincount(arrays.ids[indices], minlength=vocab_size)
        return counts
