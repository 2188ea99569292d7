"""`csv:GLOB` and `tsv:GLOB`: one document per row; the first row names the columns.

A field in double quotes may contain delimiters and line breaks (RFC 4180).
"""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.sources.encodings import split_lines
from bert_pipeline.corpus.sources.error_policy import MAX_LINE_CHARS, ErrorPolicy
from bert_pipeline.corpus.sources.files import (
    FileSource,
    FilesTask,
    handle_broken_file,
    read_text,
)
from bert_pipeline.corpus.sources.plain_text import split_rows
from bert_pipeline.corpus.sources.rows import Row

DELIMITERS = {"csv": ",", "tsv": "\t"}


def open_source(spec: str, config: CorpusConfig) -> FileSource:
    """The files that match the pattern in `spec`."""
    return FileSource(spec, partial(read_rows, spec.partition(":")[0]))


def read_rows(kind: str, path: Path, task: FilesTask, counts: Counter[str]) -> Iterator[Row]:
    """The rows of one file."""
    with handle_broken_file(path, task.policy, counts):
        lines = split_lines(read_text(path, task.policy, counts))
        rows = read_delimited(lines, kind, str(path), task.policy, counts)
        yield from split_rows(rows, str(path), task.policy, counts)


def read_delimited(
    lines: Iterable[str], kind: str, name: str, policy: ErrorPolicy, counts: Counter[str]
) -> Iterator[Row]:
    """The rows by their numbers, from 0 for the first after that of the names."""
    csv.field_size_limit(MAX_LINE_CHARS)  # the default is 131,072
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=DELIMITERS[kind], strict=True)
    rows = _read_records(reader, name, policy, counts)
    if (names := next(rows, None)) is None:
        return
    field = names.index(policy.choose_field(names, name))
    language = names.index(policy.language_field) if policy.language_field else None
    for number, row in enumerate(rows):
        if row is None:
            continue
        if len(row) != len(names):
            problem = f"{len(row)} columns instead of {len(names)}"
            policy.handle(f"{name}, line {reader.line_num}: {problem}.", "broken_row", counts)
            continue
        yield Row(str(number), row[field], None if language is None else row[language])


def _read_records(
    reader: Any, name: str, policy: ErrorPolicy, counts: Counter[str]
) -> Iterator[list[str] | None]:
    """The fields of each row but blank lines; None for a broken one."""
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            policy.handle(f"{name}, line {reader.line_num}: {error}.", "broken_row", counts)
            yield None
        else:
            if row:
                yield row
