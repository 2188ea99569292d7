"""Documents, and the protocols of sources and tasks that yield them."""

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
    """One document; its text has one paragraph per line."""

    id: str
    text: str
    source: str
    language: str
    """Its code; empty when the source does not tell it."""


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
