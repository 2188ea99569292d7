"""Files on disk as a source: plain text, JSON lines and parquet, plain or compressed."""

import bz2
import glob
import gzip
import io
import lzma
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.documents import Document, Task, shuffled
from bert_pipeline.corpus.sources.json_lines import Policy, read_json_lines
from bert_pipeline.corpus.sources.plain_text import decode, split_documents
from bert_pipeline.errors import BertpipeError
from bert_pipeline.storage.atomic import hash_file, hash_json

COMPRESSIONS = {
    "gzip": ((".gz", ".gzip"), b"\x1f\x8b"),
    "zstd": ((".zst", ".zstd"), b"\x28\xb5\x2f\xfd"),
    "bz2": ((".bz2",), b"BZh"),
    "xz": ((".xz",), b"\xfd7zXZ\x00"),
}
"""Endings of names, and the bytes that a file begins with."""


@dataclass(frozen=True, slots=True)
class FilesTask:
    """Some whole files of one kind."""

    spec: str
    base: Path
    files: tuple[Path, ...]
    language: str
    policy: Policy

    def documents(self, counts: Counter[str]) -> Iterator[Document]:
        """Documents of the files in order; ids are `FILE#NUMBER`."""
        read = READERS[self.spec.partition(":")[0]]
        for file in self.files:
            # A file's name may be bytes of no encoding; an id is text.
            name = os.fsencode(os.path.relpath(file, self.base)).decode("utf-8", "replace")
            for number, text in enumerate(read(file, self, counts)):
                if text and not text.isspace():
                    yield Document(f"{name}#{number}", text, self.spec, self.language)
                else:
                    counts["skipped_empty"] += 1


class FileSource:
    """Files that match a pattern."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        pattern = os.path.expanduser(spec.partition(":")[2])  # noqa: PTH111 (Path's fails where there is no such user)
        # Not Path.glob: a pattern may be absolute, or a plain path with no wildcard.
        found = [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207
        self.files = sorted(path for path in found if path.is_file())
        if not self.files:
            problem = "is a folder" if any(path.is_dir() for path in found) else "matches no file"
            raise BertpipeError(
                f"--source {spec}: {pattern} {problem}. Give a pattern such as 'DIR/**/*.txt'."
            )
        self.base = Path(re.split(r"[*?\[]", pattern, maxsplit=1)[0] + "x").parent

    def fingerprint(self) -> str:
        """A hash of the files' names and contents."""
        return hash_json([(os.path.relpath(file, self.base), _hash(file)) for file in self.files])

    def tasks(self, config: CorpusConfig) -> list[Task]:
        """Consecutive files up to the shard size; a larger file is a shard of its own."""
        groups: list[list[Path]] = []
        room = 0.0
        for file in shuffled(self.files, config):
            size = file.stat().st_size
            if not groups or size > room:
                groups.append([])
                room = config.shard_mb * 1e6
            groups[-1].append(file)
            room -= size
        policy = Policy.of(
            config, "Mend or remove it, or leave such things out with --on-error skip."
        )
        return [
            FilesTask(self.spec, self.base, tuple(group), config.language, policy)
            for group in groups
        ]

    def describe(self) -> dict[str, Any]:
        """How many files, and their size on disk."""
        return {
            "files": len(self.files),
            "bytes_on_disk": sum(file.stat().st_size for file in self.files),
        }


def read_text(path: Path, task: FilesTask, counts: Counter[str]) -> Iterator[str]:
    """Documents of a plain text file."""
    with _reading(path, task, counts), _open(path) as file:
        # A lone carriage return ends a line too: old files, and logs of progress bars.
        lines = (line for raw in file for line in decode(raw, counts).rstrip("\r\n").split("\r"))
        yield from split_documents(lines)


def read_jsonl(path: Path, task: FilesTask, counts: Counter[str]) -> Iterator[str]:
    """One document a line of JSON objects."""
    with _reading(path, task, counts), _open(path) as file:
        for _, value in read_json_lines(file, str(path), task.policy, counts):
            if (text := _accept(value, counts)) is not None:
                yield text


def read_parquet(path: Path, task: FilesTask, counts: Counter[str]) -> Iterator[str]:
    """One document a row of a parquet file."""
    # Opened here: Arrow takes no name that is not UTF-8.
    with (
        _reading(path, task, counts),
        path.open("rb") as raw,
        pq.ParquetFile(raw, page_checksum_verification=True) as file,
    ):
        schema = file.schema_arrow
        field = task.policy.choose_field(schema.names, str(path))
        kinds = [column.type for column in schema if column.name == field]
        if len(kinds) > 1 or not _holds_text(kinds[0]):
            raise BertpipeError(
                f"{path}: column {field} holds {' and '.join(map(str, kinds))}, not one text; the columns are: "
                f"{', '.join(schema.names)}. Choose one with --text-field."
            )
        for batch in file.iter_batches(batch_size=256, columns=[field]):
            for value in _as_bytes(batch.column(0)).to_pylist():
                if (
                    text := _accept(value if value is None else decode(value, counts), counts)
                ) is not None:
                    yield text


READERS: dict[str, Callable[[Path, FilesTask, Counter[str]], Iterator[str]]] = {
    "text": read_text,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
}


@contextmanager
def _reading(path: Path, task: FilesTask, counts: Counter[str]) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError, pa.ArrowException, zlib.error, lzma.LZMAError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        task.policy.handle(f"{path}: broken or cut off ({detail}).", "broken_file", counts)


def _hash(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise BertpipeError(
            f"{path}: cannot be read ({error.strerror}). Leave it out of the pattern."
        ) from None


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as raw:
        start = raw.read(6)
        raw.seek(0)
        # By the name, that a file which lost its beginning is broken and no text; by the content, whatever the name.
        named = (
            kind
            for kind, (suffixes, _) in COMPRESSIONS.items()
            if path.name.lower().endswith(suffixes)
        )
        begun = (kind for kind, (_, magic) in COMPRESSIONS.items() if start.startswith(magic))
        kind = next(named, None) or next(begun, None)
        if kind is None:
            yield raw
        elif kind == "zstd":
            with io.BufferedReader(pa.input_stream(raw, compression="zstd")) as file:
                yield file
        else:
            with {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}[kind](raw) as file:  # type: ignore[operator]
                yield file


def _as_bytes(column: pa.Array) -> pa.Array:
    """A column of text as the bytes that it is: whether they are UTF-8, Arrow does not look."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.large_binary())


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        test(kind)
        for test in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_null,
            _is_string_view,
        )
    )


def _is_string_view(kind: pa.DataType) -> bool:
    return bool(kind == pa.string_view())


def _accept(value: object, counts: Counter[str]) -> str | None:
    if isinstance(value, str):
        return value
    counts["skipped_no_text"] += 1
    return None
