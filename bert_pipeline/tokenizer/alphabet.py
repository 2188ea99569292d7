"""Which single characters get an entry in a WordPiece vocabulary."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bert_pipeline.tokenizer.sample import Sample

CONTINUATION_PREFIX = "##"
CHARACTER_COVERAGE = 0.9995
"""Share of the text that the alphabet covers: what SentencePiece recommends for languages with many
characters (`--character_coverage`, https://github.com/google/sentencepiece; Kudo & Richardson 2018,
https://aclanthology.org/D18-2012)."""
MIN_CHARACTERS = 1000
"""The alphabet has at least this many characters where there are as many, and may always take this
many entries, however small the vocabulary is."""


@dataclass(frozen=True, slots=True)
class Alphabet:
    """The characters that get an entry."""

    characters: list[str]
    """Sorted."""
    entries: list[str]
    """Their entries: each character, and with the continuation prefix if it occurs within words."""
    known: int
    """Number of different characters in the text."""
    coverage: float
    """Share of the text, without white space, that the chosen characters cover."""
    is_cut: bool
    """Whether the limit of entries was reached before enough of the text was covered."""


def choose_alphabet(
    counts: Counter[str], tokenizer: Tokenizer, size: int | None, max_entries: int
) -> Alphabet:
    """The `size` most frequent characters.

    By default as many as cover enough of the text, with at most `max_entries` entries.
    """
    ranked = sorted(counts, key=lambda char: (-counts[char], char))
    entries = {char: _entries(tokenizer, char) for char in ranked}
    limit = size if size is not None else _cover(ranked, counts, entries, max_entries)
    chosen = sorted(ranked[:limit])
    total = counts.total()
    coverage = sum(counts[char] for char in chosen) / total if total else 1.0
    return Alphabet(
        characters=chosen,
        entries=[*chosen, *(entry for char in chosen for entry in entries[char][1:])],
        known=len(ranked),
        coverage=coverage,
        is_cut=size is None and coverage < CHARACTER_COVERAGE,
    )


def _cover(
    ranked: list[str], counts: Counter[str], entries: dict[str, list[str]], max_entries: int
) -> int:
    missing = counts.total() * CHARACTER_COVERAGE
    free_entries = max_entries
    limit = 0
    for char in ranked:
        free_entries -= len(entries[char])
        if free_entries < 0 or (missing <= 0 and limit >= MIN_CHARACTERS):
            break
        missing -= counts[char]
        limit += 1
    return limit


def count_characters(sample: Sample, tokenizer: Tokenizer) -> Counter[str]:
    """Occurrences of every character after normalization, without white space."""
    raw: Counter[str] = Counter()
    for line in sample.lines("counting characters"):
        raw.update(line)
    counts: Counter[str] = Counter()
    for char, count in raw.items():
        for result in tokenizer.normalizer.normalize_str(char):
            if not result.isspace():
                counts[result] += count
    return counts


def _entries(tokenizer: Tokenizer, char: str) -> list[str]:
    """The character, and its continuation unless it is always a word by itself."""
    # The normalizer puts spaces around Chinese characters.
    normalized = tokenizer.normalizer.normalize_str("a" + char)
    continues = len(tokenizer.pre_tokenizer.pre_tokenize_str(normalized)) == 1
    return [char, CONTINUATION_PREFIX + char] if continues else [char]
