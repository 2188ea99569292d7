"""`bertpipe pretrain`: what it writes, and what it rejects."""

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    pipeline,
)

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.pretrain import min_steps
from bert_pipeline.pretraining.sampler import draw_rows
from tests.helpers.stored_rows import load_examples, read_rows
from tests.helpers.training_runs import SHAPE, counts, metrics, run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def finished(
    examples_folder: Path, wordpiece_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("finished") / "pretrain"
    run(examples_folder, wordpiece_folder, out)
    return out


# Output


def test_loss_decreases(finished: Path) -> None:
    lines = [line for line in metrics(finished) if "loss" in line]
    assert lines[-1]["mlm_loss"] < lines[0]["mlm_loss"] - 0.3


def test_metrics_have_the_documented_keys(finished: Path) -> None:
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
        "bits_per_byte",
    ]
    assert {f"eval_{name}" for name in names} <= evaluations[-1].keys()
    assert [line["step"] for line in evaluations] == [20, 30]


def test_tokens_are_counted_without_padding(finished: Path, examples_folder: Path) -> None:
    examples = load_examples(examples_folder)
    rows, _ = draw_rows(len(examples), 0, 30 * 8, seed=0)
    assert metrics(finished)[-2]["tokens"] == sum(
        len(tokens) for tokens in read_rows(examples_folder, "tokens", rows)
    )


@pytest.mark.parametrize("model_class", [BertForPreTraining, BertModel, BertForMaskedLM])
def test_model_folder_loads_in_transformers(finished: Path, model_class: Any) -> None:
    model, info = model_class.from_pretrained(finished / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    heads = ("cls.", "bert.pooler.")
    assert all(key.startswith(heads) for key in info["unexpected_keys"])
    assert model.config.max_position_embeddings == 64
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    assert tokenizer.model_max_length == 64
    assert (finished / "model" / "README.md").read_text().startswith("---\n")


def test_fill_mask_pipeline_loads_the_model(finished: Path) -> None:
    results = pipeline("fill-mask", model=str(finished / "model"))("Dabi [MASK] gose.")
    assert len(results) == 5


def test_old_checkpoints_are_removed(finished: Path) -> None:
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == [
        "step-00000020",
        "step-00000030",
    ]


def test_mlm_examples_train_a_masked_lm_without_pairs(
    mlm_examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    run(mlm_examples_folder, wordpiece_folder, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"]
    _, masked_lm = AutoModelForMaskedLM.from_pretrained(
        tmp_path / "out" / "model", output_loading_info=True
    )
    assert not any(masked_lm.values())
    _, encoder = AutoModel.from_pretrained(
        tmp_path / "out" / "model", add_pooling_layer=False, output_loading_info=True
    )
    assert not encoder["missing_keys"]
    lines = metrics(tmp_path / "out")
    assert lines[0]["nsp_loss"] is None
    assert lines[-1]["eval_nsp_accuracy"] is None


def test_finished_run_is_not_repeated(
    finished: Path, examples_folder: Path, wordpiece_folder: Path
) -> None:
    before = (finished / "model" / "model.safetensors").stat().st_mtime_ns
    run(examples_folder, wordpiece_folder, finished)
    assert (finished / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_schedule_of_a_run_by_minutes_follows_the_elapsed_time(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    run(
        examples_folder,
        wordpiece_folder,
        tmp_path / "out",
        max_steps=None,
        max_minutes=0.05,
        log_every=1,
        warmup=0.1,
    )
    lines = [line for line in metrics(tmp_path / "out") if "loss" in line]
    assert 2.7 <= lines[-1]["elapsed_s"] < 30
    for before, line in pairwise(lines):
        # A step's rate is that of its start, when the line before was written or shortly after.
        assert line["learning_rate"] <= 3e-3 * 1.0001
        if before["elapsed_s"] > 0.4:
            assert line["learning_rate"] <= 3e-3 * (1 - before["elapsed_s"] / 3) / 0.9 + 1e-9
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["counts"]["steps"] == lines[-1]["step"]


def test_max_epochs_trains_for_whole_passes(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(examples_folder, wordpiece_folder, out, max_steps=None, max_epochs=2, batch_size=32)
    rows = len(load_examples(examples_folder))
    assert counts(out)["steps"] == -(-2 * rows // 32)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ({"max_steps": 7}, 7),
        ({"max_tokens": 64 * 8 * 10}, 10),
        ({"max_epochs": 4.0}, 50),
        ({"max_minutes": 1.0}, None),
    ],
)
def test_min_steps_of_every_kind_of_length(
    length: dict[str, Any], expected: int | None, tmp_path: Path
) -> None:
    """`--compile auto` depends on it."""
    paths = {"out": tmp_path, "examples": tmp_path, "tokenizer": tmp_path}
    config = PretrainConfig(**paths, batch_size=8, **length)  # type: ignore[arg-type]
    examples = SimpleNamespace(config={"max_seq_length": 64})
    inputs: Any = SimpleNamespace(examples=examples)
    assert min_steps(config, inputs, 100) == expected


# Rejected input


def test_start_of_longer_examples_is_printed(
    examples_folder: Path,
    wordpiece_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also when there was no line of metrics before."""
    given = (examples_folder, wordpiece_folder, tmp_path / "out")
    long = {"long_examples": examples_folder, "long_share": 0.5}
    run(*given, max_steps=10, quiet=False, **long)
    assert "by step 10: training on the longer examples" in capsys.readouterr().out


def test_changed_settings_are_rejected_with_a_diff(
    finished: Path, examples_folder: Path, wordpiece_folder: Path
) -> None:
    with pytest.raises(BertpipeError, match=r"learning_rate: 0.003 → 0.001"):
        run(examples_folder, wordpiece_folder, finished, learning_rate=1e-3)
    run(examples_folder, wordpiece_folder, finished, checkpoint_every=7)  # an option of execution


def test_inputs_that_do_not_match_are_rejected(
    examples_folder: Path, wordpiece_folder: Path, byte_bpe_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(BertpipeError, match=r"above the mask rate 0\.15"):
        run(examples_folder, wordpiece_folder, tmp_path / "out", mask_rate_end=0.2)
    with pytest.raises(BertpipeError, match="another tokenizer"):
        run(examples_folder, byte_bpe_folder, tmp_path / "out")


def test_examples_longer_than_the_model_are_rejected(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(BertpipeError, match="up to 64 tokens, but the model has 32 positions"):
        run(
            examples_folder,
            wordpiece_folder,
            tmp_path / "out",
            model=SHAPE | {"max_position_embeddings": 32},
        )
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize(
    "changes",
    [{"max_steps": None}, {"max_minutes": 1.0}, {"model": "bert-huge"}],
)
def test_contradictory_options_are_rejected(
    changes: dict[str, Any], examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises((UsageError, ValueError)):
        run(examples_folder, wordpiece_folder, tmp_path / "out", **changes)


def test_gradient_accumulation_of_a_launcher_does_not_change_the_loss(
    monkeypatch: pytest.MonkeyPatch, examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    """`accelerate launch` passes its gradient accumulation to every process."""
    run(examples_folder, wordpiece_folder, tmp_path / "alone", max_steps=2)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    run(examples_folder, wordpiece_folder, tmp_path / "launched", max_steps=2)
    norms = [metrics(tmp_path / name)[0]["grad_norm"] for name in ("alone", "launched")]
    assert norms[0] == norms[1]


def test_token_budget_gives_the_losses_of_a_whole_batch(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    given = {"dropout": 0.0, "max_steps": 20}
    run(examples_folder, wordpiece_folder, tmp_path / "whole", **given)
    run(examples_folder, wordpiece_folder, tmp_path / "budget", **given, tokens_per_batch=200)
    for one, other in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "budget"), strict=True):
        for key in {"loss", "mlm_loss", "nsp_loss", "eval_mlm_loss", "tokens"} & one.keys():
            assert one[key] == pytest.approx(other[key], rel=1e-4)
    with pytest.raises(BertpipeError, match="must be at least two examples of the 64 tokens"):
        run(examples_folder, wordpiece_folder, tmp_path / "small", tokens_per_batch=100)
