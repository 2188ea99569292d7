"""The step `language`: removes documents in another language."""

import re
from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

from bert_pipeline.corpus.cleaning.cleaner import Filter
from bert_pipeline.errors import UsageError

_SAMPLE_CHARS = 700
_MIN_RELATIVE_LIKELIHOOD = 0.1
"""Likelihood that keeps a document, as a share of that of the likeliest language."""
_ALIASES = {"cmn": "zh", "fil": "tl", "in": "id", "iw": "he", "nb": "no", "prs": "fa"}


def make_language_filter(language: str) -> Filter:
    """Remove documents in another language, identified by py3langid in three samples of the text.

    A document stays when the language is the likeliest one, or at least a tenth as likely: a few
    words or numbers fit many languages, while a sentence or more has one clearly likeliest.
    Identifier: Lui and Baldwin, 2012, "langid.py", https://aclanthology.org/P12-3005.
    Raises `UsageError` for a language that py3langid does not know.
    """
    identifier = _load_identifier()
    code = re.split(r"[-_]", language.lower(), maxsplit=1)[0]
    expected = _ALIASES.get(code, code)
    if expected not in identifier.labels:
        known = " ".join(sorted(identifier.labels))
        raise UsageError(
            f"--clean language: {language} cannot be identified. Known languages: {known}."
        )

    def apply(text: str) -> tuple[str, str | None]:
        likelihoods = dict(identifier.rank(_sample(text)))
        likely = likelihoods[expected] >= _MIN_RELATIVE_LIKELIHOOD * max(likelihoods.values())
        return text, None if likely else "language"

    return apply


@cache
def _load_identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _sample(text: str) -> str:
    if len(text) <= 3 * _SAMPLE_CHARS:
        return text
    middle = (len(text) - _SAMPLE_CHARS) // 2
    return "\n".join(
        (text[:_SAMPLE_CHARS], text[middle : middle + _SAMPLE_CHARS], text[-_SAMPLE_CHARS:])
    )
