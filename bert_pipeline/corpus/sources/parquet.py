"""`parquet:GLOB`: one document per row."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.sources.encodings import decode_value
from bert_pipeline.corpus.sources.files import (
    FileSource,
    FilesTask,
    accept_text,
    handle_broken_file,
)
from bert_pipeline.errors import BertpipeError

_BATCH_ROWS = 256


def open_source(spec: str, config: CorpusConfig) -> FileSource:
    """The parquet files that match the pattern in `spec`."""
    return FileSource(spec, read_documents)


def read_documents(path: Path, task: FilesTask, counts: Counter[str]) -> Iterator[str]:
    """The text of each row of one file. Raises `BertpipeError` when the column is not text."""
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
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[field]):
            for raw_text in _as_bytes(batch.column(0)).to_pylist():
                value = raw_text if raw_text is None else decode_value(raw_text, counts)
                if (text := accept_text(value, counts)) is not None:
                    yield text


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
