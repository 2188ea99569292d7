"""Files on disk as a source: plain text, JSON lines and parquet, plain or compressed."""

import glob
import gzip
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from bert_pipeline.artifact import hash_file, hash_json
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.documents import Document, Task
from bert_pipeline.corpus.text import decode, split_documents
from bert_pipeline.errors import BertpipeError

TEXT_FIELDS = ("text", "content")


@dataclass(frozen=True, slots=True)
class FilesTask:
    """Some whole files of one kind."""

    spec: str
    base: Path
    files: tuple[Path, ...]
    text_field: str | None
    language: str
    on_error: str

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

    def handle(self, problem: str, reason: str, counts: Counter[str]) -> None:
        """Fail with the problem, or count it, as the policy says."""
        if self.on_error == "fail":
            raise BertpipeError(f"{problem} Mend or remove it, or leave such things out with --on-error skip.")
        counts[f"skipped_{reason}"] += 1


class FileSource:
    """Files that match a pattern."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        pattern = str(Path(spec.partition(":")[2]).expanduser())
        # Not Path.glob: a pattern may be absolute, or a plain path with no wildcard.
        found = [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207
        self.files = sorted(path for path in found if path.is_file())
        if not self.files:
            problem = "is a folder" if found else "matches no file"
            raise BertpipeError(f"--source {spec}: {pattern} {problem}. Give a pattern such as 'DIR/**/*.txt'.")
        self.base = Path(re.split(r"[*?\[]", pattern, maxsplit=1)[0] + "x").parent

    def fingerprint(self) -> str:
        """A hash of the files' names and contents."""
        return hash_json([(os.path.relpath(file, self.base), hash_file(file)) for file in self.files])

    def tasks(self, config: CorpusConfig) -> list[Task]:
        """Consecutive files up to the shard size; a larger file is a shard of its own."""
        groups: list[list[Path]] = []
        room = 0.0
        for file in self.files:
            size = file.stat().st_size
            if not groups or size > room:
                groups.append([])
                room = config.shard_mb * 1e6
            groups[-1].append(file)
            room -= size
        return [
            FilesTask(self.spec, self.base, tuple(group), config.text_field, config.language, config.on_error)
            for group in groups
        ]

    def describe(self) -> dict[str, Any]:
        """How many files, and their size on disk."""
        return {"files": len(self.files), "bytes_on_disk": sum(file.stat().st_size for file in self.files)}


def read_text(path: Path, task: FilesTask, counts: Counter[str]) -> Iterator[str]:
    """Documents of a plain text file."""
    with _reading(path, task, counts), _open(path) as file:
        # A lone carriage return ends a line too: old files, and logs of progress bars.
        lines = (line for raw in file for line in decode(raw, counts).rstrip("\r\n").split("\r"))
        yield from split_documents(lines)


def read_jsonl(path: Path, task: FilesTask, counts: Counter[str]) -> Iterator[str]:
    """One document a line of JSON objects."""
    with _reading(path, task, counts), _open(path) as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                row = json.loads(decode(raw.rstrip(b"\r\n"), counts))
                if not isinstance(row, dict):
                    raise ValueError("a JSON object was expected")
            except (ValueError, RecursionError) as error:
                task.handle(f"{path}, line {number}: not a JSON object ({error}).", "not_json", counts)
                continue
            if (field := _text_field(row, task)) is None:
                task.handle(f"{path}, line {number}: {_no_field(row, task)}", "no_text_field", counts)
            elif (text := _accept(row[field], counts)) is not None:
                yield text


def read_parquet(path: Path, task: FilesTask, counts: Counter[str]) -> Iterator[str]:
    """One document a row of a parquet file."""
    with _reading(path, task, counts), pq.ParquetFile(path, page_checksum_verification=True) as file:
        names = file.schema_arrow.names
        if (field := _text_field(names, task)) is None:
            raise BertpipeError(f"{path}: {_no_field(names, task)}")
        for batch in file.iter_batches(batch_size=256, columns=[field]):
            for value in batch.column(0).to_pylist():
                if (text := _accept(value, counts)) is not None:
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
    except (EOFError, OSError, pa.ArrowException, zlib.error) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        task.handle(f"{path}: broken or cut off ({detail}).", "broken_file", counts)


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    return io.BufferedReader(pa.input_stream(path, compression="zstd" if path.suffix == ".zst" else None))


def _accept(value: object, counts: Counter[str]) -> str | None:
    if isinstance(value, str):
        return value
    counts["skipped_no_text"] += 1
    return None


def _text_field(fields: Collection[str], task: FilesTask) -> str | None:
    wanted = (task.text_field,) if task.text_field else TEXT_FIELDS
    return next((field for field in wanted if field in fields), None)


def _no_field(fields: Collection[str], task: FilesTask) -> str:
    wanted = task.text_field or " or ".join(TEXT_FIELDS)
    return f"no field {wanted}; it has: {', '.join(fields)}. Choose one with --text-field."
