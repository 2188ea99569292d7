"""Floating-point operations of a training step, from its shapes."""

from typing import Any

from bert_pipeline.model.unpadded import supports_unpadded
from bert_pipeline.model.unpadded_batch import PretrainingBatch

FORWARD_AND_BACKWARD = 3  # a product's two gradients are products of the same size


def training_flops(config: Any, batch: PretrainingBatch) -> float | None:
    """FLOPs of a step on a batch (on the CPU); None for architectures without the unpadded path.

    A multiply-add counts 2. Only matrix products count, and only work that the step needs: padding,
    recomputed activations and the parts of the last layer that no head reads do not.
    """
    if not supports_unpadded(config):
        return None
    # Sizes of the batch and the model.
    lengths = batch.cu_seqlens.diff()
    reads_per_example = batch.head_positions.cu_seqlens.diff()
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
    within_examples = (layers - 1) * int(lengths.square().sum())
    attended = within_examples + int((lengths * reads_per_example).sum())
    scores_and_mixture = attended * 2 * hidden
    attention_output = finished * hidden**2
    attention = keys_and_values + queries + scores_and_mixture + attention_output
    feed_forward = finished * 2 * hidden * config.intermediate_size
    # Heads.
    vocabulary_head = masked * (hidden**2 + hidden * config.vocab_size)
    pair_head = pairs * (hidden**2 + hidden * 2)
    products = attention + feed_forward + vocabulary_head + pair_head
    return float(2 * FORWARD_AND_BACKWARD * products)
