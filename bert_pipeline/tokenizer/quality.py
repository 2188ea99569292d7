"""How well a tokenizer fits a corpus: a few figures, measured on a sample of bounded size."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from rich.markup import escape
from tokenizers import Tokenizer

from bert_pipeline.errors import BertpipeError
from bert_pipeline.progress import Bar, bar, human_bytes, print_line, print_table
from bert_pipeline.ragged import Int64Array
from bert_pipeline.tokenizer.load import MISSING_ID, SpecialIds, count_ids
from bert_pipeline.tokenizer.sample import Sample, split_lines

SAMPLE_MB = 4.0
SHOWN_WORDS = 5
"""Number of frequent words to show."""
MIN_WORD_CHARACTERS = 5
"""Shorter words are not shown."""
MAX_WORD_CHARACTERS = 20
"""Longer words are not shown: where there are no spaces between words, they are clauses."""
MAX_WORD_PIECES = 10
"""Pieces of a word to show."""
BATCH_LINES = 256


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures of one tokenizer, on the same text comparable across tokenizers and languages.

    Words are separated by white space; special tokens do not count.
    """

    vocab_size: int
    tokens_per_word: float
    bytes_per_token: float
    characters_per_token: float
    unknown_rate: float | None
    """Share of the tokens that are the unknown token; None if there is no such token."""
    unknown_characters: float
    """Share of the characters, without white space, that are in unknown tokens."""
    vocabulary_use: float
    """Share of the entries that occur in the text."""
    frequent_words: list[tuple[str, list[str]]]
    """Frequent words of more than one token, with their pieces (or the first of them)."""


class MeasuredText:
    """The text that tokenizers are measured on: documents sampled from the corpus by the seed."""

    def __init__(self, sample: Sample) -> None:
        texts = list(_limit_size(sample.texts("sampling"), round(sample.megabytes * 1e6)))
        self.documents = len(texts)
        self.paragraphs = [line for text in texts for line in split_lines(text) if line.strip()]
        self.characters = sum(map(len, self.paragraphs))
        self.visible_characters = sum(
            len("".join(paragraph.split())) for paragraph in self.paragraphs
        )
        self.bytes = sum(len(paragraph.encode()) for paragraph in self.paragraphs)
        self.words = sum(len(paragraph.split()) for paragraph in self.paragraphs)
        self.quiet = sample.quiet

    def measure(
        self,
        tokenizer: Tokenizer,
        special: SpecialIds,
        title: str,
        words: Iterable[str] | None = None,
    ) -> Quality:
        """Measure a tokenizer.

        The figures include its pieces of `words`, by default of frequent words that it splits.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # [MASK] and the like in a text are plain text
        progress_title = f"measuring {title}"
        with bar(progress_title, self.characters, quiet=self.quiet, counted=False) as progress:
            counts, unknown_characters = self._count_tokens(tokenizer, special.unk, title, progress)
        tokens = max(1, int(counts.sum()))
        roles = {special.pad, special.cls, special.sep, special.mask, special.unk}
        specials = [i for i in roles if i not in (None, MISSING_ID)]
        used = np.count_nonzero(counts) - np.count_nonzero(counts[specials])
        unknown_rate = None
        if special.unk is not None:
            unknown_rate = round(int(counts[special.unk]) / tokens, 6)
        if words is None:
            frequent_words = list(self._split_frequent(tokenizer))
        else:
            frequent_words = list(_split_words(tokenizer, words))
        return Quality(
            vocab_size=len(counts),
            tokens_per_word=round(tokens / max(1, self.words), 4),
            bytes_per_token=round(self.bytes / tokens, 4),
            characters_per_token=round(self.characters / tokens, 4),
            unknown_rate=unknown_rate,
            unknown_characters=round(unknown_characters / max(1, self.visible_characters), 6),
            vocabulary_use=round(used / (tokenizer.get_vocab_size() - len(specials)), 4),
            frequent_words=frequent_words,
        )

    def _count_tokens(
        self, tokenizer: Tokenizer, unknown: int | None, title: str, progress: Bar
    ) -> tuple[Int64Array, int]:
        """Occurrences of each id, int64 of shape (ids,); characters in unknown tokens."""
        counts = np.zeros(count_ids(tokenizer), dtype=np.int64)
        unknown_characters = 0
        for start in range(0, len(self.paragraphs), BATCH_LINES):
            batch = self.paragraphs[start : start + BATCH_LINES]
            try:
                encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            except BertpipeError:  # raised by a signal handler
                raise
            except Exception as error:  # the library's only class, as for a word without any token
                raise BertpipeError(f"{title}: cannot encode the corpus ({error}).") from None
            ids = np.fromiter((i for encoding in encodings for i in encoding.ids), dtype=np.int64)
            counts += np.bincount(ids, minlength=len(counts))
            if unknown is not None and (ids == unknown).any():
                unknown_characters += _count_unknown_characters(tokenizer, unknown, batch)
            progress.advance(sum(map(len, batch)))
        return counts, unknown_characters

    def to_json(self) -> dict[str, int]:
        """The size of the text."""
        return {"documents": self.documents, "bytes": self.bytes, "words": self.words}

    def _split_frequent(self, tokenizer: Tokenizer) -> Iterator[tuple[str, list[str]]]:
        """The most frequent words of more than one token, in complete form."""
        words = self.count_words()
        frequent = sorted(
            (word for word, count in words.items() if count > 1 and _is_shown(word)),
            key=lambda word: (-words[word], word),
        )
        split = (found for found in _split_words(tokenizer, frequent) if len(found[1]) > 1)
        yield from islice(split, SHOWN_WORDS)

    def count_words(self) -> Counter[str]:
        """Occurrences of each word, without the punctuation around it."""
        counts: Counter[str] = Counter()
        for paragraph in self.paragraphs:
            counts.update(map(_strip_punctuation, paragraph.split()))
        del counts[""]
        return counts


def _count_unknown_characters(tokenizer: Tokenizer, unknown: int, batch: list[str]) -> int:
    """Characters, without white space, in the unknown tokens of some lines."""
    characters = 0
    for text, encoding in zip(
        batch, tokenizer.encode_batch(batch, add_special_tokens=False), strict=True
    ):
        for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if number == unknown:
                characters += len("".join(text[start:end].split()))
    return characters


def _strip_punctuation(word: str) -> str:
    start = 0
    end = len(word)
    while start < end and not _is_letter(word[start]):
        start += 1
    while end > start and not _is_letter(word[end - 1]):
        end -= 1
    return word[start:end]


def _is_letter(char: str) -> bool:
    return unicodedata.category(char)[0] in "LM"


def _is_shown(word: str) -> bool:
    """Whether a word is long enough, and has letters only: no link, path or number."""
    return MIN_WORD_CHARACTERS <= len(word) <= MAX_WORD_CHARACTERS and all(
        _is_letter(char) or char in "\u200c\u200d" for char in word
    )


def print_quality(quality: Quality, *, quiet: bool) -> None:
    """Print the main figures in two lines."""
    print_line(
        f"  {quality.characters_per_token:.2f} characters and {quality.bytes_per_token:.2f} bytes "
        f"per token, {quality.tokens_per_word:.2f} tokens per word\n"
        f"  {quality.unknown_characters:.2%} of the characters unknown, "
        f"{quality.vocabulary_use:.1%} of the vocabulary in use",
        quiet=quiet,
    )


def print_comparison(
    measured: Mapping[str, Any], columns: Mapping[str, Quality], *, quiet: bool
) -> None:
    """Print a table of all figures, with a column for each tokenizer."""
    first, *_ = columns.values()
    qualities = columns.values()
    rows = [
        ["entries", *(f"{q.vocab_size:,}" for q in qualities)],
        ["characters per token", *(f"{q.characters_per_token:.2f}" for q in qualities)],
        ["bytes per token", *(f"{q.bytes_per_token:.2f}" for q in qualities)],
        ["tokens per word", *(f"{q.tokens_per_word:.2f}" for q in qualities)],
        ["unknown characters", *(f"{q.unknown_characters:.2%}" for q in qualities)],
        ["unknown tokens", *map(_describe_unknown, qualities)],
        ["vocabulary in use", *(f"{q.vocabulary_use:.1%}" for q in qualities)],
        *(
            [word, *(" ".join(q.frequent_words[row][1]) for q in qualities)]
            for row, (word, _) in enumerate(first.frequent_words)
        ),
    ]
    documents = f"{measured['documents']:,} document{'s' * (measured['documents'] != 1)}"
    print_table(
        f"Measured on {documents} ({human_bytes(measured['bytes'])}) of the corpus",
        ["", *map(escape, columns)],
        [[escape(cell) for cell in row] for row in rows],
        quiet=quiet,
    )


def _describe_unknown(quality: Quality) -> str:
    return "no" if quality.unknown_rate is None else f"{quality.unknown_rate:.2%}"


def _split_words(tokenizer: Tokenizer, words: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    for word in words:
        # With a space before it, as within a sentence.
        ids = tokenizer.encode(" " + word, add_special_tokens=False).ids
        pieces = [show_token(tokenizer, number) for number in ids[:MAX_WORD_PIECES]]
        yield word, pieces if len(ids) <= MAX_WORD_PIECES else [*pieces, "…"]


def _limit_size(texts: Iterator[str], limit: int) -> Iterator[str]:
    """Texts cut to `limit` bytes each, and to about twice as much in total.

    A single document may be larger than the sample.
    """
    left = 2 * limit
    for text in texts:
        raw = text.encode()
        yield raw[: min(limit, left)].decode(errors="ignore")
        left -= len(raw)
        if left <= 0:
            return


def show_token(tokenizer: Tokenizer, number: int) -> str:
    """A token as text, `·` for one of white space."""
    text: str = tokenizer.decode([number], skip_special_tokens=False)
    return text.strip() or "·"
