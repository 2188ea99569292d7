"""Documents, and the protocols of sources and tasks that yield them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from bert_pipeline.corpus.config import CorpusConfig

SCHEMA = pa.schema(
    [("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("language", pa.string())]
)


@dataclass(frozen=True, slots=True)
class Document:
    """One document; its text has one paragraph per line."""

    id: str
    text: str
    source: str
    language: str


@dataclass(frozen=True, slots=True)
class Row:
    """What a source has at one place of a file: a document, or a value that is not text."""

    place: str
    """The place in the file, for the id."""
    text: object


def number_rows(texts: Iterable[object]) -> Iterator[Row]:
    """Rows whose places are their numbers, from 0."""
    return (Row(str(number), text) for number, text in enumerate(texts))


def make_documents(
    rows: Iterable[Row], name: str, source: str, language: str, counts: Counter[str]
) -> Iterator[Document]:
    """The rows of a file that have text; ids are `NAME#PLACE`. Counts the others as skipped."""
    for row in rows:
        if not isinstance(row.text, str):
            counts["skipped_no_text"] += 1
        elif not row.text or row.text.isspace():
            counts["skipped_empty"] += 1
        else:
            yield Document(f"{name}#{row.place}", row.text, source, language)


T = TypeVar("T")


def shuffled(files: Sequence[T], config: CorpusConfig) -> list[T]:
    """The files in reading order: random (by the seed) with `--shuffle-buffer`, else as given."""
    files = list(files)
    if config.shuffle_buffer:
        Random(config.seed).shuffle(files)
    return files


class Task(Protocol):
    """A part of a source that one worker process reads; picklable."""

    def documents(self, counts: Counter[str]) -> Iterator[Document]:
        """Yield the documents; `counts` is updated with what was replaced or skipped."""


class Source(Protocol):
    """A source of documents; see `bert_pipeline.corpus.sources.registry` for how to add one."""

    def fingerprint(self) -> str:
        """A hash that changes when the content of the source may have changed."""

    def tasks(self, config: CorpusConfig) -> list[Task]:
        """The tasks in the order of the corpus, independent of the number of workers."""

    def describe(self) -> dict[str, Any]:
        """What was read, for the manifest. Called after `tasks`."""
