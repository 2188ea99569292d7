"""`multiple-choice`: which of several continuations or answers fits (SWAG).

Devlin et al. 2019, section 4.4 (https://arxiv.org/abs/1810.04805).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from bert_pipeline.errors import BertpipeError
from bert_pipeline.model.task_model import TaskBatch
from bert_pipeline.ragged import Array, Int64Array, offsets_of
from bert_pipeline.tasks.encoded import Examples, Ragged, encode_texts
from bert_pipeline.tasks.labels import label_name
from bert_pipeline.tasks.losses import grouped_log_softmax
from bert_pipeline.tasks.read_rows import Row

CONTEXTS = ("sent1", "context", "premise", "article", "passage", "question", "text")
STARTS = ("sent2", "question", "startphrase")
"""What comes before each choice."""
LABELS = ("label", "answer", "gold", "answer_idx")
NUMBERED = re.compile(r"(ending|choice|option|answer|sol)_?(\d+)")
CHOICES = ("choices", "endings", "options")


@dataclass(frozen=True, slots=True)
class Choice:
    """The most probable choice, and the probabilities of all."""

    choice: int
    scores: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """The number of the choice from 0, its probability, and those of all choices."""
        return {
            "choice": self.choice,
            "score": self.scores[self.choice],
            "scores": list(self.scores),
        }


@dataclass(frozen=True)
class MultipleChoice:
    """Choice among several texts."""

    tokenizer: Any
    max_length: int
    context: str
    label: str | None
    auto_class = "AutoModelForMultipleChoice"
    metric = "accuracy"

    @classmethod
    def from_rows(cls, rows: Sequence[Row], tokenizer: Any, max_length: int, options: Any) -> Self:
        """The task that training rows set."""
        return cls(tokenizer, max_length, *_choose_fields(rows[0], options, needs_label=True))

    @classmethod
    def from_model(
        cls, config: Any, tokenizer: Any, max_length: int, first: Row, options: Any
    ) -> Self:
        """The task of a fine-tuned model."""
        context, _ = _choose_fields(first, options, needs_label=False)
        return cls(tokenizer, max_length, context, None)

    def encode(self, rows: Iterable[Row]) -> Examples:
        """Encode context and choice as pairs: a row for each choice."""
        rows = list(rows)
        firsts: list[str] = []
        seconds: list[str] = []
        counts = []
        labels = []
        has_labels = self.label is not None and all(
            row.values.get(self.label) is not None for row in rows
        )
        for row in rows:
            choices = _choices_of(row)
            start = next(
                (name for name in STARTS if name in row.values and name != self.context), None
            )
            before = f"{row.values[start]} ".lstrip() if start else ""
            firsts += [str(row.values.get(self.context) or "")] * len(choices)
            seconds += [before + choice for choice in choices]
            counts.append(len(choices))
            if has_labels:
                labels.append(_number_of(row, str(self.label), len(choices)))
        encoded = encode_texts(self.tokenizer, firsts, seconds, self.max_length)
        return Examples(
            tokens=Ragged.from_lists(encoded["input_ids"], np.int32),
            segment_ids=Ragged.from_lists(encoded["token_type_ids"], np.int8),
            first_rows=offsets_of(np.array(counts, np.int64)),
            labels=np.array(labels, np.int64),
            where=[row.where for row in rows],
        )

    def loss(self, scores: Tensor, batch: TaskBatch) -> Tensor:
        """Cross-entropy over the choices of each example."""
        shares = grouped_log_softmax(scores, batch.choices)[:, 0]
        chosen = batch.choices[:-1] + batch.labels
        return -shares[chosen].sum()

    def weight_of(self, batch: TaskBatch) -> float:
        """The number of examples."""
        return float(len(batch.labels))

    def decode(self, scores: Array, examples: Examples) -> list[Choice]:
        """The most probable choices."""
        offsets = torch.from_numpy(examples.first_rows)
        shares = grouped_log_softmax(torch.from_numpy(scores), offsets)[:, 0].exp()
        groups = torch.split(shares, offsets.diff().tolist())
        return [Choice(int(group.argmax()), tuple(group.tolist())) for group in groups]

    def measure(self, predictions: Sequence[Choice], examples: Examples) -> dict[str, float]:
        """Accuracy, and that of chance."""
        right = [
            prediction.choice == label
            for prediction, label in zip(predictions, examples.labels.tolist(), strict=True)
        ]
        chance = float(np.mean(1 / np.diff(examples.first_rows)))
        return {"accuracy": float(np.mean(right)), "chance": chance}

    def groups(self, examples: Examples) -> Int64Array:
        """Each example is a group."""
        return np.arange(len(examples))

    def config_fields(self) -> Mapping[str, Any]:
        """None: the head has one output."""
        return {}

    def describe(self, examples: Examples) -> str:
        """The number of choices."""
        counts = np.diff(examples.first_rows)
        return f"{counts.min()} to {counts.max()} choices"


def _choose_fields(row: Row, options: Any, *, needs_label: bool) -> tuple[str, str | None]:
    present = list(row.values)
    given = tuple(options.text_field)[:1]
    context = next((name for name in given or CONTEXTS if name in present), None)
    wanted = (options.label_field,) if options.label_field else LABELS
    label = next((name for name in wanted if name in present), None)
    if context is None or (needs_label and label is None):
        missing = "context (--text-field)" if context is None else "right choice (--label-field)"
        raise BertpipeError(
            f"{row.where}: which column has the {missing}? It has {', '.join(present)}."
        )
    return context, label


def _choices_of(row: Row) -> list[str]:
    """A list, or numbered columns such as `ending0`, `ending1`, …"""
    listed = next((row.values[name] for name in CHOICES if name in row.values), None)
    if isinstance(listed, Mapping):  # as in data sets with the texts and names of choices
        listed = listed.get("text")
    if listed is None:
        matches = {name: NUMBERED.fullmatch(name) for name in row.values}
        numbered = sorted((int(match[2]), name) for name, match in matches.items() if match)
        listed = [row.values[name] for _, name in numbered if row.values[name] is not None]
    choices = [str(choice) for choice in listed] if isinstance(listed, list | tuple) else []
    if len(choices) < 2:
        raise BertpipeError(
            f"{row.where}: two choices or more were expected, in columns ending0, ending1, … or a "
            f"list `choices`; it has {', '.join(row.values)}."
        )
    return choices


def _number_of(row: Row, column: str, choices: int) -> int:
    """The number of the right choice, from 0; also as a letter from A on."""
    name = label_name(row.values[column])
    if len(name) == 1 and "A" <= name.upper() <= "Z":
        number = ord(name.upper()) - ord("A")
    else:
        number = int(name) if name.isdecimal() else -1
    if not 0 <= number < choices:
        raise BertpipeError(f"{row.where}: label {name!r} is not a number below {choices}.")
    return number
