"""Batches that gave no finite loss or gradient, kept for people to look at."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bert_pipeline.examples.schema import SCHEMA
from bert_pipeline.model.unpadded_batch import UnpaddedBatch
from bert_pipeline.ragged import Int64Array
from bert_pipeline.storage.atomic import atomic

FOLDER = "skipped"
ROW = pa.field("row", pa.int64())


def write_aside(folder: Path, step: int, batch: UnpaddedBatch, rows: Int64Array) -> Path:
    """Write the examples of step `step` (from 1) as the model saw them, with the columns of the examples' shards.

    `row` counts the training examples from the first shard's first row on.
    """
    starts = batch.cu_seqlens.numpy()
    bounds = np.searchsorted(batch.masked_index.numpy(), starts)
    first_of_mask = np.repeat(starts[:-1], np.diff(bounds))

    def lists(values: np.ndarray, offsets: np.ndarray, kind: pa.DataType) -> pa.Array:
        return pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()), pa.array(values, kind.value_type)
        )

    columns = {
        "tokens": (batch.tokens.numpy(), starts),
        "segment_ids": (batch.segment_ids.numpy(), starts),
        "masked_positions": (batch.masked_index.numpy() - first_of_mask, bounds),
        "masked_labels": (batch.masked_labels.numpy(), bounds),
    }
    arrays = {name: lists(*columns[name], SCHEMA.field(name).type) for name in columns}
    is_random = batch.is_random_next
    arrays["is_random_next"] = pa.array(
        [None] * len(rows) if is_random is None else is_random.bool().tolist(), pa.bool_()
    )
    table = pa.table(
        {ROW.name: pa.array(rows, ROW.type), **{name: arrays[name] for name in SCHEMA.names}}
    )
    path = folder / FOLDER / f"step-{step:08}.parquet"
    path.parent.mkdir(exist_ok=True)
    with atomic(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)
    return path
