"""One shard of examples: plan them over a piece of the token store, take what other documents give, mask, write."""

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
from bert_pipeline.examples.masking import MaskRule, Masks, draw_masks
from bert_pipeline.examples.pairs import (
    Pair,
    Runs,
    draw_target,
    plan_full_sentences,
    plan_next_sentences,
    plan_sentence_order,
    truncate,
)
from bert_pipeline.examples.rows import Segments, UnpaddedRows, write_rows
from bert_pipeline.examples.schema import SCHEMA, WORD_STARTS
from bert_pipeline.examples.splits import Split, Splits
from bert_pipeline.examples.token_store import Places, TokenStore
from bert_pipeline.ragged import Array, BoolArray, expand
from bert_pipeline.storage.shards import finished_counts, list_column, write_shard
from bert_pipeline.tokenizer.load import SpecialIds

DOCUMENTS = "documents.npy"
"""Beside the pieces of the token store: the number of documents in each, int64 of shape (pieces,)."""
COUNTED = (
    "rows",
    "tokens",
    "masked",
    "without_prediction",
    "masked_special",
    "truncated",
    "random_next",
)
TOKENS_TOGETHER = 1 << 17
"""Tokens of rows to write at a time, about: few enough for the processor's caches."""


@dataclass(frozen=True, slots=True)
class ExampleJob:
    """The examples of one pass over the documents of some pieces of the token store."""

    path: Path
    split: Split
    number: int
    pieces: range
    store: Path
    held_out: int
    config: ExamplesConfig
    special: SpecialIds
    vocab_size: int

    @property
    def has_masks(self) -> bool:
        """Whether masks are written into this shard."""
        return self.config.masks == "static" or self.split == "validation"


def shard_schema(config: ExamplesConfig, split: Split) -> pa.Schema:
    """The columns of a split's shards: words' beginnings too, where they are still to be masked as wholes."""
    later = config.masks == "dynamic" and split == "train" and config.mask_unit != "token"
    return SCHEMA.append(WORD_STARTS) if later else SCHEMA


def make_shard(job: ExampleJob) -> dict[str, int]:
    """Write one shard of examples, unless it is there already; return its counts."""
    if (finished := finished_counts(job.path)) is not None:
        return finished
    counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
    write_shard(
        job.path,
        shard_schema(job.config, job.split),
        _make_batches(job, counts),
        lambda: dict(counts),
    )
    return dict(counts)


def _make_batches(job: ExampleJob, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
    store, splits = _open_store(job.store, job.held_out, job.config.seed)
    rule = MaskRule.of(job.config, job.split, job.special.mask, job.vocab_size)
    stream = (job.split, job.config.seed, job.number)
    random = np.random.default_rng(make_seed(*stream))
    row = 0
    for piece in job.pieces:
        segments, ids, starts = _plan(job, piece, store, splits, random)
        segments = segments.take(random.permutation(len(segments)))
        padded = np.full(len(segments), job.config.max_seq_length)
        group = np.cumsum(padded if job.config.pad else segments.row_lengths) // TOKENS_TOGETHER
        for number in np.unique(group).tolist():
            some = np.flatnonzero(group == number)
            rows = write_rows(segments.take(some), ids, starts, job.special)
            keys = random_bits(make_key(*stream), row + some)
            masks = draw_masks(rows, keys, rule) if job.has_masks else _no_masks(rows)
            label = None if segments.label is None else segments.label[some]
            counts.update(_count(rows, masks, label, segments.truncated[some], job.special))
            yield to_batch(rows, masks, label, job)
        row += len(segments)


def _plan(
    job: ExampleJob, piece: int, store: TokenStore, splits: Splits, random: np.random.Generator
) -> tuple[Segments, Array, BoolArray | None]:
    """Segments of all examples of a piece, and the ids (and words' beginnings) that they are runs of."""
    arrays = store.open(piece)
    config = job.config
    chosen = splits.members(job.split, *store.first[piece : piece + 2].tolist())
    chosen = random.permutation(chosen)
    local = chosen - store.first[piece]
    documents = list(
        zip(arrays.documents[local].tolist(), arrays.documents[local + 1].tolist(), strict=True)
    )
    bounds: list[int] = arrays.sentences.tolist()
    draw = Random(random.bytes(16))
    if config.objective == "mlm":
        runs = Runs()
        room = config.max_seq_length - 2
        plan_full_sentences(
            runs, bounds, documents, room, config.short_seq_prob, draw, config.across_documents
        )
        return _lay_runs(runs), arrays.ids, arrays.starts
    pairs: list[Pair] = []
    room = config.max_seq_length - 3
    plan = plan_next_sentences if config.objective == "mlm+nsp" else plan_sentence_order
    for number, (first, last) in zip(chosen.tolist(), documents, strict=True):
        plan(
            pairs, bounds, first, last, number, draw_target(room, config.short_seq_prob, draw), draw
        )
    return _lay_pairs(pairs, arrays.ids, arrays.starts, room, job.split, store, splits, random)


def _lay_runs(runs: Runs) -> Segments:
    start, stop = np.array(runs.start, dtype=np.int64), np.array(runs.stop, dtype=np.int64)
    first = np.array([*runs.first_run, len(start)], dtype=np.int64)
    return Segments(start, stop - start, first, None, np.zeros(len(first) - 1, dtype=np.bool_))


def _lay_pairs(
    pairs: list[Pair], ids: Array, starts: BoolArray | None, room: int, split: Split, store: TokenStore,
    splits: Splits, random: np.random.Generator,
) -> tuple[Segments, Array, BoolArray | None]:  # fmt: skip
    """Give random nexts their second segments, read behind the piece's own ids, and cut pairs to `room` tokens."""
    a_start, a_stop, b_start, b_stop, label, wanted, document = (
        np.array(pairs, dtype=np.int64).reshape(-1, 7).T
    )
    elsewhere = np.flatnonzero(wanted)
    if len(elsewhere):
        others = splits.draw_others(split, document[elsewhere], store.first, random)
        places = store.find_sentences(others, random.random(len(others)), wanted[elsewhere])
        b_start[elsewhere], b_stop[elsewhere] = places.start, places.stop
    front_a, back_a, front_b, back_b = truncate(a_stop - a_start, b_stop - b_start, room, random)
    a_start, a_stop, b_start, b_stop = (
        a_start + front_a,
        a_stop - back_a,
        b_start + front_b,
        b_stop - back_b,
    )
    if len(elsewhere):
        # Read only what is left of them: without full stops a text is one long sentence.
        found = store.read(Places(places.piece, b_start[elsewhere], b_stop[elsewhere]))
        b_start[elsewhere] = len(ids) + found.offsets[:-1]
        b_stop[elsewhere] = len(ids) + found.offsets[1:]
        ids = np.concatenate([ids, found.ids])
        starts = (
            None
            if starts is None or found.starts is None
            else np.concatenate([starts, found.starts])
        )
    start, stop = np.stack([a_start, b_start], axis=1), np.stack([a_stop, b_stop], axis=1)
    first = np.arange(len(a_start) + 1) * 2
    truncated = front_a + back_a + front_b + back_b > 0
    return (
        Segments(start.ravel(), (stop - start).ravel(), first, label.astype(np.bool_), truncated),
        ids,
        starts,
    )


@lru_cache(maxsize=1)
def _open_store(folder: Path, held_out: int, seed: int) -> tuple[TokenStore, Splits]:
    # Each worker reads the numbers of documents once, not once a shard.
    store = TokenStore(folder, np.load(folder / DOCUMENTS, allow_pickle=False))
    return store, Splits(len(store), held_out, seed)


def forget_store() -> None:
    """Drop what this process knows of a token store: another may come to lie at the same path."""
    _open_store.cache_clear()


def _no_masks(rows: UnpaddedRows) -> Masks:
    none = np.empty(0, dtype=np.int32)
    return Masks(rows.tokens, none, none, np.zeros(len(rows.offsets), dtype=np.int64))


def _count(
    rows: UnpaddedRows,
    masks: Masks,
    label: BoolArray | None,
    truncated: BoolArray,
    special: SpecialIds,
) -> dict[str, int]:
    # By id, not by place: text gives these ids in no tokenizer with an unknown token, so one would be a fault of ours.
    forbidden = [special.pad, special.cls, special.sep, special.mask]
    return {
        "rows": len(rows.offsets) - 1,
        "tokens": len(rows.tokens),
        "masked": len(masks.labels),
        "without_prediction": int(np.count_nonzero(np.diff(masks.offsets) == 0)),
        "masked_special": int(np.isin(masks.labels, forbidden).sum()),
        "truncated": int(truncated.sum()),
        "random_next": 0 if label is None else int(label.sum()),
    }


def to_batch(
    rows: UnpaddedRows, masks: Masks, label: BoolArray | None, job: ExampleJob
) -> pa.RecordBatch:
    """The rows as Arrow columns, without a Python object for any token."""
    schema = shard_schema(job.config, job.split)
    offsets, tokens, segment_ids, starts = rows.offsets, masks.tokens, rows.segment_ids, rows.starts
    if job.config.pad:
        length = job.config.max_seq_length
        count = len(offsets) - 1
        targets = expand(np.arange(count) * length, np.diff(offsets))

        def fill(values: Array, filler: int) -> Array:
            filled: Array = np.full(count * length, filler, dtype=values.dtype)
            filled[targets] = values
            return filled

        tokens, segment_ids = fill(tokens, job.special.pad), fill(segment_ids, -1)
        starts = None if starts is None else fill(starts, True)
        offsets = np.arange(count + 1) * length
    columns = [
        list_column(tokens, offsets),
        list_column(segment_ids, offsets),
        pa.nulls(len(offsets) - 1, pa.bool_()) if label is None else pa.array(label),
        list_column(masks.positions, masks.offsets),
        list_column(masks.labels, masks.offsets),
    ]
    if WORD_STARTS.name in schema.names and starts is not None:
        columns.append(list_column(starts, offsets))
    return pa.RecordBatch.from_arrays(columns, schema=schema)
