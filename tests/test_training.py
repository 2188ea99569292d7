"""Pretraining from the outside: what it writes, that it resumes to the bit, and what it refuses."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForPreTraining, BertModel, pipeline

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.training.batches import KeptMasks
from bert_pipeline.training.checkpoint import Position, load_newest, save_checkpoint
from bert_pipeline.training.config import PretrainConfig
from bert_pipeline.training.loop import Step, _forward_backward
from bert_pipeline.training.order import draw_rows
from bert_pipeline.training.pretrain import PretrainingModel, pretrain
from bert_pipeline.training.schedule import warm_up_then_linear
from tests.stored_rows import load_examples, read_rows, stock_batch

SHAPE = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
SLOW = {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512}


def options(examples: Path, tokenizer: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """A run of a second."""
    return {
        "examples": examples,
        "tokenizer": tokenizer,
        "out": out,
        "model": SHAPE,
        "max_steps": 30,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "log_every": 10,
        "evaluate_every": 20,
        "checkpoint_every": 10,
        "threads": 1,
        "quiet": True,
    } | changes


def run(*args: Any, **changes: Any) -> PretrainConfig:
    config = PretrainConfig(**options(*args, **changes))
    pretrain(config)
    return config


def start(config_file: Path, given: dict[str, Any], *extra: str) -> "subprocess.Popen[str]":
    """`bertpipe pretrain` as a process of its own."""
    config_file.write_text(json.dumps({"pretrain": given}, default=str), encoding="utf-8")
    command = [sys.executable, "-m", "bert_pipeline", "pretrain", "--config", str(config_file), *extra]
    environment = os.environ | {"PYTHONWARNINGS": "default"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    """Wait for a process and check its exit code; return its standard error."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    return errors


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(examples_folder: Path, wordpiece_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("finished") / "pretrain"
    run(examples_folder, wordpiece_folder, out)
    return out


# What comes out


def test_it_learns(finished: Path) -> None:
    lines = [line for line in metrics(finished) if "loss" in line]
    assert lines[-1]["mlm_loss"] < lines[0]["mlm_loss"] - 0.3


def test_metrics_have_the_keys_of_the_contract(finished: Path) -> None:
    training = [line for line in metrics(finished) if "loss" in line]
    keys = {"step", "epoch", "loss", "mlm_loss", "nsp_loss", "learning_rate", "grad_norm", "tokens"}
    assert keys | {"tokens_per_second", "data_wait", "elapsed_s"} <= training[0].keys()
    assert [line["step"] for line in training] == [10, 20, 30]
    evaluations = [line for line in metrics(finished) if "eval_mlm_loss" in line]
    names = [
        "mlm_loss",
        "perplexity",
        "top1_accuracy",
        "top5_accuracy",
        "nsp_accuracy",
        "unigram_loss",
        "masked_tokens",
    ]
    assert {f"eval_{name}" for name in names} <= evaluations[-1].keys()
    assert [line["step"] for line in evaluations] == [20, 30]


def test_tokens_counted_are_the_real_ones(finished: Path, examples_folder: Path) -> None:
    examples = load_examples(examples_folder)
    rows, _ = draw_rows(len(examples), 0, 30 * 8, seed=0)
    assert metrics(finished)[-2]["tokens"] == sum(len(tokens) for tokens in read_rows(examples_folder, "tokens", rows))


@pytest.mark.parametrize("model_class", [BertForPreTraining, BertModel, BertForMaskedLM])
def test_the_model_folder_is_plain_hugging_face(finished: Path, model_class: Any) -> None:
    model, info = model_class.from_pretrained(finished / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    heads = ("cls.", "bert.pooler.")
    assert all(key.startswith(heads) for key in info["unexpected_keys"])
    assert model.config.max_position_embeddings == 64
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    assert tokenizer.model_max_length == 64
    assert (finished / "model" / "README.md").read_text().startswith("---\n")


def test_the_fill_mask_pipeline_loads_it(finished: Path) -> None:
    results = pipeline("fill-mask", model=str(finished / "model"))("Dabi [MASK] gose.")
    assert len(results) == 5


def test_checkpoints_are_rotated_and_named(finished: Path) -> None:
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["step-00000020", "step-00000030"]


def test_mlm_trains_a_masked_lm(mlm_examples_folder: Path, wordpiece_folder: Path, tmp_path: Path) -> None:
    run(mlm_examples_folder, wordpiece_folder, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"]
    lines = metrics(tmp_path / "out")
    assert lines[0]["nsp_loss"] is None
    assert lines[-1]["eval_nsp_accuracy"] is None


def test_a_finished_run_is_not_done_again(finished: Path, examples_folder: Path, wordpiece_folder: Path) -> None:
    before = (finished / "model" / "model.safetensors").stat().st_mtime_ns
    run(examples_folder, wordpiece_folder, finished)
    assert (finished / "model" / "model.safetensors").stat().st_mtime_ns == before


# The mathematics


@pytest.fixture
def accelerator() -> Accelerator:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    return Accelerator(cpu=True)


def gradients(model: PretrainingModel) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_accumulated_gradients_are_those_of_the_stock_model_on_the_full_batch(
    parts: int, examples_folder: Path, accelerator: Accelerator
) -> None:
    """Rows have uneven numbers of masks, so a mean of the parts' means would be another loss."""
    torch.manual_seed(0)
    examples = load_examples(examples_folder)
    config = BertConfig(vocab_size=400, **SHAPE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = PretrainingModel(BertForPreTraining(config))
    labels = read_rows(examples_folder, "masked_labels", np.arange(len(examples)))
    by_masks = np.argsort([len(row) for row in labels])
    rows = by_masks[[0, -1, 1, -2, 3, len(by_masks) // 2, 7, -4]]
    masked = np.array([len(labels[row]) for row in rows])
    assert len(set(masked.tolist())) > 2
    step = Step([examples.collate(part) for part in np.split(rows, parts)], (int(masked.sum()), 8), 0, 0)
    _forward_backward(accelerator, model, step, [1.0, 1.0])
    ours = gradients(model)
    model.zero_grad()
    model.bert(**stock_batch(examples_folder, rows)).loss.backward()
    for name, expected in gradients(model).items():
        assert (ours[name] - expected).norm() <= 1e-5 * max(expected.norm(), 1e-2), name


def test_the_weight_of_the_next_sentence_loss(examples_folder: Path, accelerator: Accelerator) -> None:
    torch.manual_seed(0)
    examples, rows = load_examples(examples_folder), np.array([3, 50, 7, 120])
    config = BertConfig(vocab_size=400, **SHAPE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = PretrainingModel(BertForPreTraining(config))
    masked = sum(len(labels) for labels in read_rows(examples_folder, "masked_labels", rows))
    step = Step([examples.collate(rows)], (masked, 4), 0, 0)
    _forward_backward(accelerator, model, step, [1.0, 0.25])
    ours = gradients(model)
    model.zero_grad()
    batch = stock_batch(examples_folder, rows)
    output = model.bert(**batch)
    nsp = torch.nn.functional.cross_entropy(output.seq_relationship_logits, batch["next_sentence_label"])
    (output.loss - 0.75 * nsp).backward()
    for name, expected in gradients(model).items():
        assert (ours[name] - expected).norm() <= 1e-5 * max(expected.norm(), 1e-2), name


def test_a_batch_without_a_mask_has_a_finite_loss(mlm_examples_folder: Path, accelerator: Accelerator) -> None:
    examples = load_examples(mlm_examples_folder)
    model = PretrainingModel(BertForMaskedLM(BertConfig(vocab_size=400, **SHAPE)))
    part = examples.collate(np.array([0, 1]), KeptMasks(0.0, 0, 0))
    losses = _forward_backward(accelerator, model, Step([part], (0, 0), 0, 0), [1.0, 1.0])
    assert losses.tolist() == [0.0, 0.0]
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


def test_learning_rate_rises_and_falls_linearly() -> None:
    points = [0.0, 0.05, 0.1, 0.55, 1.0]
    assert [warm_up_then_linear(point, 0.1) for point in points] == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])
    assert warm_up_then_linear(0.0, 0.0) == 1.0


def test_a_run_by_minutes_follows_the_clock(examples_folder: Path, wordpiece_folder: Path, tmp_path: Path) -> None:
    run(examples_folder, wordpiece_folder, tmp_path / "out", max_steps=None, max_minutes=0.05, log_every=1, warmup=0.1)
    lines = [line for line in metrics(tmp_path / "out") if "loss" in line]
    assert 2.7 <= lines[-1]["elapsed_s"] < 30
    for before, line in pairwise(lines):
        # A step's rate is that of the moment it began, which is when the line before was written, or shortly after.
        assert line["learning_rate"] <= 3e-3 * 1.0001
        if before["elapsed_s"] > 0.4:
            assert line["learning_rate"] <= 3e-3 * (1 - before["elapsed_s"] / 3) / 0.9 + 1e-9
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["counts"]["steps"] == lines[-1]["step"]


def test_two_processes_follow_the_curve_of_one(
    finished: Path, examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    """With as many examples as cannot be shared out evenly: one rank's last part is empty."""
    changes = {"dropout": 0.0, "num_processes": 2, "threads": 2, "batch_size": 7, "accumulate": 4}
    given = options(examples_folder, wordpiece_folder, tmp_path / "two", **changes)
    finish(start(tmp_path / "two.yaml", given))
    finish(start(tmp_path / "one.yaml", given | {"out": tmp_path / "one", "num_processes": 1}))
    pairs = list(zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True))
    assert len(pairs) == 5
    for one, two in pairs:
        for key in one.keys() & {"loss", "mlm_loss", "nsp_loss", "eval_mlm_loss", "tokens", "step", "learning_rate"}:
            assert two[key] == pytest.approx(one[key], rel=1e-4), key


# Stopping and going on


def long_run(examples: Path, tokenizer: Path, out: Path) -> dict[str, Any]:
    """Some seconds of steps, with dropout and Muon so that all state matters, and saves all the time."""
    changes = {
        "max_steps": 100,
        "checkpoint_every": 3,
        "optimizer": "muon",
        "dropout": 0.1,
        "mask_rate_end": 0.08,
        "model": SLOW,
        "batch_size": 16,
    }
    return options(examples, tokenizer, out, **changes)


def test_killed_at_any_moment_it_ends_at_the_same_weights(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    given = long_run(examples_folder, wordpiece_folder, tmp_path / "alone")
    finish(start(tmp_path / "alone.yaml", given))
    expected, rng = weights(tmp_path / "alone"), random.Random(0)
    out = tmp_path / "killed"
    kills = 0
    for _ in range(3):
        process = start(tmp_path / "killed.yaml", given | {"out": out})
        wait_for(lambda: any(out.glob("checkpoints/step-*")))
        time.sleep(rng.uniform(0.0, 1.0))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    finish(start(tmp_path / "killed.yaml", given | {"out": out}))
    assert kills
    assert weights(out) == expected
    steps = [line["step"] for line in metrics(out) if "loss" in line]
    assert steps == sorted(set(steps))
    assert steps[-1] == 100
    assert not list(out.rglob("*.tmp"))


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_run_goes_on(
    number: int, code: int, examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = long_run(examples_folder, wordpiece_folder, out) | {"checkpoint_every": 100_000, "max_steps": 100_000}
    process = start(tmp_path / "run.yaml", given)
    wait_for(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size > 0)
    process.send_signal(number)
    errors = finish(process, code)
    (checkpoint,) = (out / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert f"step {step} is saved" in errors
    assert "Traceback" not in errors
    process = start(tmp_path / "run.yaml", given)
    wait_for(lambda: any(line["step"] > step + 10 for line in metrics(out)))
    process.kill()
    process.communicate()
    assert [line["step"] for line in metrics(out) if "loss" in line][:3] == [10, 20, 30]


def test_processes_stop_together_and_another_number_goes_on(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = long_run(examples_folder, wordpiece_folder, out) | {"checkpoint_every": 100_000}
    process = start(tmp_path / "run.yaml", given, "--num-processes", "2")
    wait_for(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size > 0)
    process.terminate()
    finish(process, 143)
    assert len(list((out / "checkpoints").iterdir())) == 1
    finish(start(tmp_path / "run.yaml", given))
    assert metrics(out)[-1]["step"] == 100


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, Position(step, step * 10, 1.0), {"w": torch.ones(3) * step}, {}, keep=5)
    newest = tmp_path / "step-00000002" / "model.safetensors"
    raw = bytearray(newest.read_bytes())
    raw[-1] ^= 1
    newest.write_bytes(raw)
    found = load_newest(tmp_path)
    assert found is not None
    assert found[0] == Position(1, 10, 1.0)
    assert found[1]["w"].tolist() == [1, 1, 1]


# What is refused


def test_changed_settings_are_refused_with_a_diff(
    finished: Path, examples_folder: Path, wordpiece_folder: Path
) -> None:
    with pytest.raises(BertpipeError, match=r"learning_rate: 0.003 → 0.001"):
        run(examples_folder, wordpiece_folder, finished, learning_rate=1e-3)
    run(examples_folder, wordpiece_folder, finished, checkpoint_every=7)  # how, not what


def test_inputs_that_do_not_fit_are_refused(
    examples_folder: Path, wordpiece_folder: Path, byte_bpe_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(BertpipeError, match=r"above the 0\.15"):
        run(examples_folder, wordpiece_folder, tmp_path / "out", mask_rate_end=0.2)
    with pytest.raises(BertpipeError, match="another tokenizer"):
        run(examples_folder, byte_bpe_folder, tmp_path / "out")


def test_examples_longer_than_the_model_are_refused(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(BertpipeError, match="up to 64 tokens, but the model has 32 positions"):
        run(examples_folder, wordpiece_folder, tmp_path / "out", model=SHAPE | {"max_position_embeddings": 32})
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize(
    "changes",
    [{"max_steps": None}, {"max_minutes": 1.0}, {"model": "bert-huge"}],
)
def test_contradictions_are_refused(
    changes: dict[str, Any], examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises((UsageError, ValueError)):
        run(examples_folder, wordpiece_folder, tmp_path / "out", **changes)


def test_a_loss_that_explodes_never_reaches_the_weights(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = torch.nn.Module.__call__
    seen: list[dict[str, torch.Tensor]] = []

    def poisoned(module: torch.nn.Module, *args: Any) -> Any:
        result = good(module, *args)
        if isinstance(module, PretrainingModel):
            seen.append({name: value.detach().clone() for name, value in module.state_dict().items()})
            if len(seen) > 5:
                return tuple(value * float("nan") for value in result)
        return result

    monkeypatch.setattr(PretrainingModel, "__call__", poisoned)
    with pytest.raises(BertpipeError, match="not finite in 10 steps in a row, up to step 15"):
        run(examples_folder, wordpiece_folder, tmp_path / "out")
    assert all(torch.isfinite(value).all() for value in seen[-1].values())
    assert all(torch.equal(seen[5][name], value) for name, value in seen[-1].items())
