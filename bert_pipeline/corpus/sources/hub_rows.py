"""Files of a hub repository as rows and documents, streamed through `datasets.load_dataset(..., streaming=True)`.

Lines of text and JSON are taken one level below, from the `hf://` files that `datasets` streams from. Its JSON reader
knows no line numbers, and one bad line costs it the file. Its text reader ignores `encoding` and `encoding_errors` when
it streams (datasets 5.2: `xopen` drops them), so one byte that is no UTF-8 does.
"""

import io
import json
import lzma
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from huggingface_hub import constants

from bert_pipeline.corpus.documents import Document
from bert_pipeline.corpus.sources.json_lines import Policy, read_json_lines
from bert_pipeline.corpus.sources.plain_text import decode, split_documents
from bert_pipeline.hub.client import (
    PASSING,
    REFUSALS,
    Backoff,
    as_transient_error,
    connect,
    explain,
)

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdError
else:
    from backports.zstd import ZstdError

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
ROWS_AT_ONCE = 64
BUFFER = 1 << 20
LARGE_GROUP = 64_000_000
"""Arrow's scanner, with which `datasets` reads parquet, decodes a whole row group for the first row of it, whatever the
batch size: 600 MB of text took 1.1 GB. Larger row groups are decoded page by page, which took 40 MB."""

DATA_ERRORS = (
    EOFError,
    OSError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
    ZstdError,
    pa.ArrowException,
)
"""What broken files raise; `ValueError` is what `datasets`, pandas and JSON say."""

T = TypeVar("T")
Numbered = Iterator[tuple[int, Any]]


@dataclass(frozen=True, slots=True)
class HubFiles:
    """How the files of one commit are read."""

    spec: str
    repository: str
    commit: str
    language: str
    policy: Policy
    max_wait: float
    quiet: bool

    def connect(self) -> None:
        """Prepare the libraries in this process."""
        connect(self.max_wait, self.quiet)

    def url(self, path: str) -> str:
        """Where a person finds the file."""
        return f"{constants.ENDPOINT}/datasets/{self.repository}/resolve/{self.commit}/{path}"

    @contextmanager
    def reading(self, path: str, counts: Counter[str]) -> Iterator[None]:
        """Tell broken data, which the policy may skip, from a hub that refuses, which it never does."""
        try:
            yield
        except DATA_ERRORS as error:
            # A revision that is gone is a `FileNotFoundError`. None of these is the data's fault, so none is skipped.
            if isinstance(error, (*REFUSALS, FileNotFoundError, PermissionError)):
                raise explain(error, self.repository) from None
            detail = str(error).strip().partition("\n")[0] or type(error).__name__
            self.policy.handle(
                f"{self.url(path)}: broken or cut off ({detail}).", "broken_file", counts
            )

    def rows(self, path: str, builder: str, **options: Any) -> Iterator[dict[str, Any]]:
        """The rows of a file by a builder of `datasets`."""
        import datasets

        where: dict[str, Any] = {
            "data_files": self._location(path),
            "split": "train",
            "streaming": True,
        }
        yield from self._steadily(path, lambda: datasets.load_dataset(builder, **where, **options))

    def lines(self, path: str) -> Iterator[bytes]:
        """The lines of a text file, plain or compressed, as the bytes that they are."""
        yield from self._steadily(path, lambda: _read_lines(self._location(path)))

    def _steadily(self, path: str, open_file: Callable[[], Iterable[T]]) -> Iterator[T]:
        """The items of a file; after a failure that passed, on from the item reached."""
        patience = Backoff(self.max_wait, self.quiet)
        reached = 0
        while True:
            try:
                for item in islice(open_file(), reached, None):
                    reached += 1
                    patience.reset()
                    yield item
                return
            except PASSING as error:
                patience.wait(as_transient_error(error, self.url(path)))

    def column(self, path: str) -> Iterator[Any]:
        """The values of a parquet file's text column, and no other's: their types may be what no reader knows."""
        import datasets

        metadata = next(self._steadily(path, lambda: _read_metadata(self._location(path))))
        schema = metadata.schema.to_arrow_schema()
        name = self.policy.choose_field(schema.names, self.url(path))
        if _largest_group(metadata, name) > LARGE_GROUP:
            yield from self._steadily(path, lambda: _read_column(self._location(path), name))
            return
        scan = ds.ParquetFragmentScanOptions(
            page_checksum_verification=True,
            pre_buffer=False,
            use_buffered_stream=True,
            buffer_size=BUFFER,
        )
        features = datasets.Features.from_arrow_schema(
            pa.schema([schema.field(name).remove_metadata()])
        )
        options = {
            "columns": [name],
            "features": features,
            "batch_size": ROWS_AT_ONCE,
            "fragment_scan_options": scan,
        }
        for row in self.rows(path, "parquet", **options):
            yield row[name]

    def _location(self, path: str) -> str:
        return f"hf://datasets/{self.repository}@{self.commit}/{path}"


@dataclass(frozen=True, slots=True)
class HubTask:
    """Some whole files, a document a row."""

    files: HubFiles
    paths: tuple[str, ...]

    def documents(self, counts: Counter[str]) -> Iterator[Document]:
        """Documents of the files in order; ids are `PATH#ROW`, both from the repository."""
        self.files.connect()
        for path in self.paths:
            read = READERS[file_format(path)]
            with self.files.reading(path, counts):
                for number, text in read(self.files, path, counts):
                    if not isinstance(text, str):
                        counts["skipped_no_text"] += 1
                    elif not text or text.isspace():
                        counts["skipped_empty"] += 1
                    else:
                        yield Document(
                            f"{path}#{number}", text, self.files.spec, self.files.language
                        )


def file_format(path: str) -> str:
    """The extension that says how a file is read, without that of its compression; empty when no reader knows it."""
    for compression in COMPRESSIONS:
        path = path.removesuffix(compression)
    extension = path.rpartition("/")[2].rpartition(".")[2].lower()
    return extension if extension in READERS else ""


def _read_lines(location: str) -> Iterator[bytes]:
    with fsspec.open(location, compression="infer") as file:
        yield from io.BufferedReader(file)


def _read_metadata(location: str) -> Iterator[pq.FileMetaData]:
    with fsspec.open(location) as file:
        yield pq.read_metadata(file)


def _largest_group(metadata: pq.FileMetaData, name: str) -> int:
    """Bytes of the column in the row group that has most of them."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    columns = (group.column(index) for group in groups for index in range(group.num_columns))
    return max(
        (c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == name),
        default=0,
    )


def _read_column(location: str, name: str) -> Iterator[Any]:
    options = {"page_checksum_verification": True, "pre_buffer": False, "buffer_size": BUFFER}
    with fsspec.open(location) as raw, pq.ParquetFile(raw, **options) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=[name], use_threads=False):
            yield from batch.column(0).to_pylist()


def _read_parquet(files: HubFiles, path: str, counts: Counter[str]) -> Numbered:
    yield from enumerate(files.column(path))


def _read_text(files: HubFiles, path: str, counts: Counter[str]) -> Numbered:
    # A lone carriage return ends a line too, as in files on disk.
    lines = (
        line for raw in files.lines(path) for line in decode(raw, counts).rstrip("\r\n").split("\r")
    )
    yield from enumerate(split_documents(lines))


def _read_json_lines(files: HubFiles, path: str, counts: Counter[str]) -> Numbered:
    yield from read_json_lines(files.lines(path), files.url(path), files.policy, counts)


def _read_json(files: HubFiles, path: str, counts: Counter[str]) -> Numbered:
    first = next((line for line in files.lines(path) if line.strip()), b"{}")
    try:
        lines = isinstance(json.loads(first), dict)
    except ValueError:
        lines = False
    yield from _read_json_lines(files, path, counts) if lines else _read_rows(files, path, "json")


def _read_rows(files: HubFiles, path: str, builder: str, **options: Any) -> Numbered:
    field = None
    for number, row in enumerate(files.rows(path, builder, **options)):
        field = field or files.policy.choose_field(row, files.url(path))
        yield number, row.get(field)


READERS: dict[str, Callable[[HubFiles, str, Counter[str]], Numbered]] = {
    "parquet": _read_parquet,
    "jsonl": _read_json_lines,
    "ndjson": _read_json_lines,
    "json": _read_json,
    "txt": _read_text,
    "csv": lambda files, path, counts: _read_rows(files, path, "csv"),
    "tsv": lambda files, path, counts: _read_rows(files, path, "csv", sep="\t"),
    "arrow": lambda files, path, counts: _read_rows(files, path, "arrow"),
}
