"""The trainer: gradients of a step against the stock model, and runs of a task without BERT."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining

from bert_pipeline.errors import Stopped
from bert_pipeline.model.parameters import ParameterKind
from bert_pipeline.model.pretraining_model import PretrainingModel
from bert_pipeline.pretraining.batches import MaskSubset
from bert_pipeline.training.config import TrainConfig
from bert_pipeline.training.distributed import Ranks
from bert_pipeline.training.optimizers.combined import Optimizer
from bert_pipeline.training.optimizers.groups import group_parameters
from bert_pipeline.training.position import Position
from bert_pipeline.training.state import TrainingState
from bert_pipeline.training.step import BestMetric
from bert_pipeline.training.task import StepInputs
from bert_pipeline.training.trainer import Trainer
from tests.helpers.stored_rows import load_examples, read_rows, stock_batch
from tests.helpers.training_runs import SHAPE, make_inputs, make_trainer, reset_accelerate

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


LOSSES = {"mlm_loss": 1.0, "nsp_loss": 1.0}


def forward_backward(
    network: Any, batches: list[Any], terms: tuple[int, int], **options: Any
) -> torch.Tensor:
    """Accumulate gradients in the network; returns the summed losses."""
    trainer = make_trainer(PretrainingModel(network), **({"losses": LOSSES} | options))
    return trainer.forward_backward(make_inputs(batches, terms), terms)


def gradients(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: value.grad.clone()
        for name, value in network.named_parameters()
        if value.grad is not None
    }


def assert_close(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * max(gradient.norm(), 1e-2), name


@pytest.mark.parametrize("parts", [1, 2, 4, 5])
def test_accumulated_gradients_equal_the_stock_model_on_the_full_batch(
    parts: int, examples_folder: Path
) -> None:
    """Rows have different numbers of masks, so a mean of the parts' means is another loss."""
    torch.manual_seed(0)
    examples = load_examples(examples_folder)
    network = BertForPreTraining(BertConfig(vocab_size=400, **SHAPE, **NO_DROPOUT))
    labels = read_rows(examples_folder, "masked_labels", np.arange(len(examples)))
    by_masks = np.argsort([len(row) for row in labels])
    rows = by_masks[[0, -1, 1, -2, 3, len(by_masks) // 2, 7, -4]]
    masked = np.array([len(labels[row]) for row in rows])
    assert len(set(masked.tolist())) > 2
    totals = (int(masked.sum()), 8)
    batches = [examples.collate(part) for part in np.array_split(rows, parts)]
    sums = forward_backward(network, batches, totals)
    ours = gradients(network)
    network.zero_grad()
    stock = network(**stock_batch(examples_folder, rows)).loss
    stock.backward()
    assert float((sums / torch.tensor(totals)).sum()) == pytest.approx(stock.item(), rel=1e-5)
    assert_close(ours, gradients(network))


def test_nsp_weight_scales_the_next_sentence_loss(examples_folder: Path) -> None:
    torch.manual_seed(0)
    examples = load_examples(examples_folder)
    rows = np.array([3, 50, 7, 120])
    network = BertForPreTraining(BertConfig(vocab_size=400, **SHAPE, **NO_DROPOUT))
    totals = (sum(len(labels) for labels in read_rows(examples_folder, "masked_labels", rows)), 4)
    losses = LOSSES | {"nsp_loss": 0.25}
    forward_backward(network, [examples.collate(rows)], totals, losses=losses)
    ours = gradients(network)
    network.zero_grad()
    batch = stock_batch(examples_folder, rows)
    output = network(**batch)
    nsp = torch.nn.functional.cross_entropy(
        output.seq_relationship_logits, batch["next_sentence_label"]
    )
    (output.loss - 0.75 * nsp).backward()
    assert_close(ours, gradients(network))


def test_batch_without_masked_tokens_has_zero_loss(mlm_examples_folder: Path) -> None:
    examples = load_examples(mlm_examples_folder)
    network = BertForMaskedLM(BertConfig(vocab_size=400, **SHAPE))
    batch = examples.collate(np.array([0, 1]), MaskSubset(0.0, 0, 0))
    losses = forward_backward(network, [batch], (0, 0))
    assert losses.tolist() == [0.0, 0.0]
    assert all(torch.isfinite(gradient).all() for gradient in gradients(network).values())


def test_model_not_wrapped_by_accelerate_trains_in_mixed_precision(examples_folder: Path) -> None:
    """Accelerate does not wrap sharded models."""
    torch.manual_seed(0)
    examples = load_examples(examples_folder)
    rows = np.array([3, 50, 7, 120])
    network = BertForPreTraining(BertConfig(vocab_size=400, **SHAPE, **NO_DROPOUT))
    products: list[tuple[torch.dtype, torch.dtype]] = []
    feed_forward = network.bert.encoder.layer[0].intermediate.dense
    feed_forward.register_forward_hook(
        lambda module, args, result: products.append((args[0].dtype, result.dtype))
    )
    totals = (sum(len(labels) for labels in read_rows(examples_folder, "masked_labels", rows)), 4)
    batch = examples.collate(rows)
    exact = forward_backward(network, [batch], totals)
    network.zero_grad()
    rounded = forward_backward(network, [batch], totals, precision="bf16")
    # Residual connections are in bf16 too.
    assert products == [(torch.float32,) * 2, (torch.bfloat16,) * 2]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=1e-2, atol=0.0)


# The engine on a task without BERT: linear regression


@dataclass
class RegressionBatch:
    """Inputs and targets."""

    x: torch.Tensor
    y: torch.Tensor

    def to(self, device: torch.device) -> "RegressionBatch":
        return self


class Regression(torch.nn.Module):
    """Two linear layers with a summed squared error."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lower = torch.nn.Linear(4, 8)
        self.head = torch.nn.Linear(8, 1)

    def forward(self, batch: RegressionBatch) -> tuple[torch.Tensor]:
        return ((self.head(self.lower(batch.x).tanh()) - batch.y).square().sum(),)


class RegressionTask:
    """40 examples in order, 8 per step; held-out scores are given, one per evaluation."""

    losses: ClassVar[dict[str, float]] = {"squared_error": 1.0}

    def __init__(self, scores: Sequence[float] = ()) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(40, 4, generator=generator)
        self.y = self.x.sum(1, keepdim=True)
        self.scores = iter(scores)

    def make_step(self, position: Position, progress: float) -> StepInputs:
        first = position.cursor.get("row", 0)
        rows = torch.arange(first, first + 8) % 40
        batch = RegressionBatch(self.x[rows], self.y[rows])
        row = first + 8
        return StepInputs([batch], [8], tokens=8, epochs=row / 40, cursor={"row": row})

    def largest_batches(self) -> list[RegressionBatch]:
        return [RegressionBatch(self.x[:8], self.y[:8])]

    def initial_weights(self) -> dict[str, torch.Tensor]:
        return dict(Regression().named_parameters())

    def evaluate(self, *, final: bool) -> dict[str, float]:
        score = None if final else next(self.scores, None)
        return {} if score is None else {"eval_score": score}

    def record_skipped(self, step: int, inputs: StepInputs) -> None: ...

    def interval_metrics(self, terms: Sequence[float], tokens: int) -> dict[str, float]:
        return {}

    def on_metrics(self, line: Mapping[str, Any]) -> None: ...


def make_regression(
    folder: Path,
    task: RegressionTask,
    best_metric: BestMetric | None = None,
    scales: dict[str, float] | None = None,
    **options: Any,
) -> Trainer:
    reset_accelerate()
    folder.mkdir(exist_ok=True)
    given = {"learning_rate": 0.05, "weight_decay": 0.0, "threads": 1, "quiet": True}
    config = TrainConfig(out=folder, **(given | {"checkpoint_every": 1000} | options))
    ranks = Ranks.from_accelerator(Accelerator(cpu=True))
    model = Regression()
    kinds = {name: ParameterKind(False, False) for name, _ in model.named_parameters()}
    optimizer = Optimizer(model, group_parameters(model, kinds, scales), config)
    state = TrainingState(ranks, model, optimizer, folder / "checkpoints", keep=1)
    return Trainer(config, ranks, model, optimizer, task, state, folder, best_metric)


def test_max_epochs_ends_with_the_step_that_completes_them(tmp_path: Path) -> None:
    trainer = make_regression(tmp_path, RegressionTask(), max_epochs=1.5)
    position = trainer.train()
    assert (position.step, position.epochs, position.tokens) == (8, 1.6, 64)


def test_resumed_run_of_any_task_has_the_weights_of_a_continuous_run(tmp_path: Path) -> None:
    class Stopping(RegressionTask):
        def make_step(self, position: Position, progress: float) -> StepInputs:
            if position.step == 7:
                signal.raise_signal(signal.SIGTERM)
            return super().make_step(position, progress)

    make_regression(tmp_path / "one", RegressionTask(), max_steps=20).train()
    with pytest.raises(Stopped):
        make_regression(tmp_path / "two", Stopping(), max_steps=20).train()
    make_regression(tmp_path / "two", RegressionTask(), max_steps=20).train()
    one, two = (
        (tmp_path / name / "checkpoints/step-00000020/model.safetensors").read_bytes()
        for name in ("one", "two")
    )
    assert one == two


def test_best_checkpoint_is_kept_beside_the_newest(tmp_path: Path) -> None:
    task = RegressionTask(scores=[0.2, 0.9, 0.5, float("nan"), 0.9])
    best_metric = BestMetric("eval_score", "max")
    options: dict[str, Any] = {"max_steps": 30, "evaluate_every": 5, "checkpoint_every": 10}
    trainer = make_regression(tmp_path, task, best_metric, **options)
    trainer.train()
    folders = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert folders == ["step-00000010", "step-00000020", "step-00000030"]
    best = trainer.state.load_best()
    assert best is not None
    assert (best.step, best.best, best.regular) == (10, 0.9, True)


@pytest.mark.parametrize(
    ("mode", "better", "worse"), [("max", 0.6, 0.4), ("min", 0.4, 0.6), ("max", 0.6, float("nan"))]
)
def test_best_metric_prefers_the_better_value(mode: Any, better: float, worse: float) -> None:
    best_metric = BestMetric("eval_score", mode)
    assert best_metric.is_better(better, 0.5)
    assert not best_metric.is_better(worse, 0.5)
    assert best_metric.is_better(0.5, None)


def test_learning_rate_scales_apply_per_group(tmp_path: Path) -> None:
    """A scale of 0 freezes a layer; others follow the schedule at their share of the peak."""
    frozen = {"lower.weight": 0.0, "lower.bias": 0.0, "head.bias": 0.5}
    trainer = make_regression(tmp_path, RegressionTask(), scales=frozen, max_steps=10)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    changed = {
        name
        for name, value in trainer.model.named_parameters()
        if not torch.equal(value, before[name])
    }
    assert changed == {"head.weight", "head.bias"}
    assert isinstance(trainer.optimizer, Optimizer)
    assert trainer.optimizer.set_progress(0.505) == pytest.approx(0.05 * 0.5)
    rates = {
        trainer.optimizer.names[group["params"][0]]: group["lr"]
        for group in trainer.optimizer.members["adamw"].param_groups
    }
    assert rates["head.bias"] == pytest.approx(0.5 * rates["head.weight"])
