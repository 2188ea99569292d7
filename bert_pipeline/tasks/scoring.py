"""Scores of many examples, in batches of examples of similar length."""

from collections.abc import Iterable

import numpy as np
from torch import Tensor

from bert_pipeline.model.task_model import TaskBatch
from bert_pipeline.ragged import Array, Int64Array, expand, offsets_of
from bert_pipeline.tasks.encoded import Examples


def group_by_length(examples: Examples, tokens: int) -> list[Int64Array]:
    """All examples in groups of similar length and about so many tokens, the longest first."""
    counts = examples.count_tokens(np.arange(len(examples)))
    order = np.argsort(-counts, kind="stable")
    ends = np.cumsum(counts[order])
    parts = np.flatnonzero(np.diff(ends // tokens)) + 1
    return [part for part in np.split(order, parts) if len(part)]


def select_read(scores: Tensor, examples: Examples, batch: TaskBatch) -> Tensor:
    """Of a model's scores for a batch those that predictions are made from."""
    return scores if examples.read is None else scores[batch.head_positions.others]


def join_scores(examples: Examples, parts: Iterable[tuple[Int64Array, Array]]) -> Array:
    """The scores of groups of examples in the order of the examples."""
    rows = np.arange(len(examples.tokens))
    counts = np.ones_like(rows)
    if examples.read is not None:
        counts = examples.read.lengths(rows)
    elif examples.reads_all:
        counts = examples.tokens.lengths(rows)
    offsets = offsets_of(counts)
    joined: Array | None = None
    for group, scores in parts:
        if joined is None:
            joined = np.empty((offsets[-1], scores.shape[1]), scores.dtype)
        own = examples.rows_of(group)
        joined[expand(offsets[own], counts[own])] = scores
    return np.empty((0, 1), np.float32) if joined is None else joined
