"""Step 2 of `extract_paragraphs`: joins hard-wrapped lines into paragraphs."""

import re
from collections.abc import Iterator

from bert_pipeline.corpus.sources.python_docs.blocks import indent_of
from bert_pipeline.corpus.sources.python_docs.declarations import (
    FIELD,
    NUMPY_TERM,
    looks_like_code,
    match_term,
)
from bert_pipeline.corpus.sources.python_docs.prose import STRONG_WORDS

_HEADING = re.compile(
    r"(?i)(?:(?:keyword |other |optional |positional )?(?:arg(?:ument)?s?|param(?:eter)?s?|kwargs)|"
    r"attributes?|returns?|raises?|yields?|examples?|usage|notes?|warnings?|shapes?|inputs?|"
    r"outputs?|references?|methods?|see also):+$"
)
_BULLET = re.compile(r"(?:[-*+•–]|#\.|\(?(?:\d{1,2}|[a-zA-Z]|[ivx]{1,4})[.)])\s+(?=\S)")


def join_lines(lines: list[str]) -> Iterator[str]:
    """Join hard-wrapped lines.

    A paragraph ends at a blank line, a bullet, a parameter or a change of indentation.
    """
    block: list[str] = []
    for line in [*lines, ""]:
        if line:
            block.append(line)
        elif block:
            if 2 * sum(looks_like_code(text.strip()) for text in block) < len(block):
                yield from _split_block(block)
            block = []


def _split_block(block: list[str]) -> Iterator[str]:
    """Split consecutive lines into paragraphs, without lines that only declare a name."""
    current: list[str] = []
    # The indentation of the first and the last line of the current paragraph.
    first = 0
    last = 0
    is_item = False
    for number, line in enumerate(block):
        text = line.strip()
        indent = indent_of(line)
        deeper_next = number + 1 < len(block) and indent_of(block[number + 1]) > indent
        bullet = _BULLET.match(text)
        term = match_term(text)
        starts = (
            not current
            or indent < first
            or (indent == first and (last > first or (is_item and term is not None)))
        )
        declares = deeper_next and term is not None and term.end() == len(text)
        if (
            bullet
            or declares
            or starts
            or (text[0] in ":@" and FIELD.match(text))
            or _HEADING.match(text)
        ):
            yield " ".join(current)
            current = []
            first = indent
            is_item = bullet is not None or term is not None
            if bullet:
                text = text[bullet.end() :]
        elif indent > last and not is_item and current[-1].endswith((":", ".")):
            yield " ".join(current)
            current = []
            first = indent
            is_item = term is not None
        current.append(text)
        last = indent
        if deeper_next and len(current) == 1 and _only_declares(text):
            current = []
    yield " ".join(current)


def _only_declares(text: str) -> bool:
    """Whether a line before a deeper line is a defined term without its description."""
    term = match_term(text)
    rest = text[term.end() :] if term else text
    if not rest:
        return True
    if term and not NUMPY_TERM.match(text):
        return False
    return not rest.endswith((".", ",")) and not STRONG_WORDS.intersection(rest.casefold().split())
