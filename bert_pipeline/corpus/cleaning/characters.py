"""The steps `unicode`, `control` and `whitespace`."""

import re
import unicodedata


def normalize_nfc(text: str) -> str:
    """Canonical composition (NFC, https://unicode.org/reports/tr15), which keeps the appearance.

    It does not change U+200C, U+200D, direction marks, soft hyphens, tatweel, or Arabic and Persian
    letters of the same shape.
    """
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


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
