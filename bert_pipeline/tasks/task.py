"""What a task is: the interface of the classes in `registry.py`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from bert_pipeline.model.task_model import TaskBatch
from bert_pipeline.ragged import Array, Int64Array
from bert_pipeline.tasks.encoded import Examples
from bert_pipeline.tasks.read_rows import Row


class Task(Protocol):
    """One kind of prediction from texts."""

    auto_class: str
    """The auto class of transformers whose models have the head."""

    @property
    def metric(self) -> str:
        """The metric that selects the best epoch; more is better."""

    def encode(self, rows: Iterable[Row]) -> Examples:
        """Encode rows, with their labels where the rows have some.

        Raises `BertpipeError` naming the place of a row that is broken or has a wrong label.
        """

    def loss(self, scores: Tensor, batch: TaskBatch) -> Tensor:
        """The summed loss of a batch; its mean is the sum divided by `weight_of` the batch."""

    def weight_of(self, batch: TaskBatch) -> float:
        """The number of labels of a batch, or the sum of their weights."""

    def decode(self, scores: Array, examples: Examples) -> Sequence[Any]:
        """The prediction for each example from the scores of all its rows or tokens."""

    def measure(self, predictions: Sequence[Any], examples: Examples) -> Mapping[str, float]:
        """Metrics of predictions for labelled examples."""

    def groups(self, examples: Examples) -> Int64Array:
        """Of each example the number of its group, from 0, which is held out as a whole."""

    def config_fields(self) -> Mapping[str, Any]:
        """Fields of the model's config, such as the names of the labels."""

    def describe(self, examples: Examples) -> str:
        """The labels of some examples and their numbers, as text."""
