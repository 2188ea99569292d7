"""Losses and gradients that are not finite: skipped, rolled back, and never in the weights."""

import os
import signal
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from bert_pipeline.errors import BertpipeError, Stopped
from bert_pipeline.examples.schema import SCHEMA
from bert_pipeline.model.pretraining_model import PretrainingModel
from bert_pipeline.storage.shards import read_columns
from bert_pipeline.training.trainer import Trainer
from tests.helpers.training_runs import SHAPE, counts, metrics, run, weights

pytestmark = pytest.mark.integration

Poison = Callable[..., list[dict[str, torch.Tensor]]]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """A function that makes the losses of some steps (from 1) NaN, and stops the run in one.

    It returns a list to which every training step appends the weights that it starts from.
    """
    forward = PretrainingModel.forward
    try_largest_batches = Trainer._try_largest_batches
    trials: list[bool] = []

    def try_unchanged(self: Trainer) -> None:
        """The batches that are tried before the first step are no steps."""
        trials.append(True)
        try_largest_batches(self)
        trials.clear()

    monkeypatch.setattr(Trainer, "_try_largest_batches", try_unchanged)

    def arrange(
        steps: Collection[int], stop_in: int | None = None
    ) -> list[dict[str, torch.Tensor]]:
        seen: list[dict[str, torch.Tensor]] = []

        def poisoned(self: PretrainingModel, batch: Any, *, logits: bool = False) -> Any:
            result = forward(self, batch, logits=logits)
            if logits or trials or not self.training:
                return result
            seen.append(
                {name: value.detach().clone() for name, value in self.network.named_parameters()}
            )
            if len(seen) == stop_in:
                os.kill(os.getpid(), signal.SIGTERM)
            return (result[0] * float("nan"), result[1]) if len(seen) in steps else result

        monkeypatch.setattr(PretrainingModel, "forward", poisoned)
        return seen

    return arrange


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_evaluation_with_nan_scores_has_zero_accuracy(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(examples_folder, wordpiece_folder, out, learning_rate=1e30, max_steps=5, warmup=0.0)
    assert metrics(out)[-1]["eval_top1_accuracy"] == metrics(out)[-1]["eval_top5_accuracy"] == 0.0


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lamb"])
def test_step_with_nan_loss_is_skipped_and_its_batch_written(
    optimizer: str, poison: Poison, examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    seen = poison({5, 20})
    out = tmp_path / "out"
    run(examples_folder, wordpiece_folder, out, optimizer=optimizer, dropout=0.0, warmup=0.0)
    assert same(seen[4], seen[5])
    assert not same(seen[5], seen[6])
    assert all(torch.isfinite(value).all() for values in seen for value in values.values())
    lines = [line for line in metrics(out) if "loss" in line]
    assert [line["skipped_steps"] for line in lines] == [1, 2, 2]
    assert all(np.isfinite(line["loss"]) and np.isfinite(line["grad_norm"]) for line in lines)
    assert counts(out)["skipped_steps"] == 2
    files = sorted(path.name for path in (out / "skipped").iterdir())
    assert files == ["step-00000005.parquet", "step-00000020.parquet"]
    skipped = pq.read_table(out / "skipped" / files[0])
    shards = sorted(examples_folder.glob("train-*"))
    rows = [row for path in shards for row in read_columns(path, SCHEMA.names).to_pylist()]
    for row in skipped.to_pylist():
        assert row == {"row": row["row"], **rows[row["row"]]}
    assert skipped.num_rows == 8


def test_skipped_step_leaves_the_optimizer_state_unchanged(
    poison: Poison, examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    """Moments too: with a constant schedule, later steps equal those of a run without it."""
    still = {
        "max_steps": 6,
        "schedule": "wsd",
        "decay": 0.01,
        "warmup": 0.0,
        "dropout": 0.0,
        "log_every": 1,
    }
    bad = poison({3})
    run(examples_folder, wordpiece_folder, tmp_path / "bad", **still)
    good = poison(())
    run(examples_folder, wordpiece_folder, tmp_path / "good", **still)
    assert same(bad[3], good[2])
    assert [line["step"] for line in metrics(tmp_path / "bad") if "loss" in line] == [1, 2, 4, 5, 6]


def test_consecutive_bad_steps_roll_back_to_the_checkpoint(
    poison: Poison,
    examples_folder: Path,
    wordpiece_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = poison(range(14, 19))
    out = tmp_path / "out"
    run(examples_folder, wordpiece_folder, out, max_bad_steps=5, quiet=False)
    printed = " ".join(capsys.readouterr().out.split())
    assert "step 18: loss or gradient not finite in 5 consecutive steps; rolled back" in printed
    assert "to the weights of step 10" in printed
    # Step 19 was queued when the fifth was read, and is repeated from the checkpoint's weights.
    assert len(seen) == 31
    assert same(seen[19], seen[10])
    assert [line["step"] for line in metrics(out) if "loss" in line] == [10, 20, 30]
    assert counts(out)["skipped_steps"] == 5


@pytest.mark.parametrize("stop_in", [10, 12, 16, 18, 22])
def test_stopped_run_rolls_back_as_a_continuous_run_does(
    stop_in: int, poison: Poison, examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    """Before, in and after the bad steps: a run is not rolled back to the checkpoint of a stop."""
    poison(range(14, 19))
    run(examples_folder, wordpiece_folder, tmp_path / "alone", max_bad_steps=5)
    poison(range(14, 19), stop_in)
    with pytest.raises(Stopped):
        run(examples_folder, wordpiece_folder, tmp_path / "stopped", max_bad_steps=5)
    run(examples_folder, wordpiece_folder, tmp_path / "stopped", max_bad_steps=5)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "alone")
    assert counts(tmp_path / "stopped")["skipped_steps"] == 5


def test_rollback_before_the_first_checkpoint_restores_the_initial_weights(
    poison: Poison, examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    seen = poison(range(4, 7))
    run(examples_folder, wordpiece_folder, tmp_path / "out", max_bad_steps=3)
    assert same(seen[7], seen[0])


def test_bad_steps_after_a_rollback_stop_the_run(
    poison: Poison, examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    seen = poison(range(14, 1000))
    out = tmp_path / "out"
    with pytest.raises(
        BertpipeError, match=r"5 consecutive steps, up to step 23, also after rolling back"
    ):
        run(examples_folder, wordpiece_folder, out, max_bad_steps=5)
    assert all(torch.isfinite(value).all() for value in seen[-1].values())
    # Nothing was saved in between: the weights may have been the cause.
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000010"]


def test_overflow_is_skipped_until_the_run_stops(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    """A learning rate that makes the weights overflow."""
    out = tmp_path / "out"
    changes = {
        "learning_rate": 1e30,
        "warmup": 0.0,
        "max_bad_steps": 3,
        "model": SHAPE,
        "weight_decay": 0.0,
    }
    with pytest.raises(BertpipeError, match="3 consecutive steps"):
        run(examples_folder, wordpiece_folder, out, **changes)
    assert list((out / "skipped").iterdir())


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDA error: out of memory")],
)
@pytest.mark.parametrize(
    ("given", "advised", "smaller"),
    [
        ({}, "--accumulate 2", {"accumulate": 2}),
        ({"tokens_per_batch": 400}, "--tokens-per-batch 200", {"tokens_per_batch": 200}),
    ],
)
def test_out_of_memory_is_one_message_and_the_run_resumes_as_it_advises(
    error: RuntimeError,
    given: dict[str, Any],
    advised: str,
    smaller: dict[str, Any],
    examples_folder: Path,
    wordpiece_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fill_up(*given: Any, **named: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(PretrainingModel, "forward", fill_up)
        with pytest.raises(BertpipeError, match=rf"GPU ran out of memory.*{advised}"):
            run(examples_folder, wordpiece_folder, tmp_path / "out", **given)
    run(examples_folder, wordpiece_folder, tmp_path / "out", **smaller)
    assert counts(tmp_path / "out")["steps"] == 30
