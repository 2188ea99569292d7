"""Which columns of a table are text and label: as given, or guessed by their names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bert_pipeline.errors import BertpipeError

LABELS = (
    *("label", "labels", "gold_label", "class", "category", "target", "sentiment", "intent"),
    *("score", "similarity", "rating", "stars", "y"),
)
PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")),
    *(("question", "sentence"), ("query", "passage"), ("query", "document")),
    *(("text1", "text2"), ("text_a", "text_b"), ("text", "text_pair"), ("anchor", "positive")),
)
TEXTS = ("sentence", "text", "content", "review", "comment", "tweet", "body", "document", "title")
"""Usual names of columns, of which the first that a table has is taken."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns of a table."""

    texts: tuple[str, ...]
    """One, or two for pairs of texts."""
    label: str | None
    """None for a table to predict."""

    def describe(self) -> str:
        """The columns as text: `sentence → label`."""
        texts = " + ".join(self.texts)
        return texts if self.label is None else f"{texts} → {self.label}"


def choose_columns(
    row: Mapping[str, Any],
    where: str,
    texts: Sequence[str] = (),
    label: str | None = None,
    *,
    needs_label: bool = True,
) -> Columns:
    """The columns of a table from its first row; `texts` and `label` are the names given.

    Raises `BertpipeError`, with the columns that there are, if some are missing.
    """
    present = list(row)
    for name in (*texts, *([label] if label else [])):
        if name not in row:
            raise BertpipeError(f"{where}: has no column {name!r}; it has {', '.join(present)}.")
    found = label or next((name for name in LABELS if name in row), None)
    if needs_label and found is None:
        raise BertpipeError(
            f"{where}: which column is the label? Give --label-field; it has {', '.join(present)}."
        )
    chosen = tuple(texts) or _guess_texts(row, found)
    if not chosen:
        raise BertpipeError(
            f"{where}: which column is the text? Give --text-field; it has {', '.join(present)}."
        )
    return Columns(chosen, found)


def _guess_texts(row: Mapping[str, Any], label: str | None) -> tuple[str, ...]:
    for pair in PAIRS:
        if all(name in row and name != label for name in pair):
            return pair
    named = next((name for name in TEXTS if name in row and name != label), None)
    if named is not None:
        return (named,)
    strings = [name for name, value in row.items() if isinstance(value, str) and name != label]
    return tuple(strings) if len(strings) == 1 else ()
