"""Benchmarks the speed and memory of the corpus stage.

Speed: reading, each cleaning step, sentence splitting, fingerprints, and for comparison tokenizing
and reading the same files with `datasets`. One process and one thread, all jobs in turn, several
rounds, the median of each.
Memory: builds a corpus of a given size, and reports the time of the stage and the peak memory of
all its processes.
"""

import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

# One thread, because the results are for one core; the parallelism is over shards.
os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import typer
from benchmarking import generate_documents, run_and_watch

from bert_pipeline.corpus.cleaning.cleaner import Cleaner
from bert_pipeline.corpus.cleaning.registry import expand_step_sets, steps_with_action
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.dedup.fingerprints import Fingerprints
from bert_pipeline.corpus.documents import Document
from bert_pipeline.corpus.sentences import split_sentences
from bert_pipeline.corpus.sources.load import open_source
from bert_pipeline.progress import out, print_table

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def corpus(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="LANGUAGE=GLOB...",
            help="Text files, such as 'en=books/*.txt'; by default generated.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Measurements of each job.")] = 5,
    megabytes: Annotated[float, typer.Option(help="Maximum size of the text for the speed.")] = 4.0,
    gigabytes: Annotated[
        float, typer.Option(help="Size of the corpus for the memory; 0 skips it.")
    ] = 0.2,
    clean: Annotated[str, typer.Option(help="Cleaning steps of that corpus.")] = "basic,exact,near",
    workers: Annotated[int, typer.Option(help="Worker processes for that corpus.")] = 4,
    keep: Annotated[
        Path | None, typer.Option(help="Folder for generated files, which are kept and reused.")
    ] = None,
) -> None:
    """MB/s per core by language; then peak memory and time of the stage, with 20% duplicates."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if gigabytes and not list(folder.glob("raw-*.jsonl")):
            generate_documents(folder, gigabytes * 1e9)
        for given in texts or [f"en={_write_text(folder, megabytes * 1e6)}"]:
            language, _, pattern = given.partition("=")
            _measure(language, pattern, rounds, megabytes)
        if gigabytes:
            raise typer.Exit(_measure_memory(folder, gigabytes, clean, workers))


def _write_text(folder: Path, size: float) -> Path:
    """The documentation of Python, repeated."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics.values())
    path = folder / "text.txt"
    path.write_text("\n\n".join([text] * max(1, round(size / len(text)))), encoding="utf-8")
    return path


def _measure(language: str, pattern: str, rounds: int, megabytes: float) -> None:
    config = CorpusConfig(
        out=Path("unused"), source=(f"text:{pattern}",), language=language, shard_mb=1e6
    )
    documents = _some_documents(config, megabytes * 1e6)
    texts = [document.text for document in documents]
    size = sum(len(text.encode()) for text in texts)
    on_disk = sum(file.stat().st_size for file in open_source(config.source[0], config).files)  # type: ignore[attr-defined]
    jobs: dict[str, tuple[float, Callable[[], object]]] = {
        "reading": (on_disk, lambda: _drain(_read(config))),
        "reading with datasets alone": (on_disk, lambda: _drain(_read_with_datasets(pattern))),
    }
    for steps in (("basic",), *((step,) for step in steps_with_action("edit", "filter")), ("web",)):
        try:
            cleaner = Cleaner(expand_step_sets(list(steps)), language)
        except Exception as error:
            out.print(f"{steps[0]}: {error}")
            continue
        jobs[f"cleaning: {steps[0]}"] = (
            size,
            lambda cleaner=cleaner: [cleaner.clean(text) for text in texts],
        )
    for step in steps_with_action("deduplicate"):
        jobs[f"fingerprints: {step}"] = (size, lambda step=step: _fingerprint(step, texts))
    jobs["sentences"] = (size, lambda: [split_sentences(text, language) for text in texts])
    sentences = [sentence for text in texts for sentence in split_sentences(text, language)]
    tokenizer = _train_tokenizer(texts)
    jobs["tokenizing (WordPiece, 8,000), for comparison"] = (
        size,
        lambda: tokenizer.encode_batch_fast(sentences),
    )

    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, (_, run) in jobs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, (amount, _) in jobs.items():
        rates = sorted(amount / 1e6 / second for second in seconds[name])
        rows.append([name, f"{statistics.median(rates):.1f}", f"{rates[0]:.1f} to {rates[-1]:.1f}"])
    print_table(f"{language}: {pattern}, {size / 1e6:.1f} MB", ["one core", "MB/s", "range"], rows)


def _read(config: CorpusConfig) -> Iterator[Document]:
    counts: Counter[str] = Counter()
    for task in open_source(config.source[0], config).tasks(config):
        yield from task.documents(counts)


def _read_with_datasets(pattern: str) -> Iterator[Any]:
    from datasets import load_dataset

    yield from load_dataset(
        "text", data_files=pattern, split="train", streaming=True, encoding_errors="replace"
    )


def _some_documents(config: CorpusConfig, limit: float) -> list[Document]:
    chosen: list[Document] = []
    for document in _read(config):
        chosen.append(document)
        limit -= len(document.text.encode())
        if limit <= 0:
            break
    return chosen


def _drain(rows: Iterator[object]) -> None:
    for _ in rows:
        pass


def _fingerprint(step: str, texts: list[str]) -> None:
    fingerprints = Fingerprints.for_steps([step], 0.8)
    assert fingerprints is not None
    fingerprints.add(texts)


def _train_tokenizer(texts: list[str]) -> Any:
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(lowercase=False)
    tokenizer.train_from_iterator(texts, vocab_size=8000, show_progress=False)
    return tokenizer._tokenizer


def _measure_memory(folder: Path, gigabytes: float, clean: str, workers: int) -> int:
    arguments = [
        "--source",
        f"jsonl:{folder}/raw-*.jsonl",
        "--clean",
        clean,
        "--workers",
        str(workers),
    ]
    run = run_and_watch(["corpus", *arguments, "--out", str(folder / "corpus"), "--overwrite"])
    out.print(
        f"{gigabytes:g} GB, {workers} workers, {clean}: {run.seconds:.0f} s, "
        f"{gigabytes * 1e3 / run.seconds:.1f} MB/s, "
        f"peak memory of all processes {run.peak_of_all / 1e6:,.0f} MB"
    )
    return run.exit_code


if __name__ == "__main__":
    app()
