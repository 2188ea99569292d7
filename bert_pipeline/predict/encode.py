"""Texts as token ids of any length, which are cut to what a model takes."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from tokenizers import Encoding

from bert_pipeline.corpus.cleaning.cleaner import join_surrogates
from bert_pipeline.errors import UsageError

T = TypeVar("T")


class EncodedText(NamedTuple):
    """A text with the special tokens that the tokenizer adds."""

    text: str
    ids: list[int]
    segment_ids: list[int]
    encoding: Encoding | None
    """Tokens and offsets; None for a tokenizer that is written in Python."""

    def spans(self) -> list[tuple[int, int]]:
        """Where each token begins and ends in the text; 0 and 0 for special tokens."""
        if self.encoding is None:
            raise UsageError("The tokenizer of this model does not know where its tokens are.")
        spans: list[tuple[int, int]] = self.encoding.offsets
        return spans


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

    def cut(self, values: list[T], start: int = 0) -> list[T]:
        """Of values of all tokens those of `room` tokens from `start` on, and of special tokens."""
        end = min(self.head + start + self.room, len(values) - self.tail)
        return [
            *values[: self.head],
            *values[self.head + start : end],
            *values[len(values) - self.tail :],
        ]


def _count_special_tokens(tokenizer: Any) -> tuple[int, int]:
    """How many special tokens the tokenizer adds before and after a text."""
    ids = tokenizer("a")["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    starts = range(len(ids) - len(bare) + 1)
    head = next((start for start in starts if ids[start : start + len(bare)] == bare), 0)
    return head, len(ids) - len(bare) - head
