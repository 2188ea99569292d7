"""Guesses the encoding of text that is not UTF-8, and the kind of files that are not text."""

import codecs
import difflib
import re
from encodings.aliases import aliases

_LATIN = {
    "cp1250": "bs cs hr hu pl ro sk sl sq",
    "cp1254": "az tk tr",
    "cp1257": "et lt lv",
    "cp1258": "vi",
}
"""Encodings of Latin script other than cp1252, and their languages."""

_OTHERS = (
    "cp1251 koi8_r koi8_u cp866 iso8859_5 mac_cyrillic cp932 euc_jp gb18030 big5 cp949 cp874 "
    "cp1256 iso8859_6 cp1255 cp1253 iso8859_7 cp1258"
)
"""Encodings of other scripts, and of Vietnamese, whose accents are letters of their own."""

_KINDS = {
    b"PK\x03\x04": "a zip archive, as .docx, .xlsx and .epub are; take the text out of it",
    b"%PDF-": "a PDF file; take the text out of it",
    b"{\\rtf": "a file in rich text format; save it as plain text",
    b"\xd0\xcf\x11\xe0": "an Office document; save it as plain text",
    b"PAR1": "a parquet file; read it with --source parquet:",
    b"\x7fELF": "an executable",
    b"MZ\x90\x00": "an executable",
    b"SQLite format 3\x00": "a database",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"Rar!": "a rar archive; unpack it",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
}
"""What files with these first bytes are."""

_ISO_2022 = {b"\x1b$B": "iso2022_jp", b"\x1b$@": "iso2022_jp", b"\x1b$)C": "iso2022_kr"}
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_MIN_NULS = 0.001
"""Share of NUL bytes from which text may be UTF-16 or UTF-32."""
_MIN_WIDE = 0.9
"""Share of the places where UTF-32 has NUL bytes that do have one."""
_SAMPLE_BYTES = 1 << 16
_PART_BYTES = (16_384, 4_096)


def describe_binary(sample: bytes) -> str | None:
    """The kind of a file by its first bytes; None when they may be text."""
    return next((kind for magic, kind in _KINDS.items() if sample.startswith(magic)), None)


def guess_encoding(sample: bytes, *, by_text: bool = True) -> str | None:
    """The likely encoding of text that is not UTF-8, as Python names it; None when none fits.

    Without `by_text` only by bytes that no other encoding has: NUL bytes at every other place,
    escape sequences.
    """
    sample = sample[:_SAMPLE_BYTES]
    if wide := _guess_wide(sample):
        return wide
    if escaped := [name for mark, name in _ISO_2022.items() if mark in sample]:
        return escaped[0]
    if not by_text:
        return None
    return _guess_latin(sample) if _is_latin(sample) else _guess_other(sample)


def _guess_wide(sample: bytes) -> str | None:
    """UTF-16 or UTF-32 by the places of NUL bytes: a line end has some in any script."""
    nuls = sample.count(0)
    if nuls < _MIN_NULS * len(sample) or len(sample) < 4:
        return None
    places = [sample[place::4].count(0) for place in range(4)]
    for encoding, empty in (("utf-32-le", (2, 3)), ("utf-32-be", (0, 1))):
        filled = min(places[place] for place in empty)
        if filled >= _MIN_WIDE * (len(sample) // 4) and nuls < len(sample):
            return encoding
    for encoding, empty in (("utf-16-le", (1, 3)), ("utf-16-be", (0, 2))):
        at_places = sum(places[place] for place in empty)
        if at_places > nuls / 2 and _is_wide_text(sample, encoding):
            return encoding
    return None


def _is_wide_text(sample: bytes, encoding: str) -> bool:
    """Whether it reads as UTF-16, and not as UTF-8 with a few NUL bytes."""
    try:
        text = sample[: len(sample) // 2 * 2].decode(encoding)
    except UnicodeDecodeError:
        return False
    damage = sample.decode("utf-8", "replace").count("\ufffd") + len(_CONTROL.findall(sample))
    return damage > 0.05 * len(sample) and sum(map(str.isalpha, text)) > 0.5 * len(text)


def _is_latin(sample: bytes) -> bool:
    """Whether most bytes outside ASCII stand alone, as accented letters do."""
    runs = list(map(len, re.findall(rb"[\x80-\xff]+", sample)))
    return runs.count(1) > 0.45 * sum(runs)


def _guess_latin(sample: bytes) -> str:
    # Imported here, because it loads its model, and only for a message.
    from py3langid.langid import classify  # type: ignore[import-untyped]

    # The letters of ASCII alone tell the language of a sentence.
    language = classify(sample.decode("cp1252", "ignore"))[0]
    encoding = next((e for e, languages in _LATIN.items() if language in languages.split()), "")
    if encoding == "cp1250" and not re.search(rb"[\x80-\x9f]", sample):
        return "iso8859_2"
    return encoding or "cp1252"


def _guess_other(sample: bytes) -> str | None:
    from charset_normalizer import from_bytes

    # One damaged character in a long sample makes it fit no encoding: then its parts may.
    for size in (len(sample), *_PART_BYTES):
        for start in range(0, len(sample), size or 1):
            best = from_bytes(sample[start : start + size], cp_isolation=_OTHERS.split()).best()
            if best:
                return str(best.encoding)
    return None


def find_codec(name: str) -> str:
    """Python's name of a text encoding. Raises `ValueError`, which suggests a near name."""
    try:
        "".encode(name)
        return codecs.lookup(name).name
    except (LookupError, UnicodeError):
        known = sorted({*aliases, *aliases.values()} - {"undefined"})
        plain = name.lower().replace("-", "_")
        near = difflib.get_close_matches(plain, known, n=3, cutoff=0.6)
        hint = f"Did you mean {' or '.join(near)}?" if near else "Write it such as cp1251."
        raise ValueError(f"not an encoding that Python knows. {hint}") from None
