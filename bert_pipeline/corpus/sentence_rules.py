"""Whether a sentence continues after a possible end that sentencex found."""

import re

_TAIL = 40
"""Characters before a possible sentence end that are examined."""

OPENERS = "\"'“‘«„‹([（［「『"
CLOSERS = "\"'”’»›)]）］」』》〉"

_INSIDE = tuple(",;:،؛，、；：」』》〉")
"""Characters that cannot begin a sentence."""

# "1.", "b)" and "IV." belong to the text after them.
_LIST_MARKER = re.compile(r"[(\[]?(?:\d{1,3}|[A-Za-zÀ-ÿͰ-ӿ]|[ivxlc]{2,6}|[IVXLC]{2,6})\.")

# Japanese particles after a quotation, an exclamation or a name with a mark ("モーニング娘。は").
# Left out are the beginnings of words that often begin a sentence: ところが, もう, はい, のち.
_PARTICLE = re.compile(
    r"と(?!ころ|ても|にかく|き|も|なり|りあえず|うとう|ある)|って|など|は(?![いじっやるた])"
    r"|が(?![、っ])|を|の(?![ちんろ])|に(?![わやっ])|で(?![もはき])|だ(?:った|と)"
)
_NAME_WITH_MARK = re.compile(r"[ァ-ヶー]娘。$")

# Each part of an abbreviation without spaces is short: "कि.मी.", "พ.ศ.", "GS.TS.", "U.S.A.".
_SHORT_PART = re.compile(r"(?:(?<![A-Za-z])[A-Za-z]{1,2}|(?<![^\s.])[^\s.]{1,2})\.$")

_ADDRESS = re.compile(r"[!-~]/[!-~]*$")

# Korean verbs and particles of speech after a quotation.
_KOREAN_SPEECH = re.compile(r"(?:이?라[고며는]|하[고며는]|했)")

# "“Why?” – she asked" in languages that write a dash before the speaker.
_DASH = re.compile(r"[—–-]\s*")

_ORDINAL_LANGUAGES = "bs cs da de dsb et fi fo hr hsb hu is lb lv nb nn no pl sk sl sr tr"
"""Languages that write "3." for "third"."""

_ABBREVIATIONS = {
    language: frozenset(words.split())
    for language, words in {
        "ar": "أ.د",
        "bn": "ড ডা মো প্রো পৃ খ্রি",
        "ca": "pàg st aprox",
        "de": "abb bd fa hr hrn hrsg inkl geb gest dipl allg tel",
        "el": "αρ σελ βλ αγ καθ τηλ δηλ",
        "en": "ms ft figs vol vols ch chs eq eqs approx ed eds",
        "es": "dña aprox cía ss",
        "fa": "ر.ک ق.م ه.ش ه.ق صص نک",
        "fi": "ks ns nro vrt esim os tri",
        "fr": "mm mme mlle mgr me dr pr st ste j.-c",
        "he": "סט מס עמ גב פרופ",
        "hi": "डॉ डा प्रो श्री पं सं रु मी मो पृ स्व कृ मि कु सुश्री पू ई ए बी सी डी एफ एच एल एम एन ओ पी "
        "आर एस टी यू वी",
        "gu": "ડૉ ડો શ્રી મી",
        "hr": "npr tj sv ul br str tzv",
        "hu": "ún kb szt vö ifj özv",
        "id": "jl ir hlm yth tn ny",
        "it": "pag pagg",
        "ka": "ე.წ ა.შ ე.ი",
        "kn": "ಡಾ ಶ್ರೀ ಮೀ",
        "lt": "pvz žr",
        "ml": "ഡോ ശ്രീ മീ",
        "mr": "डॉ श्री सौ प्रा मा मी",
        "ne": "डा श्री प्रा मी",
        "nb": "f.eks dvs kl pga evt jf",
        "nl": "mevr o.a d.w.z",
        "no": "f.eks dvs kl pga evt jf",
        "pl": "dr inż św im nr str ok m.in tzw ks gen wg mgr godz",
        "pt": "pág págs núm cap vol av cia",
        "ro": "dl d-na d-l str pag ex vol sf cca dvs",
        "ru": "им рис табл напр т.е обл пос ок св ст доц гл",
        "sv": "t.ex dvs kl resp jfr",
        "ta": "திரு டாக்டர் மீ",
        "te": "డా శ్రీ మీ",
        "tr": "av doç sn örn bkz mah cad sok alb yrd müh",
        "uk": "рис напр",
        "vi": "ts pgs gs ths tp bs kts",
    }.items()
}


_TITLES = frozenset(("dr", "mr", "mrs", "prof"))
"""Abbreviations of English that texts in other languages have too."""

# Hebrew, Arabic, the scripts of India, Thai, Lao and Georgian; and of these the two that have no
# spaces between words.
_UNCASED = re.compile(r"[\u0590-\u0eff\u10d0-\u10ff]")
_UNSPACED = re.compile(r"[\u0e00-\u0eff]")


def continues(before: str, after: str, language: str) -> bool:
    """Whether the sentence continues after a possible end."""
    tail = before[-_TAIL:]
    head = tail.rstrip()
    bare = head.rstrip(CLOSERS)
    rest = after.lstrip()
    if head == tail and rest == after and _continues_word(head, bare, rest):
        return True
    follower = rest[:1]
    # Compared with the title case, because Georgian letters are lower case also at the start.
    if follower != follower.title():
        return bare != head or bare.endswith((".", "…"))
    if bare.endswith(("…", "...")):
        return _continues_after_ellipsis(bare, rest)
    if bare != head or bare.endswith(("!", "?")):
        return _names_speaker(rest)
    if head.endswith("၊"):
        return True  # the comma of Burmese
    if not head.endswith("."):
        return False
    if follower.isdigit() and before[-2:-1].isdigit():
        return True  # "۳.۵"
    *words, word = head.split()
    return _expects_more(word, language) or (not words and _LIST_MARKER.fullmatch(word) is not None)


def _continues_word(head: str, bare: str, rest: str) -> bool:
    """Whether the sentence continues without a space after the possible end."""
    if rest.startswith(_INSIDE) or (rest[:1].isascii() and _ADDRESS.search(head)):
        return True
    follower = rest.lstrip(CLOSERS)
    if (
        (follower, bare) != (rest, head)
        or bare.endswith(("!", "！", "?", "？"))
        or _NAME_WITH_MARK.search(head)
    ):
        hangul = "가" <= follower[:1] <= "힣"
        # "《…？》" is a title.
        return hangul or head.endswith(("》", "〉")) or _PARTICLE.match(rest) is not None
    return _SHORT_PART.search(head) is not None and rest[:1].isalpha()


def _continues_after_ellipsis(bare: str, rest: str) -> bool:
    follower = rest[:1]
    if follower.title() != follower.lower():
        return False
    if follower.isalpha():
        # Without capitals, an ellipsis for omitted words is known by the space or "and" before it,
        # or by an "and" after it.
        word = bare.rstrip("….")
        return word.endswith((" ", " و")) or rest.startswith("و ")
    return follower not in OPENERS


def _names_speaker(rest: str) -> bool:
    """Whether the text after a quotation or an exclamation names its speaker."""
    dash = _DASH.match(rest)
    return (dash is not None and rest[dash.end() : dash.end() + 1].islower()) or (
        _KOREAN_SPEECH.match(rest) is not None
    )


def _expects_more(word: str, language: str) -> bool:
    """Whether a word with a full stop rarely ends a sentence."""
    stem = word[:-1].lstrip(OPENERS)
    last = stem.rpartition(".")[2]
    lowered = last.lower()
    abbreviations = _ABBREVIATIONS.get(language, _TITLES)
    if lowered in abbreviations or lowered in _TITLES or stem.lower() in abbreviations:
        return True
    if stem.isdigit():
        return language == "ko" or (len(stem) <= 2 and language in _ORDINAL_LANGUAGES.split())
    if _UNCASED.match(last):
        return _abbreviates(stem.split("."))
    # Initials. sentencex handles them in English, as in "So did I."
    return len(last) == 1 and last.isupper() and language != "en"


def _abbreviates(parts: list[str]) -> bool:
    """Whether the parts of a word are short enough for an abbreviation.

    For scripts that have no capitals and few words of one letter.
    """
    last = parts[-1]
    if _UNSPACED.match(last):
        return len(last) <= 4
    return len(last) == 1 or last.endswith("ـ") or (len(parts) > 1 and max(map(len, parts)) <= 2)
