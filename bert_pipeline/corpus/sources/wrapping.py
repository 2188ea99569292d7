"""Joins the lines of hard-wrapped prose to paragraphs; verses, lists and sentences stay apart.

Prose is wrapped where the next word does not fit. So almost every line is full: with the first word
of the next line, it would be longer than the longest lines. Verses, headlines and sentences on
lines of their own end before that. In 40 parts of novels, at least 94% of the lines were full; of
sentences on lines of their own, 5%; of lines of the length of verses in a metre, 37%.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from math import ceil

MAX_WIDTH = 160
"""Longer lines are paragraphs. In columns: an ideograph takes two."""

_MIN_FULL = 0.7
"""Share of the lines of wrapped prose that are full."""
_MAX_ENDED = 0.5
"""Share of the lines that may end in punctuation: verses and lines of one sentence have more."""
_MIN_LOWER = 0.2
"""Share of the following lines that begin with a lower case letter, in scripts that have case."""
_MIN_CASED = 0.3
"""Share of the following lines that begin with a letter that has case, in scripts that have it."""
_LINES_PER_MARK = 8
"""Prose has at least one punctuation mark in so many lines; verses may have none."""

_WIDE = (
    "\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff01-\uff60"
)
_WIDE_CHARACTER = re.compile(f"[{_WIDE}\U00020000-\U0003fffd]")
# Thai, Lao, Burmese and Khmer: no space between words, and little or no punctuation.
_UNSPACED_LETTERS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_MARK = "[.,;:!?…،؛؟۔।॥。，、；：！？]"
_PUNCTUATION = re.compile(_MARK)
_ENDS_IN_PUNCTUATION = re.compile(rf"{_MARK}[\"'”’»)」』]*\Z")
_UNSPACED = re.compile(f"[\u2e80-\u303e\u3041-\ua4cf\uf900-\ufaff\uff01-\uff60{_UNSPACED_LETTERS}]")
_UNPUNCTUATED = re.compile(f"[{_UNSPACED_LETTERS}]")
_UNSPACED_WORD = 4
"""Columns that a word takes in a script without spaces."""


def join_wrapped(blocks: Sequence[Sequence[str]]) -> list[str]:
    """The paragraphs of a document, of which each block is a series of lines.

    When the document is wrapped, a line is joined with the next one unless it had room for its
    first word. So a poem in a novel keeps its lines. Otherwise each line is a paragraph.
    """
    if (width := find_width(blocks)) is None:
        return [line for block in blocks for line in block]
    paragraphs: list[str] = []
    for block in blocks:
        paragraphs.append(block[0])
        block_width = find_width([block]) or width  # a quotation may be narrower
        for line, following in pairwise(block):
            if _continues(line, following, block_width):
                paragraphs[-1] += _separator(line, following) + following
            else:
                paragraphs.append(following)
    return paragraphs


def find_width(blocks: Sequence[Sequence[str]]) -> int | None:
    """The width to which the lines are wrapped; None when they are not wrapped."""
    pairs = [pair for block in blocks for pair in pairwise(block)]
    if not pairs:
        return None
    widths = sorted(_width(line) for block in blocks for line in block)
    width = widths[ceil(0.98 * (len(widths) - 1))]  # not the longest, which may be an address
    full = sum(_is_full(line, following, 0.95 * width) for line, following in pairs)
    is_wrapped = width <= MAX_WIDTH and full >= _MIN_FULL * len(pairs) and _is_prose(blocks, pairs)
    return width if is_wrapped else None


def _is_prose(blocks: Sequence[Sequence[str]], pairs: Sequence[tuple[str, str]]) -> bool:
    ended = sum(_ENDS_IN_PUNCTUATION.search(line) is not None for line, _ in pairs)
    starts = [
        following[0] for _, following in pairs if following[0].upper() != following[0].lower()
    ]
    lower = sum(map(str.islower, starts))
    marks = sum(len(_PUNCTUATION.findall(line)) for block in blocks for line in block)
    has_marks = marks * _LINES_PER_MARK >= len(pairs) or _UNPUNCTUATED.match(pairs[0][0])
    # A few Latin words in a text of another script say nothing about its lines.
    has_case = len(starts) > _MIN_CASED * len(pairs)
    is_lower = not has_case or lower >= _MIN_LOWER * len(starts)
    return bool(ended <= _MAX_ENDED * len(pairs) and is_lower and has_marks)


def _continues(line: str, following: str, width: int) -> bool:
    """Whether a line of a wrapped document goes on in the following line."""
    if _is_full(line, following, 0.85 * width):
        return True
    is_ended = _ENDS_IN_PUNCTUATION.search(line)
    return following[0].islower() and not is_ended and _width(line) >= 0.6 * width


def _is_full(line: str, following: str, width: float) -> bool:
    """Whether the first word of the following line would have exceeded the width."""
    is_unspaced = _UNSPACED.match(following)
    word = _UNSPACED_WORD if is_unspaced else 1 + _width(following.split(maxsplit=1)[0])
    return _width(line) + word >= width


def _separator(line: str, following: str) -> str:
    return "" if _UNSPACED.match(line[-1]) and _UNSPACED.match(following) else " "


def _width(line: str) -> int:
    line = " ".join(line.split())
    return len(line) if line.isascii() else len(line) + len(_WIDE_CHARACTER.findall(line))
