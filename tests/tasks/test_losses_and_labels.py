"""Losses of all tasks equal those of transformers; labels are numbered, checked and weighed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from bert_pipeline.errors import BertpipeError
from bert_pipeline.model.task_model import TaskModel
from bert_pipeline.predict.load import load_config, load_with_new_heads
from bert_pipeline.tasks.read_rows import Row
from bert_pipeline.tasks.registry import find_task
from tests.helpers.task_models import make_model, wordpiece, wrap

TOKENIZER = wrap(wordpiece())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def make_task(name: str, rows: list[dict[str, Any]], **options: Any) -> tuple[Any, list[Row]]:
    defaults = {
        "text_field": (),
        "label_field": None,
        "problem": "auto",
        "doc_stride": 4,
        "max_answer_tokens": 8,
    }
    given = SimpleNamespace(**defaults | options)
    numbered = [Row(f"f, line {number}", row) for number, row in enumerate(rows, start=2)]
    return find_task(name).from_rows(numbered, TOKENIZER, 64, given), numbered


def both_losses(
    model: Path, task: Any, rows: list[Row], labels: dict[str, torch.Tensor], **inputs: Any
) -> tuple[float, float]:
    """Our mean loss on all rows, and that of the stock model for the same labels."""
    config = load_config(model)
    for name, value in task.config_fields().items():
        setattr(config, name, value)
    torch.manual_seed(1)
    network, _ = load_with_new_heads(model, getattr(transformers, task.auto_class), config)
    network.eval()
    examples = task.encode(rows)
    batch = examples.collate(np.arange(len(examples)))
    stock = network(**inputs, **labels).loss
    mine = task.loss(TaskModel(network).eval()(batch), batch) / task.weight_of(batch)
    return float(mine.detach()), float(stock.detach())


TEXTS = ["the room was warm", "a dull day", "the voice felt very cold and dark", "kind"]


@pytest.mark.parametrize(
    ("labels", "numbers", "problem"),
    [
        (["b", "a", "b", "c"], torch.tensor([1, 0, 1, 2]), "single_label_classification"),
        (
            [["x", "y"], [], ["y"], ["x"]],
            torch.tensor([[1.0, 1], [0, 0], [0, 1], [1, 0]]),
            "multi_label_classification",
        ),
        (["0.5", "2", "1.5", "3"], torch.tensor([0.5, 2, 1.5, 3]), "regression"),
    ],
)
def test_loss_of_a_classifier(
    model: Path, labels: list[Any], numbers: torch.Tensor, problem: str
) -> None:
    given = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]
    task, rows = make_task("classification", given)
    assert task.problem == problem
    inputs = TOKENIZER(TEXTS, padding=True, return_tensors="pt")
    mine, stock = both_losses(model, task, rows, {"labels": numbers}, **inputs)
    assert mine == pytest.approx(stock, rel=1e-4)


def test_loss_of_pairs(model: Path) -> None:
    given = [
        {"premise": text, "hypothesis": "a day", "label": i % 2} for i, text in enumerate(TEXTS)
    ]
    task, rows = make_task("classification", given)
    inputs = TOKENIZER(TEXTS, ["a day"] * 4, padding=True, return_tensors="pt")
    labels = {"labels": torch.tensor([0, 1, 0, 1])}
    mine, stock = both_losses(model, task, rows, labels, **inputs)
    assert mine == pytest.approx(stock, rel=1e-4)


def test_class_weights_weigh_the_loss_as_torch_does() -> None:
    task, rows = make_task(
        "classification",
        [{"text": text, "label": label} for text, label in zip(TEXTS, "aaab", strict=True)],
    )
    weighted = type(task)(**{**task.__dict__, "class_weights": (0.5, 2.0)})
    examples = weighted.encode(rows)
    batch = examples.collate(np.arange(4))
    scores = torch.randn(4, 2)
    mine = weighted.loss(scores, batch) / weighted.weight_of(batch)
    expected = torch.nn.functional.cross_entropy(
        scores, torch.tensor([0, 0, 0, 1]), torch.tensor([0.5, 2.0])
    )
    torch.testing.assert_close(mine, expected)


def test_loss_of_a_tagger(model: Path) -> None:
    given = [
        {"tokens": ["paris", "was", "warm"], "ner_tags": ["B-LOC", "O", "O"]},
        {"tokens": ["roomy", "rome"], "ner_tags": ["O", "I-LOC"]},
    ]
    task, rows = make_task("token-classification", given)
    assert task.labels.names == ("O", "B-LOC", "I-LOC")
    inputs = TOKENIZER(
        [["paris", "was", "warm"], ["roomy", "rome"]],
        is_split_into_words=True,
        padding=True,
        return_tensors="pt",
    )
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, numbers in enumerate([[1, 0, 0], [0, 2]]):
        for word, number in enumerate(numbers):
            first = inputs.word_to_tokens(row, word).start
            labels[row, first] = number
    mine, stock = both_losses(model, task, rows, {"labels": labels}, **inputs)
    assert mine == pytest.approx(stock, rel=1e-4)


def test_loss_of_choices(model: Path) -> None:
    given = [
        {"sent1": "the room", "sent2": "was", "ending0": "warm", "ending1": "a day", "label": 1},
        {"sent1": "a voice", "sent2": "felt", "ending0": "cold", "ending1": "kind", "label": 0},
    ]
    task, rows = make_task("multiple-choice", given)
    firsts = ["the room"] * 2 + ["a voice"] * 2
    seconds = ["was warm", "was a day", "felt cold", "felt kind"]
    flat = TOKENIZER(firsts, seconds, padding=True, return_tensors="pt")
    inputs = {name: values.view(2, 2, -1) for name, values in flat.items()}
    mine, stock = both_losses(model, task, rows, {"labels": torch.tensor([1, 0])}, **inputs)
    assert mine == pytest.approx(stock, rel=1e-4)


def test_loss_of_spans(model: Path) -> None:
    """Rows of one length: the stock loss also scores padding."""
    context = "paris was warm and rome was cold"
    given = [
        {"id": "1", "question": "the room", "context": context, "answers": answers}
        for answers in ({"text": ["rome"], "answer_start": [19]}, {"text": [], "answer_start": []})
    ]
    task, rows = make_task("question-answering", given)
    inputs = TOKENIZER(["the room"] * 2, [context] * 2, return_tensors="pt")
    place = inputs["input_ids"][0].tolist().index(TOKENIZER.convert_tokens_to_ids("rome"))
    labels = {
        "start_positions": torch.tensor([place, 0]),
        "end_positions": torch.tensor([place, 0]),
    }
    mine, stock = both_losses(model, task, rows, labels, **inputs)
    assert mine == pytest.approx(stock, rel=1e-4)


def test_labels_are_numbered_in_their_order_and_others_are_refused() -> None:
    task, rows = make_task(
        "classification", [{"text": "a", "label": label} for label in (10, 2, 1.0, True)]
    )
    assert task.labels.names == ("1", "2", "10")
    assert task.encode(rows).labels.tolist() == [2, 1, 0, 0]
    with pytest.raises(
        BertpipeError, match=r"f, line 9: label '3' does not occur in training; labels: 1, 2, 10"
    ):
        task.encode([Row("f, line 9", {"text": "a", "label": 3})])


@pytest.mark.parametrize(
    ("task", "rows", "problem"),
    [
        ("classification", [{"text": "a", "label": "x"}] * 3, "all rows have the label 'x'"),
        ("classification", [{"text": "a", "label": ""}], "f, line 2: no label in column 'label'"),
        (
            "classification",
            [{"text": "a", "label": 0.5}, {"text": "b", "label": "nan"}],
            "f, line 3: label 'nan' is not a number",
        ),
        (
            "token-classification",
            [{"tokens": ["a", "b"], "tags": ["O"]}],
            "f, line 2: 1 tags for 2 words",
        ),
        ("token-classification", [{"tokens": "a b"}], "which column has the tags"),
        (
            "question-answering",
            [
                {
                    "id": "q",
                    "question": "a",
                    "context": "the day",
                    "answers": [{"text": "room", "answer_start": 4}],
                }
            ],
            "the answer 'room' is not in the context at character 4",
        ),
        ("question-answering", [{"question": "a"}], "has no column 'context'; it has question"),
        ("multiple-choice", [{"sent1": "a", "ending0": "b", "label": 0}], "two choices or more"),
        (
            "multiple-choice",
            [{"sent1": "a", "ending0": "b", "ending1": "c", "label": 2}],
            "label '2' is not a number below 2",
        ),
    ],
)
def test_wrong_rows_are_refused(task: str, rows: list[dict[str, Any]], problem: str) -> None:
    def read() -> None:
        made, numbered = make_task(task, rows)
        made.encode(numbered)

    with pytest.raises(BertpipeError, match=problem):
        read()
