"""Renames parts to shards as soon as the number of shards before them is known.

A plan is written before the parts of a task are renamed. So a run that was killed in between
finishes the renaming first, and never repeats the reading of finished shards.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from bert_pipeline.corpus.parts import Counts, PartsJob, Quota
from bert_pipeline.corpus.selection import (
    OVER_LIMIT,
    REASONS,
    apply_limits,
    read_part,
    write_selected,
)
from bert_pipeline.corpus.stats import CorpusStats
from bert_pipeline.storage.atomic import read_checked_json, rename_checked, write_checked_json
from bert_pipeline.storage.shards import finished_counts


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"{number:05}.parquet"


class Finalizer:
    """Renames the parts of tasks, given in order, to shards until the quota is met."""

    def __init__(self, folder: Path, quota: Quota) -> None:
        self.folder = folder
        self.quota = quota
        self.stats = CorpusStats()
        self.shards = 0
        self.is_full = False

    def resume(self, job: PartsJob) -> bool:
        """Finish renaming the parts of a task after a kill; False when the task must be read."""
        try:
            plan = read_checked_json(_plan_path(job))
        except (FileNotFoundError, ValueError):
            return False
        for part, number in plan["shards"]:
            path = job.path(part)
            if finished_counts(path if path.exists() else self._shard(number)) is None:
                return False  # removed or damaged since
        self._rename(job, plan)
        return True

    def finalize(self, job: PartsJob, parts: list[Counts]) -> None:
        """Rename the parts of the next task; a part that exceeds the quota is shortened."""
        plan: dict[str, Any] = {"shards": [], "counts": [], "is_full": False}
        documents = self.stats.written["documents"]
        size = self.stats.written["bytes"]
        for number, counts in enumerate(parts):
            left = Quota(self.quota.documents - documents, self.quota.bytes - size)
            if counts["documents"] > left.documents or counts["bytes"] > left.bytes:
                counts = _shorten(job.path(number), left, counts)
                plan["is_full"] = True
            documents += counts["documents"]
            size += counts["bytes"]
            # A run that was killed before it wrote the plan may have shortened the part.
            was_shortened = REASONS[OVER_LIMIT] in counts["removed"]
            plan["is_full"] |= self.quota.is_met(documents, size) or was_shortened
            plan["counts"].append(counts)
            if counts["documents"]:
                plan["shards"].append([number, self.shards + len(plan["shards"])])
            if plan["is_full"]:
                break
        write_checked_json(_plan_path(job), plan)
        self._rename(job, plan)

    def _rename(self, job: PartsJob, plan: dict[str, Any]) -> None:
        for part, number in plan["shards"]:
            if job.path(part).exists():
                rename_checked(job.path(part), self._shard(number))
        self.shards += len(plan["shards"])
        for counts in plan["counts"]:
            self.stats.add(counts)
        self.is_full = plan["is_full"]

    def _shard(self, number: int) -> Path:
        return shard_path(self.folder, number)


def _plan_path(job: PartsJob) -> Path:
    return job.folder / f"{job.number:05}.json"


def _shorten(part: Path, quota: Quota, counts: Counts) -> Counts:
    """Rewrite a part with the first of its documents, up to the quota; returns its counts."""
    table = read_part(part)
    sizes = np.array(pc.binary_length(table["text"]), dtype=np.int64)
    status = np.zeros(len(table), dtype=np.uint8)
    apply_limits(status, sizes, quota.documents, quota.bytes)
    return write_selected(part, table, status, counts)
