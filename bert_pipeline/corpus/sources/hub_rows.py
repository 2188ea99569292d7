"""Files of a Hub repository as rows, streamed with `load_dataset(..., streaming=True)`.

Text and JSON lines are read one level below, from the `hf://` files that `datasets` streams from.
The JSON reader of `datasets` has no line numbers, and fails for the complete file on one bad line.
Its text reader ignores `encoding` and `encoding_errors` when streaming (datasets 5.2: `xopen` drops
them), and fails on one byte that is not valid UTF-8.
"""

import io
import json
import lzma
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, repeat
from typing import Any, TypeVar

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from huggingface_hub import constants

from bert_pipeline.corpus.documents import Document
from bert_pipeline.corpus.sources.encodings import decode_text, split_lines
from bert_pipeline.corpus.sources.error_policy import ErrorPolicy
from bert_pipeline.corpus.sources.json_lines import read_json_lines
from bert_pipeline.corpus.sources.parquet import batch_rows
from bert_pipeline.corpus.sources.plain_text import cut_line, split_documents, split_rows
from bert_pipeline.corpus.sources.rows import Row, make_documents, number_rows
from bert_pipeline.hub.client import (
    PERMANENT_ERRORS,
    TRANSIENT_ERRORS,
    Backoff,
    as_transient_error,
    connect,
    explain,
)

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdError
else:
    from backports.zstd import ZstdError

COMPRESSION_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
BATCH_ROWS = 64
BUFFER_BYTES = 1 << 20
LARGE_ROW_GROUP_BYTES = 64_000_000
"""Row groups above this size are decoded page by page.

Arrow's scanner, which `datasets` uses to read parquet, decodes the complete row group before it
returns the first row, whatever the batch size: 1.1 GB of memory for 600 MB of text, against 40 MB
page by page.
"""

DATA_ERRORS = (
    EOFError,
    OSError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
    ZstdError,
    pa.ArrowException,
)
"""Exceptions for broken files; `datasets`, pandas and `json` raise `ValueError`."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HubFileReader:
    """Reader of a repository's files at one commit; picklable, for worker processes."""

    spec: str
    repository: str
    commit: str
    language: str
    """That of all rows; empty when it is not known."""
    policy: ErrorPolicy
    max_wait: float
    quiet: bool

    def connect(self) -> None:
        """Configure the Hub libraries in this process."""
        connect(self.max_wait, self.quiet)

    def url(self, path: str) -> str:
        """The URL of a file, for messages."""
        return f"{constants.ENDPOINT}/datasets/{self.repository}/resolve/{self.commit}/{path}"

    @contextmanager
    def reading(self, path: str, counts: Counter[str]) -> Iterator[None]:
        """Hand broken data to the policy, and raise `BertpipeError` for errors of the Hub."""
        try:
            yield
        except DATA_ERRORS as error:
            # Not broken data, so never skipped. A missing revision is a `FileNotFoundError`.
            if isinstance(error, (*PERMANENT_ERRORS, FileNotFoundError, PermissionError)):
                raise explain(error, self.repository) from None
            detail = str(error).strip().partition("\n")[0] or type(error).__name__
            self.policy.handle(
                f"{self.url(path)}: broken or truncated ({detail}).", "broken_file", counts
            )

    def rows(self, path: str, builder: str, **options: Any) -> Iterator[dict[str, Any]]:
        """The rows of a file, read with a builder of `datasets`."""
        import datasets

        where: dict[str, Any] = {
            "data_files": self._location(path),
            "split": "train",
            "streaming": True,
        }
        yield from self._resume_after_errors(
            path, lambda: datasets.load_dataset(builder, **where, **options)
        )

    def text(self, path: str, counts: Counter[str]) -> Iterator[str]:
        """The decoded text of a file, plain or compressed, in pieces."""
        chunks = self._resume_after_errors(path, lambda: _read_chunks(self._location(path)))
        return decode_text(chunks, self.url(path), self.policy, counts)

    def _resume_after_errors(self, path: str, open_file: Callable[[], Iterable[T]]) -> Iterator[T]:
        """The items of a file; after a transient error it is reopened at the item reached."""
        backoff = Backoff(self.max_wait, self.quiet)
        reached = 0
        while True:
            try:
                for item in islice(open_file(), reached, None):
                    reached += 1
                    backoff.reset()
                    yield item
                return
            except TRANSIENT_ERRORS as error:
                backoff.wait(as_transient_error(error, self.url(path)))

    def columns(self, path: str) -> Iterator[tuple[Any, Any]]:
        """Text and language of the rows of a parquet file.

        Only these columns are read, because others may have unsupported types.
        """
        import datasets

        metadata = next(
            self._resume_after_errors(path, lambda: _read_metadata(self._location(path)))
        )
        schema = metadata.schema.to_arrow_schema()
        name = self.policy.choose_field(schema.names, self.url(path))
        names = [name, *filter(None, [self.policy.language_field])]
        size = batch_rows(metadata, BATCH_ROWS)
        if _largest_row_group(metadata, name) > LARGE_ROW_GROUP_BYTES:
            yield from self._resume_after_errors(
                path, lambda: _read_columns(self._location(path), names, size)
            )
            return
        scan = ds.ParquetFragmentScanOptions(
            page_checksum_verification=True,
            pre_buffer=False,
            use_buffered_stream=True,
            buffer_size=BUFFER_BYTES,
        )
        features = datasets.Features.from_arrow_schema(
            pa.schema([schema.field(name).remove_metadata() for name in names])
        )
        options = {
            "columns": names,
            "features": features,
            "batch_size": size,
            "fragment_scan_options": scan,
        }
        for row in self.rows(path, "parquet", **options):
            yield row[name], row[names[-1]] if names[1:] else None

    def _location(self, path: str) -> str:
        return f"hf://datasets/{self.repository}@{self.commit}/{path}"


@dataclass(frozen=True, slots=True)
class HubFilesTask:
    """Complete files."""

    files: HubFileReader
    paths: tuple[str, ...]

    def documents(self, counts: Counter[str]) -> Iterator[Document]:
        """Documents of the files in order; ids are `PATH#PLACE`."""
        self.files.connect()
        for path in self.paths:
            read = READERS[file_format(path)]
            with self.files.reading(path, counts):
                rows = read(self.files, path, counts)
                documents = make_documents(rows, path, self.files.spec, self.files.policy, counts)
                for document in documents:
                    yield replace(document, language=document.language or self.files.language)


def file_format(path: str) -> str:
    """The file extension without that of the compression; empty when there is no reader for it."""
    for compression in COMPRESSION_SUFFIXES:
        path = path.removesuffix(compression)
    extension = path.rpartition("/")[2].rpartition(".")[2].lower()
    return extension if extension in READERS else ""


def _read_chunks(location: str) -> Iterator[bytes]:
    """Lines, because what is read before an error must be in the same chunks the next time."""
    with fsspec.open(location, compression="infer") as raw:
        file = io.BufferedReader(raw)
        yield from iter(lambda: file.readline(BUFFER_BYTES), b"")


def _read_metadata(location: str) -> Iterator[pq.FileMetaData]:
    with fsspec.open(location) as file:
        yield pq.read_metadata(file)


def _largest_row_group(metadata: pq.FileMetaData, name: str) -> int:
    """The largest uncompressed size of the column in a row group, in bytes."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    columns = (group.column(index) for group in groups for index in range(group.num_columns))
    return max(
        (c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == name),
        default=0,
    )


def _read_columns(location: str, names: list[str], size: int) -> Iterator[tuple[Any, Any]]:
    options = {"page_checksum_verification": True, "pre_buffer": False, "buffer_size": BUFFER_BYTES}
    with fsspec.open(location) as raw, pq.ParquetFile(raw, **options) as file:
        for batch in file.iter_batches(size, columns=names, use_threads=False):
            texts = batch.column(names[0]).to_pylist()
            languages = batch.column(names[-1]).to_pylist() if names[1:] else repeat(None)
            yield from zip(texts, languages, strict=False)


def _read_parquet(files: HubFileReader, path: str, counts: Counter[str]) -> Iterator[Row]:
    rows = enumerate(files.columns(path))
    yield from split_rows(Row(str(number), text, language) for number, (text, language) in rows)


def _read_text(files: HubFileReader, path: str, counts: Counter[str]) -> Iterator[Row]:
    lines = split_lines(files.text(path, counts), cut_line)
    yield from number_rows(split_documents(lines))


def _read_json_lines(files: HubFileReader, path: str, counts: Counter[str]) -> Iterator[Row]:
    lines = split_lines(files.text(path, counts))
    yield from split_rows(read_json_lines(lines, files.url(path), files.policy, counts))


def _read_json(files: HubFileReader, path: str, counts: Counter[str]) -> Iterator[Row]:
    first = next((line for line in split_lines(files.text(path, Counter())) if line.strip()), "{}")
    try:
        is_json_lines = isinstance(json.loads(first), dict)
    except ValueError:
        is_json_lines = False
    if is_json_lines:
        yield from _read_json_lines(files, path, counts)
    else:
        yield from _read_rows(files, path, "json")


def _read_rows(files: HubFileReader, path: str, builder: str, **options: Any) -> Iterator[Row]:
    yield from split_rows(_find_fields(files, path, files.rows(path, builder, **options)))


def _find_fields(files: HubFileReader, path: str, rows: Iterable[dict[str, Any]]) -> Iterator[Row]:
    field = None
    for number, row in enumerate(rows):
        field = field or files.policy.choose_field(row, files.url(path))
        yield Row(str(number), row.get(field), row.get(files.policy.language_field or ""))


READERS: dict[str, Callable[[HubFileReader, str, Counter[str]], Iterator[Row]]] = {
    "parquet": _read_parquet,
    "jsonl": _read_json_lines,
    "ndjson": _read_json_lines,
    "json": _read_json,
    "txt": _read_text,
    "csv": lambda files, path, counts: _read_rows(files, path, "csv"),
    "tsv": lambda files, path, counts: _read_rows(files, path, "csv", sep="\t"),
    "arrow": lambda files, path, counts: _read_rows(files, path, "arrow"),
}
"""Readers by file extension."""
