"""Exact and near duplicates in the complete corpus, in memory that does not grow with its text.

The earliest of several duplicates is kept. Whether a document is removed depends only on earlier
documents, so a corpus limited by `--max-documents` is a prefix of the unlimited one.

The comparison is split by column: one task takes the digests of all documents, and one task per
band takes the hashes of that band (16 or 8 bytes per document), sorts them, and compares the
documents with equal values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_pipeline.corpus.dedup.fingerprints import choose_bands, fingerprint_path
from bert_pipeline.corpus.selection import (
    EXACT_DUPLICATE,
    KEPT,
    NEAR_DUPLICATE,
    apply_limits,
    read_part,
)
from bert_pipeline.corpus.stats import shorten
from bert_pipeline.ragged import BoolArray, FloatArray, Int64Array, UInt64Array, offsets_of
from bert_pipeline.storage.atomic import is_intact, save_array

SORT_CHUNK_DOCUMENTS = 1 << 24
"""Hashes sorted together; of a larger corpus, those with the same remainder of the hash."""
COMPARE_CHUNK_PAIRS = 100_000
"""Pairs of signatures (512 bytes each) in memory at a time."""


@dataclass(frozen=True, slots=True)
class PartList:
    """The parts in the order of the corpus, and the number of documents in each."""

    paths: tuple[Path, ...]
    documents: tuple[int, ...]

    @property
    def starts(self) -> Int64Array:
        """The number of each part's first document, and the total at the end."""
        return offsets_of(np.array(self.documents, dtype=np.int64))

    def load(self, kind: str, band: int | None = None) -> Any:
        """The fingerprints of one kind of all documents; of shape (documents, ...)."""
        pieces = []
        for path in self.paths:
            array = np.load(fingerprint_path(path, kind), mmap_mode="r", allow_pickle=False)
            pieces.append(np.array(array if band is None else array[band]))
        return np.concatenate(pieces) if pieces else np.zeros(0)

    def gather_signatures(self, numbers: Int64Array) -> npt.NDArray[np.uint16]:
        """The signatures of documents with ascending numbers; of shape (numbers, permutations)."""
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
    """Find documents with an earlier duplicate, by digest or by one band."""

    path: Path
    parts: PartList
    band: int | None
    """None compares the digests, for exact duplicates."""
    threshold: float


def find_pairs(job: PairsJob) -> int:
    """Write pairs `(later, earlier)` of duplicates, of shape (pairs, 2); returns their number."""
    if not is_intact(job.path):
        pairs = (
            _exact_pairs(job.parts)
            if job.band is None
            else _near_pairs(job.parts, job.band, job.threshold)
        )
        save_array(job.path, pairs)
    return len(np.load(job.path, mmap_mode="r", allow_pickle=False))


def plan_comparisons(
    folder: Path, parts: PartList, steps: Sequence[str], threshold: float
) -> list[PairsJob]:
    """The comparisons for the steps `exact` and `near`."""
    total = sum(parts.documents)
    jobs: list[PairsJob] = []
    if "exact" in steps:
        jobs.append(PairsJob(folder / f"exact-{total}.pairs", parts, None, threshold))
    if "near" in steps:
        bands, _ = choose_bands(threshold)
        jobs += [
            PairsJob(folder / f"band-{n:02}-{total}.pairs", parts, n, threshold)
            for n in range(bands)
        ]
    return jobs


def _exact_pairs(parts: PartList) -> Int64Array:
    digests = parts.load("records")["digest"] if parts.paths else np.zeros((0, 2), np.uint64)
    found = []
    for chosen in _sort_chunks(digests[:, 0]):
        # The sort is stable: the earliest document comes first.
        order = chosen[np.lexsort((digests[chosen, 1], digests[chosen, 0]))]
        same = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
        found.append(_pair_with_first(order, same))
    return _join(found)


def _near_pairs(parts: PartList, band: int, threshold: float) -> Int64Array:
    hashes = parts.load("bands", band)
    found = []
    for chosen in _sort_chunks(hashes):
        order = chosen[np.argsort(hashes[chosen], kind="stable")]
        same = hashes[order[1:]] == hashes[order[:-1]]
        beside = np.stack([order[1:][same], order[:-1][same]], axis=1)
        candidates = np.unique(np.concatenate([_pair_with_first(order, same), beside]), axis=0)
        for some in np.array_split(candidates, len(candidates) // COMPARE_CHUNK_PAIRS + 1):
            found.append(some[_similarity(parts, some) >= threshold])  # noqa: PERF401
    return _join(found)


def _sort_chunks(hashes: UInt64Array) -> Iterator[Int64Array]:
    count = len(hashes) // SORT_CHUNK_DOCUMENTS + 1
    if count == 1:
        yield np.arange(len(hashes))
        return
    for remainder in range(count):
        yield np.flatnonzero(hashes % np.uint64(count) == remainder)


def _pair_with_first(order: Int64Array, same: BoolArray) -> Int64Array:
    """Pair each document that equals its predecessor with the first of its run; (pairs, 2)."""
    begins = np.concatenate([[True], ~same]) if len(order) else np.zeros(0, np.bool_)
    first = order[np.flatnonzero(begins)][np.cumsum(begins) - 1] if len(order) else order
    return np.stack([order[~begins], first[~begins]], axis=1)


def _similarity(parts: PartList, pairs: Int64Array) -> FloatArray:
    numbers = np.unique(pairs)
    if not len(numbers):
        return np.zeros(0)
    signatures = parts.gather_signatures(numbers)
    later = signatures[np.searchsorted(numbers, pairs[:, 0])]
    earlier = signatures[np.searchsorted(numbers, pairs[:, 1])]
    similarity: FloatArray = (later == earlier).mean(axis=1)
    return similarity


def _join(found: list[Int64Array]) -> Int64Array:
    return np.concatenate([np.zeros((0, 2), np.int64), *found])


class DuplicateStatus:
    """The status of each document: kept, or removed as an exact or near duplicate."""

    def __init__(self, parts: PartList, jobs: Sequence[PairsJob]) -> None:
        self.parts = parts
        self.status = np.full(sum(parts.documents), KEPT, dtype=np.uint8)
        # Exact duplicates last, because they are near duplicates too.
        self._jobs = sorted(jobs, key=lambda job: job.band is None)
        for job in self._jobs:
            self.status[_read_pairs(job)[:, 0]] = _status_of(job)

    def limit(self, max_documents: float, max_bytes: float) -> bool:
        """Keep no more than this; returns whether the kept documents reach a limit."""
        sizes = self.parts.load("records")["bytes"].astype(np.int64)
        return apply_limits(self.status, sizes, max_documents, max_bytes)

    def samples(self, status: int, count: int) -> list[list[str]]:
        """The first documents with a status, each with the document that it duplicates."""
        numbers = np.flatnonzero(self.status == status)[:count]
        first: dict[int, int] = {}
        for job in self._jobs:
            if _status_of(job) == status:
                pairs = _read_pairs(job)
                for later, earlier in pairs[np.isin(pairs[:, 0], numbers)].tolist():
                    first[later] = min(earlier, first.get(later, earlier))
        return [
            [shorten(self._text(number)), shorten(self._text(first[number]))]
            for number in sorted(first)
        ]

    def _text(self, number: int) -> str:
        part = int(np.searchsorted(self.parts.starts, number, side="right")) - 1
        row = number - int(self.parts.starts[part])
        return str(read_part(self.parts.paths[part])["text"][row])


def _status_of(job: PairsJob) -> int:
    return EXACT_DUPLICATE if job.band is None else NEAR_DUPLICATE


def _read_pairs(job: PairsJob) -> Int64Array:
    pairs: Int64Array = np.load(job.path, allow_pickle=False)
    return pairs
