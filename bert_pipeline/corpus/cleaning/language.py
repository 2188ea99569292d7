"""The step `language`: removes documents in another language."""

from bert_pipeline.corpus.cleaning.cleaner import Filter
from bert_pipeline.corpus.languages import (
    UNDETERMINED,
    can_identify,
    is_possible,
    known_languages,
)
from bert_pipeline.errors import UsageError

_MAX_REPLACED = 0.5
"""Share of U+FFFD in the characters of a document from which it counts as undecodable."""


def make_language_filter(language: str) -> Filter:
    """Remove documents in another language, identified in three samples of the text.

    A document stays when the language is the likeliest one, or at least a tenth as likely: a few
    words or numbers fit many languages, while a sentence or more has one clearly likeliest. A
    document that is mostly U+FFFD, the trace of a wrong encoding, is in no language.
    Raises `UsageError` for a language that cannot be identified.
    """
    if language != UNDETERMINED and not can_identify(language):
        raise UsageError(
            f"--clean language: {language} cannot be identified. Known languages: "
            f"{' '.join(known_languages())}."
        )

    def apply(text: str) -> tuple[str, str | None]:
        if text.count("\ufffd") > _MAX_REPLACED * len("".join(text.split())):
            return text, "language: undecodable"
        return text, None if is_possible(text, language) else "language"

    return apply
