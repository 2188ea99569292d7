"""Using a model on a GPU gives what it gives on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.devices import ON_GPU
from tests.helpers.random_models import save_random_model
from tests.helpers.task_models import make_model, write_sentences

WITHOUT_GPU = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
pytestmark = [*ON_GPU, pytest.mark.integration]
USE = """
import json, sys
from bert_pipeline.api import embed, evaluate, fill_mask
model, examples = sys.argv[1:]
texts = ["the [MASK] of the room", "a [MASK]", "the room"]
print(json.dumps({
    "scores": [[one["score"] for one in found] for found in fill_mask(model, texts[:2])],
    "vectors": embed(model, texts).tolist(),
    "loss": evaluate(model, examples).mlm_loss,
}))
"""


def call(*arguments: str | Path, on_gpu: bool) -> str:
    """Run Python with arguments; return its output."""
    environment = dict(os.environ) if on_gpu else WITHOUT_GPU
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_masked_words_vectors_and_losses(
    wordpiece_folder: Path, examples_folder: Path, tmp_path: Path
) -> None:
    model = save_random_model(tmp_path / "model", wordpiece_folder, max_position_embeddings=64)
    found = [
        json.loads(call("-c", USE, model, examples_folder, on_gpu=on_gpu))
        for on_gpu in (True, False)
    ]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-3)
    for name in ("scores", "vectors"):
        for one, other in zip(found[0][name], found[1][name], strict=True):
            assert one == pytest.approx(other, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}])
def test_classifier_learns_and_predicts(options: dict[str, Any], tmp_path: Path) -> None:
    """Trained on the GPU, it predicts the same there and on the CPU."""
    model = make_model(tmp_path / "model")
    train = write_sentences(tmp_path / "train.tsv")
    rows = write_sentences(tmp_path / "rows.tsv", 60, seed=1)
    out = tmp_path / "out"
    arguments = [f"--{name}={value}" for name, value in options.items()]
    settings = ["--learning-rate", "3e-3", "--batch-size", "16", "--max-epochs", "4"]
    bertpipe = ("-m", "bert_pipeline")
    given = (model, "--train", train, "--out", out, *settings, *arguments)
    call(*bertpipe, "finetune", *given, on_gpu=True)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["counts"]["eval_accuracy"] > 0.9
    scores = []
    for on_gpu in (True, False):
        file = tmp_path / f"found-{on_gpu}.jsonl"
        call(*bertpipe, "predict", out, "--input", rows, "--out", file, on_gpu=on_gpu)
        scores.append([json.loads(line)["scores"] for line in file.read_text().splitlines()])
    assert len(scores[0]) == 60
    for one, other in zip(*scores, strict=True):
        assert one == pytest.approx(other, abs=1e-2)
