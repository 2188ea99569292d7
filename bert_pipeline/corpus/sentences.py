"""Splits a document into sentences, in any language.

sentencex (https://github.com/wikimedia/sentencex) finds the sentence ends; known mistakes of it are
corrected here.
"""

import re
from collections.abc import Iterator

from sentencex import segment

_WINDOW = 3000
"""Characters per call of sentencex, whose time is quadratic in the length of a paragraph."""

_TAIL = 40
"""Characters before a possible sentence end that are examined."""

_OPENERS = "\"'“‘«„‹([（［「『"
_CLOSERS = "\"'”’»›)]）］」』"

# Sentence ends without a rule in sentencex: the one-character ellipsis, a sentence in brackets, and
# Khmer ("។ល។" means "etc.") and Tibetan marks. Each match starts where the previous one ends.
_MORE_ENDS = re.compile(
    r"\s*[(（][^()（）]*[.!?…。！？؟۔।][)）](?=\s|[^\x00-\x7f])"
    rf"|.+?(?:…[{re.escape(_CLOSERS)}]*(?=\s)|[។៕]+(?!ល។)|[།༎]+(?=\s)|\Z)",
    re.DOTALL,
)
_MORE_MARKS = re.compile(r"[…។៕།༎)）]")

# "1.", "b)" and "IV." belong to the text after them.
_LIST_MARKER = re.compile(r"[(\[]?(?:\d{1,3}|[A-Za-zÀ-ÿͰ-ӿ]|[ivxlc]{2,6}|[IVXLC]{2,6})\.")

_ORDINAL_LANGUAGES = "bs cs da de dsb et fi fo hr hsb hu is lb lv nb nn no pl sk sl sr tr"
"""Languages that write "3." for "third"."""

# Abbreviations before a name or number, which rarely end a sentence, in addition to those of
# sentencex.
_ABBREVIATIONS = {
    language: frozenset(words.split())
    for language, words in {
        "ar": "أ.د",
        "bn": "ড ডা মো প্রো পৃ খ্রি",
        "ca": "pàg st aprox",
        "de": "abb bd hrsg inkl geb gest dipl allg tel",
        "el": "αρ σελ βλ αγ καθ τηλ δηλ",
        "en": "ms ft figs vol vols ch chs eq eqs approx ed eds",
        "es": "dña aprox cía ss",
        "fa": "ر.ک ق.م ه.ش ه.ق صص نک",
        "fi": "ks ns nro vrt esim os tri",
        "fr": "mm mme mlle mgr me dr pr st ste j.-c",
        "hi": "डॉ डा प्रो श्री पं सं रु कि.मी मो पृ स्व कृ",
        "hr": "npr tj sv ul br str tzv",
        "hu": "ún kb szt vö ifj özv",
        "id": "jl ir hlm yth tn ny",
        "it": "pag pagg",
        "lt": "pvz žr",
        "nb": "f.eks dvs kl pga evt jf",
        "nl": "mevr o.a d.w.z",
        "no": "f.eks dvs kl pga evt jf",
        "pl": "dr inż św im nr str ok m.in tzw ks gen wg mgr godz",
        "pt": "pág págs núm cap vol av cia",
        "ro": "dl d-na d-l str pag ex vol sf cca dvs",
        "ru": "им рис табл напр т.е обл пос ок св ст доц гл",
        "sv": "t.ex dvs kl resp jfr",
        "tr": "av doç sn örn bkz mah cad sok alb yrd müh",
        "uk": "рис напр",
        "vi": "ts pgs gs ths tp bs kts",
    }.items()
}


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
    sentences: list[str] = []
    for line in text.split("\n"):
        # Also because sentencex panics on an initial before a whitespace character of several
        # bytes ("A\u2028.").
        paragraph = " ".join(line.split())
        gap = " " if sentences else ""
        for sentence in _split_paragraph(paragraph, language) if paragraph else ():
            if stripped := sentence.strip():
                sentences.append((gap or " " * sentence.startswith(" ")) + stripped)
                gap = ""
            gap = gap or " " * sentence.endswith(" ")
    return sentences


def _split_paragraph(paragraph: str, language: str) -> Iterator[str]:
    pending = ""
    for piece in _pieces(paragraph, language):
        if not pending or _continues(pending, piece, language):
            pending += piece
        else:
            yield pending
            pending = piece
    yield pending


def _pieces(paragraph: str, language: str) -> Iterator[str]:
    """The paragraph, split at every possible sentence end."""
    more = _MORE_MARKS.search(paragraph) is not None
    for piece in _windowed(paragraph, language):
        if more:
            yield from _MORE_ENDS.findall(piece)
        else:
            yield piece


def _windowed(paragraph: str, language: str) -> Iterator[str]:
    """The paragraph, split by sentencex in windows.

    The last piece of a window may continue in the next window, which therefore starts with it.
    """
    start = 0
    unended: list[str] = []
    while len(paragraph) - start > _WINDOW:
        *complete, last = segment(language, paragraph[start : start + _WINDOW])
        if complete:
            yield "".join(unended) + complete[0]
            yield from complete[1:]
            unended = []
            start += _WINDOW - len(last)
        else:
            unended.append(last)
            start += _WINDOW
    rest = segment(language, paragraph[start:]) or [""]
    yield "".join(unended) + rest[0]
    yield from rest[1:]


def _continues(before: str, after: str, language: str) -> bool:
    """Whether the sentence continues after a possible end."""
    head = before[-_TAIL:].rstrip()
    bare = head.rstrip(_CLOSERS)
    follower = after.lstrip()[:1]
    # Compared with the title case, because Georgian letters are lower case also at the start.
    if follower != follower.title():
        return bare != head or bare.endswith((".", "…"))
    if bare.endswith("…"):
        return not follower.isupper() and follower not in _OPENERS
    if bare != head or not head.endswith("."):
        return False
    if follower.isdigit() and before[-2:-1].isdigit():
        return True  # "۳.۵"
    *words, word = head.split()
    return _expects_more(word, language) or (not words and _LIST_MARKER.fullmatch(word) is not None)


def _expects_more(word: str, language: str) -> bool:
    """Whether a word with a full stop rarely ends a sentence."""
    stem = word[:-1].lstrip(_OPENERS)
    if stem.lower() in _ABBREVIATIONS.get(language, ()):
        return True
    if stem.isdigit():
        return len(stem) <= 2 and language in _ORDINAL_LANGUAGES.split()
    last = stem.rpartition(".")[2]
    # Initials. sentencex handles them in English, as in "So did I."; letters of Arabic script have
    # no case, and none of them is a word that could end a sentence.
    initial = last.isupper() and language != "en"
    return (len(last) == 1 and (initial or "\u0621" <= last <= "\u06d3")) or last.endswith("ـ")
