"""Floating-point operations of a training step, from its shapes alone."""

from typing import Any

from bert_pipeline.model.unpadded import supports_unpadded
from bert_pipeline.model.unpadded_batch import UnpaddedBatch

FORWARD_AND_BACKWARD = 3  # a product's two gradients are products of the same size


def training_flops(config: Any, batch: UnpaddedBatch) -> float | None:
    """FLOPs of a step on a batch (on the CPU) of real tokens; None for architectures without the flat path.

    A multiply-add is 2. Matrix products alone count, and only work that the step needs: padding, activations computed
    again and whatever of the last layer no head reads do not.
    """
    if not supports_unpadded(config):
        return None
    assert batch.reads is not None
    lengths, reads_of_examples = batch.cu_seqlens.diff(), batch.reads.cu_seqlens.diff()
    tokens, reads, masked = len(batch.tokens), len(batch.reads.index), len(batch.masked_index)
    pairs = 0 if batch.is_random_next is None else len(batch.is_random_next)
    hidden, layers = config.hidden_size, config.num_hidden_layers
    # The last layer needs all keys and values, and the rest of it only at the rows that heads read.
    finished = (layers - 1) * tokens + reads
    keys_and_values = layers * tokens * 2 * hidden**2
    queries = finished * hidden**2
    attended = (layers - 1) * int(lengths.square().sum()) + int((lengths * reads_of_examples).sum())
    scores_and_mixture = attended * 2 * hidden
    attention_output = finished * hidden**2
    feed_forward = finished * 2 * hidden * config.intermediate_size
    vocabulary_head = masked * (hidden**2 + hidden * config.vocab_size)
    pair_head = pairs * (hidden**2 + hidden * 2)
    attention = keys_and_values + queries + scores_and_mixture + attention_output
    return float(
        2 * FORWARD_AND_BACKWARD * (attention + feed_forward + vocabulary_head + pair_head)
    )
