"""Corpora for tests: input files, `bertpipe corpus` in this process, and its output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bert_pipeline.corpus.build import build_corpus
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.storage.shards import read_columns
from tests.helpers.text import invent_documents, write_jsonl

Read = Callable[..., list[str]]


def texts_of(folder: Path) -> list[str]:
    names = sorted(folder.glob("*.parquet"))
    return [text for name in names for text in read_columns(name, ["text"])["text"].to_pylist()]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """A function that builds a corpus from the content of one file and returns its texts.

    `read.counts` are the counts in the manifest.
    """

    def build(name: str, content: bytes | str, **options: Any) -> list[str]:
        file = tmp_path / name
        file.write_bytes(
            content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        )
        extension = name.split(".")[1]
        kind = "text" if extension == "txt" else extension
        config = CorpusConfig(
            out=tmp_path / "corpus", source=(f"{kind}:{file}",), workers=1, quiet=True, **options
        )
        build.counts = build_corpus(config).counts  # type: ignore[attr-defined]
        return texts_of(config.out)

    return build


def counts(read: Read) -> dict[str, Any]:
    return read.counts  # type: ignore[attr-defined, no-any-return]


def objects(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


# Limits, shuffling, duplicates, the summary
def big_rows(tmp_path: Path, files: int = 5, rows: int = 40) -> tuple[str, list[str]]:
    """Files of different rows of various lengths; returns the source and the texts in order."""
    texts = [f"Row {n} says {'so ' * (n * 7 % 50)}and ends." for n in range(files * rows)]
    for number in range(files):
        write_jsonl(
            tmp_path / "raw" / f"{number}.jsonl", texts[number * rows : (number + 1) * rows]
        )
    return f"jsonl:{tmp_path}/raw/*.jsonl", texts


def build(out: Path, source: str, **options: Any) -> tuple[list[str], dict[str, Any]]:
    given = {"workers": 1, "quiet": True, "shard_mb": 0.001} | options
    manifest = build_corpus(CorpusConfig(out=out, source=(source,), **given))
    return texts_of(out), manifest.counts


# The complete stage
def write_sources(tmp_path: Path, files: int = 6) -> tuple[str, ...]:
    texts = invent_documents(7, 60)
    for number in range(files):
        write_jsonl(tmp_path / "raw" / f"{number}.jsonl", texts[number::files])
    (tmp_path / "raw" / "b.txt").write_text(
        "\n".join(texts[:5]).replace("\n", "\n\n"), encoding="utf-8"
    )
    return f"jsonl:{tmp_path}/raw/*.jsonl", f"text:{tmp_path}/raw/b.txt"
