"""Encoded texts end to end, and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch

from bert_pipeline.errors import BertpipeError
from bert_pipeline.model.task_model import TaskBatch
from bert_pipeline.model.unpadded_batch import HeadPositions
from bert_pipeline.ragged import Array, Int64Array, expand, offsets_of
from bert_pipeline.tasks.read_rows import Row


@dataclass(frozen=True, slots=True)
class Ragged:
    """Lists of different lengths: list i is `values[offsets[i]:offsets[i + 1]]`."""

    values: Array
    offsets: Int64Array

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[Any]], dtype: Any) -> Self:
        """Of lists of numbers."""
        lengths = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
        parts = [np.asarray(part, dtype=dtype) for part in lists]
        return cls(np.concatenate(parts) if parts else np.empty(0, dtype), offsets_of(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> Array:
        return self.values[self.offsets[number] : self.offsets[number + 1]]

    def lengths(self, rows: Int64Array) -> Int64Array:
        """The lengths of some lists."""
        lengths: Int64Array = self.offsets[rows + 1] - self.offsets[rows]
        return lengths

    def take(self, rows: Int64Array) -> tuple[Array, Int64Array]:
        """The values of some lists end to end, and their lengths."""
        lengths = self.lengths(rows)
        return self.values[expand(self.offsets[rows], lengths)], lengths


@dataclass(frozen=True, slots=True)
class Examples:
    """Encoded examples of a task. An example is one text (row), or several consecutive ones."""

    tokens: Ragged
    """Ids of each row, with special tokens."""
    segment_ids: Ragged
    first_rows: Int64Array
    """[examples + 1] the first row of each example."""
    labels: Array
    """Of each example, or of each position in `read`; empty where they are unknown."""
    read: Ragged | None = None
    """Positions within each row that a tagger reads; None for heads that read none of them."""
    reads_all: bool = False
    """Whether the head reads all tokens, as one for spans does."""
    where: Sequence[str] = ()
    """File and line of each example."""
    extra: Sequence[Any] = ()
    """What the task needs of each example to decode predictions, such as its text."""

    def __len__(self) -> int:
        return len(self.first_rows) - 1

    def rows_of(self, examples: Int64Array) -> Int64Array:
        """The rows of some examples."""
        return expand(
            self.first_rows[examples], self.first_rows[examples + 1] - self.first_rows[examples]
        )

    def count_tokens(self, examples: Int64Array) -> Int64Array:
        """The number of tokens of each of some examples."""
        bounds = self.tokens.offsets[self.first_rows]
        counts: Int64Array = bounds[examples + 1] - bounds[examples]
        return counts

    def collate(self, examples: Int64Array, *, is_placeholder: bool = False) -> TaskBatch:
        """A batch of some examples; labels are `[examples]` and `[R]` where heads read tokens."""
        rows = self.rows_of(examples)
        tokens, lengths = self.tokens.take(rows)
        segments, _ = self.segment_ids.take(rows)
        starts = offsets_of(lengths)
        positions = np.arange(len(tokens)) - np.repeat(starts[:-1], lengths)
        cu_seqlens = torch.from_numpy(starts)
        labels = (
            self.labels[examples] if self.read is None and len(self.labels) else self.labels[:0]
        )
        index = np.empty(0, dtype=np.int64)
        if self.read is not None:
            read, counts = self.read.take(rows)
            index = read + np.repeat(starts[:-1], counts)
            if len(self.labels):
                labels = self.labels[expand(self.read.offsets[rows], counts)]
        elif self.reads_all:
            index = positions.nonzero()[0]
        return TaskBatch(
            tokens=torch.from_numpy(tokens.astype(np.int64)),
            segment_ids=torch.from_numpy(segments.astype(np.int64)),
            positions=torch.from_numpy(positions),
            cu_seqlens=cu_seqlens,
            max_seqlen=int(lengths.max(initial=0)),
            head_positions=HeadPositions.select(cu_seqlens, torch.from_numpy(index)),
            reads_tokens=self.read is not None or self.reads_all,
            labels=torch.from_numpy(labels),
            choices=torch.from_numpy(offsets_of(np.diff(self.first_rows)[examples])),
            is_placeholder=is_placeholder,
        )

    def select(self, examples: Int64Array) -> Self:
        """Some of the examples."""
        rows = self.rows_of(examples)
        counts = np.diff(self.first_rows)[examples]
        read = None
        labels = self.labels
        if self.read is not None:
            values, lengths = self.read.take(rows)
            read = Ragged(values, offsets_of(lengths))
            if len(labels):
                labels = labels[expand(self.read.offsets[rows], lengths)]
        elif len(labels):
            labels = labels[examples]
        tokens, lengths = self.tokens.take(rows)
        segments, _ = self.segment_ids.take(rows)
        offsets = offsets_of(lengths)
        return replace(
            self,
            tokens=Ragged(tokens, offsets),
            segment_ids=Ragged(segments, offsets),
            first_rows=offsets_of(counts),
            labels=labels,
            read=read,
            where=[self.where[number] for number in examples] if self.where else (),
            extra=[self.extra[number] for number in examples] if self.extra else (),
        )


def encode_texts(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    **options: Any,
) -> Any:
    """Encode texts, or pairs of texts, with special tokens and segment ids, cut to a length.

    The segment ids are those of the tokenizer, which a model without segments does not read.
    """
    options = {"truncation": True, "max_length": max_length} | options
    return tokenizer(
        list(texts),
        None if pairs is None else list(pairs),
        return_token_type_ids=True,
        return_attention_mask=False,
        verbose=False,
        **options,
    )


def encode_rows(
    tokenizer: Any, rows: Sequence[Row], texts: Sequence[str], max_length: int, labels: Array
) -> Examples:
    """One example per row, of its columns `texts`."""
    columns = [[text_of(row, name) for row in rows] for name in texts]
    encoded = encode_texts(tokenizer, columns[0], columns[1] if columns[1:] else None, max_length)
    return Examples(
        tokens=Ragged.from_lists(encoded["input_ids"], np.int32),
        segment_ids=Ragged.from_lists(encoded["token_type_ids"], np.int8),
        first_rows=np.arange(len(rows) + 1),
        labels=labels,
        where=[row.where for row in rows],
    )


def text_of(row: Row, column: str) -> str:
    """The text in a column. Raises `BertpipeError` if there is none."""
    value = row.values.get(column)
    if isinstance(value, str):
        return value
    if value is None:
        raise BertpipeError(f"{row.where}: no text in column {column!r}.")
    return str(value)
