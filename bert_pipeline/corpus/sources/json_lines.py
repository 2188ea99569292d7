"""`jsonl:GLOB`: one JSON object per line, one document per object."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.sources.encodings import split_lines
from bert_pipeline.corpus.sources.error_policy import ErrorPolicy
from bert_pipeline.corpus.sources.files import (
    FileSource,
    FilesTask,
    handle_broken_file,
    read_text,
)
from bert_pipeline.corpus.sources.plain_text import split_rows
from bert_pipeline.corpus.sources.rows import Row


def open_source(spec: str, config: CorpusConfig) -> FileSource:
    """The JSON lines files that match the pattern in `spec`."""
    return FileSource(spec, read_rows)


def read_rows(path: Path, task: FilesTask, counts: Counter[str]) -> Iterator[Row]:
    """The rows of one file."""
    with handle_broken_file(path, task.policy, counts):
        lines = split_lines(read_text(path, task.policy, counts))
        yield from split_rows(
            read_json_lines(lines, str(path), task.policy, counts), str(path), task.policy, counts
        )


def read_json_lines(
    lines: Iterable[str], name: str, policy: ErrorPolicy, counts: Counter[str]
) -> Iterator[Row]:
    """The rows by their line numbers, from 0; skips blank lines."""
    has_languages = policy.language_field is None
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        where = f"{name}, line {number + 1}"
        if policy.is_too_long(line, where, counts):
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("expected a JSON object")
        except (ValueError, RecursionError) as error:
            policy.handle(f"{where}: not a JSON object ({error}).", "not_json", counts)
            continue
        field = policy.find_field(row)
        has_languages = has_languages or policy.language_field in row
        if field is None or not has_languages:
            problem = policy.find_missing_field(row)
            policy.handle(f"{where}: {problem}", "no_text_field", counts)
        else:
            # A later row without a language is guessed, as one without a value is.
            yield Row(str(number), row[field], row.get(policy.language_field or ""))
