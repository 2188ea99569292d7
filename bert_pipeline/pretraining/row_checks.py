"""Checks of the rows of examples, before training reads them."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bert_pipeline.errors import BertpipeError
from bert_pipeline.ragged import Array, BoolArray, Int64Array, expand

if TYPE_CHECKING:
    from bert_pipeline.pretraining.memmap_rows import RaggedColumn, SplitFiles


def check_rows(
    path: Path,
    files: "SplitFiles",
    tokens: "RaggedColumn",
    segment_ids: Array,
    first_segment: Int64Array,
    positions: "RaggedColumn",
    labels: "RaggedColumn",
) -> None:
    """Reject rows that would fail, or be misread, during training."""
    lengths = np.diff(tokens.offsets)
    masked = np.diff(positions.offsets)
    rows = np.arange(len(lengths) + 1)

    def reject_if(wrong: BoolArray, offsets: Int64Array, why: str) -> None:
        if wrong.any():
            row = int(np.searchsorted(offsets, wrong.argmax(), side="right")) - 1
            raise _invalid_row(path, row, why)

    reject_if(
        lengths > files.max_seq_length,
        rows,
        f"longer than its folder's {files.max_seq_length} tokens",
    )
    for ids in (tokens, labels):
        unknown = (ids.values < 0) | (ids.values >= files.vocab_size)
        reject_if(
            unknown,
            ids.offsets,
            f"has a token id outside of the model's vocabulary of {files.vocab_size}",
        )
    second = expand(np.zeros_like(lengths), lengths) >= np.repeat(first_segment, lengths)
    reject_if(segment_ids != second, tokens.offsets, "its segment ids are not 0, then 1")
    differs = masked != np.diff(labels.offsets)
    reject_if(differs, rows, "has different numbers of masked labels and positions")
    outside = (positions.values < 0) | (positions.values >= np.repeat(lengths, masked))
    reject_if(outside, positions.offsets, "has a masked position outside of its tokens")


def number_sources(path: Path, files: "SplitFiles", sources: pa.ChunkedArray) -> Array:
    """The number of each row's source; rejects a source that the folder does not list."""
    known = pa.array(files.sources, pa.string())
    numbers = pc.index_in(sources.cast(pa.string()), value_set=known)
    if numbers.null_count:
        row = pc.index(numbers.is_null(), True).as_py()
        raise _invalid_row(path, row, "its source is none of its folder's")
    found: Array = numbers.to_numpy()
    return found


def _invalid_row(path: Path, row: int, why: str) -> BertpipeError:
    return BertpipeError(
        f"{path}, row {row}: {why}. Run `bertpipe examples` again with --overwrite."
    )
