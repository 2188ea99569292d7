"""`text:GLOB`: plain text files, split into documents of one paragraph per line."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.sources.encodings import split_lines
from bert_pipeline.corpus.sources.files import (
    FileSource,
    FilesTask,
    handle_broken_file,
    read_text,
)

MAX_DOCUMENT_CHARS = 100_000
"""A longer file is split into several documents at paragraph ends.

A single book must provide random next sentences from another document and a validation split, and
no stage should need to hold a very large file in memory.
"""

WRAP_WIDTH = 120
"""A paragraph whose lines are all at most this long counts as hard-wrapped."""

_TITLE = re.compile(r"= [^=](?:.*[^=])? =")
_HEADING = re.compile(r"=(?: ?=)+ .+ =(?: ?=)+")


def open_source(spec: str, config: CorpusConfig) -> FileSource:
    """The text files that match the pattern in `spec`."""
    return FileSource(spec, read_documents)


def read_documents(path: Path, task: FilesTask, counts: Counter[str]) -> Iterator[str]:
    """The texts of one file's documents."""
    with handle_broken_file(path, task.policy, counts):
        yield from split_documents(split_lines(read_text(path, task.policy, counts)))


def join_wrapped(lines: list[str]) -> list[str]:
    """Join a hard-wrapped paragraph into one line; lines that are paragraphs themselves stay."""
    if len(lines) > 1 and max(map(len, lines)) <= WRAP_WIDTH:
        return [" ".join(lines)]
    return lines


def is_title(line: str) -> bool:
    """Whether a stripped line is a WikiText title, ` = Title = `.

    After a blank line, a title starts an article.
    """
    return line.startswith("=") and _TITLE.fullmatch(line) is not None


def split_documents(lines: Iterable[str]) -> Iterator[str]:
    """Split the lines of a text file into documents of one paragraph per line.

    Blank lines separate paragraphs. A line ` = Title = ` after a blank line starts a document
    (WikiText). A file without such lines is one document, or, when it is longer, several documents
    of about `MAX_DOCUMENT_CHARS`, split between paragraphs. Text without a blank line for twice
    that length is split between two lines.
    """
    paragraphs: list[str] = []
    block: list[str] = []
    size = 0
    after_blank = True
    for line in map(str.strip, lines):
        begins = after_blank and is_title(line)
        if not line or begins or size >= 2 * MAX_DOCUMENT_CHARS:
            paragraphs += join_wrapped(block)
            block = []
            if paragraphs and (begins or size >= MAX_DOCUMENT_CHARS):
                yield "\n".join(paragraphs)
                paragraphs = []
                size = 0
        if line:
            block.append(line.strip("= ") if begins or _HEADING.fullmatch(line) else line)
            size += len(line) + 1
        after_blank = not line
    paragraphs += join_wrapped(block)
    if paragraphs:
        yield "\n".join(paragraphs)
