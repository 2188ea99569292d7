"""What the user may have meant by a source that does not exist."""

import difflib
import os
from collections import Counter
from itertools import islice
from pathlib import Path

from bert_pipeline.corpus.sources.files import COMPRESSIONS
from bert_pipeline.corpus.sources.registry import SOURCES

_KINDS = {"ndjson": "jsonl", "md": "text", "txt": "text"}
"""Source kinds by file extension, where they differ."""
_LISTED_FILES = 1000


def suggest(spec: str) -> str:
    """A sentence for the error message; empty when nothing is near."""
    if meant := _suggest_files(spec) or _suggest_name(spec):
        return f" {meant}"
    return ""


def _suggest_files(spec: str) -> str | None:
    path = Path(spec)
    if ":" in spec and not path.exists():
        return None
    if path.is_dir():
        files = islice((file for file in path.rglob("*") if file.is_file()), _LISTED_FILES)
        extensions = Counter(file.suffix for file in files)
        usual = max(sorted(extensions), key=extensions.__getitem__, default=".txt")
        return _suggest_pattern(str(path / "**" / f"*{usual}"))
    if path.is_file() or any(mark in spec for mark in f"*?[{os.sep}"):
        return _suggest_pattern(spec)
    return None


def _suggest_pattern(pattern: str) -> str:
    plain = pattern.lower()
    for suffixes, _ in COMPRESSIONS.values():
        for suffix in suffixes:
            plain = plain.removesuffix(suffix)
    extension = plain.rpartition("/")[2].rpartition(".")[2] if "." in plain else "txt"
    if (kind := _KINDS.get(extension, extension)) in SOURCES:
        return f"Did you mean '{kind}:{pattern}'?"
    if extension == "json":
        return "Files in the format json are not read; convert them to jsonl or parquet."
    return f"Did you mean 'text:{pattern}'?"


def _suggest_name(spec: str) -> str | None:
    name, _, argument = spec.partition(":")
    if kind := SOURCES.get(name):
        return f"Write {kind.usage}."
    near = difflib.get_close_matches(name.lower(), SOURCES, n=1, cutoff=0.5)
    known = _KINDS.get(name.lower()) or (near[0] if near else None)
    if known is None:
        return None
    meant = SOURCES[known]
    return f"Did you mean {f'{known}:{argument}' if argument else meant.usage}?"
