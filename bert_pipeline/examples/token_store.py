"""The tokenised corpus on disk: documents of sentences of ids, mapped into memory so that any document is at hand.

One Arrow file a corpus shard holds one column of nested lists (document, sentence, id). Arrow keeps such a column as
two offset arrays and one flat array of ids, which are read here as numpy views without a copy.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bert_pipeline.artifact import atomic
from bert_pipeline.corpus.sentences import split_sentences
from bert_pipeline.shards import iterate_rows
from bert_pipeline.tokenizer.load import LoadedTokenizer, load_tokenizer

Ids = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]

COLUMN = pa.large_list(pa.large_list(pa.int32()))
COUNTS = b"bertpipe.counts"
ENCODE_TOGETHER = 4096


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """Tokenise one corpus shard."""

    path: Path
    corpus_shard: Path
    tokenizer: Path


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard of the token store lies."""
    return folder / f"{number:05}.arrow"


def encode_shard(job: EncodeJob) -> dict[str, int]:
    """Write the ids of one corpus shard, unless they are there already; return the counts."""
    if job.path.exists():
        with pa.memory_map(str(job.path)) as file:
            counts: dict[str, int] = json.loads(pa.ipc.open_file(file).schema.metadata[COUNTS])
            return counts
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # shards are the parallelism
    loaded = load_tokenizer(job.tokenizer)
    documents = [
        sentences
        for text, language in iterate_rows([job.corpus_shard], ["text", "language"])
        if (sentences := split_sentences(text, language))
    ]
    flat = [sentence for document in documents for sentence in document]
    ids, lengths = encode_sentences(loaded, flat)
    kept = lengths > 0  # a sentence of control characters alone may leave nothing
    sentence_offsets = _offsets(lengths[kept])
    kept_before = _offsets(kept.astype(np.int64))
    document_offsets = kept_before[_offsets(np.array([len(d) for d in documents], dtype=np.int64))]
    document_offsets = np.unique(document_offsets)  # a document that lost all its sentences has no length
    counts = {
        "documents": len(document_offsets) - 1,
        "sentences": len(sentence_offsets) - 1,
        "tokens": len(ids),
        "unknown": int(np.count_nonzero(ids == loaded.special.unk)),
    }
    _write(job.path, ids, sentence_offsets, document_offsets, counts)
    return counts


def encode_sentences(loaded: LoadedTokenizer, sentences: Sequence[str]) -> tuple[Ids, Offsets]:
    """Ids of all sentences, flat, and the number of ids of each; names of special tokens in the text are plain text."""
    tokenizer = loaded.tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    parts: list[Ids] = []
    lengths = np.zeros(len(sentences), dtype=np.int64)
    for start in range(0, len(sentences), ENCODE_TOGETHER):
        encodings = tokenizer.encode_batch_fast(sentences[start : start + ENCODE_TOGETHER], add_special_tokens=False)
        batch = [encoding.ids for encoding in encodings]
        lengths[start : start + len(batch)] = [len(ids) for ids in batch]
        parts.append(np.fromiter((i for ids in batch for i in ids), dtype=np.int32))
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32), lengths


def _offsets(lengths: Offsets) -> Offsets:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def _write(path: Path, ids: Ids, sentences: Offsets, documents: Offsets, counts: dict[str, int]) -> None:
    column = pa.LargeListArray.from_arrays(documents, pa.LargeListArray.from_arrays(sentences, pa.array(ids)))
    schema = pa.schema([("tokens", COLUMN)], metadata={COUNTS: json.dumps(counts)})
    with atomic(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        writer.write_batch(pa.record_batch([column], schema=schema))


class TokenShard:
    """One shard's arrays: `ids` flat, `sentences` offsets into ids, `documents` offsets into sentences."""

    def __init__(self, path: Path) -> None:
        # The map must outlive the views that numpy takes of it.
        self._map = pa.memory_map(str(path))
        column = pa.ipc.open_file(self._map).get_batch(0).column(0)
        self.documents: Offsets = column.offsets.to_numpy()
        self.sentences: Offsets = column.values.offsets.to_numpy()
        self.ids: Ids = column.values.values.to_numpy()


class TokenStore:
    """All shards, with documents numbered through."""

    def __init__(self, folder: Path, shards: int) -> None:
        self.shards = [TokenShard(shard_path(folder, number)) for number in range(shards)]

    @cached_property
    def first_document(self) -> Offsets:
        """Number of each shard's first document, and the total at the end."""
        return _offsets(np.array([len(shard.documents) - 1 for shard in self.shards], dtype=np.int64))

    def __len__(self) -> int:
        return int(self.first_document[-1])

    def locate(self, document: int) -> tuple[int, int]:
        """The shard of a document, and its number within the shard."""
        shard = int(np.searchsorted(self.first_document, document, side="right")) - 1
        return shard, document - int(self.first_document[shard])

    def sentence_bounds(self, document: int) -> tuple[int, list[int]]:
        """The shard of a document, and where its sentences begin in the shard's ids (and the last one ends)."""
        shard, local = self.locate(document)
        arrays = self.shards[shard]
        first, last = arrays.documents[local], arrays.documents[local + 1]
        bounds: list[int] = arrays.sentences[first : last + 1].tolist()
        return shard, bounds

    def count_tokens(self, left_out: npt.NDArray[np.int64], vocab_size: int) -> npt.NDArray[np.int64]:
        """Occurrences of each id in all documents but those left out."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        for shard in self.shards:
            counts += np.bincount(shard.ids, minlength=vocab_size)
        for document in left_out.tolist():
            number, bounds = self.sentence_bounds(document)
            np.subtract.at(counts, self.shards[number].ids[bounds[0] : bounds[-1]], 1)
        return counts
