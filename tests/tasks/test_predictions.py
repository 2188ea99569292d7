"""Predictions from scores, and their metrics, against other implementations."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

from bert_pipeline.tasks.metrics import measure_classes
from bert_pipeline.tasks.question_answering import read_squad
from bert_pipeline.tasks.squad import score_answers
from bert_pipeline.tasks.token_classification import Tagged, find_entities
from tests.tasks.test_losses_and_labels import make_task

CONTEXT = "the room was warm and the voice felt very cold but paris was kind and rome was dull"


def ask(text: str, number: int = 0) -> dict[str, Any]:
    answers = [{"text": text, "answer_start": CONTEXT.index(text)}] if text else []
    return {"id": f"q{number}", "question": "the day", "context": CONTEXT, "answers": answers}


@pytest.mark.parametrize("length", [64, 16])
def test_spans_with_the_highest_scores_are_the_answers(length: int) -> None:
    """The labelled tokens of each window, when they get the highest scores, are the answer."""
    wanted = ["warm", "very cold", "paris was kind", "dull", ""]
    task, rows = make_task("question-answering", [ask(text, i) for i, text in enumerate(wanted)])
    task = type(task)(**{**task.__dict__, "max_length": length})
    examples = task.encode(rows)
    assert (len(examples) > len(rows)) == (length == 16)
    scores = np.random.default_rng(0).normal(size=(len(examples.tokens.values), 2))
    for row, (start, end) in enumerate(examples.labels):
        first = examples.tokens.offsets[row]
        # Windows without the answer are surer of it: they must not win.
        scores[first + start, 0] += 12 if start else 10
        scores[first + end, 1] += 12 if end else 10
    answers = task.decode(scores.astype(np.float32), examples)
    assert [answer.text for answer in answers] == wanted
    assert all(CONTEXT[answer.start :].startswith(answer.text) for answer in answers)
    assert task.measure(answers, examples)["exact_match"] == 100


def test_scores_of_answers_by_the_rule_of_squad() -> None:
    golds = [["the Eiffel Tower", "Eiffel Tower, Paris"], ["42"], [], []]
    found = score_answers(["an eiffel tower!", "about 42 men", "", "x"], golds)
    assert found["exact_match"] == pytest.approx(50)
    assert found["f1"] == pytest.approx(100 * (1 + 0.5 + 1 + 0) / 4)
    assert (found["f1_answerable"], found["f1_unanswerable"]) == (75, 50)


def test_file_in_the_format_of_squad(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    paragraph = {"context": CONTEXT, "qas": [ask("warm") | {"is_impossible": False}]}
    file.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}))
    (row,) = read_squad(file)
    assert row.where == f"{file}, question q0"
    assert row.values["context"] == CONTEXT


def test_entity_f1_is_that_of_seqeval() -> None:
    """Also for tags that do not begin an entity properly."""
    seqeval = pytest.importorskip("seqeval.metrics")
    draw = random.Random(0)
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    words = [["a"] * draw.randrange(1, 9) for _ in range(200)]
    given = [[draw.choice(names) for _ in row] for row in words]
    found = [[tag if draw.random() < 0.6 else draw.choice(names) for tag in row] for row in given]
    task, rows = make_task(
        "token-classification",
        [{"tokens": row, "tags": tags} for row, tags in zip(words, given, strict=True)],
    )
    predictions = [
        Tagged(tuple(w), tuple(t), (1.0,) * len(t)) for w, t in zip(words, found, strict=True)
    ]
    mine = task.measure(predictions, task.encode(rows))
    assert mine["f1"] == pytest.approx(seqeval.f1_score(given, found))
    assert mine["precision"] == pytest.approx(seqeval.precision_score(given, found))


def test_entities_of_tags() -> None:
    tags = ["B-PER", "I-PER", "B-PER", "O", "I-LOC", "I-PER", "I-PER"]
    assert list(find_entities(tags)) == [("PER", 0, 2), ("PER", 2, 3), ("LOC", 4, 5), ("PER", 5, 7)]


def test_metrics_of_classes() -> None:
    labels = np.array([1, 0, 1, 1, 0, 0, 0, 0])
    predicted = np.array([1, 0, 0, 1, 0, 1, 0, 0])
    found = measure_classes(labels, predicted, 2)
    assert found["accuracy"] == 0.75
    assert found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found["majority"] == 5 / 8
    assert found["matthews_correlation"] == pytest.approx(matthews_corrcoef(labels, predicted))
    assert measure_classes(np.zeros(3, int), np.zeros(3, int), 2)["matthews_correlation"] == 0
