"""Local files as a source: what the formats have in common."""

import bz2
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
from typing import Any

import pyarrow as pa

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.documents import Document, Task, shuffled
from bert_pipeline.corpus.sources.encodings import decode_text
from bert_pipeline.corpus.sources.error_policy import ErrorPolicy
from bert_pipeline.corpus.sources.find_files import find_files
from bert_pipeline.corpus.sources.rows import Row, make_documents
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.storage.atomic import hash_file, hash_json

COMPRESSIONS = {
    "gzip": ((".gz", ".gzip"), b"\x1f\x8b"),
    "zstd": ((".zst", ".zstd"), b"\x28\xb5\x2f\xfd"),
    "bz2": ((".bz2",), b"BZh"),
    "xz": ((".xz",), b"\xfd7zXZ\x00"),
}
"""File name suffixes and magic bytes."""

CHUNK_BYTES = 1 << 16
ADVICE = "Fix or remove it, or skip broken data with --on-error skip."


@dataclass(frozen=True, slots=True)
class FilesTask:
    """Complete files of one format."""

    spec: str
    base: Path
    files: tuple[Path, ...]
    policy: ErrorPolicy
    read: "Callable[[Path, FilesTask, Counter[str]], Iterator[Row]]"
    """The format's reader: yields the rows of one file."""

    def documents(self, counts: Counter[str]) -> Iterator[Document]:
        """Documents of the files in order; ids are `FILE#PLACE`."""
        for file in self.files:
            # A file name may be bytes that are not valid UTF-8; an id is text.
            name = os.fsencode(os.path.relpath(file, self.base)).decode("utf-8", "replace")
            rows = self.read(file, self, counts)
            yield from make_documents(rows, name, self.spec, self.policy, counts)


class FileSource:
    """The files that match a pattern."""

    def __init__(
        self, spec: str, read: Callable[[Path, FilesTask, Counter[str]], Iterator[Row]]
    ) -> None:
        """Find the files. Raises `UsageError` without a pattern, `BertpipeError` without files."""
        self.spec = spec
        self._read = read
        pattern = os.path.expanduser(spec.partition(":")[2])  # noqa: PTH111 (Path's raises for an unknown user)
        if not pattern:
            raise UsageError(f"--source {spec}: give a pattern, such as '{spec}DIR/**/*'.")
        found = find_files(pattern)
        self.files = [path for path in found if path.is_file()]
        if not self.files:
            problem = "is a folder" if any(path.is_dir() for path in found) else "matches no file"
            raise BertpipeError(
                f"--source {spec}: {pattern} {problem}. Give a pattern such as 'DIR/**/*.txt'."
            )
        for path in found:
            if path.is_symlink() and not path.exists():
                raise BertpipeError(
                    f"--source {spec}: {path} is a symbolic link to a file that does not exist. "
                    "Restore the file, or remove the link."
                )
        self.base = Path(re.split(r"[*?\[]", pattern, maxsplit=1)[0] + "x").parent

    def fingerprint(self) -> str:
        """A hash of the files' names and contents."""
        return hash_json([(os.path.relpath(file, self.base), _hash(file)) for file in self.files])

    def tasks(self, config: CorpusConfig) -> list[Task]:
        """Consecutive files, up to the shard size per task; a larger file is one task."""
        groups: list[list[Path]] = []
        free = 0.0
        for file in shuffled(self.files, config):
            size = file.stat().st_size
            if not groups or size > free:
                groups.append([])
                free = config.shard_mb * 1e6
            groups[-1].append(file)
            free -= size
        policy = ErrorPolicy.from_config(config, ADVICE)
        return [
            FilesTask(self.spec, self.base, tuple(group), policy, self._read) for group in groups
        ]

    def describe(self) -> dict[str, Any]:
        """The number of files and their total size on disk."""
        return {
            "files": len(self.files),
            "bytes_on_disk": sum(file.stat().st_size for file in self.files),
        }


@contextmanager
def handle_broken_file(path: Path, policy: ErrorPolicy, counts: Counter[str]) -> Iterator[None]:
    """Hand errors of reading or decompressing `path` to the policy."""
    try:
        yield
    except (EOFError, OSError, pa.ArrowException, zlib.error, lzma.LZMAError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        policy.handle(f"{path}: broken or truncated ({detail}).", "broken_file", counts)


@contextmanager
def open_decompressed(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open a file for reading, decompressed according to its name or its magic bytes."""
    with path.open("rb") as raw:
        kind = _find_compression(path, raw)
        if kind is None:
            yield raw
        elif kind == "zstd":
            with io.BufferedReader(pa.input_stream(raw, compression="zstd")) as file:
                yield file
        else:
            open_file: Any = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}[kind]
            with open_file(raw) as file:
                yield file


def read_text(path: Path, policy: ErrorPolicy, counts: Counter[str]) -> Iterator[str]:
    """The decoded text of a file, in pieces."""
    with open_decompressed(path) as file:
        # Not `read`, which loses what it has read when the file is truncated.
        chunks = iter(lambda: file.read1(CHUNK_BYTES), b"")
        yield from decode_text(chunks, str(path), policy, counts)


def _find_compression(path: Path, raw: io.BufferedIOBase) -> str | None:
    start = raw.read(6)
    raw.seek(0)
    # The name comes first, so that a .gz file without its header is broken instead of plain text.
    for kind, (suffixes, _) in COMPRESSIONS.items():
        if path.name.lower().endswith(suffixes):
            return kind
    for kind, (_, magic) in COMPRESSIONS.items():
        if start.startswith(magic):
            return kind
    return None


def _hash(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise BertpipeError(
            f"{path}: cannot be read ({error.strerror}). Exclude it from the pattern."
        ) from None
