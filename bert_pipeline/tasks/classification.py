"""`classification`: one label, several labels or a number for a text or a pair of texts.

Devlin et al. 2019, section 4.1 (https://arxiv.org/abs/1810.04805).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bert_pipeline.errors import BertpipeError
from bert_pipeline.model.task_model import TaskBatch
from bert_pipeline.ragged import Array, Int64Array
from bert_pipeline.tasks.columns import Columns, choose_columns
from bert_pipeline.tasks.encoded import Examples, encode_rows
from bert_pipeline.tasks.labels import Labels, describe_counts
from bert_pipeline.tasks.read_rows import Row

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
REGRESSION = "regression"
PROBLEMS = {"single": SINGLE, "multi": MULTI, "regression": REGRESSION}
"""Kinds of labels, and their names in the configs of transformers."""
SEPARATOR = ","
"""Between the labels of a row of a text file with several labels."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A label with its probability, several, or a number."""

    label: str | None
    scores: Mapping[str, float]
    """Probability of each label; of regression the number."""

    def to_json(self) -> dict[str, Any]:
        """The label with its probability, and those of all labels; of regression the number."""
        if self.label is None:
            return {"score": next(iter(self.scores.values()))}
        score = self.scores.get(self.label, max(self.scores.values()))
        return {"label": self.label, "score": score, "scores": dict(self.scores)}


@dataclass(frozen=True)
class Classification:
    """Classification or regression of texts."""

    tokenizer: Any
    max_length: int
    columns: Columns
    problem: str
    labels: Labels
    class_weights: tuple[float, ...] | None = None
    auto_class = "AutoModelForSequenceClassification"

    @property
    def metric(self) -> str:
        """The metric that selects the best epoch."""
        return {SINGLE: "accuracy", MULTI: "f1", REGRESSION: "pearson"}[self.problem]

    @classmethod
    def from_rows(cls, rows: Sequence[Row], tokenizer: Any, max_length: int, options: Any) -> Self:
        """The task that training rows set: their columns, labels and kind of problem."""
        first = rows[0]
        columns = choose_columns(first.values, first.where, options.text_field, options.label_field)
        assert columns.label is not None
        values = [_value_of(row, columns.label) for row in rows]
        problem = PROBLEMS.get(options.problem) or _guess_problem(values)
        if problem == REGRESSION:
            return cls(tokenizer, max_length, columns, problem, Labels((columns.label,)))
        flat = [name for value in values for name in _split(value)] if problem == MULTI else values
        labels = Labels.from_values(flat)
        if len(labels.names) < 2 and problem == SINGLE:
            raise BertpipeError(
                f"{first.where.rpartition(',')[0]}: all rows have the label {labels.names[0]!r}; a "
                "classifier needs two or more."
            )
        return cls(tokenizer, max_length, columns, problem, labels)

    @classmethod
    def from_model(
        cls, config: Any, tokenizer: Any, max_length: int, first: Row, options: Any
    ) -> Self:
        """The task of a fine-tuned model."""
        found = choose_columns(
            first.values, first.where, options.text_field, options.label_field, needs_label=False
        )
        columns = Columns(found.texts, None)
        problem = config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE)
        return cls(tokenizer, max_length, columns, problem, Labels.from_config(config))

    def encode(self, rows: Iterable[Row]) -> Examples:
        """Encode the texts of rows, and their labels where all rows have some."""
        rows = list(rows)
        label = self.columns.label
        has_labels = label is not None and all(row.values.get(label) is not None for row in rows)
        labels = self._number(rows) if has_labels else np.empty(0)
        return encode_rows(self.tokenizer, rows, self.columns.texts, self.max_length, labels)

    def _number(self, rows: Sequence[Row]) -> Array:
        """Labels as the loss takes them."""
        assert self.columns.label is not None
        given = [(row.values[self.columns.label], row.where) for row in rows]
        if self.problem == REGRESSION:
            return np.array([_number(value, where) for value, where in given], np.float32)
        if self.problem == MULTI:
            numbers = np.zeros((len(rows), len(self.labels.names)), np.float32)
            for place, (value, where) in enumerate(given):
                for name in _split(value):
                    numbers[place, self.labels.number_of(name, where)] = 1
            return numbers
        return np.array([self.labels.number_of(value, where) for value, where in given], np.int64)

    def loss(self, scores: Tensor, batch: TaskBatch) -> Tensor:
        """Cross-entropy (weighted by class), binary cross-entropy of each label, squared error."""
        labels = batch.labels
        if self.problem == REGRESSION:
            return F.mse_loss(scores[:, 0], labels, reduction="sum")
        if self.problem == MULTI:
            losses = F.binary_cross_entropy_with_logits(scores, labels, reduction="sum")
            return losses / scores.shape[1]
        weights = None
        if self.class_weights is not None:
            weights = _on_device(self.class_weights, scores.device)
        return F.cross_entropy(scores, labels, weights, reduction="sum")

    def weight_of(self, batch: TaskBatch) -> float:
        """The number of texts, or the sum of the weights of their classes."""
        if self.class_weights is None:
            return float(len(batch.labels))
        return float(
            batch.labels.new_tensor(self.class_weights, dtype=torch.float32)[batch.labels].sum()
        )

    def decode(self, scores: Array, examples: Examples) -> list[Prediction]:
        """Labels and probabilities."""
        names = self.labels.names
        if self.problem == REGRESSION:
            return [Prediction(None, {names[0]: float(row[0])}) for row in scores]
        exact = torch.from_numpy(scores)
        if self.problem == MULTI:
            shares = torch.sigmoid(exact).tolist()
            return [
                Prediction(
                    SEPARATOR.join(name for name, p in zip(names, row, strict=True) if p >= 0.5),
                    dict(zip(names, row, strict=True)),
                )
                for row in shares
            ]
        shares = torch.softmax(exact, -1).tolist()
        return [
            Prediction(
                names[max(range(len(row)), key=row.__getitem__)], dict(zip(names, row, strict=True))
            )
            for row in shares
        ]

    def measure(self, predictions: Sequence[Prediction], examples: Examples) -> dict[str, float]:
        """Accuracy, F1 and Matthews correlation; of regression Pearson and Spearman correlation."""
        from bert_pipeline.tasks import metrics

        labels = examples.labels
        names = self.labels.names
        if self.problem == REGRESSION:
            numbers = np.array([prediction.scores[names[0]] for prediction in predictions])
            return metrics.measure_regression(labels, numbers)
        if self.problem == MULTI:
            shares = np.array([list(prediction.scores.values()) for prediction in predictions])
            return metrics.measure_labels(labels, (shares >= 0.5).astype(int))
        numbers = np.array([names.index(str(prediction.label)) for prediction in predictions])
        return metrics.measure_classes(labels, numbers, len(names))

    def groups(self, examples: Examples) -> Int64Array:
        """Each example is a group."""
        return np.arange(len(examples))

    def config_fields(self) -> dict[str, Any]:
        """`id2label`, `problem_type` and so on."""
        return self.labels.config_fields() | {"problem_type": self.problem}

    def describe(self, examples: Examples) -> str:
        """How often each label occurs."""
        labels = examples.labels
        if self.problem == REGRESSION:
            return f"{labels.min():g} to {labels.max():g}"
        if self.problem == MULTI:
            return describe_counts(self.labels.names, labels.nonzero()[1].tolist())
        return describe_counts(self.labels.names, labels.tolist())


def _value_of(row: Row, column: str) -> Any:
    """The label of a training row. Raises `BertpipeError` if it is missing or empty."""
    value = row.values.get(column)
    if value is None or value == "":
        raise BertpipeError(f"{row.where}: no label in column {column!r}.")
    return value


def _guess_problem(values: Sequence[Any]) -> str:
    """Lists are several labels; numbers with fractions are to be predicted as numbers."""
    if any(isinstance(value, list | tuple) for value in values):
        return MULTI
    numbers = [_try_number(value) for value in values]
    if all(number is not None for number in numbers) and any(
        number is not None and not number.is_integer() for number in numbers
    ):
        return REGRESSION
    return SINGLE


@cache
def _on_device(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """The weights of the classes; copied once, because a copy to a GPU makes the host wait."""
    return torch.tensor(weights, device=device)


def _try_number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _number(value: Any, where: str) -> float:
    number = _try_number(value)
    if number is None or not np.isfinite(number):
        raise BertpipeError(f"{where}: label {value!r} is not a number.")
    return number


def _split(value: Any) -> list[Any]:
    """The labels of a row with several: a list, or names separated by commas."""
    if isinstance(value, list | tuple):
        return list(value)
    return [name.strip() for name in str(value).split(SEPARATOR) if name.strip()]
