"""Reads and cleans the documents of a task into parts, parquet files of about the shard size.

How a task is split into parts depends only on the settings. The footer of a part has its statistics
and the number of source documents read for it: a run that was killed resumes after the documents
of the finished parts, for any source.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from bert_pipeline.corpus.cleaning.cleaner import Cleaner, excerpt
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.dedup.fingerprints import (
    Fingerprints,
    fingerprint_kinds,
    fingerprint_path,
)
from bert_pipeline.corpus.documents import SCHEMA, Document, Task
from bert_pipeline.corpus.languages import GUESS_EACH, guess_language
from bert_pipeline.corpus.stats import CorpusStats
from bert_pipeline.hub.checked_files import ChangedOnTheWay
from bert_pipeline.storage.atomic import is_intact
from bert_pipeline.storage.shards import finished_counts, write_shard

BATCH_ROWS = 256
BATCH_CHARS = 4_000_000

Counts = dict[str, Any]
"""The statistics of a part, as `CorpusStats.to_json` returns them, and whether the task ended."""


@dataclass(frozen=True, slots=True)
class Quota:
    """The limits of the corpus, and therefore of each task."""

    documents: float = float("inf")
    bytes: float = float("inf")

    def is_met(self, documents: int, size: int) -> bool:
        """Whether this much reaches a limit."""
        return documents >= self.documents or size >= self.bytes


@dataclass(frozen=True, slots=True)
class PartsJob:
    """Read a task of a source into parts in `folder`."""

    folder: Path
    number: int
    """The position of the task in the corpus."""
    task: Task
    config: CorpusConfig
    quota: Quota
    language: str
    """The language of documents whose source does not tell it; `guess-each` to identify it."""

    def path(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / f"{self.number:05}-{part:05}.parquet"


def read_parts(job: PartsJob) -> list[Counts]:
    """Write parts until the quota is met or the task ends; returns the counts of all its parts.

    When a file turns out to be changed on the way, the parts are removed, so that the next run
    reads it again.
    """
    try:
        return _read_parts(job)
    except ChangedOnTheWay:
        for path in job.folder.glob(f"{job.number:05}-*"):
            path.unlink()
        raise


def _read_parts(job: PartsJob) -> list[Counts]:
    parts = _finished_parts(job)
    if _is_enough(parts, job.quota):
        return parts
    found: Counter[str] = Counter()
    documents = _documents(job, found)
    for _ in islice(documents, sum(counts["read"]["documents"] for counts in parts)):
        pass
    found.clear()  # rows skipped before here are counted in the finished parts
    while not _is_enough(parts, job.quota):
        parts.append(_write_part(job, job.path(len(parts)), documents, found))
        found.clear()
    return parts


def _finished_parts(job: PartsJob) -> list[Counts]:
    """The counts of the parts that an earlier run wrote.

    Without those beyond the quota, so that the result depends on the quota only.
    """
    parts: list[Counts] = []
    kinds = fingerprint_kinds(job.config.clean)
    while not _is_enough(parts, job.quota):
        path = job.path(len(parts))
        counts = finished_counts(path)
        if counts is None or not all(is_intact(fingerprint_path(path, kind)) for kind in kinds):
            break
        parts.append(counts)
    return parts


def _is_enough(parts: list[Counts], quota: Quota) -> bool:
    if parts and parts[-1]["ended"]:
        return True
    return quota.is_met(
        sum(counts["documents"] for counts in parts), sum(counts["bytes"] for counts in parts)
    )


def _documents(job: PartsJob, found: Counter[str]) -> Iterator[Document]:
    """The task's documents, shuffled with the buffer of `--shuffle-buffer`."""
    documents = _with_language(job, found)
    if job.config.shuffle_buffer is None:
        yield from documents
        return
    random = Random(f"{job.config.seed} {job.number}")
    buffer = list(islice(documents, job.config.shuffle_buffer))
    for document in documents:
        place = random.randrange(len(buffer))
        yield buffer[place]
        buffer[place] = document
    random.shuffle(buffer)
    yield from buffer


def _with_language(job: PartsJob, found: Counter[str]) -> Iterator[Document]:
    for document in job.task.documents(found):
        language = document.language or job.language
        if language == GUESS_EACH:
            language = guess_language(document.text)
        yield replace(document, language=language)


def _write_part(
    job: PartsJob, path: Path, documents: Iterator[Document], found: Counter[str]
) -> Counts:
    config = job.config
    stats = CorpusStats()
    fingerprints = Fingerprints.for_steps(config.clean, config.near_threshold)
    full = Quota(
        config.max_documents or float("inf"),
        min(config.shard_mb * 1e6, config.max_bytes or float("inf")),
    )
    ended = False

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal ended
        rows: list[Document] = []
        pending = 0
        while not full.is_met(stats.written["documents"], stats.written["bytes"]):
            if (document := next(documents, None)) is None:
                ended = True
                break
            if (cleaned := _clean(document, config.clean, stats)) is not None:
                rows.append(cleaned)
                pending += len(cleaned.text)
            if len(rows) == BATCH_ROWS or pending > BATCH_CHARS:
                yield _batch(rows, fingerprints)
                rows = []
                pending = 0
        if rows:
            yield _batch(rows, fingerprints)
        if fingerprints:  # before the part, so that a finished part always has them
            fingerprints.save(path)

    def count() -> Counts:
        stats.source = found.copy()
        return stats.to_json() | {"ended": ended}

    write_shard(path, SCHEMA, batches(), count)
    return count()


def _clean(document: Document, steps: tuple[str, ...], stats: CorpusStats) -> Document | None:
    size = len(document.text.encode("utf-8", "surrogatepass"))
    stats.count_read(size)
    cleaned = _cleaner(steps, document.language).clean(document.text)
    for change in cleaned.changes:
        sample = None
        if stats.needs_sample(change.step):
            sample = excerpt(change.before, change.after)
        stats.count_changed(change.step, sample)
    if cleaned.removed is not None:
        stats.count_removed(cleaned.removed, size, document.text)
        return None
    stats.count_written(len(cleaned.text.encode()), document.language)
    return Document(document.id, cleaned.text, document.source, document.language)


@cache
def _cleaner(steps: tuple[str, ...], language: str) -> Cleaner:
    return Cleaner(steps, language)


def _batch(rows: list[Document], fingerprints: Fingerprints | None) -> pa.RecordBatch:
    if fingerprints:
        fingerprints.add([document.text for document in rows])
    columns = zip(*((d.id, d.text, d.source, d.language) for d in rows), strict=True)
    return pa.RecordBatch.from_arrays(
        [pa.array(column, pa.string()) for column in columns], schema=SCHEMA
    )
