"""Patterns of declarations in docstrings: parameters, fields, calls and lines of code."""

import re

FIELD = re.compile(r"[:@](\w+)(?:\s+[^:\n]*?)?:(?:\s+|$)")
_NAME = r"`{0,2}\*{0,2}[\w.\[\]-]+\*{0,2}`{0,2}"
_NAMES = rf"(?:{_NAME})(?:\s?(?:,|/|or|and)\s?{_NAME}){{0,6}}"
TYPED_TERM = re.compile(rf"{_NAMES}\s*\(.{{0,400}}?\)`?\s*(?::|--|–|—| - )(?:\s+|$)")
PLAIN_TERM = re.compile(rf"{_NAMES}\s?(?::|--|–|—| - )(?:\s+|$)")
NUMPY_TERM = re.compile(rf"{_NAMES} :(?:\s+|$)")
CALL = re.compile(
    r"[\w.]+\([^()]*(?:\([^()]*\)[^()]*)*\)\s*(?:->\s*[\w.\[\], ]+?)?\s*(?:--|:|\.|=>|->|-)\s+"
)
_CODE_LINE = re.compile(
    r"""(?x)
    (?:import|from)\s[\w.]+(?:\s(?:import|as)\s.*|,.*)?$ | (?:async\s)?def\s\w+\(?
    | class\s\w+(?:\(.*\))?: | @\w | [$%>#]\s | \#|// | print\s?\( | return\s\w+[(.\[]
    | (?:raise|assert|del|yield|await)\s\w+[(.\[]
    | [\w.\[\]'",\s*]+\s(?:[-+*/|&]?=|:=|::=|->|=>)\s | [\w.]+=\S+$
    | [\w.'"\[\]]+\(.*\)?[:;,\\]?$ | [\w.]+\(.*\)\s*->\s*\S.*$
    | (?:if|for|while|with|elif|except)\b[^.]*[\[\]()=<>_].*:$
    | (?:try|else|finally):$ | with\s\S+\sas\s\S+:$
    | [\])}({\[]+.*$ | <\w+.*>$ | -{1,2}[\w-]+(?:[\s=,].*)?$
    | ['"]\S*['"]\s?:.* | .*\S\s{2,}\#\s.* | ['"].*['"]\s+\#\s.* | \\ | .*[{};\\]$ | \.\.\.$
    """
)


def match_term(text: str) -> re.Match[str] | None:
    """Match a prefix that declares a parameter: "name (type): ", "name : " or "name: "."""
    if ":" not in text and "-" not in text and "–" not in text and "—" not in text:
        return None
    return NUMPY_TERM.match(text) or TYPED_TERM.match(text) or PLAIN_TERM.match(text)


def looks_like_code(text: str) -> bool:
    """Whether a line is code, or the output of a program, instead of prose."""
    return bool(_CODE_LINE.match(text)) and not (text[0].isupper() and text.endswith("."))
