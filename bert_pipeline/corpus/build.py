"""`bertpipe corpus`: sources become documents in parquet shards."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from bert_pipeline.artifact import Input, Manifest, workspace
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.documents import Document, Task
from bert_pipeline.corpus.sources import parse_source
from bert_pipeline.engine import run_tasks
from bert_pipeline.errors import BertpipeError
from bert_pipeline.progress import bar, human_bytes, print_table, say
from bert_pipeline.shards import finished_counts, write_shard

STAGE = "corpus"
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("language", pa.string())])
ROWS_A_BATCH = 256


def build_corpus(config: CorpusConfig) -> Manifest:
    """Write `NNNNN.parquet` shards of documents to `config.out`.

    Raises `BertpipeError` when a source is missing or broken, or holds no text at all.
    """
    sources = {spec: parse_source(spec) for spec in dict.fromkeys(config.source)}
    inputs = {spec: Input(spec, source.fingerprint()) for spec, source in sources.items()}
    with workspace(STAGE, config, inputs) as work:
        if work.finished:
            say(f"corpus: already complete in {config.out}", quiet=config.quiet)
            return work.finished
        tasks = [task for source in sources.values() for task in source.tasks(config)]
        jobs = [ShardJob(work.folder / f"{index:05}.parquet", task) for index, task in enumerate(tasks)]
        totals: Counter[str] = Counter()
        with bar("corpus", len(jobs), quiet=config.quiet) as progress:
            for _, counts in run_tasks(make_shard, jobs, config.workers):
                totals.update(counts)
                progress.advance()
        if not totals["documents"]:
            raise BertpipeError(
                f"{', '.join(sources)}: no document with any text was found. {_skipped(totals)}".strip()
            )
        taken = {spec: source.describe() for spec, source in sources.items()}
        manifest = work.finish(dict(sorted(totals.items())) | {"taken": taken}, [job.path for job in jobs])
    _summarise(manifest, config)
    return manifest


@dataclass(frozen=True, slots=True)
class ShardJob:
    """A task and the file that its documents go to."""

    path: Path
    task: Task


def make_shard(job: ShardJob) -> dict[str, int]:
    """Write one shard, unless it is there already; return its counts."""
    if (finished := finished_counts(job.path)) is not None:
        return finished
    counts: Counter[str] = Counter(documents=0, bytes=0)
    write_shard(job.path, SCHEMA, _batches(job.task.documents(counts), counts), lambda: dict(counts))
    return dict(counts)


def _batches(documents: Iterator[Document], counts: Counter[str]) -> Iterator[pa.RecordBatch]:
    rows: list[tuple[str, str, str, str]] = []
    for document in documents:
        counts["documents"] += 1
        counts["bytes"] += len(document.text.encode())
        rows.append((document.id, document.text, document.source, document.language))
        if len(rows) == ROWS_A_BATCH:
            yield _batch(rows)
            rows = []
    if rows:
        yield _batch(rows)


def _batch(rows: list[tuple[str, str, str, str]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(c, pa.string()) for c in zip(*rows, strict=True)], schema=SCHEMA)


def _skipped(totals: Counter[str] | dict[str, Any]) -> str:
    left_out = [f"{name.replace('_', ' ')}: {totals[name]:,}" for name in sorted(totals) if "skipped" in name]
    replaced = totals.get("invalid_bytes_replaced", 0)
    return "; ".join(left_out + ([f"invalid bytes replaced: {replaced:,}"] if replaced else []))


def _summarise(manifest: Manifest, config: CorpusConfig) -> None:
    counts = manifest.counts
    say(
        f"corpus: {counts['documents']:,} documents, {human_bytes(counts['bytes'])} of text "
        f"in {len(manifest.files)} shards → {config.out}",
        quiet=config.quiet,
    )
    if remarks := _skipped(counts):
        say(f"  {remarks}", quiet=config.quiet)
    for taken in counts["taken"].values():
        if packages := taken.get("packages"):
            rows = [
                [name, p["version"], f"{p['documents']:,}", human_bytes(p["bytes"])] for name, p in packages.items()
            ]
            print_table("Taken from", ["package", "version", "documents", "text"], rows, quiet=config.quiet)
