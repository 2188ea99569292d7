"""`bertpipe examples`: documents become masked examples in parquet.

1. Every piece of the corpus is tokenized once, into the token store (a hidden folder of arrays).
2. Every (pass, piece) makes its examples from the store, where second sentences from other pieces
   can be read cheaply.

Both steps are pure functions of a piece, so they run in parallel and can be resumed.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bert_pipeline.config import flags
from bert_pipeline.engine.clusters import cancel_earlier_run
from bert_pipeline.engine.run import keep_processes, run_stage
from bert_pipeline.errors import BertpipeError
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.examples.coverage import count_covered
from bert_pipeline.examples.encode_corpus import (
    encode_piece,
    find_sources,
    forget_encoder,
    plan_pieces,
)
from bert_pipeline.examples.held_out import HeldOut, choose_held_out
from bert_pipeline.examples.preview import show_examples
from bert_pipeline.examples.schema import STAGE, TOKEN_COUNTS
from bert_pipeline.examples.shard import (
    DOCUMENT_COUNTS,
    TAILS,
    ExampleJob,
    forget_store,
    make_shard,
    open_store,
)
from bert_pipeline.examples.splits import Split, Splits
from bert_pipeline.examples.summary import manifest_counts, print_note_on_words, print_summary
from bert_pipeline.examples.token_store import TokenStore
from bert_pipeline.progress import bar, count_of, print_line
from bert_pipeline.ragged import Int64Array
from bert_pipeline.storage.atomic import save_array
from bert_pipeline.storage.manifest import Manifest, describe_input, read_manifest
from bert_pipeline.storage.removal import remove_written
from bert_pipeline.storage.workspace import Working, workspace
from bert_pipeline.tokenizer.load import LoadedTokenizer, find_tokenizer, load_tokenizer

STORE = ".tokens"
PIECES_PER_VALIDATION_FILE = 16
"""Each piece has only a few validation documents, so several pieces share one file."""


def build_examples(config: ExamplesConfig) -> Manifest:
    """Write `{train,validation}-NNNNN.parquet` and the token counts to `config.out`.

    Returns the manifest, after printing `config.show` examples. Raises `BertpipeError` when there
    are too few documents for both splits or for the objective.
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
    with workspace(STAGE, config, inputs, Working((STORE,), cancel_earlier_run)) as work:
        if work.finished:
            print_line(f"examples: already complete in {config.out}", quiet=config.quiet)
            manifest = work.finished
        else:
            print_note_on_words(corpus, loaded, config)
            with keep_processes():
                counts, files = _make(work.folder, corpus, tokenizer, loaded, config)
            manifest = work.finish(counts, files)
            print_summary(manifest, config)
        # Removed last: a run that is killed before the end would have to tokenize again.
        shutil.rmtree(config.out / STORE, ignore_errors=True)
    show_examples(config, manifest, loaded)
    return manifest


def _show_only(config: ExamplesConfig) -> Manifest:
    manifest = read_manifest(config.out, STAGE)
    asked = config.content()
    if other := [name for name, value in manifest.config.items() if asked.get(name) != value]:
        raise BertpipeError(
            f"{config.out}: has different settings ({flags(other)}). To show its examples, give "
            "--out and --show only."
        )
    tokenizer = find_tokenizer(config.tokenizer, quiet=config.quiet)
    show_examples(config, manifest, load_tokenizer(tokenizer))
    return manifest


def _make(
    folder: Path, corpus: Manifest, tokenizer: Path, loaded: LoadedTokenizer, config: ExamplesConfig
) -> tuple[dict[str, Any], list[Path]]:
    """Make all files; returns the manifest's counts and the files."""
    forget_encoder()
    forget_store()
    totals: Counter[str] = Counter()
    documents = _encode_corpus(folder, corpus, tokenizer, config, totals)
    with _clean_up_on_error(folder):
        # With parts of long sentences also for `mlm`: text without sentence ends can be divided.
        undivided = TokenStore(folder / STORE, documents, config.max_tokens)
        held_out = choose_held_out(undivided, config)
    save_array(folder / STORE / TAILS, held_out.tails)
    store, splits = open_store(folder / STORE, held_out.documents, config)
    totals["divided_documents"] = len(held_out.tails)
    jobs = _plan_jobs(folder, len(store.first) - 1, held_out, find_sources(corpus), config, loaded)
    with bar("making examples", len(jobs), quiet=config.quiet) as progress:
        for index, counts in run_stage(make_shard, jobs, config, folder):
            totals.update({f"{jobs[index].split}_{name}": count for name, count in counts.items()})
            progress.advance()
    with _clean_up_on_error(folder):
        if not totals["train_rows"]:
            raise BertpipeError(
                f"{config.corpus}: too little text for a single example "
                f"({count_of(totals['documents'], 'document')} with "
                f"{count_of(totals['tokens'], 'token')}). "
                "Add more text."
            )
    token_counts, totals["train_tokens_used"] = _count_tokens(
        store, splits, loaded.vocab_size, folder / STORE, config
    )
    totals["train_document_tokens"] = int(token_counts.sum())
    counts_file = folder / TOKEN_COUNTS
    save_array(counts_file, token_counts)
    forget_store()
    files = [*(job.path for job in jobs), counts_file]
    return manifest_counts(totals, splits, loaded, corpus, config), files


@contextmanager
def _clean_up_on_error(folder: Path) -> Iterator[None]:
    """Remove the partial result if no examples can be made with these settings.

    The next run will have other settings, and could not resume from it.
    """
    try:
        yield
    except BertpipeError:
        remove_written(folder, (STORE,))
        raise


def _encode_corpus(
    folder: Path, corpus: Manifest, tokenizer: Path, config: ExamplesConfig, totals: Counter[str]
) -> Int64Array:
    """Tokenize every piece of the corpus into the token store; adds the counts to `totals`.

    Returns the number of documents in each piece.
    """
    store = folder / STORE
    store.mkdir(exist_ok=True)
    jobs = plan_pieces(store, config.corpus, corpus, tokenizer, config.needs_word_starts)
    documents = np.zeros(len(jobs), dtype=np.int64)
    with bar("tokenizing", len(jobs), quiet=config.quiet) as progress:
        for index, counts in run_stage(encode_piece, jobs, config, folder):
            documents[index] = counts["documents"]
            totals.update(counts)
            progress.advance()
    save_array(store / DOCUMENT_COUNTS, documents)
    return documents


def _plan_jobs(
    folder: Path,
    pieces: int,
    held_out: HeldOut,
    sources: tuple[str, ...],
    config: ExamplesConfig,
    loaded: LoadedTokenizer,
) -> list[ExampleJob]:
    def job(split: Split, number: int, pieces_of_job: range) -> ExampleJob:
        return ExampleJob(
            path=folder / f"{split}-{number:05}.parquet",
            split=split,
            number=number,
            pieces=pieces_of_job,
            store=folder / STORE,
            held_out=held_out.documents,
            config=config,
            special=loaded.special,
            vocab_size=loaded.vocab_size,
            sources=sources if split == "validation" else (),
        )

    jobs = []
    for number in range(config.dupe_factor * pieces):
        piece = number % pieces
        jobs.append(job("train", number, range(piece, piece + 1)))
    has_validation = held_out.documents or len(held_out.tails)
    starts = range(0, pieces, PIECES_PER_VALIDATION_FILE) if has_validation else range(0)
    for number, start in enumerate(starts):
        end = min(pieces, start + PIECES_PER_VALIDATION_FILE)
        jobs.append(job("validation", number, range(start, end)))
    return jobs


def _count_tokens(
    store: TokenStore, splits: Splits, vocab_size: int, folder: Path, config: ExamplesConfig
) -> tuple[Int64Array, int]:
    """Occurrences of each id in the training documents, and how many tokens some example has.

    The occurrences are int64 of shape (vocab_size,).
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    used = 0
    pieces = len(store.first) - 1
    with bar("counting tokens", pieces, quiet=config.quiet) as progress:
        for piece in range(pieces):
            validation = splits.members("validation", *store.first[piece : piece + 2].tolist())
            counts += store.count_tokens(piece, validation, vocab_size)
            used += count_covered(folder, range(piece, config.dupe_factor * pieces, pieces))
            progress.advance()
    return counts, used
