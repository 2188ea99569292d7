"""Rows of evaluation files: JSON lines, CSV, TSV, Parquet, and the probes of a recipe."""

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from bert_pipeline.config import read_yaml
from bert_pipeline.errors import BertpipeError, UsageError

PROBES = "probes"
"""The list in a recipe."""


@dataclass(frozen=True, slots=True)
class Record:
    """A row, and where it is."""

    where: str
    fields: Mapping[str, Any]


def read_records(path: Path) -> Iterator[Record]:
    """The rows of a file, or of all files in a folder.

    Raises `UsageError` if there is no file to read, and `BertpipeError` naming a broken line.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _find_reader(file))
        if not files:
            raise UsageError(f"{path}: no file in it ends in {', '.join(READERS)}.")
    elif path.is_file():
        files = [path]
    else:
        raise UsageError(f"{path}: no such file or folder.")
    for file in files:
        yield from _read(file)


def _read(path: Path) -> Iterator[Record]:
    reader = _find_reader(path)
    if reader is None:
        raise UsageError(f"{path}: its name must end in {', '.join(READERS)}.")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise BertpipeError(f"{path}: not UTF-8 ({error.reason}). Convert it.") from None
    except (EOFError, gzip.BadGzipFile) as error:
        raise BertpipeError(f"{path}: damaged or cut ({error}). Copy it again.") from None


def _find_reader(path: Path) -> Callable[[Path], Iterator[Record]] | None:
    return READERS.get(Path(path.name.removesuffix(".gz")).suffix)


def _open(path: Path) -> TextIO:
    encoding = "utf-8-sig"  # without the mark that some programs put first
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")
    return path.open(encoding=encoding, newline="")


def _read_json_lines(path: Path) -> Iterator[Record]:
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BertpipeError(f"{where}: not JSON ({error}).") from None
            if not isinstance(fields, dict):
                raise BertpipeError(f"{where}: a JSON object was expected.")
            yield Record(where, fields)


def _read_delimited(path: Path, delimiter: str) -> Iterator[Record]:
    with _open(path) as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            names = next(reader, None)
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if not row:
                    continue
                if names is None or len(row) != len(names):
                    count = len(names or ())
                    raise BertpipeError(f"{where}: {len(row)} columns instead of {count}.")
                yield Record(where, dict(zip(names, row, strict=True)))
        except csv.Error as error:
            raise BertpipeError(f"{path}, line {reader.line_num}: {error}.") from None


def _read_csv(path: Path) -> Iterator[Record]:
    return _read_delimited(path, ",")


def _read_tsv(path: Path) -> Iterator[Record]:
    return _read_delimited(path, "\t")


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise BertpipeError(f"{path}: not a readable Parquet file ({error}).") from None
    for number, fields in enumerate(rows, start=1):
        yield Record(f"{path}, row {number}", fields)


def _read_recipe(path: Path) -> Iterator[Record]:
    content = read_yaml(path)
    if PROBES not in content:
        raise UsageError(f"{path}: has no list `{PROBES}:`.")
    yield from list_probes(content, path)


def list_probes(recipe: Mapping[str, Any], path: Path) -> Iterator[Record]:
    """The entries under `probes:` in the recipe at `path`, if it has some."""
    entries = recipe.get(PROBES) or []
    for number, fields in enumerate(entries if isinstance(entries, list) else [None], start=1):
        if not isinstance(fields, dict):
            raise UsageError(
                f"{path}, {PROBES}: a list of {{text: ..., expect: ...}} was expected."
            )
        yield Record(f"{path}, {PROBES}, entry {number}", fields)


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".yaml": _read_recipe,
    ".yml": _read_recipe,
}
"""How a file is read, by the suffix of its name (before `.gz`)."""
