"""Reading and cleaning: the documents of a task become parts, parquet files of about the shard size.

How a task is cut into parts hangs on the settings alone. A part holds whole documents and, in its footer, its tally and
how many documents of the source were read for it: a run that was killed counts the parts that are there and reads on
behind them, whatever the source.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from bert_pipeline.corpus.cleaning.steps import Cleaner, excerpt
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.dedup.fingerprints import Fingerprints
from bert_pipeline.corpus.documents import SCHEMA, Document, Task
from bert_pipeline.corpus.stats import CorpusStats
from bert_pipeline.storage.shards import finished_counts, write_shard

ROWS_A_BATCH = 256
BYTES_A_BATCH = 4_000_000
WHOLE_CORPUS_STEPS = ("exact", "near")

Counts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Quota:
    """How much is wanted of the whole corpus, and so at most of any task."""

    documents: float = float("inf")
    bytes: float = float("inf")

    def is_met(self, documents: int, size: int) -> bool:
        """Whether this much is enough."""
        return documents >= self.documents or size >= self.bytes


@dataclass(frozen=True, slots=True)
class PartsJob:
    """A task of a source, and where its parts go."""

    folder: Path
    number: int
    task: Task
    config: CorpusConfig
    quota: Quota

    def path(self, part: int) -> Path:
        """Where a part lies."""
        return self.folder / f"{self.number:05}-{part:05}.parquet"


def read_parts(job: PartsJob) -> list[Counts]:
    """Write parts until the quota is met or the task has no more; return the counts of each, also of those found."""
    parts: list[Counts] = []
    # Not those beyond the quota, which a killed run may have left: the result hangs on the quota alone.
    while (
        not _is_enough(parts, job.quota)
        and (counts := finished_counts(job.path(len(parts)))) is not None
    ):
        parts.append(counts)
    if _is_enough(parts, job.quota):
        return parts
    found: Counter[str] = Counter()
    documents = _documents(job, found)
    for _ in islice(documents, sum(counts["read"]["documents"] for counts in parts)):
        pass
    found.clear()  # what was skipped on the way stands in the parts that are there
    while not _is_enough(parts, job.quota):
        parts.append(_write_part(job, job.path(len(parts)), documents, found))
        found.clear()
    return parts


def _is_enough(parts: list[Counts], quota: Quota) -> bool:
    if parts and parts[-1]["ended"]:
        return True
    return quota.is_met(
        sum(counts["documents"] for counts in parts), sum(counts["bytes"] for counts in parts)
    )


def _documents(job: PartsJob, found: Counter[str]) -> Iterator[Document]:
    """The task's documents, through the shuffle buffer where there is one."""
    documents = job.task.documents(found)
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


def _write_part(
    job: PartsJob, path: Path, documents: Iterator[Document], found: Counter[str]
) -> Counts:
    config = job.config
    tally = CorpusStats()
    fingerprints = Fingerprints.wanted(config.clean, config.near_threshold)
    full = Quota(
        config.max_documents or float("inf"),
        min(config.shard_mb * 1e6, config.max_bytes or float("inf")),
    )
    ended = False

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal ended
        rows: list[Document] = []
        pending = 0
        while not full.is_met(tally.written["documents"], tally.written["bytes"]):
            if (document := next(documents, None)) is None:
                ended = True
                break
            if (cleaned := _clean(document, config.clean, tally)) is not None:
                rows.append(cleaned)
                pending += len(cleaned.text)
            if len(rows) == ROWS_A_BATCH or pending > BYTES_A_BATCH:
                yield _batch(rows, fingerprints)
                rows, pending = [], 0
        if rows:
            yield _batch(rows, fingerprints)
        if (
            fingerprints
        ):  # a part that is there has its fingerprints beside it, so they are written first
            fingerprints.save(path)

    def count() -> Counts:
        tally.source = found.copy()
        return tally.to_json() | {"ended": ended}

    write_shard(path, SCHEMA, batches(), count)
    return count()


def _clean(document: Document, steps: tuple[str, ...], tally: CorpusStats) -> Document | None:
    size = len(document.text.encode("utf-8", "surrogatepass"))
    tally.count_read(size)
    cleaned = _cleaner(steps, document.language).clean(document.text)
    for change in cleaned.changes:
        wanted = tally.wants_sample(change.step)
        tally.count_changed(change.step, excerpt(change.before, change.after) if wanted else None)
    if cleaned.removed is not None:
        tally.count_removed(cleaned.removed, size, document.text)
        return None
    tally.count_written(len(cleaned.text.encode()))
    return Document(document.id, cleaned.text, document.source, document.language)


@cache
def _cleaner(steps: tuple[str, ...], language: str) -> Cleaner:
    return Cleaner([step for step in steps if step not in WHOLE_CORPUS_STEPS], language)


def _batch(rows: list[Document], fingerprints: Fingerprints | None) -> pa.RecordBatch:
    if fingerprints:
        fingerprints.add([document.text for document in rows])
    columns = zip(*((d.id, d.text, d.source, d.language) for d in rows), strict=True)
    return pa.RecordBatch.from_arrays(
        [pa.array(column, pa.string()) for column in columns], schema=SCHEMA
    )
