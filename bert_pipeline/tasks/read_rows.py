"""Rows of labelled text: CSV, TSV, JSON lines, Parquet and text files, and datasets of the Hub."""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from bert_pipeline.errors import BertpipeError, UsageError

HUB = "hub:"
STDIN = "-"
MAX_FIELD_CHARS = 1 << 27
DELIMITERS = {".csv": ",", ".tsv": "\t"}
FORMATS = (*DELIMITERS, ".jsonl", ".json", ".parquet", ".txt")
COMPRESSED = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz")
TEXT = "text"
"""The column of files that have a text per line and no columns."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table, or what is wrong with it."""

    where: str
    """File and line, for messages."""
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


def read_rows(
    source: str, column_names: tuple[str, ...] = (), *, split: str = "train"
) -> Iterator[Row]:
    """The rows of a file, of standard input (`-`) or of a split of a dataset (`hub:REPO[:CONFIG]`).

    The first row of CSV and TSV files names the columns, unless `column_names` does. A text file
    has the column `text`. Broken rows have a `problem`. Raises `BertpipeError` if the source cannot
    be read.
    """
    if source.startswith(HUB):
        yield from _read_hub(source, split)
        return
    if source == STDIN:
        with _decode(sys.stdin.buffer) as lines:
            yield from _read_lines(lines, "standard input")
        return
    path = Path(source).expanduser()
    suffix = suffix_of(path)
    if not path.is_file():
        raise BertpipeError(f"{path}: no such file.")
    from bert_pipeline.corpus.sources.files import open_decompressed

    with _explain_broken_file(path):
        if suffix == ".parquet":
            yield from _read_parquet(path)
            return
        with open_decompressed(path) as raw, _decode(raw) as lines:
            if suffix in DELIMITERS:
                yield from _read_delimited(lines, str(path), DELIMITERS[suffix], column_names)
            elif suffix == ".jsonl":
                yield from _read_json_lines(lines, str(path))
            elif suffix == ".json":
                yield from _read_json(lines, str(path))
            elif suffix == ".txt":
                yield from _read_lines(lines, str(path))
            else:
                raise UsageError(
                    f"{path}: unknown format {suffix or 'without suffix'}; known: "
                    f"{', '.join(FORMATS)}, also compressed ({', '.join(COMPRESSED)})."
                )


def suffix_of(path: Path) -> str:
    """The suffix of a file name without that of a compression, in lower case."""
    name = Path(path.name.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSED else name.suffix


def read_text(path: Path) -> str:
    """The whole text of a file. Raises `BertpipeError` if it cannot be read."""
    from bert_pipeline.corpus.sources.files import open_decompressed

    if not path.is_file():
        raise BertpipeError(f"{path}: no such file.")
    with _explain_broken_file(path), open_decompressed(path) as raw, _decode(raw) as lines:
        return lines.read()


def check_unicode(row: Row) -> Row:
    """The row, with a problem if its text is not valid UTF-8."""
    # What is not valid is decoded to surrogates.
    texts = (value for value in row.values.values() if isinstance(value, str))
    if any(not text.isascii() and _has_surrogate(text) for text in texts):
        return Row(row.where, row.values, "not valid UTF-8")
    return row


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _decode(raw: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="\n")


@contextmanager
def _explain_broken_file(path: Path) -> Iterator[None]:
    import lzma
    import zlib

    import pyarrow as pa

    try:
        yield
    except (EOFError, OSError, pa.ArrowException, zlib.error, lzma.LZMAError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BertpipeError(f"{path}: broken or truncated ({detail}).") from None


def _read_lines(lines: Iterable[str], name: str) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        yield check_unicode(Row(f"{name}, line {number}", {TEXT: line.rstrip("\r\n")}))


def _read_delimited(
    lines: Iterable[str], name: str, delimiter: str, column_names: tuple[str, ...]
) -> Iterator[Row]:
    """The rows after that of the names.

    Fields of CSV may be quoted (RFC 4180). In TSV files such as those of GLUE a quotation mark is
    text.
    """
    csv.field_size_limit(MAX_FIELD_CHARS)
    text = (line.replace("\r\n", "\n") for line in lines)
    if delimiter == "\t":
        reader = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
    names = list(column_names)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(f"{name}, line {reader.line_num}", problem=str(error))
            continue
        if not names:
            names = fields
        elif fields:
            where = f"{name}, line {reader.line_num}"
            if delimiter == "\t" and len(fields) != len(names):
                # Some programs quote the fields with a tab in them.
                fields = next(csv.reader(["\t".join(fields)], delimiter=delimiter))
            if len(fields) == len(names):
                yield check_unicode(Row(where, dict(zip(names, fields, strict=True))))
            else:
                problem = f"{len(fields)} columns instead of {len(names)}"
                yield Row(where, problem=problem)


def _read_json_lines(lines: Iterable[str], name: str) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _parse_object(line, f"{name}, line {number}")


def _parse_object(line: str, where: str) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row(where, problem=f"not JSON ({error})")
    if not isinstance(value, dict):
        return Row(where, problem="a JSON object was expected")
    return check_unicode(Row(where, value))


def _read_json(lines: Iterable[str], name: str) -> Iterator[Row]:
    """A list of objects, or an object with such a list as `data`."""
    try:
        content = json.loads("".join(lines))
    except (ValueError, RecursionError) as error:
        raise BertpipeError(f"{name}: not JSON ({error}).") from None
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise BertpipeError(f"{name}: a list of objects was expected.")
    for number, value in enumerate(rows, start=1):
        where = f"{name}, object {number}"
        if isinstance(value, dict):
            yield check_unicode(Row(where, value))
        else:
            yield Row(where, problem="a JSON object was expected")


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    # Opened here because Arrow accepts only file names that are UTF-8.
    with path.open("rb") as raw, pq.ParquetFile(raw, page_checksum_verification=True) as file:
        batches = file.iter_batches(1024)
        rows = chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, values in enumerate(rows, start=1):
            yield Row(f"{path}, row {number}", values)


def _read_hub(source: str, split: str) -> Iterator[Row]:
    """A split of a dataset; numbers of classes become their names."""
    from datasets import ClassLabel, load_dataset

    repository, _, config = source.removeprefix(HUB).partition(":")
    try:
        loaded = load_dataset(repository, config or None, split=split)
    except BertpipeError:  # raised by a signal handler
        raise
    except Exception as error:  # the libraries raise any class
        detail = " ".join(str(error).split())[:300] or type(error).__name__
        raise BertpipeError(f"{source}, split {split}: cannot be loaded ({detail}).") from None
    names = {
        column: feature.names
        for column, feature in loaded.features.items()
        if isinstance(feature, ClassLabel)
    }
    for number, values in enumerate(loaded, start=1):
        named = {
            column: names[column][value] if column in names and value >= 0 else value
            for column, value in values.items()
        }
        yield Row(f"{source}, {split} row {number}", named)


def hub_splits(source: str) -> list[str]:
    """The names of a dataset's splits."""
    from datasets import get_dataset_split_names

    repository, _, config = source.removeprefix(HUB).partition(":")
    try:
        return list(get_dataset_split_names(repository, config or None))
    except BertpipeError:  # raised by a signal handler
        raise
    except Exception as error:  # the libraries raise any class
        detail = " ".join(str(error).split())[:300] or type(error).__name__
        raise BertpipeError(f"{source}: cannot be read ({detail}).") from None
