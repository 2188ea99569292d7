"""Texts that are divided into words, and where the words are among the tokens.

The words are joined by spaces and encoded as any text, so that tokenizers which mark spaces, with
or without one before the first word, see what they saw in pretraining.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_pipeline.ragged import offsets_of
from bert_pipeline.tasks.encoded import Examples, Ragged, encode_texts


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one example, and which of them its read positions belong to."""

    words: tuple[str, ...]
    read_words: tuple[int, ...]
    """Of each position that is read: the number of its word."""


def encode_words(
    tokenizer: Any, texts: Sequence[Sequence[str]], max_length: int, where: Sequence[str]
) -> Examples:
    """Examples whose read positions are the first token of each word, without labels.

    A longer text takes several rows. A word that the tokenizer removes has no position.
    """
    encoded = encode_texts(
        tokenizer,
        [" ".join(words) for words in texts],
        None,
        max_length,
        return_overflowing_tokens=True,
    )
    of_rows = encoded["overflow_to_sample_mapping"]
    read: list[list[int]] = []
    words_of: list[list[int]] = [[] for _ in texts]
    ends = [offsets_of(np.array([len(word) + 1 for word in words])) for words in texts]
    for row, example in enumerate(of_rows):
        positions, numbers = _first_tokens(encoded.encodings[row], ends[example], words_of[example])
        read.append(positions)
        words_of[example] += numbers
    rows_per_example = np.bincount(np.array(of_rows, np.int64), minlength=len(texts))
    return Examples(
        tokens=Ragged.from_lists(encoded["input_ids"], np.int32),
        segment_ids=Ragged.from_lists(encoded["token_type_ids"], np.int8),
        first_rows=offsets_of(rows_per_example),
        labels=np.empty(0),
        read=Ragged.from_lists(read, np.int64),
        where=where,
        extra=[
            Words(tuple(words), tuple(numbers))
            for words, numbers in zip(texts, words_of, strict=True)
        ],
    )


def _first_tokens(encoding: Any, starts: Any, known: Sequence[int]) -> tuple[list[int], list[int]]:
    """Positions of the first tokens of words, and the numbers of the words.

    Words `known` from an earlier row of the text are left out.
    """
    last = known[-1] if known else -1
    positions = []
    numbers = []
    for position, (begin, end) in enumerate(encoding.offsets):
        # Special tokens have no characters. A token may begin with the space before its word.
        if encoding.special_tokens_mask[position] or end <= begin:
            continue
        word = int(np.searchsorted(starts, end - 1, side="right")) - 1
        if word > last:
            last = word
            positions.append(position)
            numbers.append(word)
    return positions, numbers
