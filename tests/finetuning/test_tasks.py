"""Each task from a file to predictions, on toy data that a small model learns."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import pipeline

from tests.finetuning.test_finetune import run
from tests.helpers.cli import run_cli
from tests.helpers.task_models import BAD, GOOD, make_model
from tests.helpers.training_runs import counts

OTHERS = ["the", "room", "was", "and", "a", "day", "felt", "very", "voice"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def predict(folder: Path, file: Path) -> list[dict[str, Any]]:
    result = run_cli("predict", folder, "--input", file, "--json")
    assert result.code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_named_entities(model: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    sentences = [
        [draw.choice([*OTHERS, "paris", "rome"]) for _ in range(draw.randrange(2, 9))]
        for _ in range(150)
    ]
    file = tmp_path / "a.conll"
    lines = [
        "\n".join(f"{word}\t{'B-CITY' if word in ('paris', 'rome') else 'O'}" for word in words)
        for words in sentences
    ]
    file.write_text("\n\n".join(lines))
    out = run(model, file, tmp_path / "run", task="token-classification", max_epochs=4)
    assert counts(out)["eval_f1"] > 0.95
    rows = tmp_path / "new.jsonl"
    rows.write_text('{"tokens": ["the", "day", "paris", "was", "very"]}\n{"tokens": ["rome"]}\n')
    found = predict(out, rows)
    assert [row["entities"][0]["text"] for row in found] == ["paris", "rome"]
    stock = pipeline("token-classification", model=str(out / "model"), ignore_labels=[])
    expected = stock("the day paris was very")
    assert [entry["entity"] for entry in expected] == found[0]["tags"]
    assert [float(entry["score"]) for entry in expected] == pytest.approx(
        found[0]["scores"], abs=1e-5
    )


def test_answers(model: Path, tmp_path: Path) -> None:
    """The answer is the good or bad word of the context."""
    draw = random.Random(0)

    def make(number: int) -> dict[str, Any]:
        answer = draw.choice([*GOOD, *BAD])
        words = [draw.choice(OTHERS) for _ in range(6)]
        place = draw.randrange(6)
        context = " ".join([*words[:place], answer, *words[place:]])
        start = len(" ".join(words[:place])) + (place > 0)
        answers = [{"text": answer, "answer_start": start}]
        qas = [{"id": str(number), "question": "the day", "answers": answers}]
        return {"context": context, "qas": qas}

    file = tmp_path / "a.json"
    paragraphs = [make(number) for number in range(200)]
    file.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    out = run(model, file, tmp_path / "run", task="question-answering", max_epochs=6)
    assert counts(out)["eval_exact_match"] > 80
    answers = tmp_path / "answers.json"
    assert run_cli("predict", out, "--input", file, "--out", answers, "--quiet").code == 0
    found = json.loads(answers.read_text())
    right = [
        found[qa["id"]] == qa["answers"][0]["text"] for part in paragraphs for qa in part["qas"]
    ]
    assert sum(right) > 160


def test_choices(model: Path, tmp_path: Path) -> None:
    """The right choice is the one with a good word; examples have two or three."""
    draw = random.Random(0)
    rows = []
    for number in range(150):
        choices = [draw.choice(BAD) for _ in range(2 + number % 2)]
        label = draw.randrange(len(choices))
        choices[label] = draw.choice(GOOD)
        rows.append({"context": "the room", "choices": choices, "label": label})
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    out = run(model, file, tmp_path / "run", task="multiple-choice", max_epochs=4)
    assert counts(out)["eval_accuracy"] > 0.9
    found = predict(out, file)
    assert (
        sum(row["choice"] == given["label"] for row, given in zip(found, rows, strict=True)) > 135
    )


def test_several_labels_and_numbers(model: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices([*OTHERS, *GOOD, *BAD], k=6)) for _ in range(200)]
    multi = tmp_path / "multi.jsonl"
    rows = []
    for text in texts:
        words = set(text.split())
        labels = [name for name, some in (("g", GOOD), ("b", BAD)) if words & set(some)]
        rows.append({"text": text, "labels": labels})
    multi.write_text("\n".join(map(json.dumps, rows)))
    out = run(model, multi, tmp_path / "multi", max_epochs=5)
    assert counts(out)["eval_f1"] > 0.8
    assert set(predict(out, multi)[0]["scores"]) == {"g", "b"}
    numbers = tmp_path / "numbers.tsv"
    lines = [f"{text}\t{sum(word in GOOD for word in text.split()) / 2}" for text in texts]
    numbers.write_text("\n".join(["text\tscore", *lines]))
    out = run(model, numbers, tmp_path / "numbers", max_epochs=6)
    assert counts(out)["eval_pearson"] > 0.7
    assert set(predict(out, numbers)[0]) == {"score"}
