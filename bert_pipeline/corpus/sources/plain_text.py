"""`text:GLOB`: plain text files, split into documents of one paragraph per line."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.sentences import split_sentences
from bert_pipeline.corpus.sources.encodings import split_lines
from bert_pipeline.corpus.sources.error_policy import ErrorPolicy
from bert_pipeline.corpus.sources.files import (
    FileSource,
    FilesTask,
    handle_broken_file,
    read_text,
)
from bert_pipeline.corpus.sources.rows import Row, number_rows
from bert_pipeline.corpus.sources.wrapping import MAX_WIDTH, find_width, join_wrapped

MAX_DOCUMENT_CHARS = 100_000
"""A longer text is split into several documents at paragraph ends.

A single book must provide random next sentences from another document and a validation split, and
no stage should need to hold a very large file in memory.
"""

_CUT_WINDOW = 3000
"""Characters after `MAX_DOCUMENT_CHARS` in which a sentence end is looked for."""

_SPACE = re.compile(r"\s")
_LINE_END = re.compile(r"\r\n?|\n")
_SENTENCE_END = re.compile(r"[.!?…؟۔।。！？][\"'”’»)」』]*\Z")
_TITLE = re.compile(r"= [^=](?:.*[^=])? =")
_HEADING = re.compile(r"=(?: ?=)+ .+ =(?: ?=)+")


def open_source(spec: str, config: CorpusConfig) -> FileSource:
    """The text files that match the pattern in `spec`."""
    return FileSource(spec, read_rows)


def read_rows(path: Path, task: FilesTask, counts: Counter[str]) -> Iterator[Row]:
    """The documents of one file."""
    with handle_broken_file(path, task.policy, counts):
        lines = split_lines(read_text(path, task.policy, counts), cut_line)
        yield from number_rows(split_documents(lines))


def is_title(line: str) -> bool:
    """Whether a stripped line is a WikiText title, ` = Title = `.

    After a blank line, a title starts an article.
    """
    return line.startswith("=") and _TITLE.fullmatch(line) is not None


def split_documents(lines: Iterable[str], *, titles: bool = True) -> Iterator[str]:
    """Split the lines of a text file into documents of one paragraph per line.

    Blank lines separate paragraphs. With `titles`, a line ` = Title = ` after a blank line starts a
    document (WikiText). A text without such lines is one document, or, when it is longer, several
    documents of about `MAX_DOCUMENT_CHARS`, split between paragraphs, or else at sentence ends.
    """
    blocks: list[list[str]] = []
    block: list[str] = []
    size = 0
    after_blank = True
    for line in map(str.strip, chain.from_iterable(map(cut_line, lines))):
        begins = titles and after_blank and is_title(line)
        if block and (not line or begins or _should_split(block[-1], size)):
            blocks.append(block)
            block = []
        if blocks and not block and (begins or size >= MAX_DOCUMENT_CHARS):
            yield "\n".join(join_wrapped(blocks))
            blocks = []
            size = 0
        if line:
            is_heading = begins or (titles and _HEADING.fullmatch(line))
            block.append(line.strip("= ") if is_heading else line)
            size += len(line) + 1
        after_blank = not line
    if block:
        blocks.append(block)
    if blocks:
        yield "\n".join(join_wrapped(blocks))


def split_rows(
    rows: Iterable[Row], name: str, policy: ErrorPolicy, counts: Counter[str]
) -> Iterator[Row]:
    """Rows with wrapped lines joined; a long one becomes several, `12`, `12.1`, `12.2`, …."""
    for row in rows:
        if policy.is_too_long(row.text, f"{name}, row {row.place}", counts):
            continue
        if isinstance(row.text, str):
            for number, text in enumerate(_split_row(row.text)):
                place = f"{row.place}.{number}" if number else row.place
                yield replace(row, place=place, text=text)
        else:
            yield row


def _split_row(text: str) -> list[str]:
    lines = _LINE_END.split(text)
    if len(text) > MAX_DOCUMENT_CHARS:
        return list(split_documents(lines, titles=False))
    blocks = [list(block) for is_text, block in groupby(map(str.strip, lines), key=bool) if is_text]
    return ["\n".join(join_wrapped(blocks))] if find_width(blocks) else [text]


def cut_line(line: str) -> Iterator[str]:
    """A line, or, when it is too long for a document, parts of it, cut at sentence ends."""
    start = 0
    while len(line) - start > 2 * MAX_DOCUMENT_CHARS:
        end = _find_cut(line, start + MAX_DOCUMENT_CHARS)
        yield line[start:end]
        start = end
    yield line[start:]


def _find_cut(line: str, start: int) -> int:
    """A place to cut after `start`: the first sentence end, else white space, else anywhere."""
    window = line[start : start + _CUT_WINDOW]
    # English rules are those for languages without rules, and the language is not known here.
    sentence, *others = split_sentences(window, "en") or [""]
    if others:
        return start + len(window) - len(window.lstrip()) + len(sentence)
    space = _SPACE.search(window)
    return start + (space.end() if space else 0)


def _should_split(line: str, size: int) -> bool:
    """Whether a document of `size` without a blank line ends after this line."""
    if len(line) > MAX_WIDTH:  # a paragraph
        return size >= MAX_DOCUMENT_CHARS
    is_ended = _SENTENCE_END.search(line) is not None
    return size >= (1.5 if is_ended else 2) * MAX_DOCUMENT_CHARS
