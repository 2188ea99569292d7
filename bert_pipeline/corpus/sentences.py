"""Splits a document into sentences, in any language.

sentencex (https://github.com/wikimedia/sentencex) finds the sentence ends; known mistakes of it are
corrected here.
"""

import re
from collections.abc import Iterator

from sentencex import segment

from bert_pipeline.corpus.sentence_rules import CLOSERS, continues

_WINDOW = 1000
"""Characters per call of sentencex, whose time is quadratic in the length of a paragraph."""

_SHORTEST_UNMARKED = 60
_LONGEST_UNMARKED = 240
"""Characters between which a sentence without marks ends: at a space between two words of the
script, later at any space."""

# Sentence ends without a rule in sentencex: the one-character ellipsis, a sentence in brackets, and
# Khmer ("។ល។" means "etc.") and Tibetan marks. Each match starts where the previous one ends.
_MORE_ENDS = re.compile(
    r"\s*[(（][^()（）]*[.!?…。！？؟۔।][)）](?=\s|[^\x00-\x7f])"
    rf"|.+?(?:…[{re.escape(CLOSERS)}]*(?=\s)|[។៕]+(?!ល។)[{re.escape(CLOSERS)}]*|[།༎](?:\s*[།༎])+|[།༎](?=\s)|\Z)",
    re.DOTALL,
)
_MORE_MARKS = re.compile(r"[…។៕།༎)）]")

# Thai, Lao, Tibetan, Burmese and Khmer have no spaces between words; a space often is the only sign
# of a sentence end.
_SPACELESS = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"
_SPACELESS_LETTER = re.compile(f"[{_SPACELESS}]")
_SPACELESS_SPACE = re.compile(f"(?<=[{_SPACELESS})]) (?=[{_SPACELESS}(])(?![ๆฯ])")
_MARKS = tuple(".!?…။។៕།")

# A possible sentence start in text without capitals; none is after "..." and "p.m.".
_UNCAPITALIZED = re.compile(r"(?:(?<!\.)(?<!\.\w)[.!?]|\.[\"”’»)\]]+) [\"“‘«„(\[]*\w")

# sentencex does not split quotations, and a mark without its counterpart would hide all ends after
# it (Hebrew writes one inside abbreviations). Replaced by marks that it does not pair.
# A mark between spaces, as in tokenized text, could be either: it is left to sentencex.
_OPENING_QUOTE = re.compile(r"[\"“”„«'‘](?<![^\s(\[\"“„«—–-].)(?=\S)")
_CLOSING_QUOTE = re.compile(r"[\"“”„«‘'](?<=\S.)(?<![^.!?।]')")

_OPEN_BRACKET = re.compile(r"[(\[](?=[^)\]]{100})")
"""A bracket without its counterpart, or around several sentences."""

# sentencex does not split what follows "1)", "(1)" or "•" at the start of a sentence.
_LIST_NUMBER = re.compile(r"[.:;!?] \(?\d{1,2}\)(?= )")

# sentencex ends a sentence before the second of two closing marks: the full stop changes places
# with the first.
_TWO_CLOSERS = re.compile(r"[.!?][»’'›)\]]+(?=[»’'›)\]])")

# In some languages sentencex takes no number for the start of a sentence. Replaced by a letter,
# after a word that is too long for an abbreviation.
_STARTING_NUMBER = re.compile(
    r"[.!?。！？](?:(?<=[。！？])[」』”）》]*|(?<=[!?]) |(?<=[^\W\d_]{5}\.) )\d"
)


def split_sentences(text: str, language: str) -> list[str]:
    """The sentences of a document with one paragraph per line; stripped, never empty.

    They contain every character of the text except whitespace. `language` is an ISO 639-1 code; a
    region after it is ignored ("pt-BR"). A language without rules uses those of a related language
    or of English.
    """
    return [sentence.lstrip() for sentence in split_running(text, language)]


def split_running(text: str, language: str) -> list[str]:
    """The same sentences, with a leading space where whitespace precedes them in the text.

    Joined, they are the running text: the words of the document with one space between them.
    """
    language = re.split(r"[-_]", language.lower(), maxsplit=1)[0]
    lowered = text.islower()  # also where a script has no capitals, which changes nothing
    sentences: list[str] = []
    for line in text.split("\n"):
        # Also because sentencex panics on an initial before a whitespace character of several
        # bytes ("A\u2028.").
        paragraph = " ".join(line.split())
        spaced = bool(sentences)
        for sentence in _split_paragraph(paragraph, language, lowered) if paragraph else ():
            stripped = sentence.strip()
            if stripped:
                spaced = spaced or sentence[0] == " "
                sentences.append(f" {stripped}" if spaced else stripped)
                spaced = False
            spaced = spaced or sentence[-1] == " "
    return sentences


def _split_paragraph(paragraph: str, language: str, lowered: bool) -> Iterator[str]:
    start = 0
    pending = ""
    for piece in _pieces(_capitalize(paragraph) if lowered else paragraph, language):
        if not pending or continues(pending, piece, language):
            pending += piece
            continue
        end = start + len(pending)
        yield from _split_unmarked(paragraph[start:end])
        start = end
        pending = piece
    yield from _split_unmarked(paragraph[start:])


def _capitalize(paragraph: str) -> str:
    """The paragraph with a capital at the start of each possible sentence."""
    return _UNCAPITALIZED.sub(lambda match: match[0][:-1] + _title(match[0][-1]), paragraph)


def _title(letter: str) -> str:
    title = letter.title()
    return title if len(title) == 1 else letter  # "ŉ" would become two characters


def _split_unmarked(sentence: str) -> Iterator[str]:
    """The sentence, split at spaces if it is long and its script has no spaces between words."""
    start = 0
    if _lacks_marks(sentence):
        for space in re.finditer(" ", sentence):
            length = space.start() - start
            if length >= _LONGEST_UNMARKED or (
                length >= _SHORTEST_UNMARKED and _SPACELESS_SPACE.match(sentence, space.start())
            ):
                yield sentence[start : space.start()]
                start = space.start()
    yield sentence[start:]


def _lacks_marks(sentence: str) -> bool:
    if len(sentence) <= _SHORTEST_UNMARKED or (
        len(sentence) <= _LONGEST_UNMARKED and sentence.rstrip().endswith(_MARKS)
    ):
        return False
    return len(_SPACELESS_LETTER.findall(sentence)) > len(sentence) / 2


def _pieces(paragraph: str, language: str) -> Iterator[str]:
    """The paragraph, split at every possible sentence end."""
    more = _MORE_MARKS.search(paragraph) is not None
    for piece in _windowed(paragraph, language):
        if more and _MORE_MARKS.search(piece):
            yield from _MORE_ENDS.findall(piece)
        else:
            yield piece


def _disguise(paragraph: str) -> str:
    """The paragraph for sentencex, of the same length, without what it takes wrongly."""
    paragraph = paragraph.replace("•", "*")
    if ") " in paragraph:
        # A mark before the paragraph, because its start is the start of a sentence, too.
        marked = _LIST_NUMBER.sub(lambda match: f"{match[0][:-1]}»", f". {paragraph}")
        paragraph = marked[2:]
    paragraph = _OPEN_BRACKET.sub("¿", paragraph)
    if "。" not in paragraph:
        paragraph = _OPENING_QUOTE.sub("¿", paragraph)
        paragraph = _CLOSING_QUOTE.sub("»", paragraph)
        if "»" in paragraph:
            paragraph = _TWO_CLOSERS.sub(lambda match: match[0][1:] + match[0][0], paragraph)
    return _STARTING_NUMBER.sub(lambda match: match[0][:-1] + "A", paragraph)


def _windowed(paragraph: str, language: str) -> Iterator[str]:
    """The paragraph, split by sentencex in windows.

    The last piece of a window may continue in the next window, which therefore starts with it.
    """
    disguised = _disguise(paragraph)
    start = 0  # of the piece
    end = 0  # of what has been split
    while len(paragraph) - end > _WINDOW:
        *complete, last = segment(language, disguised[end : end + _WINDOW])
        for piece in complete:
            end += len(piece)
            yield paragraph[start:end]
            start = end
        if not complete:
            end += len(last)
    for piece in segment(language, disguised[end:]):
        end += len(piece)
        yield paragraph[start:end]
        start = end
