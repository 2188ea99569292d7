"""Parts get the names of shards as soon as it is known how many come before them.

A plan is written before a task's parts are renamed, so a run that was killed in between finishes the renaming first,
and never reads again what has a shard's name already.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from bert_pipeline.corpus.dedup.duplicates import (
    BEYOND_LIMIT,
    choose_first,
    read_part,
    write_chosen,
)
from bert_pipeline.corpus.parts import Counts, PartsJob, Quota
from bert_pipeline.corpus.stats import CorpusStats
from bert_pipeline.storage.atomic import write_json
from bert_pipeline.storage.shards import finished_counts


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard of the corpus lies."""
    return folder / f"{number:05}.parquet"


class Finalizer:
    """Names the parts of tasks, given in order, until the limit of the corpus is reached."""

    def __init__(self, folder: Path, limit: Quota) -> None:
        self.folder, self.limit = folder, limit
        self.tally = CorpusStats()
        self.shards = 0
        self.is_full = False

    def resume(self, job: PartsJob) -> bool:
        """Finish what an earlier run began to publish of a task; False when the task has to be read (again)."""
        path = _plan_path(job)
        if not path.is_file():
            return False
        plan = json.loads(path.read_text(encoding="utf-8"))
        for part, number in plan["shards"]:
            if (
                not job.path(part).exists()
                and finished_counts(shard_path(self.folder, number)) is None
            ):
                return False  # somebody removed or damaged it
        self._carry_out(job, plan)
        return True

    def publish(self, job: PartsJob, parts: list[Counts]) -> None:
        """Name the parts of the next task; the one in which the limit falls is cut."""
        plan: dict[str, Any] = {"shards": [], "counts": [], "is_full": False}
        documents, size = self.tally.written["documents"], self.tally.written["bytes"]
        for number, counts in enumerate(parts):
            room = Quota(self.limit.documents - documents, self.limit.bytes - size)
            if counts["documents"] > room.documents or counts["bytes"] > room.bytes:
                counts = _cut(job.path(number), room, counts)
                plan["is_full"] = True
            documents, size = documents + counts["documents"], size + counts["bytes"]
            # The part may have been cut by a run that was killed before it could write the plan.
            plan["is_full"] |= (
                self.limit.is_met(documents, size) or BEYOND_LIMIT in counts["removed"]
            )
            plan["counts"].append(counts)
            if counts["documents"]:
                plan["shards"].append([number, self.shards + len(plan["shards"])])
            if plan["is_full"]:
                break
        write_json(_plan_path(job), plan)
        self._carry_out(job, plan)

    def _carry_out(self, job: PartsJob, plan: dict[str, Any]) -> None:
        for part, number in plan["shards"]:
            if job.path(part).exists():
                job.path(part).replace(shard_path(self.folder, number))
        self.shards += len(plan["shards"])
        for counts in plan["counts"]:
            self.tally.add(counts)
        self.is_full = plan["is_full"]


def _plan_path(job: PartsJob) -> Path:
    return job.folder / f"{job.number:05}.json"


def _cut(part: Path, room: Quota, counts: Counts) -> Counts:
    """Rewrite a part with the first of its documents that fit."""
    table = read_part(part)
    sizes = np.array(pc.binary_length(table["text"]), dtype=np.int64)
    fates = np.zeros(len(table), dtype=np.uint8)
    choose_first(fates, sizes, room.documents, room.bytes)
    return write_chosen(part, table, fates, counts)
