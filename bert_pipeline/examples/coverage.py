"""How much of the training text reaches an example.

A token counts as used if at least one example of any pass has it in a segment from its own
document. Random second sentences do not count: they come from any piece of the corpus, and would
have to be recorded for all pieces in every shard.

Each pass over a piece leaves one bit for each token of the piece in the token store, written before
its shard of examples. So the share is exact, also after a run was killed and resumed.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from bert_pipeline.examples.segments import Segments
from bert_pipeline.storage.atomic import save_array

Bits = npt.NDArray[np.uint8]


def coverage_path(store: Path, shard: int) -> Path:
    """The file of the tokens that one shard of training examples uses."""
    return store / f"used-{shard:05}.npy"


def save_coverage(path: Path, segments: Segments, tokens: int) -> None:
    """Record which of a piece's tokens the segments use; segments beyond are random sentences."""
    own = segments.start < tokens
    start = segments.start[own]
    changes = np.bincount(start, minlength=tokens + 1)
    changes -= np.bincount(start + segments.length[own], minlength=tokens + 1)
    save_array(path, np.packbits(np.cumsum(changes[:-1]) > 0))


def count_covered(store: Path, shards: range) -> int:
    """The number of tokens of one piece that some of its shards, one per pass, use."""
    first, *others = shards
    covered: Bits = np.load(coverage_path(store, first), allow_pickle=False)
    for shard in others:
        covered |= np.load(coverage_path(store, shard), allow_pickle=False)
    return int(np.bitwise_count(covered).sum())
