"""Floating-point operations of a training step, from its shapes."""

from typing import Any

import torch
from torch import Tensor

from bert_pipeline.model.unpadded import has_bert_layers, supports_unpadded
from bert_pipeline.model.unpadded_batch import PretrainingBatch
from bert_pipeline.model.unpadded_layers import FULL_ATTENTION

FORWARD_AND_BACKWARD = 3  # a product's two gradients are products of the same size


def training_flops(config: Any, batch: PretrainingBatch) -> float | None:
    """FLOPs of a step on a batch (on the CPU); None for architectures without the unpadded path.

    A multiply-add counts 2. Only matrix products count, and only work that the step needs: padding,
    recomputed activations, keys outside windows and the parts of the last layer that no head reads
    do not.
    """
    if not supports_unpadded(config):
        return None
    tokens = len(batch.tokens)
    reads = len(batch.head_positions.index)
    masked = len(batch.masked_index)
    pairs = 0 if batch.is_random_next is None else len(batch.is_random_next)
    hidden = config.hidden_size
    layers = config.num_hidden_layers
    # Encoder. The last layer needs all keys and values, and the rest only where heads read.
    finished = (layers - 1) * tokens + reads
    keys_and_values = layers * tokens * 2 * hidden**2
    queries = finished * hidden**2
    scores_and_mixture = _count_attended(config, batch) * 2 * hidden
    attention_output = finished * hidden**2
    attention = keys_and_values + queries + scores_and_mixture + attention_output
    matrices = 2 if has_bert_layers(config) else 3
    feed_forward = finished * matrices * hidden * config.intermediate_size
    # Heads.
    vocabulary_head = masked * (hidden**2 + hidden * config.vocab_size)
    pair_head = pairs * (hidden**2 + hidden * 2)
    products = attention + feed_forward + vocabulary_head + pair_head
    return float(2 * FORWARD_AND_BACKWARD * products)


def _count_attended(config: Any, batch: PretrainingBatch) -> int:
    """Pairs of a query and a key that it attends to, in all layers together."""
    *types, last = (
        getattr(config, "layer_types", None) or [FULL_ATTENTION] * config.num_hidden_layers
    )
    keys = {kind: _count_keys(config, kind, batch) for kind in {*types, last}}
    read = keys[last][batch.head_positions.index]
    return sum(int(keys[kind].sum()) for kind in types) + int(read.sum())


def _count_keys(config: Any, kind: str, batch: PretrainingBatch) -> Tensor:
    """For each token, the number of tokens that it attends to in a layer of a kind."""
    lengths = batch.cu_seqlens.diff()
    length = torch.repeat_interleave(lengths, lengths)
    if kind == FULL_ATTENTION:
        return length
    window = config.sliding_window
    before = batch.positions.clamp(max=window)
    after = (length - 1 - batch.positions).clamp(max=window)
    return before + 1 + after
