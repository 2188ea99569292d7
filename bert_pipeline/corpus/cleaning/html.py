"""The step `html`: removes markup from web text."""

import re
from html import unescape
from html.entities import html5

_BLOCKS = (
    "address article aside blockquote body br caption center dd details dialog dir div dl dt"
    " fieldset figcaption figure footer form frameset h1 h2 h3 h4 h5 h6 head header hr html iframe"
    " legend li main menu nav noscript ol optgroup option p pre script section select style summary"
    " table tbody textarea tfoot thead title tr ul"
)
"""HTML elements that start and end a line."""

_INLINES = (
    "a abbr acronym applet area audio b base basefont bdi bdo big blink button canvas cite"
    " code col colgroup data datalist del dfn em embed font frame i img input ins kbd label"
    " link map mark marquee meta meter nobr noframes object o:p output param picture progress"
    " q rp rt ruby s samp slot small source span strike strong sub sup svg template time track"
    " tt u var video wbr"
)
"""HTML elements within a line."""
_REPLACEMENTS = (
    dict.fromkeys(_INLINES.split(), "")
    | dict.fromkeys(_BLOCKS.split(), "\n")
    | {"td": " ", "th": " "}
)

_FLAGS = (
    "allowfullscreen|async|autofocus|autoplay|checked|compact|controls|default|defer|disabled"
    "|hidden|ismap|itemscope|loop|multiple|muted|nomodule|noshade|novalidate|nowrap|open"
    "|playsinline|readonly|required|reversed|selected"
)
# An attribute has a value or is a known flag, so that "a <b and c> d" is not a tag. No attribute
# may contain "<", so that a search never looks past the next one and takes linear time.
_TAG = re.compile(
    r"</?([A-Za-z][A-Za-z0-9:]*+)"
    r"(?:\s++(?:[\w:@.-]++\s*+=\s*+(?:\"[^\"<]*+\"|'[^'<]*+'|[^\s\"'<>]++)"
    rf"|(?i:{_FLAGS})(?![\w=-])))*+\s*+/?>"
)
_DECLARATION = re.compile(r"<(?:!doctype|\?xml)\b[^<>]*+>", re.IGNORECASE)
_HIDDEN = (
    (re.compile("<!--"), re.compile("-->")),
    (re.compile(r"<script\b[^<>]*+>", re.IGNORECASE), re.compile(r"</script\s*+>", re.IGNORECASE)),
    (re.compile(r"<style\b[^<>]*+>", re.IGNORECASE), re.compile(r"</style\s*+>", re.IGNORECASE)),
)
# Only with a semicolon: "?a=1&copy=2" is part of a URL. "&amp;amp;lt;" is escaped twice.
_ENTITY = re.compile(
    r"&(?:(?:amp|#38|#x26);)*+(#[0-9]{1,7};|#[xX][0-9a-fA-F]{1,6};|[A-Za-z][A-Za-z0-9]{1,31};)?"
)


def strip_html(text: str) -> str:
    """The text without markup: entities decoded; comments, scripts, styles and tags removed.

    Only tags of HTML elements are removed, so "a < b", "<T>", "List<String>", "<stdin>" and
    "<a@b.c>" stay. Block elements become line breaks.
    """
    if "&" in text:
        text = _ENTITY.sub(_decode_entity, text)
    if "<" in text:
        for opening, closing in _HIDDEN:
            text = _drop_between(text, opening, closing)
        text = _TAG.sub(_replace_tag, _DECLARATION.sub("", text))
    return text


def _decode_entity(match: re.Match[str]) -> str:
    name: str | None = match[1]
    if name is None:
        return "&"
    return unescape(f"&{name}") if name.startswith("#") else html5.get(name, f"&{name}")


def _drop_between(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> str:
    # Not one pattern with ".*?", which takes quadratic time for many openings without an end.
    kept = []
    position = 0
    while (begin := opening.search(text, position)) and (end := closing.search(text, begin.end())):
        kept.append(text[position : begin.start()])
        position = end.end()
    return " ".join([*kept, text[position:]])


def _replace_tag(match: re.Match[str]) -> str:
    name = match[1]
    if not (name.islower() or name.isupper()):
        return match[0]  # "List<Object>" is code; HTML tags are written in one case
    return _REPLACEMENTS.get(name.lower(), match[0])
