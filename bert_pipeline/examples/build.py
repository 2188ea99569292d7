"""`bertpipe examples`: documents become masked examples in parquet.

First every corpus shard is tokenised once into the token store, a hidden folder of memory-mapped arrays; then every
(pass, shard) makes its examples from there, reaching into any other document at no cost. Both steps are pure functions
of a shard.
"""

import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_pipeline.artifact import Manifest, atomic, describe_input, read_manifest, workspace
from bert_pipeline.engine import run_stage
from bert_pipeline.errors import BertpipeError
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.examples.masking import apply_masks, draw_masks, to_batch, write_rows
from bert_pipeline.examples.pairs import Example, make_full_sentences, make_pairs
from bert_pipeline.examples.schema import SCHEMA, STAGE, TOKEN_COUNTS
from bert_pipeline.examples.token_store import EncodeJob, TokenStore, encode_shard, shard_path
from bert_pipeline.progress import bar, say
from bert_pipeline.shards import finished_counts, write_shard
from bert_pipeline.tokenizer.load import SpecialIds, load_tokenizer

STORE = ".tokens"
VALIDATION_SHARDS_TOGETHER = 16
"""Corpus shards whose held-out documents share one validation file: there are few in each."""


def build_examples(config: ExamplesConfig) -> Manifest:
    """Write `{train,validation}-NNNNN.parquet` and the training tokens' counts to `config.out`.

    Raises `BertpipeError` when there are too few documents to part, or to find "another document" in.
    """
    corpus = read_manifest(config.corpus, "corpus")
    loaded = load_tokenizer(config.tokenizer)
    inputs = {
        "corpus": describe_input(config.out, config.corpus, corpus),
        "tokenizer": describe_input(config.out, config.tokenizer, loaded.manifest),
    }
    with workspace(STAGE, config, inputs) as work:
        if work.finished:
            say(f"examples: already complete in {config.out}", quiet=config.quiet)
            return work.finished
        totals: Counter[str] = Counter()
        store_folder = _encode_corpus(work.folder, corpus, config, totals)
        splits = split_documents(totals["documents"], config)
        jobs = _plan_jobs(work.folder, len(corpus.files), config, loaded.special, loaded.vocab_size)
        with bar("making examples", len(jobs), quiet=config.quiet) as progress:
            for index, counts in run_stage(make_shard, jobs, config, work.folder):
                totals.update({f"{jobs[index].split}_{name}": count for name, count in counts.items()})
                progress.advance()
        counts_file = work.folder / TOKEN_COUNTS
        token_counts = TokenStore(store_folder, len(corpus.files)).count_tokens(splits["validation"], loaded.vocab_size)
        with atomic(counts_file) as temporary, temporary.open("wb") as file:
            np.save(file, token_counts, allow_pickle=False)
        _open_store.cache_clear()
        shutil.rmtree(store_folder)
        manifest = work.finish(_describe(totals, splits, loaded.vocab_size), [*(job.path for job in jobs), counts_file])
    _summarise(manifest, config)
    return manifest


def _encode_corpus(folder: Path, corpus: Manifest, config: ExamplesConfig, totals: Counter[str]) -> Path:
    """Tokenise every corpus shard into the token store; adds up the counts and returns the store's folder."""
    store = folder / STORE
    store.mkdir(exist_ok=True)
    _open_store.cache_clear()  # an earlier call in this process may have had other files at the same paths
    jobs = [
        EncodeJob(shard_path(store, index), config.corpus / name, config.tokenizer)
        for index, name in enumerate(corpus.files)
    ]
    with bar("tokenizing", len(jobs), quiet=config.quiet) as progress:
        for _, counts in run_stage(encode_shard, jobs, config, folder):
            totals.update(counts)
            progress.advance()
    return store


def split_documents(count: int, config: ExamplesConfig) -> dict[str, npt.NDArray[np.int64]]:
    """Numbers of the training and the held-out documents, each ascending; the draw hangs on the seed alone."""
    needed = 2 if config.objective == "mlm+nsp" else 1
    held_out = max(needed, round(count * config.validation_fraction)) if config.validation_fraction else 0
    if count - held_out < needed:
        parts = f"{needed} to train on" + (f" and {needed} to hold out" if held_out else "")
        raise BertpipeError(
            f"{config.corpus}: {count} document(s) with sentences, but {config.objective} needs {parts}. Give more "
            "documents, set --validation-fraction 0, or use --objective mlm, which needs no other document."
        )
    order = np.random.default_rng([config.seed, 0]).permutation(count)
    return {"train": np.sort(order[held_out:]), "validation": np.sort(order[:held_out])}


@dataclass(frozen=True, slots=True)
class ExampleJob:
    """The examples of one pass over the documents of some shards of the token store."""

    path: Path
    split: str
    number: int
    shards: range
    store_folder: Path
    store_shards: int
    config: ExamplesConfig
    special: SpecialIds
    vocab_size: int


def _plan_jobs(
    folder: Path, count: int, config: ExamplesConfig, special: SpecialIds, vocab_size: int
) -> list[ExampleJob]:
    def job(split: str, number: int, shards: range) -> ExampleJob:
        path = folder / f"{split}-{number:05}.parquet"
        return ExampleJob(path, split, number, shards, folder / STORE, count, config, special, vocab_size)

    train = [job("train", n, range(n % count, n % count + 1)) for n in range(config.dupe_factor * count)]
    starts = range(0, count, VALIDATION_SHARDS_TOGETHER) if config.validation_fraction else range(0)
    together = VALIDATION_SHARDS_TOGETHER
    return train + [job("validation", n, range(s, min(count, s + together))) for n, s in enumerate(starts)]


def make_shard(job: ExampleJob) -> dict[str, int]:
    """Write one shard of examples, unless it is there already; return its counts."""
    if (finished := finished_counts(job.path)) is not None:
        return finished
    store, splits = _open_store(job.store_folder, job.store_shards, job.config)
    examples = list(_choose_examples(job, store, splits[job.split]))
    config, is_training = job.config, job.split == "train"
    rate = config.mask_rate if is_training else config.validation_mask_rate
    limit = config.max_predictions or math.ceil(rate * config.max_seq_length)
    counts = {"rows": len(examples), "truncated": sum(example.truncated for example in examples)}
    counts["random_next"] = sum(example.is_random_next is True for example in examples)
    batches = []
    if examples:
        draw = np.random.default_rng([config.seed, 1 if is_training else 2, job.number])
        rows = write_rows(examples, [shard.ids for shard in store.shards], job.special)
        masks = draw_masks(rows, rate, limit, draw)
        tokens = apply_masks(rows, masks, job.special.mask, job.vocab_size, draw)
        counts |= {"tokens": len(tokens), "masked": len(masks.positions)}
        batches.append(to_batch(examples, rows, tokens, masks))
    write_shard(job.path, SCHEMA, batches, lambda: counts)
    return counts


def _choose_examples(job: ExampleJob, store: TokenStore, chosen: npt.NDArray[np.int64]) -> Iterator[Example]:
    config = job.config
    random = Random(f"{config.seed} {job.split} {job.number}")
    documents: list[int] = chosen.tolist()
    first, last = store.first_document[[job.shards.start, job.shards.stop]]
    begin, end = np.searchsorted(chosen, [first, last]).tolist()
    for position in range(begin, end):
        if config.objective == "mlm":
            yield from make_full_sentences(
                store, documents[position], config.max_seq_length, config.short_seq_prob, random
            )
        else:
            yield from make_pairs(store, documents, position, config.max_seq_length, config.short_seq_prob, random)


@lru_cache(maxsize=1)
def _open_store(
    folder: Path, shards: int, config: ExamplesConfig
) -> tuple[TokenStore, dict[str, npt.NDArray[np.int64]]]:
    # Each worker opens the maps once, not once a shard.
    store = TokenStore(folder, shards)
    return store, split_documents(len(store), config)


def _describe(totals: Counter[str], splits: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    documents = {f"{name}_documents": len(numbers) for name, numbers in splits.items()}
    return dict(sorted((dict(totals) | documents).items())) | {"vocab_size": vocab_size}


def _summarise(manifest: Manifest, config: ExamplesConfig) -> None:
    counts = manifest.counts
    say(
        f"examples: {counts['train_rows']:,} training rows ({counts['train_tokens']:,} tokens, "
        f"{counts['train_masked'] / counts['train_tokens']:.1%} to predict) from {counts['train_documents']:,} "
        f"documents × {config.dupe_factor}, {counts.get('validation_rows', 0):,} validation rows from "
        f"{counts['validation_documents']:,} held-out documents → {config.out}",
        quiet=config.quiet,
    )
