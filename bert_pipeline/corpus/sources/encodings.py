"""Decodes text files: finds the encoding by the start of a file, and stops at what is not text."""

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from io import IncrementalNewlineDecoder
from itertools import chain

from bert_pipeline.corpus.sources.error_policy import MAX_LINE_CHARS, ErrorPolicy
from bert_pipeline.corpus.sources.guess_encoding import describe_binary, guess_encoding

SAMPLE_BYTES = 1 << 18
"""The start of a file by which its encoding is checked before the first document."""

MAX_INVALID = 0.01
"""Share of undecodable bytes from which a file counts as one in another encoding."""
MAX_INVALID_IN_ASCII = 0.005
"""The same where little else is not ASCII: accented letters and quotation marks are rare."""

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is the start of it
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WITHOUT_MARK = {"utf-16": "utf-16-le", "utf-32": "utf-32-le"}
_MAX_CONTROLS = 0.05
"""Share of control characters from which a file counts as binary data; of NUL, `MAX_INVALID`."""
_PIECES_PER_CUT = 64
_REPLACEMENT = "\ufffd".encode()
"""A replacement character that is in the file itself."""
_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def decode_text(
    chunks: Iterable[bytes], name: str, policy: ErrorPolicy, counts: Counter[str]
) -> Iterator[str]:
    """The text of a file, in pieces.

    Its encoding is that of the byte order mark; without one UTF-8, or `--encoding` for a file that
    is not UTF-8. Single invalid bytes become U+FFFD, counted as `invalid_bytes_replaced`. Binary
    data, and more than `MAX_INVALID` of invalid bytes, are handed to the policy.
    """
    chunks = iter(chunks)
    sample, error = _read_sample(chunks)
    encoding, mark = _find_encoding(sample, policy.encoding)
    start = sample.removeprefix(mark)
    if problem := _find_binary(start, encoding):
        policy.handle(f"{name}: {problem}.", "not_text", counts)
        return
    if problem := _find_wrong_encoding(start, encoding):
        policy.handle(f"{name}: {problem}", "wrong_encoding", counts)
        return
    decoder = _Decoder(encoding, counts)
    yield decoder.decode(start)
    if error:
        raise error
    for chunk in chunks:
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)
    if decoder.has_other_encoding():
        problem = _explain_wrong_encoding(decoder.damaged, encoding)
        policy.handle(f"{name}: {problem}", "wrong_encoding", counts)


def decode_value(raw: bytes, counts: Counter[str]) -> str:
    """A text value that should be UTF-8, decoded in the same way."""
    return _Decoder("utf-8", counts).decode(raw.removeprefix(codecs.BOM_UTF8), final=True)


def split_lines(
    pieces: Iterable[str], cut: Callable[[str], Iterable[str]] | None = None
) -> Iterator[str]:
    """Lines without their ends, from text in pieces.

    `cut` splits the start of a long line, so that memory does not grow with its length. Without it,
    most of what exceeds `MAX_LINE_CHARS` is left out.
    """
    # A lone carriage return ends a line too: old files, and logs with progress bars.
    newlines = IncrementalNewlineDecoder(None, translate=True)
    unended: list[str] = []
    size = 0
    for piece in chain(map(newlines.decode, pieces), ["\n"]):
        first, *others = piece.split("\n")
        if size <= MAX_LINE_CHARS:
            unended.append(first)
            size += len(first)
        if cut and not others and len(unended) == _PIECES_PER_CUT:
            *parts, last = cut("".join(unended))
            yield from parts
            unended = [last]
            size = len(last)
        if others:
            yield "".join(unended).removeprefix("\ufeff")
            for line in others[:-1]:
                yield line.removeprefix("\ufeff")
            unended = [others[-1]]
            size = len(others[-1])


class _Decoder:
    """Decodes consecutive chunks, and counts what is replaced."""

    def __init__(self, encoding: str, counts: Counter[str]) -> None:
        self._counts = counts
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")
        self.size = 0
        self.replaced = 0
        self.continuation_bytes = 0
        """Bytes of characters after their first one: UTF-8 that is not ASCII has some."""
        self.damaged = b""
        """The first chunks with invalid bytes."""

    def decode(self, chunk: bytes, final: bool = False) -> str:
        text = self._decode(chunk, final)
        self.size += len(chunk)
        self.continuation_bytes += len(chunk) - len(text)
        return text

    def has_other_encoding(self) -> bool:
        """Whether so much is invalid that the text has another encoding.

        In Latin script an accented letter may be one byte in a hundred: then most of what is not
        ASCII is invalid.
        """
        is_mostly_invalid = self.replaced > self.continuation_bytes
        limit = MAX_INVALID_IN_ASCII if is_mostly_invalid else MAX_INVALID
        return self.replaced > limit * self.size

    def _decode(self, chunk: bytes, final: bool) -> str:
        state = self._decoder.getstate()
        try:
            return self._decoder.decode(chunk, final)
        except UnicodeDecodeError:
            self._decoder.setstate(state)
            self._decoder.errors = "replace"
            text = self._decoder.decode(chunk, final)
            self._decoder.errors = "strict"
        found = text.count("\ufffd") - chunk.count(_REPLACEMENT)
        self.replaced += found
        self._counts["invalid_bytes_replaced"] += found
        if len(self.damaged) < SAMPLE_BYTES:
            self.damaged += chunk
        return text


def _read_sample(chunks: Iterator[bytes]) -> tuple[bytes, Exception | None]:
    """The start of a file, and the error that ended it: what is before the error is still read."""
    sample = bytearray()
    try:
        for chunk in chunks:
            sample += chunk
            if len(sample) >= SAMPLE_BYTES:
                break
    except Exception as error:
        return bytes(sample), error
    return bytes(sample), None


def _find_encoding(sample: bytes, given: str | None) -> tuple[str, bytes]:
    """The encoding of a file by its start, and its byte order mark."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if sample.startswith(mark):
            return encoding, mark
    if given is None or _is_utf8(sample, given):
        return "utf-8", b""
    return _WITHOUT_MARK.get(given, given), b""


def _is_utf8(sample: bytes, given: str) -> bool:
    """Whether it can only be UTF-8. ASCII may be the start of text in most other encodings."""
    decoder = _Decoder("utf-8", Counter())
    decoder.decode(sample)
    is_other = b"\0" in sample if given.startswith(("utf-16", "utf-32")) else sample.isascii()
    return not is_other and not decoder.replaced


def _find_binary(sample: bytes, encoding: str) -> str | None:
    """What kind of file it is when it is not text; else None."""
    kind = describe_binary(sample)
    if kind is None and guess_encoding(sample, by_text=False) is None:
        text = _Decoder(encoding, Counter()).decode(sample)
        controls = len(_CONTROL.findall(text))
        if text.count("\0") > MAX_INVALID * len(text) or controls > _MAX_CONTROLS * len(text):
            kind = "binary data"
    return kind and f"not text, but {kind}"


def _find_wrong_encoding(sample: bytes, encoding: str) -> str | None:
    """What to say when the text has another encoding; else None."""
    decoder = _Decoder(encoding, Counter())
    decoder.decode(sample)
    signed = guess_encoding(sample, by_text=False) if encoding == "utf-8" else None
    if signed is None and not decoder.has_other_encoding():
        return None
    return _explain_wrong_encoding(sample, encoding)


def _explain_wrong_encoding(sample: bytes, encoding: str) -> str:
    shown = "UTF-8" if encoding == "utf-8" else encoding
    guess = guess_encoding(sample)
    if guess is not None and guess == encoding:
        return f"not {shown} throughout: it mixes encodings. Convert it to UTF-8."
    if guess is None:
        return f"not {shown}, and its encoding is not known. Give it with --encoding."
    return f"not {shown}, likely {guess}. Give --encoding {guess}."
