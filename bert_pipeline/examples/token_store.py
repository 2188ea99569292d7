"""The tokenised corpus on disk: documents of sentences of ids, so that any document is at hand without the others.

A corpus shard is worked on in one piece, or in several where the corpus has few. The ids of a piece lie in one Arrow
file as flat arrays, read as numpy views of the mapped file. Files are opened one at a time and closed again, so that a
worker holds one piece in memory and of others no more than what it takes from them, however large the corpus is.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from bert_pipeline.corpus.sentences import split_sentences
from bert_pipeline.ragged import (
    Array,
    BoolArray,
    FloatArray,
    Int32Array,
    Int64Array,
    expand,
    offsets_of,
)
from bert_pipeline.storage.atomic import atomic
from bert_pipeline.storage.manifest import Manifest
from bert_pipeline.storage.shards import COUNTS, count_rows, iterate_range
from bert_pipeline.tokenizer.encode import SentenceEncoder
from bert_pipeline.tokenizer.load import load_tokenizer

PIECES, PIECE_BYTES = 16, 1_000_000
"""A corpus of fewer shards than this is worked on in smaller pieces, but not of less text than this."""
ENCODE_TOGETHER = 1_000_000
"""Characters of text to encode at a time."""
LONGEST_SENTENCE = 20_000
"""Characters; what is longer is no sentence, and tokenizers need a hundred times its size in memory."""


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """Tokenise rows `first`..`end - 1` of one corpus shard."""

    path: Path
    corpus_shard: Path
    first: int
    end: int
    tokenizer: Path
    with_starts: bool


def piece_path(folder: Path, number: int) -> Path:
    """Where a piece of the token store lies."""
    return folder / f"{number:05}.arrow"


def plan_pieces(
    folder: Path, corpus: Path, manifest: Manifest, tokenizer: Path, with_starts: bool
) -> list[EncodeJob]:
    """The pieces of a corpus: a pure function of the corpus, so that the result is the same for any workers."""
    jobs: list[EncodeJob] = []
    size = manifest.counts["bytes"] / max(1, len(manifest.files))
    parts = max(1, min(-(-PIECES // max(1, len(manifest.files))), int(size / PIECE_BYTES)))
    for name in manifest.files:
        rows = count_rows(corpus / name)
        edges = [rows * part // parts for part in range(parts + 1)]
        for first, end in pairwise(edges):
            path = piece_path(folder, len(jobs))
            jobs.append(EncodeJob(path, corpus / name, first, end, tokenizer, with_starts))
    return jobs


def encode_piece(job: EncodeJob) -> dict[str, int]:
    """Write the ids of one piece, unless they are there already; return the counts."""
    if (finished := _finished_counts(job.path)) is not None:
        return finished
    encoder, unk, vocab_size = _open_encoder(job.tokenizer, job.with_starts)
    ids, sentences, owners, starts = (
        [np.empty(0, np.int32)],
        [np.zeros(0, np.int64)],
        [np.zeros(0, np.int64)],
        [],
    )
    for texts, documents in _batches(job):
        encoded = encoder.encode(texts)
        kept = encoded.lengths > 0  # a sentence of control characters alone may leave nothing
        ids.append(encoded.ids)
        sentences.append(encoded.lengths[kept])
        owners.append(np.array(documents)[kept])
        starts.append(encoded.starts)
    in_document = np.bincount(np.concatenate(owners))
    arrays = {
        "ids": np.concatenate(ids).astype(np.uint16 if vocab_size <= 1 << 16 else np.int32),
        "sentences": offsets_of(np.concatenate(sentences)),
        "documents": offsets_of(
            in_document[in_document > 0]
        ),  # one that lost all its sentences is none
    }
    if job.with_starts:
        arrays["starts"] = np.concatenate([np.empty(0, np.bool_), *starts]).view(np.uint8)
    counts = {
        "documents": len(arrays["documents"]) - 1,
        "sentences": len(arrays["sentences"]) - 1,
        "tokens": len(arrays["ids"]),
        "unknown": 0 if unk is None else int(np.count_nonzero(arrays["ids"] == unk)),
    }
    _write(job.path, arrays, counts)
    return counts


@lru_cache(maxsize=1)
def _open_encoder(tokenizer: Path, with_starts: bool) -> tuple[SentenceEncoder, int | None, int]:
    # Each worker learns the words once, not once a piece.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # pieces are the parallelism
    loaded = load_tokenizer(tokenizer)
    return SentenceEncoder(loaded, with_starts), loaded.special.unk, loaded.vocab_size


def forget_encoder() -> None:
    """Drop what this process knows of a tokenizer: another may come to lie at the same path."""
    _open_encoder.cache_clear()


def _finished_counts(path: Path) -> dict[str, int] | None:
    try:
        with pa.memory_map(str(path)) as file:
            counts: dict[str, int] = json.loads(pa.ipc.open_file(file).schema.metadata[COUNTS])
            return counts
    except (FileNotFoundError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None  # not there, or damaged: it is written again


def _batches(job: EncodeJob) -> Iterator[tuple[list[str], list[int]]]:
    """The piece's sentences and the documents that they belong to, so many at a time that they stay small in memory."""
    sentences: list[str] = []
    owners: list[int] = []
    characters = 0
    rows = iterate_range(job.corpus_shard, ["text", "language"], job.first, job.end)
    for document, (text, language) in enumerate(rows):
        for sentence in split_sentences(text, language):
            for part in _cut(sentence) if len(sentence) > LONGEST_SENTENCE else (sentence,):
                sentences.append(part)
                owners.append(document)
                characters += len(part)
            if characters >= ENCODE_TOGETHER:
                yield sentences, owners
                sentences, owners, characters = [], [], 0
    if sentences:
        yield sentences, owners


def _cut(sentence: str) -> Iterator[str]:
    """The sentence in parts of at most `LONGEST_SENTENCE` characters, between words where there are any."""
    while len(sentence) > LONGEST_SENTENCE:
        space = sentence.rfind(" ", 0, LONGEST_SENTENCE + 1)
        end = space if space > 0 else LONGEST_SENTENCE
        yield sentence[:end]
        sentence = sentence[end:].lstrip(" ")
    if sentence:
        yield sentence


def _write(path: Path, arrays: dict[str, Array], counts: dict[str, int]) -> None:
    columns = [
        pa.LargeListArray.from_arrays([0, len(array)], pa.array(array)) for array in arrays.values()
    ]
    batch = pa.record_batch(columns, names=list(arrays))
    schema = batch.schema.with_metadata({COUNTS: json.dumps(counts)})
    with atomic(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        writer.write_batch(batch.replace_schema_metadata(schema.metadata))


class Piece:
    """One piece's arrays, each mapped into memory when it is first asked for."""

    def __init__(self, path: Path) -> None:
        # The map must outlive the views that numpy takes of it.
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
    def sentences(self) -> Int64Array:
        """Where sentences begin in the ids, and where the last one ends."""
        return self._view("sentences")

    @cached_property
    def documents(self) -> Int64Array:
        """Where documents begin in the sentences, and where the last one ends."""
        return self._view("documents")

    @cached_property
    def starts(self) -> BoolArray | None:
        """Which ids begin a word, in a store made with them."""
        return self._view("starts").view(np.bool_) if "starts" in self._batch.schema.names else None


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of ids end to end: run r is `ids[offsets[r]:offsets[r + 1]]`; `starts` beside them, if there are any."""

    ids: Int32Array
    starts: BoolArray | None
    offsets: Int64Array


@dataclass(frozen=True, slots=True)
class Places:
    """Runs of ids where they lie: ids `start:stop` of a piece."""

    piece: Int64Array
    start: Int64Array
    stop: Int64Array


class TokenStore:
    """All pieces, with documents numbered through: piece p holds documents `first[p]`..`first[p + 1] - 1`."""

    def __init__(self, folder: Path, documents: Sequence[int] | Int64Array) -> None:
        self._folder = folder
        self.first = offsets_of(np.asarray(documents, dtype=np.int64))

    def __len__(self) -> int:
        return int(self.first[-1])

    def open(self, piece: int) -> Piece:
        """Map a piece into memory, until the result is dropped."""
        return Piece(piece_path(self._folder, piece))

    def find_sentences(
        self, documents: Int64Array, shares: FloatArray, wanted: Int64Array
    ) -> Places:
        """For each document, where its sentences lie from the one at `share` (0 to 1) of it on.

        As many as reach `wanted` ids, one at least, or up to the document's end.
        """
        of_piece = np.searchsorted(self.first, documents, side="right") - 1
        start, stop = np.zeros((2, len(documents)), dtype=np.int64)
        for number in np.unique(of_piece).tolist():
            here = np.flatnonzero(of_piece == number)
            piece = self.open(number)
            local = documents[here] - self.first[number]
            first, end = piece.documents[local], piece.documents[local + 1]
            begin = first + (shares[here] * (end - first)).astype(np.int64)
            start[here] = piece.sentences[begin]
            last = np.searchsorted(piece.sentences, start[here] + wanted[here], side="left")
            stop[here] = piece.sentences[np.clip(last, begin + 1, end)]
        return Places(of_piece, start, stop)

    def read(self, places: Places) -> Runs:
        """The ids that lie there."""
        lengths = places.stop - places.start
        offsets = offsets_of(lengths)
        ids, starts = np.empty(offsets[-1], dtype=np.int32), np.empty(offsets[-1], dtype=np.bool_)
        with_starts = False
        for number in np.unique(places.piece).tolist():
            here = np.flatnonzero(places.piece == number)
            piece = self.open(number)
            targets, sources = (
                expand(offsets[here], lengths[here]),
                expand(places.start[here], lengths[here]),
            )
            ids[targets] = piece.ids[sources]
            if piece.starts is not None:
                starts[targets] = piece.starts[sources]
                with_starts = True
        return Runs(ids, starts if with_starts else None, offsets)

    def count_tokens(self, piece: int, left_out: Int64Array, vocab_size: int) -> Int64Array:
        """Occurrences of each id in a piece, but for the documents left out; int64 of shape (vocab_size,)."""
        arrays = self.open(piece)
        counts = np.bincount(arrays.ids, minlength=vocab_size)
        bounds = arrays.sentences[arrays.documents]
        local = left_out - self.first[piece]
        places = expand(bounds[local], bounds[local + 1] - bounds[local])
        counts -= np.bincount(arrays.ids[places], minlength=vocab_size)
        return counts
