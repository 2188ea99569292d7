"""Shards: parquet files written whole or not at all, with page checksums, and with their counts in the footer."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bert_pipeline.artifact import atomic
from bert_pipeline.errors import BertpipeError

COUNTS = b"bertpipe.counts"


def write_shard(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], count: Callable[[], Any]) -> None:
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


def read_columns(path: Path, columns: list[str]) -> pa.Table:
    """Read columns of a shard, checking every page against its checksum."""
    with _naming_damage(path):
        return pq.read_table(path, columns=columns, page_checksum_verification=True)


def iterate_rows(paths: Iterable[Path], columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Rows of some columns, file by file, a batch in memory at a time; every page is checked."""
    for path in paths:
        with _naming_damage(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=256, columns=columns):
                yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BertpipeError(f"{path}: damaged ({detail}). Make its folder again with --overwrite.") from None
