"""Lists of different lengths as flat arrays: all values end to end, and the offsets where each list begins."""

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def offsets_of(lengths: npt.NDArray[np.generic]) -> Integers:
    """Where each list begins, and where the last one ends; int64 of shape (lists + 1,)."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def expand(starts: Integers, lengths: Integers) -> Integers:
    """The places `start`, `start + 1`, … of each list, end to end; int64 of shape (sum of lengths,)."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    places: Integers = np.arange(total) + np.repeat(starts - ends + lengths, lengths)
    return places
