"""`parquet:GLOB`: one document per row."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.documents import Row, number_rows
from bert_pipeline.corpus.sources.encodings import decode_value
from bert_pipeline.corpus.sources.files import (
    FileSource,
    FilesTask,
    handle_broken_file,
)
from bert_pipeline.corpus.sources.plain_text import split_rows
from bert_pipeline.errors import BertpipeError

_BATCH_ROWS = 256
_BATCH_BYTES = 16_000_000


def open_source(spec: str, config: CorpusConfig) -> FileSource:
    """The parquet files that match the pattern in `spec`."""
    return FileSource(spec, read_rows)


def read_rows(path: Path, task: FilesTask, counts: Counter[str]) -> Iterator[Row]:
    """The rows of one file. Raises `BertpipeError` when the column is not text."""
    # Opened here because Arrow accepts only file names that are UTF-8.
    with (
        handle_broken_file(path, task.policy, counts),
        path.open("rb") as raw,
        pq.ParquetFile(raw, page_checksum_verification=True) as file,
    ):
        schema = file.schema_arrow
        field = task.policy.choose_field(schema.names, str(path))
        kinds = [column.type for column in schema if column.name == field]
        if len(kinds) > 1 or not _holds_text(kinds[0]):
            raise BertpipeError(
                f"{path}: column {field} has type {' and '.join(map(str, kinds))}, not string; "
                f"columns: {', '.join(schema.names)}. Choose one with --text-field."
            )
        yield from split_rows(number_rows(_read_column(file, field, counts)))


def _read_column(file: pq.ParquetFile, field: str, counts: Counter[str]) -> Iterator[str | None]:
    for batch in file.iter_batches(
        batch_size=batch_rows(file.metadata, _BATCH_ROWS), columns=[field]
    ):
        for value in _as_bytes(batch.column(0)).to_pylist():
            yield value if value is None else decode_value(value, counts)


def batch_rows(metadata: pq.FileMetaData, most: int) -> int:
    """Rows to read at once: fewer than `most` when the rows are long."""
    row_bytes = sum(
        metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)
    ) / max(1, metadata.num_rows)
    return int(min(most, max(1, _BATCH_BYTES / max(1, row_bytes))))


def _as_bytes(column: pa.Array) -> pa.Array:
    """A text column as bytes, because Arrow does not check that they are valid UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.large_binary())


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_null(kind)
        or kind == pa.string_view()
    )
