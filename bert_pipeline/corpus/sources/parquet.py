"""`parquet:GLOB`: one document per row."""

from collections import Counter
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.sources.encodings import decode_value
from bert_pipeline.corpus.sources.error_policy import ErrorPolicy
from bert_pipeline.corpus.sources.files import (
    FileSource,
    FilesTask,
    handle_broken_file,
)
from bert_pipeline.corpus.sources.plain_text import split_rows
from bert_pipeline.corpus.sources.rows import Row
from bert_pipeline.errors import BertpipeError

_BATCH_ROWS = 256
_BATCH_BYTES = 16_000_000


def open_source(spec: str, config: CorpusConfig) -> FileSource:
    """The parquet files that match the pattern in `spec`."""
    return FileSource(spec, read_rows)


def read_rows(path: Path, task: FilesTask, counts: Counter[str]) -> Iterator[Row]:
    """The documents of one file."""
    with handle_broken_file(path, task.policy, counts):
        rows = read_parquet(path, task.policy, counts)
        yield from split_rows(rows, str(path), task.policy, counts)


def read_parquet(path: Path, policy: ErrorPolicy, counts: Counter[str]) -> Iterator[Row]:
    """The rows by their numbers. Raises `BertpipeError` when the column is not text."""
    # Opened here because Arrow accepts only file names that are UTF-8.
    with path.open("rb") as raw, pq.ParquetFile(raw, page_checksum_verification=True) as file:
        schema = file.schema_arrow
        field = policy.choose_field(schema.names, str(path))
        kinds = [column.type for column in schema if column.name == field]
        if len(kinds) > 1 or not _holds_text(kinds[0]):
            raise BertpipeError(
                f"{path}: column {field} has type {' and '.join(map(str, kinds))}, not string; "
                f"columns: {', '.join(schema.names)}. Choose one with --text-field."
            )
        columns = [field, *filter(None, [policy.language_field])]
        yield from _read_columns(file, columns, counts)


def _read_columns(file: pq.ParquetFile, columns: list[str], counts: Counter[str]) -> Iterator[Row]:
    """Rows of a text column, and of a column of languages if there are two."""
    number = 0
    for batch in file.iter_batches(batch_rows(file.metadata, _BATCH_ROWS), columns=columns):
        texts = _as_bytes(batch.column(columns[0])).to_pylist()
        languages = batch.column(columns[-1]).to_pylist() if columns[1:] else repeat(None)
        for raw, language in zip(texts, languages, strict=False):
            text = raw if raw is None else decode_value(raw, counts)
            yield Row(str(number), text, language)
            number += 1


def batch_rows(metadata: pq.FileMetaData, most: int) -> int:
    """Rows to read at once: fewer than `most` when the rows are long."""
    row_bytes = sum(
        metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)
    ) / max(1, metadata.num_rows)
    return int(min(most, max(1, _BATCH_BYTES / max(1, row_bytes))))


def find_share(metadata: pq.FileMetaData, names: list[str]) -> float:
    """The share of the columns in the compressed size of all columns."""
    sizes: Counter[bool] = Counter()
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            is_read = column.path_in_schema.split(".")[0] in names
            sizes[is_read] += column.total_compressed_size
    return sizes[True] / max(sizes.total(), 1)


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
