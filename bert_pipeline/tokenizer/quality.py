"""What a tokenizer makes of a corpus: a few figures, measured on a bounded sample, beside those of others."""

import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.markup import escape
from tokenizers import Tokenizer

from bert_pipeline.errors import BertpipeError
from bert_pipeline.progress import bar, human_bytes, print_table
from bert_pipeline.tokenizer.load import NONE, SpecialIds, count_ids
from bert_pipeline.tokenizer.sample import Sample, split_lines

SAMPLE_MB = 4.0
LONG_WORDS = 5
LONGEST = 30
"""Characters of a word that are looked at."""
MOST_PIECES = 10
"""Pieces of a word that are shown."""
ENCODE_TOGETHER = 256
NO_PART_OF_WORDS = frozenset(string.punctuation + string.digits)


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures of one tokenizer. Words are what lies between white space; special tokens are not counted."""

    vocab_size: int
    tokens_per_word: float
    bytes_per_token: float
    characters_per_token: float
    unknown_rate: float | None
    """Share of tokens that stand for something unknown; None where there is no token for it."""
    vocabulary_use: float
    """Share of the entries that occur in the text."""
    long_words: list[tuple[str, list[str]]]
    """Long words, or their first characters, and their first pieces."""


class MeasuredText:
    """The text that tokenizers are measured on: documents drawn by the seed over the whole corpus."""

    def __init__(self, sample: Sample) -> None:
        texts = list(_cut(sample.texts("drawing a sample"), round(sample.megabytes * 1e6)))
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
        """The figures of a tokenizer, with its pieces of `words`, or of the longest words that it splits."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # names of special tokens in a text are text
        counts = np.zeros(count_ids(tokenizer), dtype=np.int64)
        with bar(
            f"measuring {title}", self.characters, quiet=self.quiet, counted=False
        ) as progress:
            for start in range(0, len(self.paragraphs), ENCODE_TOGETHER):
                batch = self.paragraphs[start : start + ENCODE_TOGETHER]
                try:
                    encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
                except BertpipeError:  # a signal's
                    raise
                except Exception as error:  # the library's only kind; such as for a word without a token for unknown ones
                    raise BertpipeError(f"{title}: cannot encode the corpus ({error}).") from None
                ids = np.fromiter(
                    (i for encoding in encodings for i in encoding.ids), dtype=np.int64
                )
                counts += np.bincount(ids, minlength=len(counts))
                progress.advance(sum(map(len, batch)))
        tokens = max(1, int(counts.sum()))
        roles = {special.pad, special.cls, special.sep, special.mask, special.unk}
        specials = [i for i in roles if i not in (None, NONE)]
        used = np.count_nonzero(counts) - np.count_nonzero(counts[specials])
        return Quality(
            vocab_size=len(counts),
            tokens_per_word=round(tokens / max(1, self.words), 4),
            bytes_per_token=round(self.bytes / tokens, 4),
            characters_per_token=round(self.characters / tokens, 4),
            unknown_rate=None
            if special.unk is None
            else round(int(counts[special.unk]) / tokens, 6),
            vocabulary_use=round(used / (tokenizer.get_vocab_size() - len(specials)), 4),
            long_words=list(
                self._split_longest(tokenizer) if words is None else _pieces(tokenizer, words)
            ),
        )

    def to_json(self) -> dict[str, int]:
        """How much it is."""
        return {"documents": self.documents, "bytes": self.bytes, "words": self.words}

    def _split_longest(self, tokenizer: Tokenizer) -> Iterator[tuple[str, list[str]]]:
        found = {
            word.strip(string.punctuation)[:LONGEST]
            for text in self.paragraphs
            for word in text.split()
        }
        # A link, a path or a figure is long, but nothing that a vocabulary should hold.
        words = sorted(
            (word for word in found if NO_PART_OF_WORDS.isdisjoint(word)),
            key=lambda w: (-len(w), w),
        )
        shown = 0
        for word, pieces in _pieces(tokenizer, words):
            if len(pieces) > 1:
                yield word, pieces
                shown += 1
            if shown == LONG_WORDS:
                return


def print_qualities(
    measured: Mapping[str, Any], columns: Mapping[str, Quality], *, quiet: bool
) -> None:
    """A table with a column for each tokenizer, by name."""
    first, *_ = columns.values()
    rows = [
        ["entries", *(f"{q.vocab_size:,}" for q in columns.values())],
        ["tokens a word", *(f"{q.tokens_per_word:.2f}" for q in columns.values())],
        ["bytes a token", *(f"{q.bytes_per_token:.2f}" for q in columns.values())],
        ["characters a token", *(f"{q.characters_per_token:.2f}" for q in columns.values())],
        [
            "unknown tokens",
            *("–" if q.unknown_rate is None else f"{q.unknown_rate:.2%}" for q in columns.values()),
        ],
        ["entries that occur", *(f"{q.vocabulary_use:.1%}" for q in columns.values())],
        *(
            [word, *(" ".join(q.long_words[row][1]) for q in columns.values())]
            for row, (word, _) in enumerate(first.long_words)
        ),
    ]
    documents = f"{measured['documents']:,} document{'s' * (measured['documents'] != 1)}"
    title = f"Measured on {documents}, {human_bytes(measured['bytes'])} of the corpus"
    print_table(
        title,
        ["", *map(escape, columns)],
        [[escape(cell) for cell in row] for row in rows],
        quiet=quiet,
    )


def _pieces(tokenizer: Tokenizer, words: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    for word in words:
        # As within a sentence.
        ids = tokenizer.encode(" " + word, add_special_tokens=False).ids
        pieces = [
            tokenizer.decode([i], skip_special_tokens=False).strip() or "·"
            for i in ids[:MOST_PIECES]
        ]
        yield word, pieces if len(ids) <= MOST_PIECES else [*pieces, "…"]


def _cut(texts: Iterator[str], limit: int) -> Iterator[str]:
    """Texts of at most `limit` bytes, and twice as many in all: single documents may be larger than the sample."""
    room = 2 * limit
    for text in texts:
        raw = text.encode()
        yield raw[: min(limit, room)].decode(errors="ignore")
        room -= len(raw)
        if room <= 0:
            return
