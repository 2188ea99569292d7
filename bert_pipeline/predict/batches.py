"""Batches for prediction: rows of token ids end to end, as the unpadded encoder takes them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch

from bert_pipeline.model.unpadded_batch import PretrainingBatch, UnpaddedBatch

GROUP_TEXTS = 1024
"""Texts that are sorted by length together. A result comes after at most so many texts."""
GROUP_CHARS = 1_000_000
"""The most characters of such texts, but for a text that alone has more."""
BATCH_TOKENS = 4096
"""Tokens of a batch with its padding. Smaller ones are slower on a busy CPU, where the threads of
each operation wait for one another."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One input of a model."""

    ids: list[int]
    segment_ids: list[int]
    masks: list[int] = field(default_factory=list)
    """Ascending positions of the masked tokens to predict."""


def group_texts(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in lists of bounded size, in order."""
    group: list[str] = []
    size = 0
    for text in texts:
        if len(group) == GROUP_TEXTS or (group and size + len(text) > GROUP_CHARS):
            yield group
            group = []
            size = 0
        group.append(text)
        size += len(text)
    if group:
        yield group


def plan_batches(
    rows: Sequence[TokenRow], max_tokens: int = BATCH_TOKENS, *, equal_lengths: bool = False
) -> list[list[int]]:
    """Numbers of rows in batches of similar lengths, longest first.

    A batch has at most `max_tokens` tokens when padded, or one row. With `equal_lengths` its rows
    need no padding.
    """
    batches: list[list[int]] = []
    width = 0
    for number in sorted(range(len(rows)), key=lambda number: -len(rows[number].ids)):
        length = len(rows[number].ids)
        is_full = not batches or (len(batches[-1]) + 1) * width > max_tokens
        if is_full or (equal_lengths and length != width):
            batches.append([])
            width = length
        batches[-1].append(number)
    return batches


def make_batch(rows: Sequence[TokenRow]) -> UnpaddedBatch:
    """The rows end to end; each has at least one token."""
    lengths = torch.tensor([len(row.ids) for row in rows])
    cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    total = int(cu_seqlens[-1])
    return UnpaddedBatch(
        tokens=_join([row.ids for row in rows]),
        segment_ids=_join([row.segment_ids for row in rows]),
        positions=torch.arange(total) - torch.repeat_interleave(cu_seqlens[:-1], lengths),
        cu_seqlens=cu_seqlens,
        max_seqlen=int(lengths.max()),
    )


def make_masked_batch(rows: Sequence[TokenRow]) -> PretrainingBatch:
    """The rows end to end, to score their masked tokens; the labels are unknown, 0."""
    batch = make_batch(rows)
    counts = torch.tensor([len(row.masks) for row in rows])
    index = _join([row.masks for row in rows])
    index += torch.repeat_interleave(batch.cu_seqlens[:-1], counts)
    return PretrainingBatch(
        batch.tokens,
        batch.segment_ids,
        batch.positions,
        batch.cu_seqlens,
        batch.max_seqlen,
        masked_index=index,
        masked_labels=torch.zeros_like(index),
    )


def _join(lists: list[list[int]]) -> torch.Tensor:
    return torch.tensor(list(chain.from_iterable(lists)), dtype=torch.long)
