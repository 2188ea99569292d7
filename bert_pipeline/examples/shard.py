"""One shard of examples: plan them from pieces of the token store, mask them, write them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa

from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.examples.counter_rng import make_key, make_seed, random_bits
from bert_pipeline.examples.coverage import coverage_path, save_coverage
from bert_pipeline.examples.layout import PairLayout, lay_out_packed
from bert_pipeline.examples.masking import MaskRule, Masks, draw_masks
from bert_pipeline.examples.objective import DocumentBatch, PackedSentences
from bert_pipeline.examples.objectives import OBJECTIVES
from bert_pipeline.examples.rows import UnpaddedRows, write_rows
from bert_pipeline.examples.schema import SCHEMA, SOURCE, WORD_STARTS
from bert_pipeline.examples.segments import SegmentedIds, Segments
from bert_pipeline.examples.splits import Split, Splits
from bert_pipeline.examples.token_store import TokenStore
from bert_pipeline.ragged import Array, BoolArray, Int64Array, expand
from bert_pipeline.storage.atomic import is_intact
from bert_pipeline.storage.shards import finished_counts, list_column, write_shard
from bert_pipeline.tokenizer.load import SpecialIds

DOCUMENT_COUNTS = "documents.npy"
"""File in the token store: number of documents in each piece, int64 of shape (pieces,)."""
TAILS = "tails.npy"
"""File in the token store: documents that are divided, int64 of shape (documents, 2)."""
COUNTED = (
    "rows",
    "tokens",
    "masked",
    "without_prediction",
    "masked_special",
    "truncated",
    "random_next",
)
TOKENS_PER_BATCH = 1 << 17
"""About how many tokens to write at a time: few enough for the processor's caches."""


@dataclass(frozen=True, slots=True)
class ExampleJob:
    """The examples of one pass over the documents of some pieces of the token store."""

    path: Path
    split: Split
    number: int
    pieces: range
    store: Path
    held_out: int
    """Whole documents that are held out."""
    config: ExamplesConfig
    special: SpecialIds
    vocab_size: int
    sources: tuple[str, ...]
    """The sources that rows can have; empty for no column of sources."""

    @property
    def coverage(self) -> Path | None:
        """The file of the tokens that a shard of training examples uses."""
        return coverage_path(self.store, self.number) if self.split == "train" else None

    @property
    def has_masks(self) -> bool:
        """Whether masks are written into this shard."""
        return self.config.masks == "static" or self.split == "validation"


def shard_schema(job: ExampleJob) -> pa.Schema:
    """The columns of a shard; with `word_starts` if `pretrain` masks whole words."""
    schema = SCHEMA
    if not job.has_masks and job.config.needs_word_starts:
        schema = schema.append(WORD_STARTS)
    return schema.append(SOURCE) if job.sources else schema


def make_shard(job: ExampleJob) -> dict[str, int]:
    """Write one shard of examples, unless it already exists; return its counts."""
    finished = finished_counts(job.path)
    if finished is not None and (job.coverage is None or is_intact(job.coverage)):
        return finished
    counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
    write_shard(
        job.path,
        shard_schema(job),
        _make_batches(job, counts),
        lambda: dict(counts),
    )
    return dict(counts)


def _make_batches(job: ExampleJob, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
    store, splits = open_store(job.store, job.held_out, job.config)
    rule = MaskRule.from_config(job.config, job.split, job.special.mask, job.vocab_size)
    stream = (job.split, job.config.seed, job.number)
    random = np.random.default_rng(make_seed(*stream))
    row = 0
    for number in job.pieces:
        planned = _plan(job, number, store, splits, random)
        piece = store.open(number)
        if job.coverage is not None:  # before the shard, so that a finished shard always has it
            save_coverage(job.coverage, planned.segments, len(piece.ids))
        planned = planned.take(random.permutation(len(planned.segments)))
        for group in _group_by_size(planned.segments, job.config):
            chosen = planned.take(group)
            rows = write_rows(chosen, job.special)
            keys = random_bits(make_key(*stream), row + group)
            masks = draw_masks(rows, keys, rule) if job.has_masks else _no_masks(rows)
            counts.update(_count(rows, masks, chosen.segments, job.special))
            sources = piece.find_sources(chosen.segments.row_starts) if job.sources else None
            yield to_batch(rows, masks, chosen.segments.label, sources, job)
        row += len(planned.segments)


def _group_by_size(segments: Segments, config: ExamplesConfig) -> Iterator[Int64Array]:
    """Groups of consecutive examples with about `TOKENS_PER_BATCH` tokens each."""
    padded = np.full(len(segments), config.max_seq_length)
    group = np.cumsum(padded if config.pad else segments.row_lengths) // TOKENS_PER_BATCH
    for number in np.unique(group).tolist():
        yield np.flatnonzero(group == number)


def _plan(
    job: ExampleJob, piece: int, store: TokenStore, splits: Splits, random: np.random.Generator
) -> SegmentedIds:
    """Segments of all examples of a piece, in the order of its documents."""
    arrays = store.open(piece)
    config = job.config
    objective = OBJECTIVES[config.objective]
    members = splits.members(job.split, *store.first[piece : piece + 2].tolist())
    members = random.permutation(members)
    local = members - store.first[piece]
    first = arrays.documents[local].tolist()
    end = arrays.documents[local + 1].tolist()
    batch = DocumentBatch(
        bounds=arrays.sentences.tolist(),
        documents=list(zip(first, end, strict=True)),
        numbers=members.tolist(),
        max_tokens=config.max_tokens,
        short_seq_prob=config.short_seq_prob,
        across_documents=config.across_documents,
        random=Random(random.bytes(16)),
    )
    planned = objective.plan(batch)
    if isinstance(planned, PackedSentences):
        return SegmentedIds(lay_out_packed(planned), arrays.ids, arrays.word_starts)
    layout = PairLayout(store, splits, job.split, batch.max_tokens, random)
    return layout.lay_out(planned, arrays.ids, arrays.word_starts)


def open_store(folder: Path, held_out: int, config: ExamplesConfig) -> tuple[TokenStore, Splits]:
    """The token store in a folder, and the splits of its documents."""
    return _open_store(folder, held_out, config.seed, config.max_sentence)


@lru_cache(maxsize=1)
def _open_store(
    folder: Path, held_out: int, seed: int, max_sentence: int | None
) -> tuple[TokenStore, Splits]:
    # Cached: each worker reads the document counts once, not once per shard.
    documents = np.load(folder / DOCUMENT_COUNTS, allow_pickle=False)
    tails = np.load(folder / TAILS, allow_pickle=False)
    store = TokenStore(folder, documents, max_sentence, tails)
    return store, Splits(len(store), held_out, seed, store.heads)


def forget_store() -> None:
    """Clear the cache: the next build may write another token store to the same path."""
    _open_store.cache_clear()


def _no_masks(rows: UnpaddedRows) -> Masks:
    none = np.empty(0, dtype=np.int32)
    return Masks(rows.tokens, none, none, np.zeros(len(rows.offsets), dtype=np.int64))


def _count(
    rows: UnpaddedRows, masks: Masks, segments: Segments, special: SpecialIds
) -> dict[str, int]:
    # By id, not by position: a text never gives these ids (`SentenceEncoder` sees to that), so a
    # masked one is a bug.
    forbidden = [special.pad, special.cls, special.sep, special.mask]
    return {
        "rows": len(rows.offsets) - 1,
        "tokens": len(rows.tokens),
        "masked": len(masks.labels),
        "without_prediction": int(np.count_nonzero(np.diff(masks.offsets) == 0)),
        "masked_special": int(np.isin(masks.labels, forbidden).sum()),
        "truncated": int(segments.truncated.sum()),
        "random_next": 0 if segments.label is None else int(segments.label.sum()),
    }


def to_batch(
    rows: UnpaddedRows,
    masks: Masks,
    label: BoolArray | None,
    sources: Array | None,
    job: ExampleJob,
) -> pa.RecordBatch:
    """The rows as Arrow columns, made from the flat arrays without Python objects."""
    schema = shard_schema(job)
    offsets = rows.offsets
    tokens = masks.tokens
    segment_ids = rows.segment_ids
    word_starts = rows.word_starts
    if job.config.pad:
        length = job.config.max_seq_length
        count = len(offsets) - 1
        targets = expand(np.arange(count) * length, np.diff(offsets))

        def fill(values: Array, filler: int) -> Array:
            filled: Array = np.full(count * length, filler, dtype=values.dtype)
            filled[targets] = values
            return filled

        tokens = fill(tokens, job.special.pad)
        segment_ids = fill(segment_ids, -1)
        word_starts = None if word_starts is None else fill(word_starts, True)
        offsets = np.arange(count + 1) * length
    columns = [
        list_column(tokens, offsets),
        list_column(segment_ids, offsets),
        pa.nulls(len(offsets) - 1, pa.bool_()) if label is None else pa.array(label),
        list_column(masks.positions, masks.offsets),
        list_column(masks.labels, masks.offsets),
    ]
    if WORD_STARTS.name in schema.names and word_starts is not None:
        columns.append(list_column(word_starts, offsets))
    if sources is not None:
        columns.append(pa.DictionaryArray.from_arrays(sources, list(job.sources)))
    return pa.RecordBatch.from_arrays(columns, schema=schema)
