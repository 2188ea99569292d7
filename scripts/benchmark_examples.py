"""Speed and memory of the examples stage.

Throughput: MB of text per second of the complete stage (reading the corpus, sentence splitting,
tokenizing, pairing, masking, writing parquet, hashing), compared with the tokenizer's bare
`encode_batch_fast` on the same sentences in memory, with as many threads as the stage has workers.
Both are measured alternately in several rounds; the ratio is the median over the rounds.
Passes: the cost of each further pass over the documents (`dupe_factor`), compared with the first.
Workers: several compared with one, on more text. Memory: the peak of one process and of all.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from benchmarking import generate_documents, run_and_watch

from bert_pipeline.corpus.build import build_corpus
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.sentences import split_sentences
from bert_pipeline.examples.build import build_examples
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.progress import out, print_table
from bert_pipeline.storage.manifest import read_manifest
from bert_pipeline.storage.shards import iterate_rows
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.load import load_tokenizer
from bert_pipeline.tokenizer.train import train_tokenizer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)

KINDS = ("wordpiece", "byte-bpe")
BARE = "--bare"


@app.command()
def examples(
    source: Annotated[
        str | None, typer.Argument(help="Such as 'text:wiki/train.txt'. Default: generated text.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of measurement.")] = 5,
    workers: Annotated[
        int, typer.Option(help="Worker processes, or threads of the bare tokenizer.")
    ] = 1,
    vocab_size: Annotated[int, typer.Option(help="Vocabulary size.")] = 8000,
    max_seq_length: Annotated[int, typer.Option(help="Maximum length of an example.")] = 128,
    passes: Annotated[
        int, typer.Option(help="Passes, to measure the cost of each after the first.")
    ] = 10,
    times: Annotated[
        int, typer.Option(help="Copies of the text to measure workers on; 0 for none.")
    ] = 8,
    gigabytes: Annotated[
        float, typer.Option(help="Gigabytes of text to measure memory on; 0 for none.")
    ] = 0.0,
    keep: Annotated[
        Path | None, typer.Option(help="Folder for all files; kept, and reused if it exists.")
    ] = None,
) -> None:
    """Measure the examples stage."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        corpus = _make_corpus(folder / "corpus", source or _write_text(folder), copies=1)
        base = {
            "max_seq_length": max_seq_length,
            "quiet": True,
            "overwrite": True,
            "out": folder / "examples",
        }
        figures: list[list[str]] = []
        for kind in KINDS:
            tokenizer = folder / kind
            train_tokenizer(
                TokenizeConfig(
                    out=tokenizer, corpus=corpus, kind=kind, vocab_size=vocab_size, quiet=True
                )
            )
            given = base | {"corpus": corpus, "tokenizer": tokenizer, "dupe_factor": 1}
            figures.append(
                [
                    *_compare_with_bare(given, rounds, workers),
                    *_compare_passes(given, rounds, passes),
                ]
            )
        megabytes = read_manifest(corpus, "corpus").counts["bytes"] / 1e6
        title = f"{workers} worker(s), {megabytes:.1f} MB of text"
        names = (
            "MB/s",
            "tokens/s",
            "bare encode_batch_fast, MB/s",
            "ratio",
            "first pass",
            "each further pass",
            "ratio",
        )
        print_table(title, ["", *KINDS], list(zip(names, *figures, strict=True)))
        if times:
            several = _make_corpus(folder / "several", source or _write_text(folder), copies=times)
            _compare_workers(
                base | {"corpus": several, "tokenizer": folder / KINDS[0], "dupe_factor": 1}, rounds
            )
        if gigabytes:
            raise typer.Exit(_measure_memory(folder, gigabytes, workers))


def _write_text(folder: Path) -> str:
    (folder / "made").mkdir(exist_ok=True)
    generate_documents(folder / "made", 10e6, 10e6)
    return f"jsonl:{folder}/made/raw-*.jsonl"


def _make_corpus(folder: Path, source: str, copies: int) -> Path:
    kind, _, pattern = source.partition(":")
    sources = []
    for number in range(copies):
        beside = folder.with_name(f"{folder.name}-{number}")
        beside.mkdir(exist_ok=True)
        for file in sorted(
            Path().glob(pattern) if not pattern.startswith("/") else Path("/").glob(pattern[1:])
        ):
            shutil.copy(file, beside)
        sources.append(f"{kind}:{beside}/*")
    build_corpus(CorpusConfig(out=folder, source=tuple(sources), shard_mb=16, quiet=True))
    return folder


def _compare_with_bare(given: dict[str, Any], rounds: int, workers: int) -> list[str]:
    """MB/s and tokens/s of the stage, MB/s of the bare tokenizer, and their ratio."""
    manifest = read_manifest(given["corpus"], "corpus")
    size = manifest.counts["bytes"] / 1e6
    own = []
    bare = []
    tokens = 0
    _build(given | {"workers": workers})  # warm-up: imports and caches
    for _ in range(rounds):
        seconds, counts = _build(given | {"workers": workers})
        own.append(seconds)
        bare.append(_encode_bare(given["corpus"], given["tokenizer"], workers))
        tokens = counts["tokens"]
    ratios = sorted(theirs / ours for ours, theirs in zip(own, bare, strict=True))
    ours = statistics.median(own)
    theirs = statistics.median(bare)
    ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    return [f"{size / ours:.1f}", f"{tokens / ours:,.0f}", f"{size / theirs:.1f}", ratio]


def _compare_passes(given: dict[str, Any], rounds: int, passes: int) -> list[str]:
    """Seconds of the first pass and of each further one, with one worker, and their ratio."""
    firsts = []
    nexts = []
    for _ in range(rounds):
        first, _ = _build(given | {"workers": 1})
        every, _ = _build(given | {"workers": 1, "dupe_factor": passes})
        firsts.append(first)
        nexts.append((every - first) / (passes - 1))
    ratios = sorted(first / following for first, following in zip(firsts, nexts, strict=True))
    ratio = f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
    return [f"{statistics.median(firsts):.2f} s", f"{statistics.median(nexts):.2f} s", ratio]


def _compare_workers(given: dict[str, Any], rounds: int) -> None:
    size = read_manifest(given["corpus"], "corpus").counts["bytes"] / 1e6
    cores = len(os.sched_getaffinity(0))
    one = []
    many = []
    for _ in range(rounds):
        one.append(_build(given | {"workers": 1})[0])
        many.append(_build(given | {"workers": cores})[0])
    ratios = sorted(alone / together for alone, together in zip(one, many, strict=True))
    out.print(
        f"{size:.0f} MB: one worker {size / statistics.median(one):.1f} MB/s, {cores} workers "
        f"{size / statistics.median(many):.1f} MB/s, {statistics.median(ratios):.2f} times as fast "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def _build(given: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    shutil.rmtree(given["out"], ignore_errors=True)
    start = time.perf_counter()
    manifest = build_examples(ExamplesConfig(**given))
    return time.perf_counter() - start, manifest.counts


def _encode_bare(corpus: Path, tokenizer: Path, threads: int) -> float:
    """Seconds of `encode_batch_fast` alone; in a new process, where the thread count can be set."""
    environment = os.environ | {
        "RAYON_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
    }
    command = [sys.executable, __file__, BARE, str(corpus), str(tokenizer)]
    return float(
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    )


def _print_bare(corpus: Path, folder: Path) -> None:
    tokenizer = load_tokenizer(folder).tokenizer
    shards = [corpus / name for name in read_manifest(corpus, "corpus").files]
    rows = iterate_rows(shards, ["text", "language"])
    sentences = [
        sentence for text, language in rows for sentence in split_sentences(text, language)
    ]
    start = time.perf_counter()
    for first in range(0, len(sentences), 4096):
        tokenizer.encode_batch_fast(sentences[first : first + 4096], add_special_tokens=False)
    sys.stdout.write(str(time.perf_counter() - start))


def _measure_memory(folder: Path, gigabytes: float, workers: int) -> int:
    raw = folder / "raw"
    if not list(folder.glob("raw/*.jsonl")):
        raw.mkdir(exist_ok=True)
        generate_documents(raw, gigabytes * 1e9)
    source = f"jsonl:{raw}/*.jsonl"
    build_corpus(
        CorpusConfig(out=folder / "large", source=(source,), clean=(), workers=workers, quiet=True)
    )
    for kind in KINDS:
        arguments = [
            "--corpus",
            folder / "large",
            "--tokenizer",
            folder / kind,
            "--out",
            folder / "large-examples",
        ]
        run = run_and_watch(
            [
                "examples",
                *map(str, arguments),
                "--dupe-factor",
                "1",
                "--workers",
                str(workers),
                "--overwrite",
            ]
        )
        out.print(
            f"{gigabytes:g} GB, {kind}, {workers} workers: {run.seconds:.0f} s, "
            f"{gigabytes * 1e3 / run.seconds:.1f} MB/s, peak memory of one process "
            f"{run.peak_of_one / 1e6:,.0f} MB, of all {run.peak_of_all / 1e6:,.0f} MB"
        )
        if run.exit_code:
            return run.exit_code
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == [BARE]:
        _print_bare(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        app()
