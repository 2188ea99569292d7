"""Floating-point operations of a training step, from its shapes alone."""

from typing import Any

from bert_pipeline.model.flat import has_flat_path

FORWARD_AND_BACKWARD = 3  # a product's two gradients are products of the same size


def training_flops(
    config: Any, *, tokens: int, squared_lengths: int, masked: int, examples_with_pairs: int = 0
) -> float | None:
    """FLOPs of a step over `tokens` real tokens; None for architectures without the flat path.

    A multiply-add is 2. Matrix products alone count, and only work that the step needs: padding, activations computed
    again and layers beyond what the heads read do not. `squared_lengths` is the sum of the examples' squared lengths,
    `masked` the number of tokens to predict.
    """
    if not has_flat_path(config):
        return None
    hidden, layers = config.hidden_size, config.num_hidden_layers
    # The last layer is finished only at the rows that heads read.
    read = masked + examples_with_pairs
    finished_rows = (layers - 1) * tokens + read
    queries_keys_values = layers * tokens * 3 * hidden**2
    scores_and_mixture = layers * squared_lengths * 2 * hidden
    attention_output = finished_rows * hidden**2
    feed_forward = finished_rows * 2 * hidden * config.intermediate_size
    vocabulary_head = masked * (hidden**2 + hidden * config.vocab_size)
    pair_head = examples_with_pairs * (hidden**2 + hidden * 2)
    multiply_adds = (
        queries_keys_values + scores_and_mixture + attention_output + feed_forward + vocabulary_head + pair_head
    )
    return float(2 * FORWARD_AND_BACKWARD * multiply_adds)
