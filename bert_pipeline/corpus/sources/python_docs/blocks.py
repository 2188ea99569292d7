"""Step 1 of `extract_paragraphs`: replaces blocks that are not prose with blank lines."""

import re
from collections.abc import Iterator

from bert_pipeline.corpus.sources.python_docs.declarations import looks_like_code
from bert_pipeline.corpus.sources.python_docs.prose import word_set

_KEPT_DIRECTIVES = word_set(
    "note warning tip hint important caution attention danger admonition seealso todo topic"
    " deprecated versionadded versionchanged deprecated-removed"
)
_REMOVED_SECTIONS = word_set(
    "references reference bibliography authors author contributors citation license licence"
    " copyright contents"
)
_BLANK = re.compile(r"$")
_FENCE = re.compile(r"(?:```|~~~)")
_PROMPT = re.compile(r">>>|(?:In|Out) ?\[\d*\]:")
_DIRECTIVE = re.compile(r"\.\. +([\w:.-]+?) ?::(?:\s+(.*))?$")
_RULE = re.compile(r"([-=~^\"'`#*_+:.<>])\1{2,}$")
_TABLE_BORDER = re.compile(r"={2,}(?: +={2,})+$")
_COLUMN_GAP = re.compile(r"(?<=\S)(?<![.!?]) {3,}(?=\S)")
_PLACEHOLDER = re.compile(r"%?[({]\w+[)}]s?$")


def dedent(docstring: str) -> list[str]:
    """The lines without their common indentation, which the first line does not have."""
    lines = [line.rstrip() for line in docstring.expandtabs(4).splitlines()]
    margin = min((indent_of(line) for line in lines[1:] if line), default=0)
    return [line.strip() if number == 0 else line[margin:] for number, line in enumerate(lines)]


def indent_of(line: str) -> int:
    """The number of leading spaces."""
    return len(line) - len(line.lstrip())


def _skip_indented(lines: list[str], start: int, indent: int) -> int:
    """The first line from `start` on that is not blank and not indented deeper than `indent`."""
    while start < len(lines) and (not lines[start] or indent_of(lines[start]) > indent):
        start += 1
    return start


def _skip_until(lines: list[str], start: int, stop: re.Pattern[str]) -> int:
    while start < len(lines) and not stop.match(lines[start].strip()):
        start += 1
    return start + 1


def remove_blocks(lines: list[str]) -> Iterator[str]:
    """Yield the lines, with a blank line in place of every block that is not prose."""
    number = 0
    section = ""
    while number < len(lines):
        line = lines[number]
        text = line.strip()
        indent = indent_of(line)
        number += 1
        following = lines[number].strip() if number < len(lines) else ""
        if (
            text
            and len(following) >= 3
            and _RULE.match(following)
            and len(following) >= len(text) // 2
        ):
            section = text.strip("*: ").casefold()
            number += 1
            text = ""
        elif _FENCE.match(text) and "```" not in text[3:]:
            number = _skip_until(lines, number, _FENCE)
            text = ""
        elif _PROMPT.match(text):
            number = _skip_until(lines, number, _BLANK)
            text = ""
        elif text == ".." or text.startswith(".. "):
            directive = _DIRECTIVE.match(text)
            if directive and directive[1].casefold() in _KEPT_DIRECTIVES:
                text = re.sub(r"^v?\d+(?:\.\d+)+\S*\s*", "", directive[2] or "")
                yield ""
            else:
                number = _skip_indented(lines, number, indent)
                text = ""
        elif _TABLE_BORDER.match(text):
            number = _skip_table(lines, number)
            text = ""
        elif (
            text.startswith(("!!!", "???", "+-", "+=", "|", "[["))
            or _RULE.match(text)
            or _PLACEHOLDER.match(text)
        ):
            text = ""
        elif text.endswith("::") and not text.startswith("::"):
            number = _skip_indented(lines, number, indent)
            yield line[:-1]
            text = ""
        elif text.endswith(":"):
            end = _skip_code_after(lines, number, indent)
            if end > number:
                yield line
                text = ""
                number = end
        elif _COLUMN_GAP.search(text):
            yield ""
            text = _read_column(text)
        yield "" if section in _REMOVED_SECTIONS or not text else " " * indent + text


def _skip_table(lines: list[str], start: int) -> int:
    """The line after the last border of a simple table, whose first border is before `start`."""
    end = start
    for number in range(start, len(lines)):
        text = lines[number].strip()
        if _TABLE_BORDER.match(text):
            end = number + 1
            if end == len(lines) or not lines[end]:
                break
    return end


def _skip_code_after(lines: list[str], start: int, indent: int) -> int:
    """After a line that ends with a colon: skip a deeper block if most of its lines are code."""
    end = _skip_indented(lines, start, indent)
    block = [line.strip() for line in lines[start:end] if line]
    return end if block and 2 * sum(map(looks_like_code, block)) >= len(block) else start


def _read_column(text: str) -> str:
    """The description in a line "term     description"; empty for a row of several columns."""
    columns = _COLUMN_GAP.split(text)
    if len(columns) != 2:
        return ""
    return columns[1] if len(columns[0].split()) <= 3 else " ".join(columns)
