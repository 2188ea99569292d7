"""Fine-tuning runs: what they write, which epoch they keep, and how they resume."""

import json
import multiprocessing
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, pipeline

from bert_pipeline.errors import BertpipeError, Stopped
from bert_pipeline.finetuning.config import FinetuneConfig
from bert_pipeline.finetuning.finetune import finetune
from bert_pipeline.finetuning.protocol import interval
from bert_pipeline.predict.predict import PredictCounts, Predictor
from bert_pipeline.tasks.read_rows import Row, read_rows
from tests.helpers.cli import run_cli
from tests.helpers.task_models import GOOD, SHAPE, make_model, sentences, write_sentences
from tests.helpers.training_runs import (
    counts,
    has_begun,
    metrics,
    reset_accelerate,
    wait_for,
    weights,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentences(tmp_path_factory.mktemp("data") / "train.tsv")


def given(model: Path, train: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": str(model),
        "train": str(train),
        "out": out,
        "learning_rate": 3e-3,
        "batch_size": 16,
        "threads": 1,
        "precision": "fp32",
        "quiet": True,
    } | changes


def run(*args: Any, **changes: Any) -> Path:
    reset_accelerate()
    config = FinetuneConfig(**given(*args, **changes))
    finetune(config)
    return config.out


@pytest.fixture(scope="module")
def finished(model: Path, train: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a held-out tenth, with a test file."""
    folder = tmp_path_factory.mktemp("finished")
    test = write_sentences(folder / "test.tsv", 60, seed=1)
    return run(model, train, folder / "run", test=str(test), max_epochs=4)


def test_run_learns_and_keeps_its_best_epoch(finished: Path) -> None:
    found = counts(finished)
    assert found["train_examples"] + found["validation_examples"] == 200
    assert found["test_accuracy"] > 0.95
    assert found["test_accuracy"] > found["test_majority"] + 0.3
    evaluations = [line["eval_accuracy"] for line in metrics(finished) if "eval_accuracy" in line]
    assert len(evaluations) == 4
    assert found["eval_accuracy"] == max(evaluations)


def test_model_gives_the_same_answers_in_a_pipeline(finished: Path, tmp_path: Path) -> None:
    file = write_sentences(tmp_path / "a.tsv", 30, seed=2)
    rows = list(read_rows(str(file)))
    predictor = Predictor(finished)
    mine = list(predictor.predict(rows, PredictCounts()))
    stock = pipeline("text-classification", model=str(finished / "model"), top_k=None)
    for row, found in zip(rows, mine, strict=True):
        expected = {entry["label"]: entry["score"] for entry in stock([row.values["sentence"]])[0]}
        assert found["scores"] == pytest.approx(expected, abs=1e-5)
        assert found["label"] == max(expected, key=lambda name: expected[name])


def test_predictions_keep_the_order_and_count_bad_rows(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    texts = [text for text, _ in sentences(1500, seed=3)]
    lines = [json.dumps({"sentence": text}) for text in texts]
    lines[700] = '{"sentence": '
    lines[1200] = '{"other": "x"}'
    file.write_text("\n".join(lines))
    out = tmp_path / "found.jsonl"
    result = run_cli("predict", finished, "--input", file, "--out", out)
    assert result.code == 0, result.stderr
    assert "2 rows could not be read" in result.stderr
    assert f"{file}, line 701" in result.stderr
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert ["error" in row for row in found] == [n in (700, 1200) for n in range(1500)]
    right = [
        row["label"] == ("good" if any(word in text for word in GOOD) else "bad")
        for row, text in zip(found, texts, strict=True)
        if "error" not in row
    ]
    assert sum(right) > 0.95 * len(right)


def test_repeated_command_is_skipped_and_other_data_is_refused(
    model: Path, train: Path, finished: Path, tmp_path: Path
) -> None:
    changes = {"test": str(finished.parent / "test.tsv"), "max_epochs": 4}
    before = weights(finished)
    run(model, train, finished, **changes)
    assert weights(finished) == before
    other = write_sentences(tmp_path / "train.tsv", 150)
    with pytest.raises(BertpipeError, match="train: its content changed"):
        run(model, other, finished, **changes)


def test_stops_early_and_keeps_the_best_epoch(model: Path, train: Path, tmp_path: Path) -> None:
    """With a learning rate that is far too low, nothing gets better."""
    out = run(model, train, tmp_path / "run", learning_rate=1e-12, max_epochs=9, patience=2)
    assert counts(out)["epochs"] < 4
    lines = [line for line in metrics(out) if "eval_accuracy" in line]
    assert len({line["step"] for line in lines}) == 3


def finetune_in_process(options: dict[str, Any]) -> None:
    finetune(FinetuneConfig(**options))


@pytest.fixture
def forkserver() -> Iterator[Any]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bert_pipeline.finetuning.finetune"])
    return context


@pytest.mark.integration
def test_killed_run_resumes_to_the_same_weights(
    model: Path, train: Path, tmp_path: Path, forkserver: Any
) -> None:
    changes = {"max_epochs": 5, "checkpoint_every": 4, "dropout": 0.1, "log_every": 4}
    options = given(model, train, tmp_path / "alone", **changes)
    alone = forkserver.Process(target=finetune_in_process, args=(options,))
    alone.start()
    alone.join()
    out = tmp_path / "killed"
    first = forkserver.Process(target=finetune_in_process, args=(options | {"out": out},))
    first.start()
    wait_for(lambda: any((out / "checkpoints").glob("step-*/state.json")))
    first.kill()
    first.join()
    assert first.exitcode == -signal.SIGKILL
    second = forkserver.Process(target=finetune_in_process, args=(options | {"out": out},))
    second.start()
    second.join()
    assert second.exitcode == 0
    assert weights(out) == weights(tmp_path / "alone")
    same = ("step", "loss", "eval_loss", "eval_accuracy")
    assert [[line.get(key) for key in same] for line in metrics(out)] == [
        [line.get(key) for key in same] for line in metrics(tmp_path / "alone")
    ]


@pytest.mark.parametrize(("freeze", "frozen"), [("encoder", 2), ("1", 1)])
def test_frozen_parts_do_not_change(
    model: Path, train: Path, tmp_path: Path, freeze: str, frozen: int
) -> None:
    out = run(model, train, tmp_path / "run", freeze=freeze, max_steps=4, max_epochs=None)
    before = load_file(model / "model.safetensors")
    after = load_file(out / "model" / "model.safetensors")
    for name, value in before.items():
        if name not in after:
            continue
        layers = [f"encoder.layer.{number}." for number in range(frozen)]
        is_frozen = "embeddings" in name or any(layer in name for layer in layers)
        # The gradient of the bias of keys is 0.
        if "key.bias" not in name:
            assert torch.equal(value, after[name]) == is_frozen, name


def test_layers_learn_more_slowly_the_deeper_they_are(
    model: Path, train: Path, tmp_path: Path
) -> None:
    """AdamW's first step is as large as the learning rate."""
    options = {"max_steps": 1, "schedule": "linear", "warmup": 0, "learning_rate": 1e-3}
    out = run(model, train, tmp_path / "run", layer_decay=0.5, weight_decay=0, **options)
    before = load_file(model / "model.safetensors")
    after = load_file(out / "model" / "model.safetensors")
    steps = {
        part: float((after[name] - before[name]).abs().max())
        for part, name in {
            "embeddings": "bert.embeddings.position_embeddings.weight",
            "first": "bert.encoder.layer.0.output.dense.weight",
            "last": "bert.encoder.layer.1.output.dense.weight",
            "head": "bert.pooler.dense.weight",
        }.items()
    }
    expected = {"embeddings": 1.25e-4, "first": 2.5e-4, "last": 5e-4, "head": 1e-3}
    assert steps == pytest.approx(expected, rel=0.05)


def test_random_weights_are_those_of_the_architecture(
    model: Path, train: Path, tmp_path: Path
) -> None:
    out = run(model, train, tmp_path / "run", init="random", max_steps=0, seed=7)
    before = load_file(model / "model.safetensors")
    after = load_file(out / "model" / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    assert after[name].shape == before[name].shape
    assert not torch.equal(after[name], before[name])
    assert float(after[name].std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.integration
@pytest.mark.parametrize("distribute", ["ddp", "fsdp"])
def test_two_processes_equal_one(model: Path, train: Path, tmp_path: Path, distribute: str) -> None:
    options = {"max_steps": 6, "max_epochs": None, "evaluate_every": 3, "accumulate": 2}
    alone = run(model, train, tmp_path / "alone", **options)
    arguments = [
        *("finetune", model, "--train", train, "--out", tmp_path / "two", "--max-steps", 6),
        *("--learning-rate", 3e-3, "--batch-size", 16, "--precision", "fp32", "--quiet"),
        *("--evaluate-every", 3, "--num-processes", 2, "--threads", 2),
        *("--distribute", distribute),
    ]
    result = run_cli(*arguments)
    assert result.code == 0, result.stderr
    one = load_file(alone / "model" / "model.safetensors")
    two = load_file(tmp_path / "two" / "model" / "model.safetensors")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-5, msg=name)
    mine = counts(tmp_path / "two")
    assert mine["eval_accuracy"] == counts(alone)["eval_accuracy"]


def test_stop_signal_is_saved(model: Path, train: Path, tmp_path: Path) -> None:
    import os
    import threading

    def stop() -> None:
        wait_for(lambda: has_begun(tmp_path / "run"))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(Stopped):
        run(model, train, tmp_path / "run", max_epochs=2000, dropout=0.1)
    assert any((tmp_path / "run" / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("sentence\tlabel\n", "has 0 rows"),
        ("sentence\tlabel\na\tx\nb\tx\n", "all rows have the label 'x'"),
        ("text\tb\na\tx\nb\ty\n", "which column is the label? Give --label-field; it has text, b"),
        ("sentence\tlabel\na\tx\nb\n", "line 3: 1 columns instead of 2"),
    ],
)
def test_wrong_files_are_refused(model: Path, tmp_path: Path, content: str, problem: str) -> None:
    file = tmp_path / "a.tsv"
    file.write_text(content)
    result = run_cli("finetune", model, "--train", file, "--out", tmp_path / "run")
    assert result.code == 1
    assert problem in result.stderr
    assert not (tmp_path / "run").exists()


def test_model_without_a_head_is_not_used_for_predictions(tmp_path: Path, model: Path) -> None:
    from transformers import AutoModel

    folder = tmp_path / "backbone"
    AutoModel.from_pretrained(model).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((model / name).read_bytes())
    with pytest.raises(BertpipeError, match="BertModel has no head to predict with"):
        Predictor(folder)


def test_next_sentences_of_a_pretrained_model(model: Path) -> None:
    rows = [
        Row(f"line {n}", {"text_a": a, "text_b": "a day"}) for n, (a, _) in enumerate(sentences(5))
    ]
    found = list(Predictor(model).predict(rows, PredictCounts()))
    assert all(0 < row["score"] < 1 for row in found)


def test_mean_start_mixes_all_tokens_equally(model: Path, train: Path, tmp_path: Path) -> None:
    """The order of the words then changes nothing in the last layer, but for their positions."""
    out = run(model, train, tmp_path / "run", max_steps=0)
    network = AutoModelForSequenceClassification.from_pretrained(
        out / "model", attn_implementation="eager"
    )
    ids = torch.tensor([[2, 9, 14, 6, 3]])
    with torch.no_grad():
        attended = network(input_ids=ids, output_attentions=True).attentions
    torch.testing.assert_close(attended[-1], torch.full_like(attended[-1], 0.2))
    assert not torch.allclose(attended[0], attended[-1], atol=1e-4)


def test_protocol_reports_seeds_and_random_weights(
    model: Path, train: Path, tmp_path: Path
) -> None:
    test = write_sentences(tmp_path / "test.tsv", 40, seed=5)
    options = {"protocol": "fast", "compare_random": True, "max_steps": 12, "test": str(test)}
    out = run(model, train, tmp_path / "run", **options)
    found = counts(out)
    assert found["runs"] == 6
    assert [summary["init"] for summary in found["protocol"]] == ["pretrained", "random"]
    runs = [counts(folder) for folder in sorted((out / "runs").glob("pretrained-*"))]
    assert found["protocol"][0]["test"] == [one["test_accuracy"] for one in runs]
    best = max(one["eval_accuracy"] for one in runs)
    assert found["eval_accuracy"] == best
    AutoModelForSequenceClassification.from_pretrained(out / "model")
    before = weights(out)
    run(model, train, out, **options)
    assert weights(out) == before


def test_interval_of_the_mean() -> None:
    values = [0.7, 0.74, 0.72, 0.8, 0.77]
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values) == pytest.approx((expected.low, expected.high))


def test_recipe_ends_with_a_fine_tuned_model(tmp_path: Path) -> None:
    """A section `finetune` makes the recipe go on to a classifier."""
    text = tmp_path / "text.jsonl"
    documents = [f"{one}. {two}." for (one, _), (two, _) in pairwise(sentences(300))]
    text.write_text("\n".join(json.dumps({"text": document}) for document in documents))
    recipe = {
        "corpus": {"source": [f"jsonl:{text}"]},
        "tokenize": {"vocab_size": 120},
        "examples": {"max_seq_length": 32},
        "pretrain": {"model": SHAPE, "max_steps": 3, "batch_size": 8, "precision": "fp32"},
        "finetune": {
            "train": str(write_sentences(tmp_path / "train.tsv")),
            "max_steps": 3,
            "precision": "fp32",
        },
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe))
    result = run_cli("run", file, "--out", tmp_path / "run")
    assert result.code == 0, result.stderr
    assert "Result on 20 validation examples" in result.stdout
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/finetune/model")
    assert run_cli("verify", tmp_path / "run").code == 0


def test_file_with_other_columns_is_refused(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("first,second\na day,the room\n")
    result = run_cli("predict", finished, "--input", file)
    assert result.code == 1
    assert "Give --text-field; it has first, second." in result.stderr
    right = run_cli("predict", finished, "--input", file, "--text-field", "second", "--json")
    assert json.loads(right.stdout)["label"] in ("good", "bad")


def test_large_embeddings_of_a_narrow_model_get_larger_steps(train: Path, tmp_path: Path) -> None:
    """AdamW's first step is as large as the learning rate, whatever the gradient."""
    folder = make_model(tmp_path / "large")
    tensors = load_file(folder / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    tensors[name] *= 5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    options = {"max_steps": 1, "warmup": 0, "learning_rate": 1e-3, "weight_decay": 0}
    out = run(folder, train, tmp_path / "run", **options)
    after = load_file(out / "model" / "model.safetensors")
    step = float((after[name] - tensors[name]).abs().max())
    assert step == pytest.approx(5e-3, rel=0.05)
    head = "bert.encoder.layer.0.output.dense.weight"
    assert float((after[head] - tensors[head]).abs().max()) == pytest.approx(1e-3, rel=0.05)
