"""Tokenizing the corpus into the token store, one piece at a time.

A corpus shard is one piece, or several pieces where the corpus has few shards.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from bert_pipeline.corpus.sentences import split_running
from bert_pipeline.examples.token_store import finished_piece_counts, piece_path, write_piece
from bert_pipeline.ragged import Array, Int32Array, offsets_of
from bert_pipeline.storage.manifest import Manifest, verify_file
from bert_pipeline.storage.shards import count_rows, iterate_range
from bert_pipeline.tokenizer.encode import SentenceEncoder
from bert_pipeline.tokenizer.load import load_tokenizer

MIN_PIECES = 16
"""A corpus with fewer shards than this is divided into about this many pieces."""
MIN_PIECE_BYTES = 1_000_000
"""No shard is divided into pieces with less text than this."""
ENCODE_BATCH_CHARACTERS = 1_000_000
"""Characters of text to encode at a time."""
MAX_SENTENCE_CHARACTERS = 20_000
"""Longer sentences are split: tokenizers need about a hundred times their size in memory."""


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """Tokenize rows `first`..`end - 1` of one corpus shard."""

    path: Path
    corpus_shard: Path
    sha256: str
    """The hash of the shard."""
    first: int
    end: int
    tokenizer: Path
    with_word_starts: bool
    sources: tuple[str, ...] = ()
    """The sources of the corpus, to store that of each document; empty to store none."""


def find_sources(corpus: Manifest) -> tuple[str, ...]:
    """The sources of a corpus that has several, in its order; empty for a single one."""
    sources = tuple(dict.fromkeys(corpus.config["source"]))
    return sources if len(sources) > 1 else ()


def plan_pieces(
    folder: Path, corpus: Path, manifest: Manifest, tokenizer: Path, with_word_starts: bool
) -> list[EncodeJob]:
    """The pieces of a corpus: they depend on the corpus alone, not on the number of workers."""
    jobs: list[EncodeJob] = []
    shards = max(1, len(manifest.files))
    shard_bytes = manifest.counts["bytes"] / shards
    sources = find_sources(manifest)
    pieces_per_shard = max(1, min(-(-MIN_PIECES // shards), int(shard_bytes / MIN_PIECE_BYTES)))
    for name, entry in manifest.files.items():
        rows = count_rows(corpus / name)
        edges = [rows * number // pieces_per_shard for number in range(pieces_per_shard + 1)]
        for first, end in pairwise(edges):
            path = piece_path(folder, len(jobs))
            shard = (corpus / name, entry["sha256"])
            jobs.append(EncodeJob(path, *shard, first, end, tokenizer, with_word_starts, sources))
    return jobs


def encode_piece(job: EncodeJob) -> dict[str, int]:
    """Write one piece, unless it already exists; return its counts.

    The counts are `documents`, `sentences`, `tokens`, `unknown` (tokens) and `bytes` of text.
    """
    if (finished := finished_piece_counts(job.path)) is not None:
        return finished
    verify_file(job.corpus_shard, job.sha256)
    encoder, unk, vocab_size = _open_encoder(job.tokenizer, job.with_word_starts)
    ids = [np.empty(0, np.int32)]
    sentence_lengths = [np.zeros(0, np.int64)]
    document_of_sentence = [np.zeros(0, np.int64)]
    word_starts = [np.empty(0, np.bool_)]
    size = 0
    for texts, documents in _read_sentences(job, encoder.text_prefix):
        size += sum(len(text.encode()) for text in texts)
        encoded = encoder.encode(texts)
        kept = encoded.lengths > 0  # a sentence of control characters may have no token
        ids.append(encoded.ids)
        sentence_lengths.append(encoded.lengths[kept])
        document_of_sentence.append(np.array(documents)[kept])
        if encoded.word_starts is not None:
            word_starts.append(encoded.word_starts)
    sentences_per_document = np.bincount(np.concatenate(document_of_sentence))
    # Documents without any sentence left are dropped.
    documents_left = np.flatnonzero(sentences_per_document)
    arrays = {
        "ids": np.concatenate(ids).astype(np.uint16 if vocab_size <= 1 << 16 else np.int32),
        "sentences": offsets_of(np.concatenate(sentence_lengths)),
        "documents": offsets_of(sentences_per_document[documents_left]),
    }
    if job.with_word_starts:
        arrays["starts"] = np.concatenate(word_starts).view(np.uint8)
    if job.sources:
        arrays["sources"] = _read_sources(job)[documents_left]
    counts = _count(arrays, unk) | {"bytes": size}
    write_piece(job.path, arrays, counts)
    return counts


def _count(arrays: dict[str, Array], unk: int | None) -> dict[str, int]:
    return {
        "documents": len(arrays["documents"]) - 1,
        "sentences": len(arrays["sentences"]) - 1,
        "tokens": len(arrays["ids"]),
        "unknown": 0 if unk is None else int(np.count_nonzero(arrays["ids"] == unk)),
    }


def _read_sources(job: EncodeJob) -> Int32Array:
    """The number of the source of each document of the piece."""
    numbers = {source: number for number, source in enumerate(job.sources)}
    rows = iterate_range(job.corpus_shard, ["source"], job.first, job.end)
    return np.array([numbers[source] for (source,) in rows], dtype=np.int32)


@lru_cache(maxsize=1)
def _open_encoder(
    tokenizer: Path, with_word_starts: bool
) -> tuple[SentenceEncoder, int | None, int]:
    # Cached: each worker learns the ids of frequent words once, not once per piece.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # pieces are processed in parallel instead
    loaded = load_tokenizer(tokenizer)
    return SentenceEncoder(loaded, with_word_starts), loaded.special.unk, loaded.vocab_size


def forget_encoder() -> None:
    """Clear the cache: the next build may find another tokenizer at the same path."""
    _open_encoder.cache_clear()


def _read_sentences(job: EncodeJob, text_prefix: str) -> Iterator[tuple[list[str], list[int]]]:
    """Batches of the piece's sentences, and the index of the document that each belongs to.

    The sentences of a document, joined, are its text with `text_prefix` before it.
    """
    sentences: list[str] = []
    owners: list[int] = []
    characters = 0
    rows = iterate_range(job.corpus_shard, ["text", "language"], job.first, job.end)
    for document, (text, language) in enumerate(rows):
        prefix = text_prefix
        for piece in split_running(text, language):
            sentence = prefix + piece
            prefix = ""
            is_long = len(sentence) > MAX_SENTENCE_CHARACTERS
            for part in _split_long(sentence) if is_long else (sentence,):
                sentences.append(part)
                owners.append(document)
                characters += len(part)
            if characters >= ENCODE_BATCH_CHARACTERS:
                yield sentences, owners
                sentences = []
                owners = []
                characters = 0
    if sentences:
        yield sentences, owners


def _split_long(sentence: str) -> Iterator[str]:
    """Parts of at most `MAX_SENTENCE_CHARACTERS`, split between words where there are spaces."""
    while len(sentence) > MAX_SENTENCE_CHARACTERS:
        space = sentence.rfind(" ", 1, MAX_SENTENCE_CHARACTERS + 1)
        end = space if space > 0 else MAX_SENTENCE_CHARACTERS
        yield sentence[:end]
        sentence = sentence[end:]
    if sentence:
        yield sentence
