"""Array types, and ragged arrays: lists of different lengths, stored as flat arrays.

A ragged array is the values of all lists end to end, and the offset where each list begins.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def offsets_of(lengths: npt.NDArray[np.generic]) -> Int64Array:
    """Where each list begins, and where the last one ends; int64 of shape (lists + 1,)."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def expand(starts: Int64Array, lengths: Int64Array) -> Int64Array:
    """The indices `start`, `start + 1`, … of each list, end to end.

    Returns int64 of shape (sum of lengths,).
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    indices: Int64Array = np.arange(total) + np.repeat(starts - ends + lengths, lengths)
    return indices
