"""Which single characters a WordPiece vocabulary holds."""

from collections import Counter
from dataclasses import dataclass

from tokenizers import Tokenizer

from bert_pipeline.tokenizer.sample import Sample

CONTINUED = "##"
COVERAGE = 0.9995
"""What SentencePiece recommends for languages with many characters, such as Chinese and Japanese (Kudo & Richardson
2018, https://aclanthology.org/D18-2012; `--character_coverage`)."""
FEWEST = 1000
"""Characters that are always wanted, and entries that they may take however small the vocabulary is."""


@dataclass(frozen=True, slots=True)
class Alphabet:
    """Characters that get an entry, sorted, and their entries: as a word or its beginning, and within words."""

    characters: list[str]
    entries: list[str]
    known: int
    """How many characters the text has."""
    coverage: float
    """Share of the text, white space left out, that the chosen ones are."""
    is_cut: bool
    """Whether `room` ended before enough of the text was covered."""


def choose_alphabet(
    counts: Counter[str], tokenizer: Tokenizer, size: int | None, room: int
) -> Alphabet:
    """The `size` most frequent characters; or as many as cover enough of the text with at most `room` entries."""
    ranked = sorted(counts, key=lambda char: (-counts[char], char))
    entries = {char: _entries(tokenizer, char) for char in ranked}
    limit = size if size is not None else _cover(ranked, counts, entries, room)
    chosen = sorted(ranked[:limit])
    total = counts.total()
    return Alphabet(
        characters=chosen,
        entries=[*chosen, *(entry for char in chosen for entry in entries[char][1:])],
        known=len(ranked),
        coverage=(coverage := sum(counts[char] for char in chosen) / total if total else 1.0),
        is_cut=size is None and coverage < COVERAGE,
    )


def _cover(
    ranked: list[str], counts: Counter[str], entries: dict[str, list[str]], room: int
) -> int:
    missing, limit = counts.total() * COVERAGE, 0
    for char in ranked:
        room -= len(entries[char])
        if room < 0 or (missing <= 0 and limit >= FEWEST):
            break
        missing -= counts[char]
        limit += 1
    return limit


def count_characters(sample: Sample, tokenizer: Tokenizer) -> Counter[str]:
    """Occurrences of every character, as the normaliser leaves it."""
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
    """A character as a word begins, and as it goes on, unless it is always a word of its own."""
    within = tokenizer.normalizer.normalize_str(
        "a" + char
    )  # which puts spaces around Chinese characters
    continues = len(tokenizer.pre_tokenizer.pre_tokenize_str(within)) == 1
    return [char, CONTINUED + char] if continues else [char]
