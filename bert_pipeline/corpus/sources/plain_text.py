"""Plain text as people store it: made into paragraphs, one a line, and into documents."""

import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator

MAX_DOCUMENT_CHARS = 100_000
"""A longer file is cut into several documents at paragraph ends: one book must still give pairs from 'another document'
and a held-out part, and no stage should need a whole library in memory."""

WRAP_WIDTH = 120
"""A paragraph none of whose lines is longer than this is taken to be hard-wrapped."""

_TITLE = re.compile(r"= [^=](?:.*[^=])? =")
_HEADING = re.compile(r"=(?: ?=)+ .+ =(?: ?=)+")


def decode(raw: bytes, counts: Counter[str]) -> str:
    """UTF-8 text without a byte order mark; bytes that are none become U+FFFD, counted as `invalid_bytes_replaced`."""
    raw = raw.removeprefix(BOM_UTF8)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("utf-8", "replace")
        counts["invalid_bytes_replaced"] += text.count("\ufffd")
        return text


def join_wrapped(lines: list[str]) -> list[str]:
    """Make a hard-wrapped paragraph one line; leave lines that are paragraphs or sentences of their own."""
    if len(lines) > 1 and max(map(len, lines)) <= WRAP_WIDTH:
        return [" ".join(lines)]
    return lines


def is_title(line: str) -> bool:
    """Whether a stripped line is a title of WikiText, ` = Title = `, which begins an article after a blank line."""
    return line.startswith("=") and _TITLE.fullmatch(line) is not None


def split_documents(lines: Iterable[str]) -> Iterator[str]:
    """Cut the lines of a text file into documents of paragraphs, one a line.

    Blank lines part paragraphs. A line ` = Title = ` after a blank one begins a document (WikiText); without such
    lines the file is one document, or where it is longer several of about `MAX_DOCUMENT_CHARS`, cut between
    paragraphs. Only where no blank line comes for as long again does the cut fall between two lines.
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
                paragraphs, size = [], 0
        if line:
            block.append(line.strip("= ") if begins or _HEADING.fullmatch(line) else line)
            size += len(line) + 1
        after_blank = not line
    paragraphs += join_wrapped(block)
    if paragraphs:
        yield "\n".join(paragraphs)
