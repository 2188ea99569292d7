"""Filters of document quality from datatrove, for any language that parts its words by spaces."""

import re
from collections.abc import Callable
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

from bert_pipeline.corpus.sentences import split_sentences
from bert_pipeline.errors import UsageError

SPACELESS = frozenset({"bo", "dz", "ja", "km", "lo", "my", "th", "yue", "zh"})
"""Languages that write no space between words: to count theirs takes a dictionary, which no filter here has."""

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


class Words(WordTokenizer):  # type: ignore[misc]
    """Words as Gopher counts them, by white space.

    datatrove takes such an object wherever it takes a language (`load_word_tokenizer`: "for custom tokenizers"). Its
    own tokenizers need spaCy, Stanza or other large packages, some of which download models; and since they count every
    punctuation mark as a word without letters, Gopher's rule of 80% words with letters removes the dialogue of novels.
    """

    def word_tokenize(self, text: str) -> list[str]:
        """Words with the punctuation on them."""
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        """The sentences that the examples will be made of."""
        return split_sentences(text, self.language or "en")

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Where the sentences lie."""
        return list(simple_span_tokenize(re.sub(r"\s", " ", text), self.sent_tokenize(text)))


class C4Filter(C4QualityFilter):  # type: ignore[misc]
    """C4's filter with the end marks of all scripts: the library's own knows Latin ones and would drop all of Hindi."""

    end_marks = (*END_PUNCTUATION, *TERMINAL_PUNCTUATION, "”", "’", "»", "」", "』")

    def __init__(self, language: Words) -> None:
        super().__init__(filter_no_terminal_punct=False, language=language)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Drop lines without an end mark, then do what the library does."""
        doc.text = "\n".join(filter(self._is_ended, doc.text.split("\n")))
        result: bool | tuple[bool, str] = super().filter(doc)
        return result

    def _is_ended(self, line: str) -> bool:
        line = CITATION_REGEX.sub("", line.strip())
        return line.endswith(self.end_marks) and not line.endswith(ELLIPSIS)


def make_filter(step: str, language: str) -> Callable[[str], tuple[str, str | None]]:
    """A function that gives a text as the filter leaves it, and the reason to remove it, if there is one.

    Thresholds are the published ones: Gopher (Rae et al. 2021, table A1 and section A.1.1), C4 (Raffel et al. 2020,
    section 2.2; all but its list of bad words), FineWeb (Penedo et al. 2024, section 3.6). Gopher's stop words are
    English; of other languages none are asked for.
    """
    language = re.split(r"[-_]", language.lower(), maxsplit=1)[0]
    if language in SPACELESS:
        raise UsageError(
            f"--clean {step}: it counts words, and {language} writes no spaces between them. Leave out "
            "gopher-repetition, gopher-quality, c4 and fineweb for this language."
        )
    logger.disable("datatrove")
    filter_ = _build(step, language)

    def apply(text: str) -> tuple[str, str | None]:
        if not text.strip():
            return text, None
        document = Document(text=text, id="")
        keep, reason = get_filter_result(filter_.filter(document))
        return document.text, None if keep else _explain(reason or "")

    return apply


@lru_cache
def _words(language: str) -> Words:
    # One object for all filters: datatrove remembers by it the words of the last texts.
    return Words(language)


def _build(step: str, language: str) -> BaseFilter:
    words = _words(language)
    if step == "gopher-repetition":
        return GopherRepetitionFilter(language=words)
    if step == "gopher-quality":
        return GopherQualityFilter(language=words, min_stop_words=2 if language == "en" else 0)
    if step == "c4":
        return C4Filter(words)
    return FineWebQualityFilter(language=words)


def _explain(reason: str) -> str:
    if found := re.fullmatch(r"(?:top|duplicated)_(\d+)_(?:n_)?grams?", reason):
        return f"repeated {found[1]}-grams"
    return _REASONS.get(reason, reason)
