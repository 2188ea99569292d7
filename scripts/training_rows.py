"""Synthetic tokenizer and examples for benchmarks, in folders that `pretrain` reads."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models

from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.examples.counter_rng import make_key, random_bits
from bert_pipeline.examples.masking import MaskRule, Masks, draw_masks
from bert_pipeline.examples.rows import UnpaddedRows, write_rows
from bert_pipeline.examples.schema import SCHEMA, TOKEN_COUNTS
from bert_pipeline.examples.schema import STAGE as EXAMPLES
from bert_pipeline.examples.segments import SegmentedIds, Segments
from bert_pipeline.pretraining.batches import Examples
from bert_pipeline.ragged import BoolArray, offsets_of
from bert_pipeline.storage.manifest import Input, describe_input, read_manifest
from bert_pipeline.storage.shards import list_column, write_shard
from bert_pipeline.storage.workspace import workspace
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.load import STAGE as TOKENIZE
from bert_pipeline.tokenizer.load import LoadedTokenizer, hash_vocabulary, load_tokenizer
from bert_pipeline.tokenizer.save import save_pretrained
from bert_pipeline.tokenizer.special_tokens import SPECIALS

SHORT = 0.1
"""Share of the rows with a random shorter length (`short_seq_prob` of the BERT release)."""


def make_tokenizer(folder: Path, vocab_size: int) -> LoadedTokenizer:
    """Write a tokenizer folder whose words are numbers."""
    config = TokenizeConfig(out=folder, corpus=Path("none"), vocab_size=vocab_size)
    specials = SPECIALS["bert"]
    words = [*specials.values(), *map(str, range(vocab_size - len(specials)))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=specials["unk"]))
    with workspace(TOKENIZE, config, {}) as work:
        if not work.finished:
            work.finish(
                {"vocab_size": vocab_size}, save_pretrained(tokenizer, specials, work.folder)
            )
    return load_tokenizer(folder)


def make_examples(
    folder: Path,
    tokenizer: LoadedTokenizer,
    count: int,
    length: int,
    mask_rate: float,
    *,
    with_pairs: bool = True,
) -> None:
    """Write `count` rows of up to `length` tokens, most full, with Zipf-distributed words.

    Sentence pairs, or without pairs single segments.
    """
    made_with = folder.with_name("tokenizer")
    config = ExamplesConfig(
        out=folder,
        corpus=Path("none"),
        tokenizer=made_with,
        max_seq_length=length,
        objective="mlm+nsp" if with_pairs else "mlm",
        mask_rate=mask_rate,
        validation_fraction=0.0,
    )
    random = np.random.default_rng(0)
    rows, label = _make_rows(random, tokenizer, count, length, with_pairs)
    rule = MaskRule.from_config(config, "train", tokenizer.special.mask, tokenizer.vocab_size)
    masks = draw_masks(rows, random_bits(make_key("benchmark", 0), np.arange(count)), rule)
    inputs = {
        "corpus": Input("none", "none"),
        "tokenizer": describe_input(folder, made_with, tokenizer.manifest),
    }
    with workspace(EXAMPLES, config, inputs) as work:
        shard = work.folder / "train-00000.parquet"
        counts_file = work.folder / TOKEN_COUNTS
        write_shard(shard, SCHEMA, _to_batches(rows, masks, label), dict)
        np.save(counts_file, np.bincount(rows.tokens, minlength=tokenizer.vocab_size))
        counts = {
            "train_rows": count,
            "train_documents": count,
            "vocab_size": tokenizer.vocab_size,
            "vocabulary": hash_vocabulary(tokenizer.tokenizer),
            "special_ids": asdict(tokenizer.special),
        }
        work.finish(counts, [shard, counts_file])


def open_rows(folder: Path, vocab_size: int) -> Examples:
    """The training rows in the `examples` of a folder."""
    examples = folder / EXAMPLES
    return Examples.open(
        examples, read_manifest(examples, EXAMPLES), "train", vocab_size, quiet=True
    )


def _make_rows(
    random: np.random.Generator,
    tokenizer: LoadedTokenizer,
    count: int,
    length: int,
    with_pairs: bool,
) -> tuple[UnpaddedRows, BoolArray | None]:
    parts_per_row = 2 if with_pairs else 1
    words = length - 1 - parts_per_row  # beside [CLS] and each [SEP]
    sizes = np.where(random.random(count) < SHORT, random.integers(2, words + 1, count), words)
    parts = sizes
    label = None
    if with_pairs:
        first = 1 + (random.random(count) * (sizes - 1)).astype(np.int64)
        parts = np.stack([first, sizes - first], axis=1).ravel()
        label = random.random(count) < 0.5
    ordinary = np.arange(len(SPECIALS["bert"]), tokenizer.vocab_size)
    share = 1 / np.arange(3, 3 + len(ordinary))
    ids = random.choice(ordinary, size=int(parts.sum()), p=share / share.sum()).astype(np.int32)
    segments = Segments(
        offsets_of(parts)[:-1],
        parts,
        np.arange(count + 1) * parts_per_row,
        label,
        np.zeros(count, np.bool_),
    )
    return write_rows(SegmentedIds(segments, ids, None), tokenizer.special), label


def _to_batches(
    rows: UnpaddedRows, masks: Masks, label: BoolArray | None
) -> Iterator[pa.RecordBatch]:
    columns = [
        list_column(masks.tokens, rows.offsets),
        list_column(rows.segment_ids, rows.offsets),
        pa.nulls(len(rows.offsets) - 1, pa.bool_()) if label is None else pa.array(label),
        list_column(masks.positions, masks.offsets),
        list_column(masks.labels, masks.offsets),
    ]
    yield pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
