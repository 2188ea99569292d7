"""Fingerprints: a hash of the text for exact duplicates, a MinHash signature for near duplicates.

A document is the set of its word 5-grams (shingles). The share of equal values in two MinHash
signatures estimates the Jaccard similarity of the sets. A signature is split into bands
(locality-sensitive hashing), and documents with an equal band are compared.

Sources: Broder, 1997, "On the resemblance and containment of documents",
https://doi.org/10.1109/SEQUEN.1997.666900; Leskovec, Rajaraman and Ullman, "Mining of Massive
Datasets", chapter 3, http://www.mmds.org.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bert_pipeline.ragged import Array, UInt64Array, expand, offsets_of
from bert_pipeline.storage.atomic import save_array

PERMUTATIONS = 128
"""Values in a MinHash signature."""
SHINGLE_WORDS = 5
MIN_RECALL = 0.99
"""Share of the pairs at the threshold that have at least one equal band."""

# In scripts without spaces between words, each character counts as a word.
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
RECORD_DTYPE = np.dtype([("bytes", np.uint32), ("digest", np.uint64, 2)])


@cache
def choose_bands(threshold: float) -> tuple[int, int]:
    """The number of bands and the values per band.

    The longest bands that miss at most 1% of the pairs at the threshold: with r values per band and
    b bands, a pair with similarity s has an equal band with probability 1 - (1 - s**r)**b.
    """
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= MIN_RECALL:
            return bands, rows
    return PERMUTATIONS, 1


class Fingerprints:
    """The fingerprints of a part's documents, in order."""

    def __init__(self, bands: tuple[int, int] | None) -> None:
        self._bands = bands
        self._records: list[Array] = []
        self._signatures: list[npt.NDArray[np.uint32]] = []

    @classmethod
    def for_steps(cls, steps: Sequence[str], threshold: float) -> "Fingerprints | None":
        """An empty collection for the steps `exact` and `near`; None without these steps."""
        if "near" in steps:
            return cls(choose_bands(threshold))
        return cls(None) if "exact" in steps else None

    def add(self, texts: Sequence[str]) -> None:
        """Add the next documents."""
        records = np.zeros(len(texts), dtype=RECORD_DTYPE)
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
        """Write `.records.npy`, and for near duplicates `.bands.npy` and `.signatures.npy`.

        The files are next to the part. Records have shape (documents,), bands (bands, documents),
        signatures (documents, permutations).
        """
        _save(part, "records", np.concatenate([np.zeros(0, dtype=RECORD_DTYPE), *self._records]))
        if self._bands:
            signatures = np.concatenate(
                [np.zeros((0, PERMUTATIONS), dtype=np.uint32), *self._signatures]
            )
            _save(part, "bands", hash_bands(signatures, *self._bands))
            # 16 of the 32 bits halve the disk space; 1 in 65,536 values is equal by chance.
            _save(part, "signatures", signatures.astype(np.uint16))


def fingerprint_kinds(steps: Sequence[str]) -> tuple[str, ...]:
    """The kinds of fingerprints that a part has with these cleaning steps."""
    if "near" in steps:
        return ("records", "bands", "signatures")
    return ("records",) if "exact" in steps else ()


def fingerprint_path(part: Path, kind: str) -> Path:
    """The file with a part's fingerprints of one kind."""
    return part.with_suffix(f".{kind}.npy")


def _save(part: Path, kind: str, array: Array) -> None:
    save_array(fingerprint_path(part, kind), array)


def split_words(text: str) -> list[bytes]:
    """Lowercased words without punctuation, as UTF-8.

    Splitting bytes is twice as fast as a regular expression on text.
    """
    if text.isascii():
        return text.lower().encode().translate(_TO_SPACES).split()
    raw = _SPACELESS.sub(r" \g<0> ", text.lower()).encode().translate(_TO_SPACES)
    for mark in _PUNCTUATION:
        raw = raw.replace(mark, b" ")
    return raw.split()


def make_signatures(texts: Sequence[str]) -> npt.NDArray[np.uint32]:
    """MinHash signatures, of shape (texts, `PERMUTATIONS`).

    A text of fewer than 5 words is one shingle.
    """
    from rensa import RMinHash

    words = [split_words(text) or [text.encode()] for text in texts]
    hashed = RMinHash.hash_token_sets(words)
    lengths = np.array([len(row) for row in hashed], dtype=np.int64)
    padded = np.maximum(lengths, SHINGLE_WORDS)
    starts = offsets_of(padded)
    flat = np.zeros(int(starts[-1]), dtype=np.uint64)
    flat[expand(starts[:-1], lengths)] = np.fromiter(
        (value for row in hashed for value in row), dtype=np.uint64
    )
    # The hash of every 5-gram, also those that span two documents, which `expand` skips below.
    width = len(flat) - SHINGLE_WORDS + 1
    shingles = sum(
        (flat[k : width + k] * _MULTIPLIERS[k] for k in range(SHINGLE_WORDS)),
        np.zeros(width, dtype=np.uint64),
    )
    shingles ^= shingles >> np.uint64(29)
    counts = padded - SHINGLE_WORDS + 1
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        shingles[expand(starts[:-1], counts)],
        offsets_of(counts).astype(np.uint64),
        PERMUTATIONS,
        1,
    )
    return np.array(matrix.to_rows(), dtype=np.uint32)


def hash_bands(signatures: npt.NDArray[np.uint32], bands: int, rows: int) -> UInt64Array:
    """One hash per band and signature, of shape (bands, documents)."""
    hashes = np.zeros((bands, len(signatures)), dtype=np.uint64)
    for band in range(bands):
        for row in range(rows):
            hashes[band] = (hashes[band] ^ signatures[:, band * rows + row]) * _MULTIPLIERS[0]
            hashes[band] ^= hashes[band] >> np.uint64(32)
    return hashes
