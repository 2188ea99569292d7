"""`bertpipe examples`: documents become masked examples in parquet.

First every piece of the corpus is tokenised once into the token store, a hidden folder of flat arrays; then every
(pass, piece) makes its examples from there, and takes second sentences from other pieces at little cost. Both steps are
pure functions of a piece.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bert_pipeline.config import flags
from bert_pipeline.engine.run import keep_processes, run_stage
from bert_pipeline.errors import BertpipeError
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.examples.encode_corpus import encode_piece, forget_encoder, plan_pieces
from bert_pipeline.examples.objectives import OBJECTIVES
from bert_pipeline.examples.preview import show_examples
from bert_pipeline.examples.schema import STAGE, TOKEN_COUNTS
from bert_pipeline.examples.shard import DOCUMENTS, ExampleJob, forget_store, make_shard
from bert_pipeline.examples.splits import Split, Splits
from bert_pipeline.examples.summary import describe, summarise
from bert_pipeline.examples.token_store import TokenStore
from bert_pipeline.progress import bar, print_line
from bert_pipeline.ragged import Int64Array
from bert_pipeline.storage.atomic import save_array
from bert_pipeline.storage.manifest import Manifest, describe_input, read_manifest
from bert_pipeline.storage.workspace import workspace
from bert_pipeline.tokenizer.load import LoadedTokenizer, find_tokenizer, load_tokenizer

STORE = ".tokens"
VALIDATION_PIECES_TOGETHER = 16
"""Pieces whose held-out documents share one validation file: there are few in each."""


def build_examples(config: ExamplesConfig) -> Manifest:
    """Write `{train,validation}-NNNNN.parquet` and the training tokens' counts to `config.out`, and show some.

    Raises `BertpipeError` when there are too few documents to part, or to find "another document" in.
    """
    if config.shows_only:
        return _show_only(config)
    corpus = read_manifest(config.corpus, "corpus")
    tokenizer = find_tokenizer(config.tokenizer, quiet=config.quiet)
    loaded = load_tokenizer(tokenizer)
    inputs = {
        "corpus": describe_input(config.out, config.corpus, corpus),
        "tokenizer": describe_input(config.out, tokenizer, loaded.manifest),
    }
    with workspace(STAGE, config, inputs) as work:
        if work.finished:
            print_line(f"examples: already complete in {config.out}", quiet=config.quiet)
            manifest = work.finished
        else:
            with keep_processes():
                counts, files = _make(work.folder, corpus, tokenizer, loaded, config)
            manifest = work.finish(counts, files)
            summarise(manifest, config)
        shutil.rmtree(
            config.out / STORE, ignore_errors=True
        )  # not before: a kill would cost all the tokenizing
    show_examples(config, manifest, loaded)
    return manifest


def _show_only(config: ExamplesConfig) -> Manifest:
    manifest = read_manifest(config.out, STAGE)
    asked = config.content()
    if other := [name for name, value in manifest.config.items() if asked.get(name) != value]:
        options = flags(other)
        raise BertpipeError(
            f"{config.out}: was made with other {options}. To look at it, give --out and --show alone."
        )
    show_examples(
        config, manifest, load_tokenizer(find_tokenizer(config.tokenizer, quiet=config.quiet))
    )
    return manifest


def _make(
    folder: Path, corpus: Manifest, tokenizer: Path, loaded: LoadedTokenizer, config: ExamplesConfig
) -> tuple[dict[str, Any], list[Path]]:
    """Make all files; returns the manifest's counts and the files."""
    forget_encoder()  # an earlier call in this process may have had other files at the same paths
    forget_store()
    totals: Counter[str] = Counter()
    store = _encode_corpus(folder, corpus, tokenizer, config, totals)
    with _nothing_left_on_error(folder):
        held_out = count_held_out(len(store), config)
    splits = Splits(len(store), held_out, config.seed)
    jobs = _plan_jobs(folder, len(store.first) - 1, held_out, config, loaded)
    with bar("making examples", len(jobs), quiet=config.quiet) as progress:
        for index, counts in run_stage(make_shard, jobs, config, folder):
            totals.update({f"{jobs[index].split}_{name}": count for name, count in counts.items()})
            progress.advance()
    with _nothing_left_on_error(folder):
        if not totals["train_rows"]:
            raise BertpipeError(
                f"{config.corpus}: too little text for a single example ({totals['documents']} document(s) of "
                f"{totals['tokens']} token(s)). Give more text."
            )
    token_counts = _count_tokens(store, splits, loaded.vocab_size, config.quiet)
    counts_file = folder / TOKEN_COUNTS
    save_array(counts_file, token_counts)
    forget_store()
    return describe(totals, splits, loaded, config), [*(job.path for job in jobs), counts_file]


@contextmanager
def _nothing_left_on_error(folder: Path) -> Iterator[None]:
    """What no example can be made of is no work to be kept: the next request may be another one."""
    try:
        yield
    except BertpipeError:
        shutil.rmtree(folder / STORE)
        for shard in folder.glob("*.parquet"):
            shard.unlink()
        raise


def _encode_corpus(
    folder: Path, corpus: Manifest, tokenizer: Path, config: ExamplesConfig, totals: Counter[str]
) -> TokenStore:
    """Tokenise every piece of the corpus into the token store; adds up the counts."""
    store = folder / STORE
    store.mkdir(exist_ok=True)
    jobs = plan_pieces(
        store, config.corpus, corpus, tokenizer, with_word_starts=config.mask_unit != "token"
    )
    documents = np.zeros(len(jobs), dtype=np.int64)
    with bar("tokenizing", len(jobs), quiet=config.quiet) as progress:
        for index, counts in run_stage(encode_piece, jobs, config, folder):
            documents[index] = counts["documents"]
            totals.update(counts)
            progress.advance()
    save_array(store / DOCUMENTS, documents)
    return TokenStore(store, documents)


def count_held_out(count: int, config: ExamplesConfig) -> int:
    """How many of `count` documents are held out; `BertpipeError` when too few are left to train on."""
    needed = OBJECTIVES[config.objective].min_documents
    held_out = (
        max(needed, round(count * config.validation_fraction)) if config.validation_fraction else 0
    )
    if count - held_out < needed:
        parts = f"{needed} to train on" + (f" and {needed} to hold out" if held_out else "")
        ways = ["Give more documents"]
        ways += ["set --validation-fraction 0"] if held_out else []
        ways += ["use --objective mlm, which needs no other document"] if needed > 1 else []
        raise BertpipeError(
            f"{config.corpus}: {count} document(s) with sentences, but {config.objective} needs {parts}. "
            f"{', or '.join(ways)}."
        )
    return held_out


def _plan_jobs(
    folder: Path, pieces: int, held_out: int, config: ExamplesConfig, loaded: LoadedTokenizer
) -> list[ExampleJob]:
    def job(split: Split, number: int, some: range) -> ExampleJob:
        path = folder / f"{split}-{number:05}.parquet"
        return ExampleJob(
            path,
            split,
            number,
            some,
            folder / STORE,
            held_out,
            config,
            loaded.special,
            loaded.vocab_size,
        )

    train = [
        job("train", n, range(n % pieces, n % pieces + 1))
        for n in range(config.dupe_factor * pieces)
    ]
    starts = range(0, pieces, VALIDATION_PIECES_TOGETHER) if held_out else range(0)
    together = VALIDATION_PIECES_TOGETHER
    return train + [
        job("validation", n, range(s, min(pieces, s + together))) for n, s in enumerate(starts)
    ]


def _count_tokens(store: TokenStore, splits: Splits, vocab_size: int, quiet: bool) -> Int64Array:
    """Occurrences of each id in the training documents."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    with bar("counting tokens", len(store.first) - 1, quiet=quiet) as progress:
        for piece in range(len(store.first) - 1):
            left_out = splits.members("validation", *store.first[piece : piece + 2].tolist())
            counts += store.count_tokens(piece, left_out, vocab_size)
            progress.advance()
    return counts
