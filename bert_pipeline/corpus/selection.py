"""Which documents of the parts the corpus keeps, and shards of those documents."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bert_pipeline.corpus.documents import SCHEMA
from bert_pipeline.corpus.stats import most_first
from bert_pipeline.errors import BertpipeError
from bert_pipeline.ragged import Int64Array
from bert_pipeline.storage.shards import finished_counts, read_columns, write_shard

StatusArray = npt.NDArray[np.uint8]
"""One status per document."""

KEPT, EXACT_DUPLICATE, NEAR_DUPLICATE, OVER_LIMIT = range(4)
REASONS = {
    EXACT_DUPLICATE: "exact duplicate",
    NEAR_DUPLICATE: "near duplicate",
    OVER_LIMIT: "beyond the limit",
}
"""Why documents are removed, as the manifest names it."""


def apply_limits(
    status: StatusArray, sizes: Int64Array, max_documents: float, max_bytes: float
) -> bool:
    """Mark the kept documents from the first that exceeds a limit on as `OVER_LIMIT`, in place.

    Returns whether the documents reach a limit.
    """
    kept = status == KEPT
    documents = np.cumsum(kept)
    size = np.cumsum(sizes * kept)
    over = kept & ((documents > max_documents) | (size > max_bytes))
    if over.any():
        status[np.argmax(over) :] = OVER_LIMIT
        return True
    return bool(len(kept) and (documents[-1] >= max_documents or size[-1] >= max_bytes))


@dataclass(frozen=True, slots=True)
class WriteKeptJob:
    """Write the kept documents of a part to a shard."""

    part: Path
    target: Path | None
    """The shard; None when the part has no kept document."""
    status: Path
    """The status of all documents of the corpus, a `.npy` file."""
    start: int
    """The number of the part's first document."""


def write_kept(job: WriteKeptJob) -> dict[str, Any]:
    """Write the shard unless it is finished already; returns its counts."""
    if job.target and (finished := finished_counts(job.target)) is not None:
        return finished
    table, counts = _read_finished(job.part)
    all_status = np.load(job.status, mmap_mode="r", allow_pickle=False)
    status = np.array(all_status[job.start : job.start + len(table)])
    return write_selected(job.target, table, status, counts)


def read_part(path: Path) -> pa.Table:
    """All documents of a part.

    Raises `BertpipeError` when it is damaged, and removes it so that the next run reads it again
    from its source.
    """
    return _read_finished(path)[0]


def _read_finished(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """The documents and the counts of a part."""
    counts = finished_counts(path)
    if counts is None:
        path.unlink(missing_ok=True)
        raise BertpipeError(
            f"{path}: damaged, and removed. Rerun the same command to read it again."
        )
    return read_columns(path, SCHEMA.names), counts


def write_selected(
    target: Path | None, table: pa.Table, status: StatusArray, counts: dict[str, Any]
) -> dict[str, Any]:
    """Write the documents with status `KEPT`; returns the part's counts without the others."""
    sizes = np.array(pc.binary_length(table["text"]), dtype=np.int64)
    removed = dict(counts["removed"])
    for number, reason in REASONS.items():
        chosen = status == number
        if chosen.any():
            removed[reason] = {
                "documents": int(chosen.sum()),
                "bytes": int(sizes[chosen].sum()),
                "samples": [],
            }
    kept = status == KEPT
    counts = counts | {
        "documents": int(kept.sum()),
        "bytes": int(sizes[kept].sum()),
        "languages": most_first(Counter(table["language"].filter(pa.array(kept)).to_pylist())),
        "removed": removed,
    }
    if target:
        write_shard(target, SCHEMA, table.filter(pa.array(kept)).to_batches(), lambda: counts)
    return counts
