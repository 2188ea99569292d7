"""Shards: parquet files written whole or not at all, with page checksums, and with their counts in the footer."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bert_pipeline.errors import BertpipeError
from bert_pipeline.ragged import Array, Int64Array
from bert_pipeline.storage.atomic import atomic

COUNTS = b"bertpipe.counts"


def write_shard(
    path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], count: Callable[[], Any]
) -> None:
    """Write `batches` as one parquet file; `count()` is called after the last batch and stored in the footer."""
    with (
        atomic(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)
        writer.add_key_value_metadata({COUNTS: json.dumps(count(), sort_keys=True)})


def finished_counts(path: Path) -> dict[str, Any] | None:
    """The counts of a finished shard; None when it has still to be written."""
    if not path.is_file():
        return None
    try:
        counts: dict[str, Any] = json.loads(pq.read_metadata(path).metadata[COUNTS])
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError):
        return None  # not ours or damaged: it is written again
    return counts


def list_column(
    values: Array, offsets: Int64Array, value_type: pa.DataType | None = None
) -> pa.Array:
    """A column of lists from flat arrays: row r is `values[offsets[r]:offsets[r + 1]]`."""
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, value_type))


def read_columns(path: Path, columns: list[str]) -> pa.Table:
    """Read columns of a shard, checking every page against its checksum."""
    with _naming_damage(path):
        return pq.read_table(path, columns=columns, page_checksum_verification=True)


def count_rows(path: Path) -> int:
    """Number of rows of a shard."""
    with _naming_damage(path):
        return int(pq.read_metadata(path).num_rows)


def iterate_rows(paths: Iterable[Path], columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Rows of some columns, file by file, a batch in memory at a time; every page is checked."""
    for path in paths:
        yield from iterate_range(path, columns, 0, count_rows(path))


def iterate_columns(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of one shard, all columns by name."""
    with _naming_damage(path):
        names: list[str] = pq.read_schema(path).names
    for row in iterate_rows([path], names):
        yield dict(zip(names, row, strict=True))


def iterate_range(
    path: Path, columns: list[str], first: int, end: int
) -> Iterator[tuple[Any, ...]]:
    """Rows `first`..`end - 1` of one shard; row groups that hold none of them are not read."""
    with _naming_damage(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        groups: list[int] = []
        before = at = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if at < end and at + rows > first:
                before = before if groups else first - at
                groups.append(group)
            at += rows
        wanted = end - first
        for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=columns):
            if wanted <= 0:
                return
            part = batch.slice(min(before, batch.num_rows), wanted)
            before = max(0, before - batch.num_rows)
            wanted -= part.num_rows
            yield from zip(*(part.column(name).to_pylist() for name in columns), strict=True)


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BertpipeError(
            f"{path}: damaged ({detail}). Make its folder again with --overwrite."
        ) from None
