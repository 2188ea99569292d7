"""Files of a Hub repository as rows, streamed from the `hf://` files of `huggingface_hub`.

JSON and Arrow are read with `load_dataset(..., streaming=True)`, the other formats one level below,
where the bytes can be compared with the hash of the file. The JSON reader of `datasets` has no line
numbers, and fails for the complete file on one bad line. Its text reader ignores `encoding` and
`encoding_errors` when streaming (datasets 5.2: `xopen` drops them), and fails on one byte that is
not valid UTF-8.
"""

import io
import json
import lzma
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any, TypeVar

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.compression import compr  # type: ignore[import-untyped]
from fsspec.utils import infer_compression  # type: ignore[import-untyped]

from bert_pipeline.corpus.documents import Document
from bert_pipeline.corpus.sources.delimited import read_delimited
from bert_pipeline.corpus.sources.encodings import decode_text, split_lines
from bert_pipeline.corpus.sources.error_policy import ErrorPolicy
from bert_pipeline.corpus.sources.json_lines import read_json_lines
from bert_pipeline.corpus.sources.parquet import batch_rows, find_share
from bert_pipeline.corpus.sources.plain_text import cut_line, split_documents, split_rows
from bert_pipeline.corpus.sources.rows import Row, make_documents, number_rows
from bert_pipeline.hub.checked_files import ChangedOnTheWay, CheckedFile, SpooledFile
from bert_pipeline.hub.client import (
    PERMANENT_ERRORS,
    TRANSIENT_ERRORS,
    Backoff,
    as_transient_error,
    connect,
    explain,
)
from bert_pipeline.hub.credentials import hide_password, shown_endpoint
from bert_pipeline.storage.atomic import explain_full_disk

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdError
else:
    from backports.zstd import ZstdError

COMPRESSION_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
BATCH_ROWS = 64
BUFFER_BYTES = 1 << 20
MIN_CHECKED_SHARE = 0.5
"""Share of the text in a parquet file from which the complete file is downloaded and checked.

Of other files, such as those with images, only the pages of the text are downloaded.
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
        return f"{shown_endpoint()}/datasets/{self.repository}/resolve/{self.commit}/{path}"

    @contextmanager
    def reading(self, path: str, counts: Counter[str]) -> Iterator[None]:
        """Hand broken data to the policy, and raise `BertpipeError` for errors of the Hub."""
        try:
            yield
        except (*PERMANENT_ERRORS, FileNotFoundError, PermissionError) as error:
            # Not broken data, so never skipped. A missing revision is a `FileNotFoundError`.
            raise explain(error, self.repository) from None
        except DATA_ERRORS as error:
            first_line = str(error).strip().partition("\n")[0]
            detail = hide_password(first_line) or type(error).__name__
            self.policy.handle(
                f"{self.url(path)}: broken or truncated ({detail}).", "broken_file", counts
            )

    def rows(self, path: str, builder: str) -> Iterator[dict[str, Any]]:
        """The rows of a file, read with a builder of `datasets`."""
        import datasets

        where: dict[str, Any] = {
            "data_files": self._location(path),
            "split": "train",
            "streaming": True,
        }
        yield from self._resume_after_errors(path, lambda: datasets.load_dataset(builder, **where))

    def text(self, path: str, counts: Counter[str]) -> Iterator[str]:
        """The decoded text of a file, plain or compressed, in pieces."""
        chunks = self._resume_after_errors(path, lambda: self._read_chunks(path))
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

        Only these columns are decoded, because others may have unsupported types.
        """
        metadata = next(self._resume_after_errors(path, lambda: self._read_metadata(path)))
        fields = metadata.schema.to_arrow_schema().names
        name = self.policy.choose_field(fields, self.url(path))
        names = [name, *filter(None, [self.policy.language_field])]
        yield from self._resume_after_errors(
            path, lambda: self._read_columns(path, metadata, names)
        )

    def _read_columns(
        self, path: str, metadata: pq.FileMetaData, names: list[str]
    ) -> Iterator[tuple[Any, Any]]:
        if find_share(metadata, names) < MIN_CHECKED_SHARE:
            with fsspec.open(self._location(path)) as raw:
                yield from _read_batches(raw, metadata, names)
            return
        with self._open_spooled(path) as file:
            yield from _read_batches(file, metadata, names)
            file.complete()
            if not pq.read_metadata(file).equals(metadata):
                raise ChangedOnTheWay(self.url(path))

    def _read_metadata(self, path: str) -> Iterator[pq.FileMetaData]:
        try:
            with fsspec.open(self._location(path)) as raw:
                metadata = pq.read_metadata(raw)
        except (*TRANSIENT_ERRORS, *PERMANENT_ERRORS):
            raise
        except DATA_ERRORS:
            # Broken on the Hub, or changed on the way? Only the complete file has a hash.
            with self._open_spooled(path) as file:
                file.complete()
                metadata = pq.read_metadata(file)
        yield metadata

    @contextmanager
    def _open_spooled(self, path: str) -> Iterator[SpooledFile]:
        """The same as `_open_checked`, with random access."""
        with (
            explain_full_disk(Path(tempfile.gettempdir())),
            self._open_checked(path) as checked,
            closing(SpooledFile(checked)) as file,
        ):
            yield file

    @contextmanager
    def _open_checked(self, path: str) -> Iterator[CheckedFile]:
        """A file whose hash is compared at its end, or when its data is broken."""
        with fsspec.open(self._location(path)) as raw:
            file = CheckedFile(raw, self.url(path))
            try:
                yield file
            except (*TRANSIENT_ERRORS, *PERMANENT_ERRORS):
                raise
            except DATA_ERRORS:
                file.check()
                raise
            file.check()

    def _read_chunks(self, path: str) -> Iterator[bytes]:
        """Lines, because what is read before an error must be in the same chunks the next time."""
        compression = infer_compression(path)
        with self._open_checked(path) as raw:
            plain = compr[compression](raw, mode="rb") if compression else raw
            file = io.BufferedReader(plain)
            yield from iter(lambda: file.readline(BUFFER_BYTES), b"")

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


def _read_batches(
    file: Any, metadata: pq.FileMetaData, names: list[str]
) -> Iterator[tuple[Any, Any]]:
    """Rows, decoded page by page, so that memory does not grow with the size of row groups."""
    options = {"page_checksum_verification": True, "pre_buffer": False, "buffer_size": BUFFER_BYTES}
    size = batch_rows(metadata, BATCH_ROWS)
    with pq.ParquetFile(file, metadata=metadata, **options) as parquet:
        for batch in parquet.iter_batches(size, columns=names, use_threads=False):
            texts = batch.column(names[0]).to_pylist()
            languages = batch.column(names[-1]).to_pylist() if names[1:] else repeat(None)
            yield from zip(texts, languages, strict=False)


def _read_parquet(files: HubFileReader, path: str, counts: Counter[str]) -> Iterator[Row]:
    rows = enumerate(files.columns(path))
    found = (Row(str(number), text, language) for number, (text, language) in rows)
    yield from split_rows(found, files.url(path), files.policy, counts)


def _read_text(files: HubFileReader, path: str, counts: Counter[str]) -> Iterator[Row]:
    lines = split_lines(files.text(path, counts), cut_line)
    yield from number_rows(split_documents(lines))


def _read_json_lines(files: HubFileReader, path: str, counts: Counter[str]) -> Iterator[Row]:
    lines = split_lines(files.text(path, counts))
    rows = read_json_lines(lines, files.url(path), files.policy, counts)
    yield from split_rows(rows, files.url(path), files.policy, counts)


def _read_delimited(
    kind: str, files: HubFileReader, path: str, counts: Counter[str]
) -> Iterator[Row]:
    lines = split_lines(files.text(path, counts))
    rows = read_delimited(lines, kind, files.url(path), files.policy, counts)
    yield from split_rows(rows, files.url(path), files.policy, counts)


def _read_json(files: HubFileReader, path: str, counts: Counter[str]) -> Iterator[Row]:
    first = next((line for line in split_lines(files.text(path, Counter())) if line.strip()), "{}")
    try:
        is_json_lines = isinstance(json.loads(first), dict)
    except ValueError:
        is_json_lines = False
    if is_json_lines:
        yield from _read_json_lines(files, path, counts)
    else:
        yield from _read_rows(files, path, counts, "json")


def _read_rows(
    files: HubFileReader, path: str, counts: Counter[str], builder: str
) -> Iterator[Row]:
    rows = _find_fields(files, path, files.rows(path, builder))
    yield from split_rows(rows, files.url(path), files.policy, counts)


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
    "csv": partial(_read_delimited, "csv"),
    "tsv": partial(_read_delimited, "tsv"),
    "arrow": lambda files, path, counts: _read_rows(files, path, counts, "arrow"),
}
"""Readers by file extension."""
