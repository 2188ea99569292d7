"""Step 3 of `extract_paragraphs`: replaces inline markup with the words that it marks."""

import html
import re

from bert_pipeline.corpus.sources.python_docs.declarations import (
    CALL,
    FIELD,
    NUMPY_TERM,
    PLAIN_TERM,
    TYPED_TERM,
)
from bert_pipeline.corpus.sources.python_docs.prose import word_set

_IGNORED_FIELDS = word_set("type rtype vartype meta author authors copyright license date version")
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
    "rightarrow": "->",
    "infty": "infinity",
    "ldots": "...",
    "dots": "...",
    "cdots": "...",
    "approx": "~",
    "lt": "<",
}
_EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\ufe0f]")
_FORMULA = re.compile(
    r":math:`([^`]*)`|\$`?([^$]+?)`?\$|\\\((.+?)\\\)|"
    r"(?<!`)`(?=[^`]*(?:\\[A-Za-z]|[_^]\{))([^`]+)`(?!`)"
)
_URL = re.compile(r"(?:https?|ftp)://\S+|\bwww\.\S+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(]?[A-Z])")

_TAGS = (
    "tip|br|hr|b|i|u|p|a|code|pre|img|div|span|ul|ol|li|sub|sup|em|strong|small|details|summary|"
    "center|kbd|table|tr"
)
# Characters without which the pattern cannot match (searching for them is far cheaper), the
# pattern, and the replacement.
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


def clean_inline(text: str) -> str:
    """Replace inline markup with the words that it marks; remove declarations and URLs."""
    if not text:
        return ""
    text = _remove_declaration(text)
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


def _remove_declaration(text: str) -> str:
    field = FIELD.match(text) if text[0] in ":@" else None
    if field:
        return "" if field[1] in _IGNORED_FIELDS else _capitalize(text[field.end() :])
    for pattern in (CALL, NUMPY_TERM, TYPED_TERM, PLAIN_TERM):
        prefix = pattern.match(text)
        if prefix:
            return _capitalize(text[prefix.end() :])
    return text


def _capitalize(text: str) -> str:
    """Capitalize a description after the name before it was removed."""
    first, _, _ = text.partition(" ")
    return text[:1].upper() + text[1:] if first.isalpha() and first.islower() else text


def _read_formula(match: re.Match[str]) -> str:
    """A LaTeX formula as plain text, without style commands; other commands become their names."""
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
