"""Quality filters of datatrove (Gopher, C4, FineWeb), for languages with spaces between words."""

import re
from functools import lru_cache

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.pipeline.filters.c4_filters import CITATION_REGEX, ELLIPSIS, END_PUNCTUATION
from datatrove.utils.text import TERMINAL_PUNCTUATION
from datatrove.utils.word_tokenizers import WordTokenizer, simple_span_tokenize
from loguru import logger

from bert_pipeline.corpus.cleaning.cleaner import Filter
from bert_pipeline.corpus.sentences import split_sentences
from bert_pipeline.errors import UsageError

SPACELESS = frozenset({"bo", "dz", "ja", "km", "lo", "my", "th", "yue", "zh"})
"""Languages without spaces between words; counting their words would need a dictionary."""

_REASONS = {
    "dup_para_frac": "repeated paragraphs",
    "dup_para_char_frac": "repeated paragraphs",
    "dup_line_frac": "repeated lines",
    "dup_line_char_frac": "repeated lines",
    "gopher_short_doc": "too short",
    "gopher_long_doc": "too long",
    "gopher_below_avg_threshold": "words too short",
    "gopher_above_avg_threshold": "words too long",
    "gopher_too_many_hashes": "too many #",
    "gopher_too_many_ellipsis": "too many ellipses",
    "gopher_too_many_bullets": "too many bullets",
    "gopher_too_many_end_ellipsis": "too many lines end in an ellipsis",
    "gopher_below_alpha_threshold": "too few words with letters",
    "gopher_enough_stop_words": "too few stop words",
    "lorem_ipsum": "lorem ipsum",
    "curly_bracket": "curly bracket",
    "too_few_sentences": "too few sentences",
    "line_punct_ratio": "too few lines end in punctuation",
    "short_line_ratio": "too many short lines",
    "char_dup_ratio": "repeated lines",
    "list_ratio": "too many line breaks",
}


class WhitespaceTokenizer(WordTokenizer):  # type: ignore[misc]
    """Words separated by whitespace, as Gopher counts them.

    datatrove accepts such an object in place of a language (`load_word_tokenizer`: "for custom
    tokenizers"). Its own tokenizers need spaCy, Stanza or other large packages, some of which
    download models; and because they count each punctuation mark as a word without letters,
    Gopher's rule of 80% words with letters would remove the dialogue in novels.
    """

    def word_tokenize(self, text: str) -> list[str]:
        """Words with attached punctuation."""
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        """Sentences, split as for the training examples."""
        return split_sentences(text, self.language or "en")

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """The start and end of each sentence."""
        return list(simple_span_tokenize(re.sub(r"\s", " ", text), self.sent_tokenize(text)))


class C4Filter(C4QualityFilter):  # type: ignore[misc]
    """C4's filter with the sentence end marks of all scripts.

    datatrove's filter has those of Latin script only and would remove all text in Hindi.
    """

    end_marks = (*END_PUNCTUATION, *TERMINAL_PUNCTUATION, "”", "’", "»", "」", "』")

    def __init__(self, language: WhitespaceTokenizer) -> None:
        super().__init__(filter_no_terminal_punct=False, language=language)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Remove lines without an end mark, then apply datatrove's filter."""
        doc.text = "\n".join(filter(self._is_ended, doc.text.split("\n")))
        result: bool | tuple[bool, str] = super().filter(doc)
        return result

    def _is_ended(self, line: str) -> bool:
        line = CITATION_REGEX.sub("", line.strip())
        return line.endswith(self.end_marks) and not line.endswith(ELLIPSIS)


def make_gopher_repetition_filter(language: str) -> Filter:
    """Repeated lines, paragraphs and n-grams, with Gopher's thresholds.

    Rae et al., 2021, table A1, https://arxiv.org/abs/2112.11446.
    """
    tokenizer = _make_tokenizer("gopher-repetition", language)
    return _as_filter("gopher-repetition", GopherRepetitionFilter(language=tokenizer))


def make_gopher_quality_filter(language: str) -> Filter:
    """Length, symbols and stop words, with Gopher's thresholds.

    Rae et al., 2021, section A.1.1, https://arxiv.org/abs/2112.11446. The stop words are English,
    so other languages need none.
    """
    tokenizer = _make_tokenizer("gopher-quality", language)
    min_stop_words = 2 if tokenizer.language == "en" else 0
    return _as_filter(
        "gopher-quality", GopherQualityFilter(language=tokenizer, min_stop_words=min_stop_words)
    )


def make_c4_filter(language: str) -> Filter:
    """Lines without an end mark, and documents with code or too few sentences, as in C4.

    Raffel et al., 2020, section 2.2, https://arxiv.org/abs/1910.10683, without the list of bad
    words.
    """
    return _as_filter("c4", C4Filter(_make_tokenizer("c4", language)))


def make_fineweb_filter(language: str) -> Filter:
    """Lines without punctuation, short lines and repeated lines, with FineWeb's thresholds.

    Penedo et al., 2024, section 3.6, https://arxiv.org/abs/2406.17557.
    """
    return _as_filter(
        "fineweb", FineWebQualityFilter(language=_make_tokenizer("fineweb", language))
    )


def _as_filter(step: str, datatrove_filter: BaseFilter) -> Filter:
    logger.disable("datatrove")

    def apply(text: str) -> tuple[str, str | None]:
        if not text.strip():
            return text, None
        document = Document(text=text, id="")
        keep, reason = get_filter_result(datatrove_filter.filter(document))
        return document.text, None if keep else f"{step}: {_explain(reason or '')}"

    return apply


def _make_tokenizer(step: str, language: str) -> WhitespaceTokenizer:
    """Raises `UsageError` for a language without spaces between words."""
    language = re.split(r"[-_]", language.lower(), maxsplit=1)[0]
    if language in SPACELESS:
        raise UsageError(
            f"--clean {step}: counts words, but {language} has no spaces between words. For "
            "this language give --clean "
            "mojibake,html,unicode,control,whitespace,language,exact,near."
        )
    return _tokenizer(language)


@lru_cache
def _tokenizer(language: str) -> WhitespaceTokenizer:
    # One object for all filters, because datatrove caches the words of the last texts by it.
    return WhitespaceTokenizer(language)


def _explain(reason: str) -> str:
    if found := re.fullmatch(r"(?:top|duplicated)_(\d+)_(?:n_)?grams?", reason):
        return f"repeated {found[1]}-grams"
    return _REASONS.get(reason, reason)
