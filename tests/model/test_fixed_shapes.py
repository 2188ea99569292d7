"""Batches filled up to a shape: the same losses and gradients, whatever was added."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertForPreTraining,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from bert_pipeline.model.fixed_shapes import BatchShape, fill_up
from bert_pipeline.model.masked_cross_entropy import IGNORED, masked_cross_entropy
from bert_pipeline.model.pretraining_model import PretrainingModel
from tests.helpers.model_rows import flatten, losses_and_gradients, make_rows

STANDARD: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
PLAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
NETWORKS: dict[str, Any] = {
    "bert": lambda: BertForPreTraining(BertConfig(**STANDARD, **PLAIN)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**STANDARD, **PLAIN)),
    "modernbert": lambda: ModernBertForMaskedLM(
        ModernBertConfig(**STANDARD, local_attention=11, pad_token_id=0)
    ),
    "padded": lambda: DebertaV2ForMaskedLM(DebertaV2Config(**STANDARD, **PLAIN)),
}
LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=6)


@pytest.mark.parametrize("name", NETWORKS)
@given(lengths=LENGTHS, seed=st.integers(0, 1000), multiple=st.sampled_from([8, 64, 0]))
def test_losses_and_gradients_do_not_change(
    name: str, lengths: list[int], seed: int, multiple: int
) -> None:
    torch.manual_seed(seed)
    network = NETWORKS[name]()
    batch = flatten(make_rows(lengths, seed), name == "bert")
    budget = BatchShape.from_budget(400, mean_length=20, max_length=40, mask_rate=0.2)
    shape = BatchShape.from_batch(batch, multiple, 40) if multiple else budget
    filled = fill_up(batch, shape, padding=0)
    assert len(filled.tokens) == shape.tokens
    assert len(filled.cu_seqlens) == shape.examples + 1
    assert len(filled.masked_index) == max(shape.masked, len(batch.masked_index))
    assert filled.cu_seqlens.diff().max() <= 40
    model = PretrainingModel(network)
    losses, gradients = losses_and_gradients(model, batch)
    losses_of_filled, gradients_of_filled = losses_and_gradients(model, filled)
    torch.testing.assert_close(losses_of_filled, losses, rtol=1e-5, atol=1e-5)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradients_of_filled[key], gradient, rtol=1e-4, atol=1e-4)


@given(
    lengths=st.lists(st.integers(2, 40), max_size=60),
    tokens=st.integers(80, 300),
    mean_length=st.floats(2, 40),
)
def test_every_part_fits_and_no_example_is_lost(
    lengths: list[int], tokens: int, mean_length: float
) -> None:
    shape = BatchShape.from_budget(tokens, mean_length, max_length=40, mask_rate=0.15)
    array = np.array(lengths, dtype=np.int64)
    parts = list(shape.split(array))
    assert [number for part in parts for number in range(len(lengths))[part]] == list(
        range(len(lengths))
    )
    for part in parts:
        own = array[part].tolist()
        batch = flatten(make_rows(own, 0), with_pairs=False)
        filled = fill_up(batch, shape, padding=0)
        assert (len(filled.tokens), len(filled.cu_seqlens)) == (tokens, shape.examples + 1)
        assert filled.max_seqlen == 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ignored_labels_count_nothing(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 8, generator=generator)
    weight = torch.randn(30, 8, generator=generator)
    bias = torch.randn(30, generator=generator)
    labels = torch.randint(0, 30, (50,), generator=generator)
    labels[::3] = IGNORED
    inputs = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    kept = labels != IGNORED
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found = masked_cross_entropy(*inputs, labels, rows=16, with_ignored=True)
        expected = masked_cross_entropy(hidden[kept], weight, bias, labels[kept], rows=16)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(found, expected, **tolerance)  # type: ignore[arg-type]
    gradients = torch.autograd.grad(found, inputs)
    for one, other in zip(gradients, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, **tolerance)  # type: ignore[arg-type]
    assert not gradients[0][~kept].any()
