"""The steps `unicode`, `nfkc`, `control` and `whitespace`."""

import re
import unicodedata


def normalize_nfc(text: str) -> str:
    """Canonical composition (NFC, https://unicode.org/reports/tr15), which keeps the appearance.

    It does not change U+200C, U+200D, direction marks, soft hyphens, tatweel, or Arabic and Persian
    letters of the same shape.
    """
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


_COMPATIBILITY = re.compile(
    "[\u00a0-\u00ff\u0130-\u0200\u2000-\u33ff\uf900-\uffef\U0001d400-\U0001d7ff]"
    "[\uff9e\uff9f]?"  # a voice mark belongs to the half-width kana before it
)
"""Possible compatibility characters; without Thai and Lao, whose NFKC parts a vowel in two."""
_MEANINGFUL = ("<super>", "<sub>", "<fraction>", "<circle>", "<compat> 0020")
"""Decompositions that change the meaning, or part an accent from its place."""
_KEPT = re.compile(
    "[\u2024-\u2026\u2100-\u214f\u3131-\u318e\ufdf0-\ufdfd\ufe70-\ufe7f"
    "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff60]"
)


def normalize_nfkc(text: str) -> str:
    """Compatibility composition (NFKC) of other forms of the same letters.

    Full-width letters and digits, half-width kana, ligatures, and the presentation forms of Arabic
    letters, which come from PDF files, become the usual letters. What has a meaning of its own
    stays: superscripts, fractions, numbers in circles, signs such as U+2116, full-width punctuation
    and the ellipsis (sentences end there), accents that stand alone, Korean compatibility letters,
    and Arabic words in one character. U+200C, U+200D and direction marks have no other form.
    """
    return normalize_nfc(_COMPATIBILITY.sub(_compose, text))


def _compose(match: re.Match[str]) -> str:
    found = match[0]
    is_kept = _KEPT.match(found) or unicodedata.decomposition(found[0]).startswith(_MEANINGFUL)
    return found if is_kept else unicodedata.normalize("NFKC", found)


# Tabs, line feeds and carriage returns are whitespace. Format characters (U+200C, direction marks)
# are not control characters.
_LINE_BREAKING = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\ufeff]")
_ANY_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\u2028\u2029]")


def remove_controls(text: str) -> str:
    """Remove control characters and byte order marks.

    Those that break lines become spaces, so that words stay separate.
    """
    if not _ANY_CONTROL.search(text):
        return text
    return _CONTROL.sub("", _LINE_BREAKING.sub(" ", text))


def normalize_whitespace(text: str) -> str:
    """One space for each run of whitespace in a line; lines stripped, empty lines removed."""
    lines = text.replace("\r", "\n").split("\n")
    return "\n".join(filter(None, (" ".join(line.split()) for line in lines)))
