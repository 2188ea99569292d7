"""How well a tokenizer fits a corpus: a few figures, measured on a sample of bounded size."""

import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
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
SHOWN_LONG_WORDS = 5
"""Number of long words to show."""
LONG_WORD_CHARACTERS = 30
"""A longer word is cut to this many characters."""
MAX_WORD_PIECES = 10
"""Pieces of a word to show."""
BATCH_LINES = 256
NOT_IN_WORDS = frozenset(string.punctuation + string.digits)


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures of one tokenizer. Words are separated by white space; special tokens do not count."""

    vocab_size: int
    tokens_per_word: float
    bytes_per_token: float
    characters_per_token: float
    unknown_rate: float | None
    """Share of the tokens that are the unknown token; None if there is no such token."""
    vocabulary_use: float
    """Share of the entries that occur in the text."""
    long_words: list[tuple[str, list[str]]]
    """Long words (or their first characters) with their pieces (or the first of them)."""


class MeasuredText:
    """The text that tokenizers are measured on: documents sampled from the corpus by the seed."""

    def __init__(self, sample: Sample) -> None:
        texts = list(_limit_size(sample.texts("sampling"), round(sample.megabytes * 1e6)))
        self.documents = len(texts)
        self.paragraphs = [line for text in texts for line in split_lines(text) if line.strip()]
        self.characters = sum(map(len, self.paragraphs))
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

        The figures include its pieces of `words`, by default of the longest words that it splits.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # [MASK] and the like in a text are plain text
        progress_title = f"measuring {title}"
        with bar(progress_title, self.characters, quiet=self.quiet, counted=False) as progress:
            counts = self._count_tokens(tokenizer, title, progress)
        tokens = max(1, int(counts.sum()))
        roles = {special.pad, special.cls, special.sep, special.mask, special.unk}
        specials = [i for i in roles if i not in (None, MISSING_ID)]
        used = np.count_nonzero(counts) - np.count_nonzero(counts[specials])
        unknown_rate = None
        if special.unk is not None:
            unknown_rate = round(int(counts[special.unk]) / tokens, 6)
        if words is None:
            long_words = list(self._split_longest(tokenizer))
        else:
            long_words = list(_split_words(tokenizer, words))
        return Quality(
            vocab_size=len(counts),
            tokens_per_word=round(tokens / max(1, self.words), 4),
            bytes_per_token=round(self.bytes / tokens, 4),
            characters_per_token=round(self.characters / tokens, 4),
            unknown_rate=unknown_rate,
            vocabulary_use=round(used / (tokenizer.get_vocab_size() - len(specials)), 4),
            long_words=long_words,
        )

    def _count_tokens(self, tokenizer: Tokenizer, title: str, progress: Bar) -> Int64Array:
        """Occurrences of each id in the text; int64 of shape (ids,)."""
        counts = np.zeros(count_ids(tokenizer), dtype=np.int64)
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
            progress.advance(sum(map(len, batch)))
        return counts

    def to_json(self) -> dict[str, int]:
        """The size of the text."""
        return {"documents": self.documents, "bytes": self.bytes, "words": self.words}

    def _split_longest(self, tokenizer: Tokenizer) -> Iterator[tuple[str, list[str]]]:
        found = {
            word.strip(string.punctuation)[:LONG_WORD_CHARACTERS]
            for text in self.paragraphs
            for word in text.split()
        }
        # Links, paths and numbers are long, but no vocabulary should contain them.
        words = sorted(
            (word for word in found if NOT_IN_WORDS.isdisjoint(word)), key=lambda w: (-len(w), w)
        )
        shown = 0
        for word, pieces in _split_words(tokenizer, words):
            if len(pieces) > 1:
                yield word, pieces
                shown += 1
            if shown == SHOWN_LONG_WORDS:
                return


def print_quality(quality: Quality, *, quiet: bool) -> None:
    """Print the main figures in two lines."""
    print_line(
        f"  {quality.tokens_per_word:.2f} tokens per word, "
        f"{quality.bytes_per_token:.2f} bytes per token\n"
        f"  {_unknown(quality)} unknown tokens, "
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
        ["tokens per word", *(f"{q.tokens_per_word:.2f}" for q in qualities)],
        ["bytes per token", *(f"{q.bytes_per_token:.2f}" for q in qualities)],
        ["characters per token", *(f"{q.characters_per_token:.2f}" for q in qualities)],
        ["unknown tokens", *map(_unknown, qualities)],
        ["vocabulary in use", *(f"{q.vocabulary_use:.1%}" for q in qualities)],
        *(
            [word, *(" ".join(q.long_words[row][1]) for q in qualities)]
            for row, (word, _) in enumerate(first.long_words)
        ),
    ]
    documents = f"{measured['documents']:,} document{'s' * (measured['documents'] != 1)}"
    print_table(
        f"Measured on {documents} ({human_bytes(measured['bytes'])}) of the corpus",
        ["", *map(escape, columns)],
        [[escape(cell) for cell in row] for row in rows],
        quiet=quiet,
    )


def _unknown(quality: Quality) -> str:
    return "no" if quality.unknown_rate is None else f"{quality.unknown_rate:.2%}"


def _split_words(tokenizer: Tokenizer, words: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    for word in words:
        # With a space before it, as within a sentence.
        ids = tokenizer.encode(" " + word, add_special_tokens=False).ids
        pieces = [
            tokenizer.decode([i], skip_special_tokens=False).strip() or "·"
            for i in ids[:MAX_WORD_PIECES]
        ]
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
