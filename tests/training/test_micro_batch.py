"""Captured forward and backward passes: the gradients of eager ones, in every order of shapes.

On a CPU a captured function is replayed by calling it again, on its static input tensors.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForPreTraining

from bert_pipeline.model.fixed_shapes import BatchShape, fill_up
from bert_pipeline.model.pretraining_model import PretrainingModel
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.training.distributed import Ranks
from bert_pipeline.training.micro_batch import (
    MOST_GRAPHS,
    ForwardBackward,
    GraphedForwardBackward,
    Replay,
)
from tests.helpers.model_rows import flatten, make_rows
from tests.helpers.training_runs import SHAPE, reset_accelerate, run

SHAPES = [BatchShape.from_budget(tokens, 20.0, 40, 0.2) for tokens in (160, 240)]


def make_batch(seed: int, shape: BatchShape) -> Any:
    """A batch of random rows, filled up to a shape."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(10, 40, (4,), generator=generator).tolist()
    return fill_up(flatten(make_rows(lengths, seed), True), shape, padding=0)


def make_passes(dropout: float) -> tuple[Any, ForwardBackward]:
    reset_accelerate()
    torch.manual_seed(0)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    network = BertForPreTraining(BertConfig(vocab_size=97, **SHAPE, **rates))
    ranks = Ranks.from_accelerator(Accelerator(cpu=True))
    return network, ForwardBackward(PretrainingModel(network), ranks)


@given(
    batches=st.lists(st.tuples(st.integers(0, 50), st.sampled_from(SHAPES)), max_size=8),
    dropout=st.sampled_from([0.0, 0.1]),
)
def test_gradients_and_losses_are_the_same(
    batches: list[tuple[int, BatchShape]], dropout: float
) -> None:
    """With dropout too: capture leaves the RNG state as it was."""
    captured = []

    def capture(run: Replay) -> Replay:
        captured.append(run())
        return run

    network, plain = make_passes(dropout)
    found = []
    for passes in (plain, GraphedForwardBackward(plain, capture)):
        network.zero_grad()
        torch.manual_seed(1)
        losses = []
        for number, (seed, shape) in enumerate(batches):
            weights = torch.tensor([1.0 + number, 0.5])
            losses.append(passes(make_batch(seed, shape), weights))
        gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        found.append([*losses, *gradients])
    assert len(found[0]) == len(found[1])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    repeated = {shape for _, shape in batches if [s for _, s in batches].count(shape) > 1}
    assert len(captured) == len(repeated)


def test_only_some_shapes_are_captured() -> None:
    """Without fixed shapes each batch has its own, and memory would grow."""
    captured = []
    network, plain = make_passes(0.0)
    passes = GraphedForwardBackward(plain, lambda run: captured.append(run()) or run)
    for length in [*range(10, 30)] * 2:
        passes(flatten(make_rows([length], 0), True), torch.ones(2))
    assert len(captured) == MOST_GRAPHS
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_graphs_need_a_gpu_and_a_fixed_shape(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    graphs = {"examples": "e", "tokenizer": "t", "out": "o", "max_steps": 1, "cuda_graphs": True}
    with pytest.raises(ValueError, match="--cuda-graphs requires --tokens-per-batch"):
        PretrainConfig(**graphs)
    with pytest.raises(ValueError, match="--cuda-graphs excludes --checkpoint-activations"):
        PretrainConfig(**graphs, tokens_per_batch=64, checkpoint_activations=True)
    with pytest.raises(Exception, match="--cuda-graphs: needs a run of one process on a GPU"):
        run(
            examples_folder,
            wordpiece_folder,
            tmp_path / "out",
            cuda_graphs=True,
            tokens_per_batch=256,
        )
    assert not (tmp_path / "out").exists()
