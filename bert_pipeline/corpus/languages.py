"""Languages: which codes are accepted, and which language a text is in.

Codes are those of ISO 639, in the form of BCP 47: `fa` for `fas`, `per` and `pes`, `pt-BR` for
`pt_br`. The language of a text is identified by py3langid (Lui and Baldwin, 2012, "langid.py",
https://aclanthology.org/P12-3005), and by the script where a language has one of its own.
"""

import difflib
import re
import unicodedata
from collections import Counter, defaultdict
from contextlib import suppress
from functools import cache
from typing import Any

GUESS = "guess"
GUESS_EACH = "guess-each"
UNDETERMINED = "und"
"""The code of ISO 639 for a text whose language is not known."""

MIN_RELATIVE_LIKELIHOOD = 0.1
"""Likelihood of a possible language, as a share of that of the likeliest one."""

_SAMPLE_CHARS = 700
_MIN_LETTERS = 20
"""Shorter texts fit too many languages."""

# py3langid has labels for varieties, which are written and split into sentences in the same way.
_VARIETIES = {
    "ary": "ar",
    "arz": "ar",
    "grc": "el",
    "hbo": "he",
    "nb": "no",
    "pcm": "en",
    "sdh": "ckb",
    "tl": "fil",
    "uzs": "uz",
    "wuu": "zh",
}
_BY_SCRIPT = {
    "CHEROKEE": ("chr",),
    "MEETEI": ("mni",),
    "MONGOLIAN": ("mn",),
    "NKO": ("nqo",),
    "OL": ("sat",),
    "SYRIAC": ("syc", "aii", "arc"),
    "THAANA": ("dv",),
    "TIBETAN": ("bo", "dz"),
    "TIFINAGH": ("zgh", "kab"),
}
"""Languages of the scripts that py3langid does not know, by the first word of Unicode's names of
the letters; the first is the guess."""


def normalize_language(code: str) -> str:
    """The standard form of a code. Raises `ValueError`, which suggests near codes."""
    # Imported here, because `--help` must not wait for its tables.
    from langcodes import Language, standardize_tag, tag_is_valid
    from langcodes.tag_parser import LanguageTagError

    try:
        tag = standardize_tag(code, macro=True)
        language = Language.get(tag).language or tag
        if tag_is_valid(tag) and re.fullmatch("[a-z]{2,3}", language) and language != "mul":
            return tag
    except LanguageTagError:
        pass
    near = _near_codes(code)
    hint = f"Did you mean {' or '.join(near)}?" if near else "Write it such as fa or pt-BR."
    raise ValueError(f"not a language code of ISO 639. {hint}")


def guess_language(text: str) -> str:
    """The likeliest language of a text; `UNDETERMINED` when it has few letters."""
    sample = sample_text(text)
    if sum(map(str.isalpha, sample)) < _MIN_LETTERS:
        return UNDETERMINED
    likelihoods = rank_languages(sample)
    return max(likelihoods, key=lambda language: likelihoods[language])


def is_possible(text: str, language: str) -> bool:
    """Whether a text may be in a language: true as well when the language cannot be identified."""
    if not can_identify(language):
        return True
    likelihoods = rank_languages(sample_text(text))
    likeliest = max(likelihoods.values())
    return likelihoods.get(_label(language), 0) >= MIN_RELATIVE_LIKELIHOOD * likeliest


def can_identify(language: str) -> bool:
    """Whether texts in this language can be told from others."""
    return _label(language) in known_languages()


def known_languages() -> list[str]:
    """The languages that can be identified."""
    labels = {_VARIETIES.get(label, label) for label in _load_identifier().labels}
    return sorted(labels.union(*_BY_SCRIPT.values()) - {"zxx"})


def rank_languages(sample: str) -> dict[str, float]:
    """The likelihood of each language."""
    letters = set(filter(str.isalpha, sample))
    scripts = Counter(unicodedata.name(letter, "").partition(" ")[0] for letter in letters)
    script = max(scripts, key=lambda name: scripts[name], default="")
    if languages := _BY_SCRIPT.get(script):
        return {language: 1 - 0.1 * place for place, language in enumerate(languages)}
    likelihoods: defaultdict[str, float] = defaultdict(float)
    for label, likelihood in _load_identifier().rank(sample):
        likelihoods[_VARIETIES.get(label, label)] += float(likelihood)
    return likelihoods


def sample_text(text: str) -> str:
    """The start, the middle and the end of a long text."""
    if len(text) <= 3 * _SAMPLE_CHARS:
        return text
    middle = (len(text) - _SAMPLE_CHARS) // 2
    return "\n".join(
        (text[:_SAMPLE_CHARS], text[middle : middle + _SAMPLE_CHARS], text[-_SAMPLE_CHARS:])
    )


def _label(language: str) -> str:
    with suppress(ValueError):
        language = normalize_language(language)
    base = re.split("[-_]", language.lower(), maxsplit=1)[0]
    return _VARIETIES.get(base, base)


def _near_codes(code: str) -> list[str]:
    from langcodes import standardize_tag
    from langcodes.data_dicts import LANGUAGE_ALPHA3, LANGUAGE_ALPHA3_BIBLIOGRAPHIC

    known = {*LANGUAGE_ALPHA3, *LANGUAGE_ALPHA3.values(), *LANGUAGE_ALPHA3_BIBLIOGRAPHIC.values()}
    # The codes of three letters are the start of a name: "persian", "per".
    near = difflib.get_close_matches(code.lower()[:3], sorted(known), n=3, cutoff=0.5)
    return list(dict.fromkeys(map(standardize_tag, near)))


@cache
def _load_identifier() -> Any:
    # Imported here, because the command line imports this module.
    from py3langid.langid import (  # type: ignore[import-untyped]
        MODEL_FILE,
        LanguageIdentifier,
    )

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
