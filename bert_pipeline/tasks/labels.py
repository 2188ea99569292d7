"""Names of labels: which there are, and their numbers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from bert_pipeline.errors import BertpipeError

SHOWN = 10
"""Names of labels in a message."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The names of labels in the order of their numbers."""

    names: tuple[str, ...]

    @classmethod
    def from_values(cls, values: Iterable[Any]) -> Self:
        """All labels that occur: numbers in their order, others by name."""
        found = {label_name(value) for value in values}
        are_numbers = all(name.lstrip("-").isdecimal() for name in found)
        return cls(tuple(sorted(found, key=int if are_numbers else None)))

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """The labels of a model."""
        return cls(tuple(str(config.id2label[number]) for number in range(config.num_labels)))

    def number_of(self, value: Any, where: str) -> int:
        """The number of a label. Raises `BertpipeError` if it is none of these."""
        name = label_name(value)
        if name in self.names:
            return self.names.index(name)
        shown = ", ".join(self.names[:SHOWN]) + (", …" if len(self.names) > SHOWN else "")
        raise BertpipeError(f"{where}: label {name!r} does not occur in training; labels: {shown}.")

    def config_fields(self) -> dict[str, Any]:
        """The fields of a model's config."""
        return {
            "num_labels": len(self.names),
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: number for number, name in enumerate(self.names)},
        }


def label_name(value: Any) -> str:
    """The name of a label of any type: `1` for 1, 1.0 and True."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def describe_counts(names: Sequence[str], numbers: Iterable[int]) -> str:
    """How often each label occurs: `0: 5,400, 1: 6,600`."""
    counts = Counter(numbers)
    shown = [f"{name}: {counts[number]:,}" for number, name in enumerate(names[:SHOWN])]
    return ", ".join(shown) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
