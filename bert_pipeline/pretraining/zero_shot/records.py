"""Rows of evaluation files, and the probes of a recipe."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bert_pipeline.config import read_yaml
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.tasks.read_rows import DELIMITERS, Row, read_rows, suffix_of

PROBES = "probes"
"""The list in a recipe."""
RECIPES = (".yaml", ".yml")
SUFFIXES = (*DELIMITERS, ".jsonl", ".json", ".parquet", *RECIPES)
"""Of the names of files, before that of a compression."""


def read_records(path: Path) -> Iterator[Row]:
    """The rows of a file, or of all files in a folder.

    Raises `UsageError` if there is no file to read, and `BertpipeError` naming a broken line.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _is_known(file))
        if not files:
            raise UsageError(f"{path}: no file in it ends in {', '.join(SUFFIXES)}.")
    elif path.is_file():
        files = [path]
    else:
        raise UsageError(f"{path}: no such file or folder.")
    for file in files:
        if not _is_known(file):
            raise UsageError(f"{file}: its name must end in {', '.join(SUFFIXES)}.")
        for row in _read_recipe(file) if suffix_of(file) in RECIPES else read_rows(str(file)):
            if row.problem is not None:
                raise BertpipeError(f"{row.where}: {row.problem}.")
            yield row


def _is_known(path: Path) -> bool:
    return suffix_of(path) in SUFFIXES


def _read_recipe(path: Path) -> Iterator[Row]:
    content = read_yaml(path)
    if PROBES not in content:
        raise UsageError(f"{path}: has no list `{PROBES}:`.")
    yield from list_probes(content, path)


def list_probes(recipe: Mapping[str, Any], path: Path) -> Iterator[Row]:
    """The entries under `probes:` in the recipe at `path`, if it has some."""
    entries = recipe.get(PROBES) or []
    for number, fields in enumerate(entries if isinstance(entries, list) else [None], start=1):
        if not isinstance(fields, dict):
            raise UsageError(
                f"{path}, {PROBES}: a list of {{text: ..., expect: ...}} was expected."
            )
        yield Row(f"{path}, {PROBES}, entry {number}", fields)
