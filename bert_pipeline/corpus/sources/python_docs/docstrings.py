"""Take the sentences out of a docstring.

Docstrings mix English with doctests, literal blocks, tables, signatures and the markup of reStructuredText, Markdown
and the NumPy, Google and Sphinx styles of parameter lists. ``extract_paragraphs`` keeps the English, in three steps:

1. whole blocks that cannot be prose (fenced and literal blocks, doctests, tables, most directives) become blank lines;
2. the remaining hard-wrapped lines are joined into paragraphs, by blank lines, bullets and indentation, and the line
   or the prefix that only declares a parameter is cut from the sentences that describe it;
3. inline markup is replaced by the words it marks, and what still does not read as a sentence is dropped.

The rules are heuristics tuned by eye. They prefer to lose a paragraph to keeping a page of code.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_KEPT_DIRECTIVES = _words(
    "note warning tip hint important caution attention danger admonition seealso todo topic deprecated "
    "versionadded versionchanged deprecated-removed"
)
_DROPPED_SECTIONS = _words(
    "references reference bibliography authors author contributors citation license licence copyright contents"
)
_FUNCTION_WORDS = _words(
    "the a an is are be was were been if this that these those to with when which who can will would should must may "
    "for from by has have had not it its as at into on of and or in used than then so only each all any no"
)
# "list of int or str" is a type, not a sentence, although it is made of function words: these ones prove a sentence.
_STRONG_WORDS = _FUNCTION_WORDS - _words("of and or in any no used only each all not by a")

_LONGEST_PARAGRAPH = (
    10_000  # characters; what is longer is data, on which the patterns below would take their time
)
_BLANK = re.compile(r"$")
_FENCE = re.compile(r"(?:```|~~~)")
_PROMPT = re.compile(r">>>|(?:In|Out) ?\[\d*\]:")
_DIRECTIVE = re.compile(r"\.\. +([\w:.-]+?) ?::(?:\s+(.*))?$")
_RULE = re.compile(r"([-=~^\"'`#*_+:.<>])\1{2,}$")
_TABLE_BORDER = re.compile(r"={2,}(?: +={2,})+$")
_COLUMN_GAP = re.compile(r"(?<=\S)(?<![.!?]) {3,}(?=\S)")
_PLACEHOLDER = re.compile(r"%?[({]\w+[)}]s?$")
_HEADING = re.compile(
    r"(?i)(?:(?:keyword |other |optional |positional )?(?:arg(?:ument)?s?|param(?:eter)?s?|kwargs)|attributes?|"
    r"returns?|raises?|yields?|examples?|usage|notes?|warnings?|shapes?|inputs?|outputs?|references?|methods?|"
    r"see also):+$"
)
_BULLET = re.compile(r"(?:[-*+•–]|#\.|\(?(?:\d{1,2}|[a-zA-Z]|[ivx]{1,4})[.)])\s+(?=\S)")
_FIELD = re.compile(r"[:@](\w+)(?:\s+[^:\n]*?)?:(?:\s+|$)")
_SILENT_FIELDS = _words("type rtype vartype meta author authors copyright license date version")
_NAMES = r"(?:`{0,2}\*{0,2}[\w.\[\]-]+\*{0,2}`{0,2})(?:\s?(?:,|/|or|and)\s?`{0,2}\*{0,2}[\w.\[\]-]+\*{0,2}`{0,2}){0,6}"
_TYPED_TERM = re.compile(rf"{_NAMES}\s*\(.{{0,400}}?\)`?\s*(?::|--|–|—| - )(?:\s+|$)")
_PLAIN_TERM = re.compile(rf"{_NAMES}\s?(?::|--|–|—| - )(?:\s+|$)")
_NUMPY_TERM = re.compile(rf"{_NAMES} :(?:\s+|$)")
_CALL = re.compile(
    r"[\w.]+\([^()]*(?:\([^()]*\)[^()]*)*\)\s*(?:->\s*[\w.\[\], ]+?)?\s*(?:--|:|\.|=>|->|-)\s+"
)
_CODE_LINE = re.compile(
    r"""(?x)
    (?:import|from)\s[\w.]+(?:\s(?:import|as)\s.*|,.*)?$ | (?:async\s)?def\s\w+\(? | class\s\w+(?:\(.*\))?:
    | @\w | [$%>#]\s | \#|// | print\s?\( | return\s\w+[(.\[] | (?:raise|assert|del|yield|await)\s\w+[(.\[]
    | [\w.\[\]'",\s*]+\s(?:[-+*/|&]?=|:=|::=|->|=>)\s | [\w.]+=\S+$
    | [\w.'"\[\]]+\(.*\)?[:;,\\]?$ | [\w.]+\(.*\)\s*->\s*\S.*$
    | (?:if|for|while|with|elif|except)\b[^.]*[\[\]()=<>_].*:$ | (?:try|else|finally):$ | with\s\S+\sas\s\S+:$
    | [\])}({\[]+.*$ | <\w+.*>$ | -{1,2}[\w-]+(?:[\s=,].*)?$
    | ['"]\S*['"]\s?:.* | .*\S\s{2,}\#\s.* | ['"].*['"]\s+\#\s.* | \\ | .*[{};\\]$ | \.\.\.$
    """
)
_LATEX_STYLE = re.compile(
    r"\\(?:text|math|operatorname|left|right|big|Big|displaystyle|limits|hspace|quad|q)\w*\b\*?"
)
_LATEX_SIGNS = {
    "ge": ">=",
    "geq": ">=",
    "le": "<=",
    "leq": "<=",
    "ne": "!=",
    "neq": "!=",
    "cdot": "*",
    "to": "->",
} | {
    "rightarrow": "->",
    "infty": "infinity",
    "ldots": "...",
    "dots": "...",
    "cdots": "...",
    "approx": "~",
    "lt": "<",
}
_LATEX_LEFT = re.compile(r"\\[A-Za-z]{3,}")
_EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\ufe0f]")
_FORMULA = re.compile(
    r":math:`([^`]*)`|\$`?([^$]+?)`?\$|\\\((.+?)\\\)|(?<!`)`(?=[^`]*(?:\\[A-Za-z]|[_^]\{))([^`]+)`(?!`)"
)
_URL = re.compile(r"(?:https?|ftp)://\S+|\bwww\.\S+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(]?[A-Z])")
_LEGAL = re.compile(
    r"(?i)copyright|all rights reserved|licensed under|warrant(?:y|ies) of|permission is hereby|"
    r"redistribution and use|apache license|mit license|bsd license|spdx-"
)
_WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*")
_SYMBOL = re.compile(r"[^\w\s.,;:!?'\"()-]|_")

_TAGS = "tip|br|hr|b|i|u|p|a|code|pre|img|div|span|ul|ol|li|sub|sup|em|strong|small|details|summary|center|kbd|table|tr"
# A sign without which the pattern cannot match (a search for it is far cheaper), the pattern, what to put in its place.
_INLINE: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (sign, re.compile(pattern), replacement)
    for sign, pattern, replacement in (
        ("<", r"<!--.*?-->", " "),
        (
            "<",
            rf"(?i)</?(?:{_TAGS}|hfoptions?|h\d)(?:\s+[\w-]+=(?:\"[^\"]*\"|'[^']*'|\S+?))*\s*/?>(?!`)",
            " ",
        ),
        ("](", r"!\[[^\]]*\]\([^)]*\)", " "),
        (
            "](",
            r"\[([^\[\]]+(?:\[[^\[\]]*\])?[^\[\]]*)\]\((?:[^()\s]|\([^()]*\))+(?:\s\"[^\"]*\")?\)",
            r"\1",
        ),
        ("][", r"(?<![\w)\]])\[([^\[\]]+)\]\[[\w.`~-]*\]", r"\1"),
        ("[`", r"\[(`[^`\]]+`)\]", r"\1"),
        ("]_", r"\s?\[(?:\d+|#\w*|\*|[A-Za-z][\w+.-]*)\]_", ""),
        (":`~", r":[\w:+-]+:`~(?:[\w.]*\.)?([^`.]+?)`", r"\1"),
        (">`", r"(?::[\w:+-]+:)?`([^`<]+?)\s*<[^`>]+>`_{0,2}", r"\1"),
        (":`", r":[\w:+-]+:`[!~]?([^`]+)`", r"\1"),
        ("''", r"``([^`']+)''", r'"\1"'),
        ("``", r"``(.+?)``", r"\1"),
        ("`", r"`([^`]+)`_{0,2}", r"\1"),
        ("`", "`+", ""),
        ("**", r"(?<![\w*)])\*\*(\w(?:[^*]*?[^\s*])?)\*\*(?!\w)", r"\1"),
        ("*", r"(?<![\w*/)])\*(\w(?:[^*]*?[^\s*])?)\*(?![\w*])", r"\1"),
        ("_", r"(?<!\w)_([^\W_](?:[^_]*[^\W_])?)_(?!\w)", r"\1"),
        ("|", r"(?<!\w)\|([\w ]+)\|(?!\w)", r"\1"),
        ("%(", r"%\(\w+\)s", " "),
        ("{", r"\{(\w+)\}", r"\1"),
        ("\\", r"(?<=\w)\\(?: |(?=s\b))", ""),
        ("\\", r"\\([^A-Za-z0-9\s])", r"\1"),
        ("::", r"::(?=\s|$)", ":"),
        ("~", r"(?<=[\s(])~(?=[A-Za-z]\w*\.)", ""),
        ("(", r"(?<=\s)\(\s*\)", ""),
        ("", r"\s{2,}|[\t\n\xa0]", " "),
        (",", r"(?:,\s*)+(?=[,.;](?:\s|$))", ""),
        (" ", r" (?=[,;:?!.](?:\s|$))", ""),
    )
)


def extract_paragraphs(docstring: str) -> list[str]:
    """Return the paragraphs of running English in ``docstring``, each on one line, in order."""
    lines = _dedent(docstring)
    joined = (
        paragraph
        for paragraph in _join_lines(list(_drop_blocks(lines)))
        if len(paragraph) <= _LONGEST_PARAGRAPH
    )
    readable = map(_clean_inline, joined)
    return [paragraph for paragraph in readable if _reads_as_prose(paragraph)]


def _dedent(docstring: str) -> list[str]:
    """Split into lines without the common margin, which the first line of a docstring does not share."""
    lines = [line.rstrip() for line in docstring.expandtabs(4).splitlines()]
    margin = min((_indent(line) for line in lines[1:] if line), default=0)
    return [line.strip() if number == 0 else line[margin:] for number, line in enumerate(lines)]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _skip_indented(lines: list[str], start: int, indent: int) -> int:
    """Return the number of the first line from ``start`` on that is not blank and not deeper than ``indent``."""
    while start < len(lines) and (not lines[start] or _indent(lines[start]) > indent):
        start += 1
    return start


def _skip_until(lines: list[str], start: int, stop: re.Pattern[str]) -> int:
    while start < len(lines) and not stop.match(lines[start].strip()):
        start += 1
    return start + 1


def _drop_blocks(lines: list[str]) -> Iterator[str]:
    """Yield ``lines`` with a blank line in place of every block that is not prose."""
    number, section = 0, ""
    while number < len(lines):
        line = lines[number]
        text, indent = line.strip(), _indent(line)
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
            number, text = _skip_until(lines, number, _FENCE), ""
        elif _PROMPT.match(text):
            number, text = _skip_until(lines, number, _BLANK), ""
        elif text == ".." or text.startswith(".. "):
            directive = _DIRECTIVE.match(text)
            if directive and directive[1].casefold() in _KEPT_DIRECTIVES:
                text = re.sub(r"^v?\d+(?:\.\d+)+\S*\s*", "", directive[2] or "")
                yield ""
            else:
                number, text = _skip_indented(lines, number, indent), ""
        elif _TABLE_BORDER.match(text):
            number, text = _skip_table(lines, number), ""
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
            number, after = _skip_code_after(lines, number, indent), number
            if number > after:
                yield line
                text = ""
        elif _COLUMN_GAP.search(text):
            yield ""
            text = _read_column(text)
        yield "" if section in _DROPPED_SECTIONS or not text else " " * indent + text


def _skip_table(lines: list[str], start: int) -> int:
    """Return the number of the line after the last border of the simple table whose first border precedes ``start``."""
    end = start
    for number in range(start, len(lines)):
        text = lines[number].strip()
        if _TABLE_BORDER.match(text):
            end = number + 1
            if end == len(lines) or not lines[end]:
                break
    return end


def _skip_code_after(lines: list[str], start: int, indent: int) -> int:
    """After a line that ends with a colon: step over the deeper block if most of its lines look like code."""
    end = _skip_indented(lines, start, indent)
    block = [line.strip() for line in lines[start:end] if line]
    return end if block and 2 * sum(map(_looks_like_code, block)) >= len(block) else start


def _looks_like_code(text: str) -> bool:
    return bool(_CODE_LINE.match(text)) and not (text[0].isupper() and text.endswith("."))


def _read_column(text: str) -> str:
    """Return the description in a line of the form "term     description", nothing for a row of several columns."""
    columns = _COLUMN_GAP.split(text)
    if len(columns) != 2:
        return ""
    return columns[1] if len(columns[0].split()) <= 3 else " ".join(columns)


def _join_lines(lines: list[str]) -> Iterator[str]:
    """Join hard-wrapped lines: a paragraph ends at a blank line, a bullet, a parameter or a change of indentation."""
    block: list[str] = []
    for line in [*lines, ""]:
        if line:
            block.append(line)
        elif block:
            if 2 * sum(_looks_like_code(text.strip()) for text in block) < len(block):
                yield from _split_block(block)
            block = []


def _split_block(block: list[str]) -> Iterator[str]:
    """Split lines without a blank one between them into paragraphs, leaving out lines that only declare a name."""
    current: list[str] = []
    first = last = 0  # the indentation of the first and of the last line of the current paragraph
    is_item = False
    for number, line in enumerate(block):
        text, indent = line.strip(), _indent(line)
        deeper_next = number + 1 < len(block) and _indent(block[number + 1]) > indent
        bullet, term = _BULLET.match(text), _match_term(text)
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
            or (text[0] in ":@" and _FIELD.match(text))
            or _HEADING.match(text)
        ):
            yield " ".join(current)
            current, first = [], indent
            is_item = bullet is not None or term is not None
            if bullet:
                text = text[bullet.end() :]
        elif indent > last and not is_item and current[-1].endswith((":", ".")):
            yield " ".join(current)
            current, first = [], indent
            is_item = term is not None
        current.append(text)
        last = indent
        if deeper_next and len(current) == 1 and _only_declares(text):
            current = []
    yield " ".join(current)


def _match_term(text: str) -> re.Match[str] | None:
    """Match the prefix that declares a parameter: "name (type): ", "name : " or "name: "."""
    if ":" not in text and "-" not in text and "–" not in text and "—" not in text:
        return None
    return _NUMPY_TERM.match(text) or _TYPED_TERM.match(text) or _PLAIN_TERM.match(text)


def _only_declares(text: str) -> bool:
    """Whether ``text``, followed by a deeper line, is a definition's term with no part of its description."""
    term = _match_term(text)
    rest = text[term.end() :] if term else text
    if not rest:
        return True
    if term and not _NUMPY_TERM.match(text):
        return False
    return not rest.endswith((".", ",")) and not _STRONG_WORDS.intersection(rest.casefold().split())


def _clean_inline(text: str) -> str:
    """Replace inline markup with the words it marks, and cut declarations and web addresses."""
    if not text:
        return ""
    text = _cut_declaration(text)
    if "$" in text or ":math:" in text or "\\" in text or "^" in text:
        text = _FORMULA.sub(_read_formula, text)
    for sign, pattern, replacement in _INLINE:
        if sign in text:
            text = pattern.sub(replacement, text)
    if "&" in text:
        text = html.unescape(text)
    if not text.isascii() or not text.isprintable():
        text = "".join(filter(str.isprintable, _EMOJI.sub("", text)))
    if "://" in text or "www." in text:
        text = " ".join(
            sentence for sentence in _SENTENCE_END.split(text) if not _URL.search(sentence)
        )
    return text.strip()


def _cut_declaration(text: str) -> str:
    field = _FIELD.match(text) if text[0] in ":@" else None
    if field:
        return "" if field[1] in _SILENT_FIELDS else _capitalise(text[field.end() :])
    for pattern in (_CALL, _NUMPY_TERM, _TYPED_TERM, _PLAIN_TERM):
        prefix = pattern.match(text)
        if prefix:
            return _capitalise(text[prefix.end() :])
    return text


def _capitalise(text: str) -> str:
    """Begin a description with a capital, now that the name before it is gone."""
    first, _, _ = text.partition(" ")
    return text[:1].upper() + text[1:] if first.isalpha() and first.islower() else text


def _read_formula(match: re.Match[str]) -> str:
    """Write a LaTeX formula in one line of plain signs: style commands vanish, the others leave their names."""
    formula = _LATEX_STYLE.sub("", match[match.lastindex or 0])
    formula = re.sub(r"([_^])\{([^{}]*)\}", r"\1\2", formula)
    for _ in range(2):  # a fraction may hold fractions
        formula = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2", formula)
    formula = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", formula)
    formula = re.sub(r"\\(?:mathcal|mathbb|[,;:! ]|\\)", " ", formula)
    formula = re.sub(
        r"\\([A-Za-z]+)", lambda command: f" {_LATEX_SIGNS.get(command[1], command[1])} ", formula
    )
    return re.sub(r"\s+", " ", re.sub(r"[{}$\\]", "", formula)).strip()


def _reads_as_prose(text: str) -> bool:
    """Whether a cleaned paragraph is English: enough words, function words among them, few symbols, no licence."""
    words = _WORD.findall(text)
    if len(words) < 4 or not (text[0].isalnum() or text[0] in "\"'("):
        return False
    letters = sum(map(len, words)) + text.count(" ")
    if letters < 0.8 * len(text) or (
        letters < 0.94 * len(text) and len(_SYMBOL.findall(text)) > 2 + 0.05 * len(text)
    ):
        return False
    if _LEGAL.search(text) or ("\\" in text and _LATEX_LEFT.search(text)):
        return False
    ends = text.endswith((".", "!", "?", ".)", '."', ":"))
    functional = [
        word for word in words if word in _FUNCTION_WORDS or word.casefold() in _FUNCTION_WORDS
    ]
    if _STRONG_WORDS.isdisjoint(map(str.casefold, functional)):
        # "Return number of items." has no such word, but it begins and ends as a sentence.
        plain = letters > 0.9 * len(text) and sum(map(str.islower, words)) >= 0.6 * len(words)
        return ends and plain and text[0].isupper()
    return len(functional) >= 0.1 * len(words) and (ends or len(words) >= 6)
