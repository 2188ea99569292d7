"""What a corpus is made of: documents, the tasks that yield them, the sources that are parted into tasks."""

from collections import Counter
from collections.abc import Iterator, Sequence
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
    """One document: paragraphs, one a line."""

    id: str
    text: str
    source: str
    language: str


T = TypeVar("T")


def shuffled(files: Sequence[T], config: CorpusConfig) -> list[T]:
    """The files in the order in which they are read: as they are, or drawn by the seed where shuffling is asked for."""
    files = list(files)
    if config.shuffle_buffer:
        Random(config.seed).shuffle(files)
    return files


class Task(Protocol):
    """The documents of one shard, made in whichever process asks; `counts` collects what was replaced or skipped."""

    def documents(self, counts: Counter[str]) -> Iterator[Document]: ...


class Source(Protocol):
    """A place where text comes from."""

    def fingerprint(self) -> str:
        """Changes exactly when the source's content may have changed."""

    def tasks(self, config: CorpusConfig) -> list[Task]:
        """The shards' tasks, the same for any number of workers."""

    def describe(self) -> dict[str, Any]:
        """What was taken, for the manifest."""
