"""Texts as token ids of any length, which are cut to what a model takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding

from bert_pipeline.corpus.cleaning.cleaner import join_surrogates
from bert_pipeline.predict.batches import TokenRow


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A text with the special tokens that the tokenizer adds."""

    text: str
    ids: list[int]
    segment_ids: list[int]
    encoding: Encoding | None
    """Tokens and offsets; None for a tokenizer that is written in Python."""


class TextEncoder:
    """A tokenizer of transformers, and the maximum length of a model."""

    def __init__(self, tokenizer: Any, max_length: int | None) -> None:
        self._tokenizer = tokenizer
        self.max_length = max_length
        self.head, self.tail = _count_special_tokens(tokenizer)

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """The ids of each text, not cut. Lone surrogates become U+FFFD."""
        valid = [join_surrogates(text) for text in texts]
        # `verbose` is off because longer texts than the model takes are expected.
        encoded = self._tokenizer(valid, verbose=False)
        rows = encoded["input_ids"]
        segments = encoded.get("token_type_ids") or [[0] * len(ids) for ids in rows]
        encodings = encoded.encodings or [None] * len(rows)
        columns = zip(valid, rows, segments, encodings, strict=True)
        return [EncodedText(*values) for values in columns]

    def is_too_long(self, ids: Sequence[int]) -> bool:
        """Whether a text has more tokens than the model takes."""
        return self.max_length is not None and len(ids) > self.max_length

    @property
    def room(self) -> int:
        """The tokens of a text that fit the maximum length, beside the special ones."""
        assert self.max_length is not None
        return max(1, self.max_length - self.head - self.tail)

    def cut(self, ids: list[int], segment_ids: list[int], start: int = 0) -> TokenRow:
        """At most `room` tokens from `start` on, between the special tokens."""
        chosen = slice(self.head + start, min(self.head + start + self.room, len(ids) - self.tail))
        return TokenRow(*(self._between_ends(values, chosen) for values in (ids, segment_ids)))

    def _between_ends(self, values: list[int], chosen: slice) -> list[int]:
        return values[: self.head] + values[chosen] + values[len(values) - self.tail :]


def _count_special_tokens(tokenizer: Any) -> tuple[int, int]:
    """How many special tokens the tokenizer adds before and after a text."""
    ids = tokenizer("a")["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    starts = range(len(ids) - len(bare) + 1)
    head = next((start for start in starts if ids[start : start + len(bare)] == bare), 0)
    return head, len(ids) - len(bare) - head
