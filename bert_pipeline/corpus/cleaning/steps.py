"""Cleaning of one document: the steps of `--clean` but those that compare documents with each other."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import unescape
from html.entities import html5

from bert_pipeline.errors import UsageError

EXCERPT_CHARS = 80

_ROUNDS = 20
"""How often the text steps run at most. Twice is the rule; only markup nested in markup takes more."""

Judge = Callable[[str], tuple[str, str | None]]
"""Gives the text as it leaves it, and the reason to leave the document out, if there is one."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a step did to a text: the whole text before and after."""

    step: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A cleaned text, the reason to leave the document out if there is one, and each step's first change to it."""

    text: str
    removed: str | None
    changes: tuple[Change, ...]


class Cleaner:
    """The steps asked for, ready to run on any number of texts."""

    def __init__(self, steps: Sequence[str], language: str) -> None:
        """Load what the steps need, once; a `UsageError` where one of them cannot do the language."""
        self._edits = [(step, make()) for step, make in _EDITS.items() if step in steps]
        self._judges = [(step, make(language)) for step, make in _JUDGES.items() if step in steps]

    def clean(self, text: str) -> Cleaned:
        """The steps in their order; whichever they are, UTF-8 can hold the text that comes out.

        The text steps run until they change nothing more, for one makes work for another: an entity may hold mojibake,
        and letters that a dropped control character stood between may compose.
        """
        changes: dict[str, Change] = {}

        def note(step: str, before: str, after: str) -> str:
            if after != before:
                changes.setdefault(step, Change(step, before, after))
            return after

        text = note("surrogates", text, join_surrogates(text))
        for _ in range(_ROUNDS):
            start = text
            for step, edit in self._edits:
                text = note(step, text, edit(text))
            if text == start:
                break
        removed = None if text.strip() else "empty"
        for step, judge in self._judges:
            if removed is None:
                after, removed = judge(text)
                text = note(step, text, after)
        return Cleaned(text, removed, tuple(changes.values()))


def excerpt(before: str, after: str) -> tuple[str, str]:
    """Short parts of two texts around the first character in which they differ."""
    shared = min(len(before), len(after))
    first = next((at for at in range(shared) if before[at] != after[at]), shared)
    start = max(0, first - EXCERPT_CHARS // 4)
    return before[start : start + EXCERPT_CHARS], after[start : start + EXCERPT_CHARS]


def join_surrogates(text: str) -> str:
    """Halves of a pair that JSON escaped one by one joined; what is still alone has no meaning and becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _make_mojibake() -> Callable[[str], str]:
    """Text that was decoded by the wrong encoding, decoded anew by ftfy; quotes, ligatures and widths stay.

    Line by line, since a page may be put together from several encodings.
    """
    from ftfy import fix_encoding
    from ftfy.badness import MOJIBAKE_CATEGORIES

    # ftfy takes no text for mojibake that has none of these (they are in every alternative of its `BADNESS_RE`), and
    # to look for them is several times faster.
    kinds = ("c1", "bad", "law", "currency", "numeric", "box", "lower_accented", "upper_accented")
    signs = re.compile(
        "[" + "".join(MOJIBAKE_CATEGORIES[kind] for kind in kinds) + "ÂÃÎÐØÙàŒœ√≈‚ВГРСвβΒΓΞΟā×]"
    )

    def fix(text: str) -> str:
        if not signs.search(text):
            return text
        return "\n".join(
            fix_encoding(line) if signs.search(line) else line for line in text.split("\n")
        )

    return fix


_BLOCKS = (
    "address article aside blockquote body br caption center dd details dialog dir div dl dt fieldset figcaption figure"
    " footer form frameset h1 h2 h3 h4 h5 h6 head header hr html iframe legend li main menu nav noscript ol optgroup"
    " option p pre script section select style summary table tbody textarea tfoot thead title tr ul"
)
"""HTML elements that begin and end a line."""

_INLINES = (
    "a abbr acronym applet area audio b base basefont bdi bdo big blink button canvas cite code col colgroup data"
    " datalist del dfn em embed font frame i img input ins kbd label link map mark marquee meta meter nobr noframes"
    " object o:p output param picture progress q rp rt ruby s samp slot small source span strike strong sub sup svg"
    " template time track tt u var video wbr"
)
_REPLACEMENTS = (
    dict.fromkeys(_INLINES.split(), "")
    | dict.fromkeys(_BLOCKS.split(), "\n")
    | {"td": " ", "th": " "}
)

_FLAGS = (
    "allowfullscreen|async|autofocus|autoplay|checked|compact|controls|default|defer|disabled|hidden|ismap|itemscope"
    "|loop|multiple|muted|nomodule|noshade|novalidate|nowrap|open|playsinline|readonly|required|reversed|selected"
)
# An attribute has a value or is a known flag, so that "a <b and c> d" is no tag. No attribute may hold "<": a search
# never looks past the next one, and so takes linear time.
_TAG = re.compile(
    r"</?([A-Za-z][A-Za-z0-9:]*+)"
    rf"(?:\s++(?:[\w:@.-]++\s*+=\s*+(?:\"[^\"<]*+\"|'[^'<]*+'|[^\s\"'<>]++)|(?i:{_FLAGS})(?![\w=-])))*+\s*+/?>"
)
_DECLARATION = re.compile(r"<(?:!doctype|\?xml)\b[^<>]*+>", re.IGNORECASE)
_HIDDEN = (
    (re.compile("<!--"), re.compile("-->")),
    (re.compile(r"<script\b[^<>]*+>", re.IGNORECASE), re.compile(r"</script\s*+>", re.IGNORECASE)),
    (re.compile(r"<style\b[^<>]*+>", re.IGNORECASE), re.compile(r"</style\s*+>", re.IGNORECASE)),
)
# Only what ends in a semicolon: "?a=1&copy=2" is an address. "&amp;amp;lt;" has been escaped more than once.
_ENTITY = re.compile(
    r"&(?:(?:amp|#38|#x26);)*+(#[0-9]{1,7};|#[xX][0-9a-fA-F]{1,6};|[A-Za-z][A-Za-z0-9]{1,31};)?"
)


def strip_html(text: str) -> str:
    """What is left of markup in web text taken out: entities decoded; comments, scripts and styles dropped; tags too.

    Tags are those of HTML's elements alone, so "a < b", "<T>", "List<String>", "<stdin>" and "<a@b.c>" stay. Elements
    that begin a line do so in the text.
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
    # Not one pattern with ".*?" in the middle: over many openings without an end it takes quadratic time.
    kept = []
    position = 0
    while (begin := opening.search(text, position)) and (end := closing.search(text, begin.end())):
        kept.append(text[position : begin.start()])
        position = end.end()
    return " ".join([*kept, text[position:]])


def _replace_tag(match: re.Match[str]) -> str:
    name = match[1]
    if not (name.islower() or name.isupper()):
        return match[0]  # "List<Object>" is code; HTML is written in one case
    return _REPLACEMENTS.get(name.lower(), match[0])


def compose(text: str) -> str:
    """Canonical composition (NFC), which changes how a text is coded and not how it looks.

    All else stays: U+200C, U+200D, direction marks, soft hyphens, tatweel, Arabic and Persian letters that look alike.
    """
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


# Tabs, line feeds and carriage returns are white space. Format characters (U+200C, direction marks) are no controls.
_LINE_BREAKING = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\ufeff]")
_ANY_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\u2028\u2029]")


def drop_controls(text: str) -> str:
    """Control characters and byte order marks dropped; those that break lines become spaces, to part words still."""
    if not _ANY_CONTROL.search(text):
        return text
    return _CONTROL.sub("", _LINE_BREAKING.sub(" ", text))


def fold_whitespace(text: str) -> str:
    """One space for each run of white space within a line; lines stripped, empty ones dropped."""
    lines = text.replace("\r", "\n").split("\n")
    return "\n".join(filter(None, (" ".join(line.split()) for line in lines)))


_EDITS: dict[str, Callable[[], Callable[[str], str]]] = {
    "mojibake": _make_mojibake,
    "html": lambda: strip_html,
    "unicode": lambda: compose,
    "control": lambda: drop_controls,
    "whitespace": lambda: fold_whitespace,
}
"""The steps that only edit, in their order, by what makes them ready."""

_SAMPLE_CHARS = 700
_LEAST_SHARE = 0.1
_SAME_LANGUAGE = {"cmn": "zh", "fil": "tl", "in": "id", "iw": "he", "nb": "no", "prs": "fa"}


def _make_language_judge(language: str) -> Judge:
    """Remove documents in another language, told by py3langid from their beginning, middle and end.

    A document stays when the language wanted is the likeliest one, or at least a tenth as likely as that: a few words,
    or nothing but figures, may be of many languages, while in a sentence or more one language stands out.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    code = re.split(r"[-_]", language.lower(), maxsplit=1)[0]
    wanted = _SAME_LANGUAGE.get(code, code)
    if wanted not in identifier.labels:
        known = " ".join(sorted(identifier.labels))
        raise UsageError(
            f"--clean language: no way to tell {language} from other languages. Known are: {known}."
        )

    def judge(text: str) -> tuple[str, str | None]:
        likelihoods = dict(identifier.rank(_sample(text)))
        likely = likelihoods[wanted] >= _LEAST_SHARE * max(likelihoods.values())
        return text, None if likely else "language"

    return judge


def _sample(text: str) -> str:
    if len(text) <= 3 * _SAMPLE_CHARS:
        return text
    middle = (len(text) - _SAMPLE_CHARS) // 2
    return "\n".join(
        (text[:_SAMPLE_CHARS], text[middle : middle + _SAMPLE_CHARS], text[-_SAMPLE_CHARS:])
    )


def _make_quality_judge(step: str, language: str) -> Judge:
    from bert_pipeline.corpus.cleaning.quality import make_filter

    judge = make_filter(step, language)

    def named(text: str) -> tuple[str, str | None]:
        after, reason = judge(text)
        return after, reason and f"{step}: {reason}"

    return named


_JUDGES: dict[str, Callable[[str], Judge]] = {
    "language": _make_language_judge,
    **{
        step: partial(_make_quality_judge, step)
        for step in ("gopher-repetition", "gopher-quality", "c4", "fineweb")
    },
}
"""The steps that may remove a document, in their order, by what makes them ready for a language."""
