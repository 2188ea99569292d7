"""Fingerprints of documents: a hash of the text for exact duplicates, a MinHash signature for near ones.

Near duplicates are found as Broder ("On the resemblance and containment of documents", 1997) and Leskovec et al.
("Mining of Massive Datasets", ch. 3) describe: a document is the set of its word 5-grams; the share of equal places in
two MinHash signatures estimates the Jaccard similarity of the sets; a signature is cut into bands, and documents that
agree in a whole band are compared.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bert_pipeline.ragged import Array, Int64Array, UInt64Array
from bert_pipeline.storage.atomic import save_array

PERMUTATIONS = 128
SHINGLE = 5
LEAST_RECALL = 0.99
"""Share of the pairs at the threshold that some band must bring together."""

# Scripts that write no spaces between words are taken by the character.
_SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_NOT_WORDS = bytes(range(0x30)) + b":;<=>?@[\\]^`{|}~\x7f"
_TO_SPACES = bytes.maketrans(_NOT_WORDS, b" " * len(_NOT_WORDS))
_PUNCTUATION = [char.encode() for char in "“”‘’„«»–—…،؛؟۔।。、，！？：；「」（）"]
_MULTIPLIERS = np.array(
    [
        0x9E3779B97F4A7C15,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0xD6E8FEB86659FD93,
        0xFF51AFD7ED558CCD,
    ],
    dtype=np.uint64,
)
RECORD = np.dtype([("bytes", np.uint32), ("digest", np.uint64, 2)])


@cache
def choose_bands(threshold: float) -> tuple[int, int]:
    """Number of bands and places in each: the longest bands that miss at most 1% of the pairs at the threshold."""
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= LEAST_RECALL:
            return bands, rows
    return PERMUTATIONS, 1


class Fingerprints:
    """Fingerprints of a part's documents, in their order."""

    def __init__(self, bands: tuple[int, int] | None) -> None:
        self._bands = bands
        self._records: list[Array] = []
        self._signatures: list[npt.NDArray[np.uint32]] = []

    @classmethod
    def wanted(cls, steps: Sequence[str], threshold: float) -> "Fingerprints | None":
        """An empty collection for the steps `exact` and `near`; None when neither is asked for."""
        if "near" in steps:
            return cls(choose_bands(threshold))
        return cls(None) if "exact" in steps else None

    def add(self, texts: Sequence[str]) -> None:
        """Take in the next documents."""
        records = np.zeros(len(texts), dtype=RECORD)
        for number, text in enumerate(texts):
            raw = text.encode()
            records["bytes"][number] = len(raw)
            records["digest"][number] = np.frombuffer(
                hashlib.blake2b(raw, digest_size=16).digest(), dtype="<u8"
            )
        self._records.append(records)
        if self._bands:
            self._signatures.append(make_signatures(texts))

    def save(self, part: Path) -> None:
        """Write them beside the part: `.records.npy`, `.bands.npy` (bands × documents), `.signatures.npy`."""
        _save(part, "records", np.concatenate([np.zeros(0, dtype=RECORD), *self._records]))
        if self._bands:
            signatures = np.concatenate(
                [np.zeros((0, PERMUTATIONS), dtype=np.uint32), *self._signatures]
            )
            _save(part, "bands", hash_bands(signatures, *self._bands))
            # Half of each value tells as much about equality but for 1 in 65,536, on half the disk.
            _save(part, "signatures", signatures.astype(np.uint16))


def fingerprint_path(part: Path, kind: str) -> Path:
    """Where one kind of a part's fingerprints lies."""
    return part.with_suffix(f".{kind}.npy")


def _save(part: Path, kind: str, array: Array) -> None:
    save_array(fingerprint_path(part, kind), array)


def split_words(text: str) -> list[bytes]:
    """Words in lower case without punctuation, as UTF-8: bytes split twice as fast as a pattern on text finds words."""
    if text.isascii():
        return text.lower().encode().translate(_TO_SPACES).split()
    raw = _SPACELESS.sub(r" \g<0> ", text.lower()).encode().translate(_TO_SPACES)
    for mark in _PUNCTUATION:
        raw = raw.replace(mark, b" ")
    return raw.split()


def make_signatures(texts: Sequence[str]) -> npt.NDArray[np.uint32]:
    """MinHash signatures, (texts, `PERMUTATIONS`). A text of fewer than 5 words is one shingle."""
    from rensa import RMinHash

    words = [split_words(text) or [text.encode()] for text in texts]
    hashed = RMinHash.hash_token_sets(words)
    lengths = np.array([len(row) for row in hashed], dtype=np.int64)
    padded = np.maximum(lengths, SHINGLE)
    starts = np.concatenate([[0], np.cumsum(padded)])
    flat = np.zeros(int(starts[-1]), dtype=np.uint64)
    flat[np.repeat(starts[:-1] - _ends(lengths)[:-1], lengths) + np.arange(int(lengths.sum()))] = (
        np.fromiter((value for row in hashed for value in row), dtype=np.uint64)
    )
    width = len(flat) - SHINGLE + 1
    shingles = sum(
        (flat[k : width + k] * _MULTIPLIERS[k] for k in range(SHINGLE)),
        np.zeros(width, dtype=np.uint64),
    )
    shingles ^= shingles >> np.uint64(29)
    counts = padded - SHINGLE + 1
    ends = _ends(counts)
    chosen = shingles[np.repeat(starts[:-1] - ends[:-1], counts) + np.arange(int(ends[-1]))]
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        chosen, ends.astype(np.uint64), PERMUTATIONS, 1
    )
    return np.array(matrix.to_rows(), dtype=np.uint32)


def _ends(lengths: Int64Array) -> Int64Array:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])


def hash_bands(signatures: npt.NDArray[np.uint32], bands: int, rows: int) -> UInt64Array:
    """One hash of each band of each signature, (bands, documents)."""
    hashes = np.zeros((bands, len(signatures)), dtype=np.uint64)
    for band in range(bands):
        for row in range(rows):
            hashes[band] = (hashes[band] ^ signatures[:, band * rows + row]) * _MULTIPLIERS[0]
            hashes[band] ^= hashes[band] >> np.uint64(32)
    return hashes
