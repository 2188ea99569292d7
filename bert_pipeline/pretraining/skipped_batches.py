"""Batches whose loss or gradient was not finite, written for inspection."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bert_pipeline.examples.schema import SCHEMA
from bert_pipeline.model.unpadded_batch import PretrainingBatch
from bert_pipeline.ragged import Int64Array
from bert_pipeline.storage.atomic import atomic
from bert_pipeline.storage.shards import list_column

FOLDER = "skipped"
ROW = pa.field("row", pa.int64())


def write_skipped_batch(folder: Path, step: int, batch: PretrainingBatch, rows: Int64Array) -> Path:
    """Write the examples of step `step` (from 1) as the model saw them.

    The columns are those of the examples' shards, and `row`, which counts the training examples
    from the first row of the first shard on.
    """
    starts = batch.cu_seqlens.numpy()
    bounds = np.searchsorted(batch.masked_index.numpy(), starts)
    example_starts = np.repeat(starts[:-1], np.diff(bounds))
    columns = {
        "tokens": (batch.tokens.numpy(), starts),
        "segment_ids": (batch.segment_ids.numpy(), starts),
        "masked_positions": (batch.masked_index.numpy() - example_starts, bounds),
        "masked_labels": (batch.masked_labels.numpy(), bounds),
    }
    arrays = {
        name: list_column(values, offsets, SCHEMA.field(name).type.value_type)
        for name, (values, offsets) in columns.items()
    }
    labels = [None] * len(rows)
    if batch.is_random_next is not None:
        labels = batch.is_random_next.bool().tolist()
    arrays["is_random_next"] = pa.array(labels, pa.bool_())
    ordered = {name: arrays[name] for name in SCHEMA.names}
    table = pa.table({ROW.name: pa.array(rows, ROW.type), **ordered})
    path = folder / FOLDER / f"step-{step:08}.parquet"
    path.parent.mkdir(exist_ok=True)
    with atomic(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)
    return path
