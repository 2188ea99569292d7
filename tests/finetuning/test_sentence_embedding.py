"""Sentence embeddings: what is learned from texts, pairs and scores, and what is saved."""

import json
import multiprocessing
import random
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.finetuning.config import FinetuneConfig
from bert_pipeline.finetuning.finetune import finetune
from tests.helpers.cli import run_cli
from tests.helpers.task_models import make_model, sentences
from tests.helpers.training_runs import counts, metrics, reset_accelerate, wait_for, weights

sentence_transformers = pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def write_pairs(file: Path, count: int, seed: int = 0) -> Path:
    """Pairs of sentences with the score 5 if both have a good or both a bad word, else 0."""
    rows = sentences(count + 1, seed)
    lines = [
        f"{first}\t{second}\t{5.0 if one == other else 0.0}"
        for (first, one), (second, other) in pairwise(rows)
    ]
    file.write_text("\n".join(["sentence1\tsentence2\tscore", *lines]) + "\n")
    return file


def write_texts(file: Path, count: int = 120) -> Path:
    """Sentences, one per line, with blank lines between."""
    file.write_text("\n\n".join(text for text, _ in sentences(count)) + "\n")
    return file


def given(model: Path, train: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": str(model),
        "task": "sentence-embedding",
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
def scored(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on pairs with scores, and its command's files beside it."""
    folder = tmp_path_factory.mktemp("scored")
    train = write_pairs(folder / "train.tsv", 160)
    validation = write_pairs(folder / "validation.tsv", 60, seed=1)
    return run(model, train, folder / "run", validation=str(validation), max_steps=30)


def test_scores_of_pairs_are_learned(scored: Path) -> None:
    found = counts(scored)
    assert found["start_spearman"] < 0.5
    assert found["eval_spearman"] > 0.8
    assert [line["step"] for line in metrics(scored)] == [20]
    assert not (scored / "checkpoints").exists()


def test_model_gives_the_same_vectors_in_both_libraries(scored: Path) -> None:
    texts = ["the room was very warm", "a voice"]
    loaded = sentence_transformers.SentenceTransformer(str(scored / "model"), device="cpu")
    vectors = loaded.encode(texts, show_progress_bar=False)
    network = AutoModel.from_pretrained(scored / "model").eval()
    batch = AutoTokenizer.from_pretrained(scored / "model")(
        texts, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        states = network(**batch).last_hidden_state
    mask = batch["attention_mask"][:, :, None]
    means = (states * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(vectors, means.numpy(), atol=1e-5)


def test_repeated_command_is_skipped_and_other_settings_are_refused(
    model: Path, scored: Path
) -> None:
    files = {name: scored.parent / f"{name}.tsv" for name in ("train", "validation")}
    changes = {"validation": str(files["validation"]), "max_steps": 30}
    before = weights(scored)
    run(model, files["train"], scored, **changes)
    assert weights(scored) == before
    with pytest.raises(BertpipeError, match="pooling: 'mean' → 'cls'"):
        run(model, files["train"], scored, pooling="cls", **changes)


def test_positive_pairs_come_closer_than_others(model: Path, tmp_path: Path) -> None:
    """Each word of one list belongs to the word at the same place in the other."""
    draw = random.Random(0)
    matches = [("bright", "dark"), ("warm", "cold"), ("clear", "dull"), ("kind", "cruel")]
    rows = [
        (f"the {draw.choice(['room', 'day'])} was {a}", f"a voice felt {b}") for a, b in matches * 8
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps({"anchor": a, "positive": b}) for a, b in rows))
    out = run(model, file, tmp_path / "run", max_steps=40, batch_size=8, log_every=5)
    loaded = sentence_transformers.SentenceTransformer(str(out / "model"), device="cpu")
    first, second = (
        loaded.encode([f"{start} {pair[side]}" for pair in matches], normalize_embeddings=True)
        for side, start in ((0, "the day was"), (1, "a voice felt"))
    )
    assert (first @ second.T).argmax(1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("objective", ["simcse", "tsdae"])
def test_texts_without_labels_are_learned_from(model: Path, tmp_path: Path, objective: str) -> None:
    train = write_texts(tmp_path / "texts.txt")
    options = {"objective": objective, "max_steps": 24, "log_every": 4, "learning_rate": 1e-3}
    out = run(model, train, tmp_path / "run", **options)
    assert counts(out)["train_examples"] == 120
    losses = [line["loss"] for line in metrics(out)]
    assert losses[-1] < losses[0]
    config = json.loads((out / "model" / "config.json").read_text())
    # The model has none, with which both vectors of a text would be equal.
    assert config["hidden_dropout_prob"] == (0.1 if objective == "simcse" else 0.0)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"freeze": "encoder"}, "--freeze has no effect on --task sentence-embedding"),
        ({"num_processes": 2}, "--num-processes has no effect on --task sentence-embedding"),
        ({"task": "classification", "pooling": "cls"}, "--pooling requires --task sentence-emb"),
    ],
)
def test_options_without_effect_are_refused(
    model: Path, tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("a day\n")
    with pytest.raises(ValueError, match=problem):
        FinetuneConfig(**given(model, file, tmp_path / "run", **options))


@pytest.mark.parametrize(
    ("content", "options", "problem"),
    [
        ("sentence1\tsentence2\tlabel\na\tb\tyes\nc\td\tno\n", {}, "line 2: the score 'yes'"),
        ("anchor\tpositive\na\tb\nc\td\n", {"objective": "tsdae"}, "has pairs"),
        ("text\tlabel\na\t1\nb\t2\n", {"label_field": "label"}, "has single texts"),
        ("text\na\n", {}, "has 1 rows"),
        ("text\na\nb\n", {"validation": "same"}, "needs pairs of texts with a score"),
    ],
)
def test_wrong_rows_are_refused(
    model: Path, tmp_path: Path, content: str, options: dict[str, Any], problem: str
) -> None:
    file = tmp_path / "rows.tsv"
    file.write_text(content)
    changes = options | ({"validation": str(file)} if "validation" in options else {})
    with pytest.raises((BertpipeError, UsageError), match=problem):
        run(model, file, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def finetune_in_process(options: dict[str, Any]) -> None:
    finetune(FinetuneConfig(**options))


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_weights(model: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bert_pipeline.finetuning.sentence_training"])
    train = write_texts(tmp_path / "texts.txt")
    options = given(model, train, tmp_path / "alone", max_epochs=5, checkpoint_every=3)
    alone = context.Process(target=finetune_in_process, args=(options,))
    alone.start()
    alone.join()
    out = tmp_path / "killed"
    first = context.Process(target=finetune_in_process, args=(options | {"out": out},))
    first.start()
    wait_for(lambda: any((out / "checkpoints").glob("checkpoint-1?/trainer_state.json")))
    first.kill()
    first.join()
    assert first.exitcode == -signal.SIGKILL
    # Kept by a run that resumes, removed by one that starts again.
    (out / "metrics.jsonl").write_text('{"step": 1}\n')
    second = context.Process(target=finetune_in_process, args=(options | {"out": out},))
    second.start()
    second.join()
    assert second.exitcode == 0
    assert weights(out) == weights(tmp_path / "alone")
    assert metrics(out)[0]["step"] == 1


@pytest.mark.integration
def test_command_prints_the_correlation_before_and_after(model: Path, scored: Path) -> None:
    files = {name: scored.parent / f"{name}.tsv" for name in ("train", "validation")}
    result = run_cli(
        *("finetune", model, "--task", "sentence-embedding", "--train", files["train"]),
        *("--validation", files["validation"], "--max-steps", 2, "--threads", 1),
        *("--out", scored.parent / "command"),
    )
    assert result.code == 0, result.stderr
    assert "Spearman correlation on 60 validation pairs" in result.stdout
