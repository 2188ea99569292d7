"""Exact and near duplicates over the whole corpus, in memory that does not grow with its text.

Of documents that are alike the earliest stays. Whether a document goes depends on earlier ones alone, so a corpus cut
short by `--max-documents` holds the same documents as the beginning of the whole one.

The documents are compared column by column: one task takes the digests, and one each band, of all documents (8 or 16
bytes a document), sorts them, and looks at the documents that fall together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bert_pipeline.corpus.dedup.fingerprints import choose_bands, fingerprint_path
from bert_pipeline.corpus.documents import SCHEMA
from bert_pipeline.corpus.stats import shorten
from bert_pipeline.errors import BertpipeError
from bert_pipeline.ragged import BoolArray, FloatArray, Int64Array, UInt64Array
from bert_pipeline.storage.atomic import save_array
from bert_pipeline.storage.shards import finished_counts, read_columns, write_shard

KEPT, EXACT, NEAR, BEYOND = range(4)
BEYOND_LIMIT = "beyond the limit"
REASONS = {EXACT: "exact duplicate", NEAR: "near duplicate", BEYOND: BEYOND_LIMIT}
SORTED_TOGETHER = 1 << 24
"""Documents whose hashes are sorted at once; of more, those with the same remainder of the hash."""
COMPARED_TOGETHER = 100_000
"""Pairs of signatures, 512 bytes each, that are in memory at once."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts in the order of the corpus, and the documents in each."""

    paths: tuple[Path, ...]
    documents: tuple[int, ...]

    @property
    def starts(self) -> Int64Array:
        """Number of each part's first document, and the total at the end."""
        return np.concatenate(
            [np.zeros(1, np.int64), np.cumsum(np.array(self.documents, dtype=np.int64))]
        )

    def load(self, kind: str, band: int | None = None) -> Any:
        """One kind of fingerprints of all documents, one after the other."""
        pieces = []
        for path in self.paths:
            array = np.load(fingerprint_path(path, kind), mmap_mode="r", allow_pickle=False)
            pieces.append(np.array(array if band is None else array[band]))
        return np.concatenate(pieces) if pieces else np.zeros(0)

    def gather_signatures(self, numbers: Int64Array) -> npt.NDArray[np.uint16]:
        """The signatures of some documents, given in ascending order."""
        starts = self.starts
        cuts = np.searchsorted(numbers, starts)
        pieces = []
        for path, start, begin, end in zip(
            self.paths, starts[:-1], cuts[:-1], cuts[1:], strict=True
        ):
            if begin < end:
                array = np.load(
                    fingerprint_path(path, "signatures"), mmap_mode="r", allow_pickle=False
                )
                pieces.append(np.array(array[numbers[begin:end] - start]))
        return np.concatenate(pieces)


@dataclass(frozen=True, slots=True)
class PairsJob:
    """Find documents that have an earlier like: by their digests, or by one band."""

    path: Path
    parts: Parts
    band: int | None
    threshold: float


def find_pairs(job: PairsJob) -> int:
    """Write `(later, earlier)` pairs of documents that are alike; return how many."""
    if not job.path.exists():
        pairs = (
            _exact_pairs(job.parts)
            if job.band is None
            else _near_pairs(job.parts, job.band, job.threshold)
        )
        save_array(job.path, pairs)
    return len(np.load(job.path, mmap_mode="r", allow_pickle=False))


def plan_pairs(
    folder: Path, parts: Parts, steps: Sequence[str], threshold: float
) -> list[PairsJob]:
    """The comparisons that the steps ask for."""
    total = sum(parts.documents)
    jobs = (
        [PairsJob(folder / f"exact-{total}.pairs", parts, None, threshold)]
        if "exact" in steps
        else []
    )
    if "near" in steps:
        bands, _ = choose_bands(threshold)
        jobs += [
            PairsJob(folder / f"band-{n:02}-{total}.pairs", parts, n, threshold)
            for n in range(bands)
        ]
    return jobs


def _exact_pairs(parts: Parts) -> Int64Array:
    digests = parts.load("records")["digest"] if parts.paths else np.zeros((0, 2), np.uint64)
    found = []
    for chosen in _portions(digests[:, 0]):
        order = chosen[
            np.lexsort((digests[chosen, 1], digests[chosen, 0]))
        ]  # stable: the earliest comes first
        same = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
        found.append(_pair_with_first(order, same))
    return _join(found)


def _near_pairs(parts: Parts, band: int, threshold: float) -> Int64Array:
    hashes = parts.load("bands", band)
    found = []
    for chosen in _portions(hashes):
        order = chosen[np.argsort(hashes[chosen], kind="stable")]
        same = hashes[order[1:]] == hashes[order[:-1]]
        beside = np.stack([order[1:][same], order[:-1][same]], axis=1)
        candidates = np.unique(np.concatenate([_pair_with_first(order, same), beside]), axis=0)
        for some in np.array_split(candidates, len(candidates) // COMPARED_TOGETHER + 1):
            found.append(some[_similarity(parts, some) >= threshold])  # noqa: PERF401
    return _join(found)


def _portions(hashes: UInt64Array) -> Iterator[Int64Array]:
    count = len(hashes) // SORTED_TOGETHER + 1
    if count == 1:
        yield np.arange(len(hashes))
        return
    for remainder in range(count):
        yield np.flatnonzero(hashes % np.uint64(count) == remainder)


def _pair_with_first(order: Int64Array, same: BoolArray) -> Int64Array:
    """Pair each document that equals its neighbour before it with the first of its run."""
    begins = np.concatenate([[True], ~same]) if len(order) else np.zeros(0, np.bool_)
    first = order[np.flatnonzero(begins)][np.cumsum(begins) - 1] if len(order) else order
    return np.stack([order[~begins], first[~begins]], axis=1)


def _similarity(parts: Parts, pairs: Int64Array) -> FloatArray:
    numbers = np.unique(pairs)
    if not len(numbers):
        return np.zeros(0)
    signatures = parts.gather_signatures(numbers)
    later, earlier = (signatures[np.searchsorted(numbers, pairs[:, side])] for side in (0, 1))
    similarity: FloatArray = (later == earlier).mean(axis=1)
    return similarity


def _join(found: list[Int64Array]) -> Int64Array:
    return np.concatenate([np.zeros((0, 2), np.int64), *found])


class Verdicts:
    """What becomes of each document: kept, or left out and why."""

    def __init__(self, parts: Parts, jobs: Sequence[PairsJob]) -> None:
        self.parts = parts
        self.fates = np.full(sum(parts.documents), KEPT, dtype=np.uint8)
        self._jobs = sorted(
            jobs, key=lambda job: job.band is None
        )  # exact last: where both hold, it says more
        for job in self._jobs:
            self.fates[_read_pairs(job)[:, 0]] = _reason(job)

    def limit(self, documents: float, size: float) -> bool:
        """Keep no more than this; return whether there was as much."""
        sizes = self.parts.load("records")["bytes"].astype(np.int64)
        return choose_first(self.fates, sizes, documents, size)

    def samples(self, reason: int, count: int) -> list[list[str]]:
        """The first documents left out for a reason, each with the one that it is like."""
        numbers = np.flatnonzero(self.fates == reason)[:count]
        like: dict[int, int] = {}
        for job in self._jobs:
            if _reason(job) == reason:
                pairs = _read_pairs(job)
                for later, earlier in pairs[np.isin(pairs[:, 0], numbers)].tolist():
                    like[later] = min(earlier, like.get(later, earlier))
        return [
            [shorten(self._text(number)), shorten(self._text(like[number]))]
            for number in sorted(like)
        ]

    def _text(self, number: int) -> str:
        part = int(np.searchsorted(self.parts.starts, number, side="right")) - 1
        row = number - int(self.parts.starts[part])
        return str(read_part(self.parts.paths[part])["text"][row])


def choose_first(
    fates: npt.NDArray[np.uint8], sizes: Int64Array, documents: float, size: float
) -> bool:
    """Keep, of the documents that are kept, the first that stay within the limits; return whether there was as much."""
    kept = fates == KEPT
    counted, summed = np.cumsum(kept), np.cumsum(sizes * kept)
    over = kept & ((counted > documents) | (summed > size))
    if over.any():
        fates[np.argmax(over) :] = BEYOND
        return True
    return bool(len(kept) and (counted[-1] >= documents or summed[-1] >= size))


def _reason(job: PairsJob) -> int:
    return EXACT if job.band is None else NEAR


def _read_pairs(job: PairsJob) -> Int64Array:
    pairs: Int64Array = np.load(job.path, allow_pickle=False)
    return pairs


@dataclass(frozen=True, slots=True)
class KeepJob:
    """Write what is kept of a part, if anything; `fates` are all documents' fates, the part's begin at `start`."""

    part: Path
    target: Path | None
    fates: Path
    start: int


def write_kept(job: KeepJob) -> dict[str, Any]:
    """Write a shard of what is kept of a part, unless it is there; return its counts."""
    if job.target and (finished := finished_counts(job.target)) is not None:
        return finished
    counts = finished_counts(job.part)
    assert counts is not None, job.part
    table = read_part(job.part)
    fates = np.load(job.fates, mmap_mode="r", allow_pickle=False)[
        job.start : job.start + len(table)
    ]
    return write_chosen(job.target, table, np.array(fates), counts)


def read_part(path: Path) -> pa.Table:
    """All of a part; a damaged one is removed, for the next run to read it anew from its source."""
    try:
        return read_columns(path, SCHEMA.names)
    except BertpipeError:
        path.unlink(missing_ok=True)
        raise BertpipeError(
            f"{path}: damaged, and removed. Run the same command again to make it anew."
        ) from None


def write_chosen(
    target: Path | None, table: pa.Table, fates: npt.NDArray[np.uint8], counts: dict[str, Any]
) -> dict[str, Any]:
    """Write the documents whose fate is `KEPT`; return the part's counts, corrected by the others."""
    sizes = np.array(pc.binary_length(table["text"]), dtype=np.int64)
    removed = dict(counts["removed"])
    for fate, reason in REASONS.items():
        if (fates == fate).any():
            gone = fates == fate
            removed[reason] = {
                "documents": int(gone.sum()),
                "bytes": int(sizes[gone].sum()),
                "samples": [],
            }
    kept = fates == KEPT
    counts = counts | {
        "documents": int(kept.sum()),
        "bytes": int(sizes[kept].sum()),
        "removed": removed,
    }
    if target:
        write_shard(target, SCHEMA, table.filter(pa.array(kept)).to_batches(), lambda: counts)
    return counts
