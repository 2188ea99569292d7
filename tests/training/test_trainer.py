"""One step: its loss and gradients, over parts and ranks, against the stock model's on the whole batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining

from bert_pipeline.model.pretraining_model import PretrainingModel
from bert_pipeline.pretraining.batches import KeptMasks
from bert_pipeline.training.checkpoint import Position
from bert_pipeline.training.distributed import Ranks
from bert_pipeline.training.step import Step, Trainer
from tests.helpers.stored_rows import load_examples, read_rows, stock_batch
from tests.helpers.training_runs import SHAPE, reset_accelerate

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Untouched:
    """An optimizer that does nothing."""

    def set_progress(self, progress: float) -> float:
        return 0.0

    def step(self, norm: torch.Tensor, good: torch.Tensor) -> None: ...


def make_trainer(network: Any, nsp_weight: float = 1.0, precision: str = "no") -> Trainer:
    reset_accelerate()
    ranks = Ranks.of(Accelerator(cpu=True, mixed_precision=precision))
    return Trainer(
        ranks,
        PretrainingModel(network),
        Untouched(),
        {"mlm_loss": 1.0, "nsp_loss": nsp_weight},
        seed=0,
    )


def make_step(parts: list[Any], totals: tuple[int, int]) -> Step:
    return Step(parts, totals, tokens=0, examples=0, epoch=0, flops=None, next=Position())


def gradients(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: value.grad.clone()
        for name, value in network.named_parameters()
        if value.grad is not None
    }


def agree(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * max(gradient.norm(), 1e-2), name


@pytest.mark.parametrize("parts", [1, 2, 4, 5])
def test_accumulated_gradients_are_those_of_the_stock_model_on_the_full_batch(
    parts: int, examples_folder: Path
) -> None:
    """Rows have uneven numbers of masks, so a mean of the parts' means would be another loss; 8 rows in 5 parts too."""
    torch.manual_seed(0)
    examples = load_examples(examples_folder)
    network = BertForPreTraining(BertConfig(vocab_size=400, **SHAPE, **STILL))
    labels = read_rows(examples_folder, "masked_labels", np.arange(len(examples)))
    by_masks = np.argsort([len(row) for row in labels])
    rows = by_masks[[0, -1, 1, -2, 3, len(by_masks) // 2, 7, -4]]
    masked = np.array([len(labels[row]) for row in rows])
    assert len(set(masked.tolist())) > 2
    totals = (int(masked.sum()), 8)
    step = make_step([examples.collate(part) for part in np.array_split(rows, parts)], totals)
    sums = make_trainer(network).backward(step, totals)
    ours = gradients(network)
    network.zero_grad()
    stock = network(**stock_batch(examples_folder, rows)).loss
    stock.backward()
    assert float((sums / torch.tensor(totals)).sum()) == pytest.approx(stock.item(), rel=1e-5)
    agree(ours, gradients(network))


def test_the_weight_of_the_next_sentence_loss(examples_folder: Path) -> None:
    torch.manual_seed(0)
    examples, rows = load_examples(examples_folder), np.array([3, 50, 7, 120])
    network = BertForPreTraining(BertConfig(vocab_size=400, **SHAPE, **STILL))
    totals = (sum(len(labels) for labels in read_rows(examples_folder, "masked_labels", rows)), 4)
    make_trainer(network, nsp_weight=0.25).backward(
        make_step([examples.collate(rows)], totals), totals
    )
    ours = gradients(network)
    network.zero_grad()
    batch = stock_batch(examples_folder, rows)
    output = network(**batch)
    nsp = torch.nn.functional.cross_entropy(
        output.seq_relationship_logits, batch["next_sentence_label"]
    )
    (output.loss - 0.75 * nsp).backward()
    agree(ours, gradients(network))


def test_a_batch_without_a_mask_has_a_finite_loss(mlm_examples_folder: Path) -> None:
    """Fault 29."""
    examples = load_examples(mlm_examples_folder)
    network = BertForMaskedLM(BertConfig(vocab_size=400, **SHAPE))
    part = examples.collate(np.array([0, 1]), KeptMasks(0.0, 0, 0))
    trainer = make_trainer(network)
    losses = trainer.backward(make_step([part], (0, 0)), (0, 0))
    assert losses.tolist() == [0.0, 0.0]
    assert all(torch.isfinite(gradient).all() for gradient in gradients(network).values())


def test_a_model_that_accelerate_has_not_wrapped_trains_in_its_precision(
    examples_folder: Path,
) -> None:
    """As it does not wrap shards."""
    torch.manual_seed(0)
    examples, rows = load_examples(examples_folder), np.array([3, 50, 7, 120])
    network = BertForPreTraining(BertConfig(vocab_size=400, **SHAPE, **STILL))
    products: list[tuple[torch.dtype, torch.dtype]] = []
    feed_forward = network.bert.encoder.layer[0].intermediate.dense
    feed_forward.register_forward_hook(
        lambda module, args, result: products.append((args[0].dtype, result.dtype))
    )
    totals = (sum(len(labels) for labels in read_rows(examples_folder, "masked_labels", rows)), 4)
    step = make_step([examples.collate(rows)], totals)
    exact = make_trainer(network).backward(step, totals)
    network.zero_grad()
    rounded = make_trainer(network, precision="bf16").backward(step, totals)
    assert products == [
        (torch.float32,) * 2,
        (torch.bfloat16,) * 2,
    ]  # what residual connections carry, too
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=1e-2, atol=0.0)
