"""Shards: parquet files, written atomically, with page checksums and counts in the footer."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bert_pipeline.errors import BertpipeError
from bert_pipeline.ragged import Array, Int64Array
from bert_pipeline.storage.atomic import checked, is_intact

COUNTS = b"bertpipe.counts"
"""Key of the counts in the footer."""


def write_shard(
    path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], count: Callable[[], Any]
) -> None:
    """Write `batches` as one parquet file, with the result of `count()` in the footer.

    Its hash is recorded (`checked`), so that a resumed run can trust it. `count` is called after
    the last batch, and returns a JSON value.
    """
    with (
        checked(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)
        writer.add_key_value_metadata({COUNTS: json.dumps(count(), sort_keys=True)})


def finished_counts(path: Path) -> dict[str, Any] | None:
    """The counts of a finished shard of an unfinished artifact; None when it must be written."""
    if not is_intact(path):
        return None
    try:
        counts: dict[str, Any] = json.loads(pq.read_metadata(path).metadata[COUNTS])
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError):
        return None  # not a shard of bertpipe: it is written again
    return counts


def list_column(
    values: Array, offsets: Int64Array, value_type: pa.DataType | None = None
) -> pa.Array:
    """A column of lists from flat arrays: row r is `values[offsets[r]:offsets[r + 1]]`."""
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, value_type))


def read_columns(path: Path, columns: list[str]) -> pa.Table:
    """Read columns of a shard; raises `BertpipeError` when a page does not match its checksum."""
    with _explain_damage(path):
        return pq.read_table(path, columns=columns, page_checksum_verification=True)


def count_rows(path: Path) -> int:
    """The number of rows of a shard."""
    with _explain_damage(path):
        return int(pq.read_metadata(path).num_rows)


def iterate_rows(paths: Iterable[Path], columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Rows of some columns of several shards, with one batch in memory and checked pages."""
    for path in paths:
        yield from iterate_range(path, columns, 0, count_rows(path))


def iterate_columns(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of one shard as mappings of all columns."""
    with _explain_damage(path):
        names: list[str] = pq.read_schema(path).names
    for row in iterate_rows([path], names):
        yield dict(zip(names, row, strict=True))


def iterate_range(
    path: Path, columns: list[str], first: int, end: int
) -> Iterator[tuple[Any, ...]]:
    """Rows `first`..`end - 1` of one shard; other row groups are not read."""
    with _explain_damage(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        groups: list[int] = []
        before = 0  # rows to skip in the first of the groups
        at = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if at < end and at + rows > first:
                before = before if groups else first - at
                groups.append(group)
            at += rows
        left = end - first
        for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=columns):
            if left <= 0:
                return
            part = batch.slice(min(before, batch.num_rows), left)
            before = max(0, before - batch.num_rows)
            left -= part.num_rows
            yield from zip(*(part.column(name).to_pylist() for name in columns), strict=True)


@contextmanager
def _explain_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BertpipeError(
            f"{path}: damaged ({detail}). Rebuild its folder with --overwrite."
        ) from None
