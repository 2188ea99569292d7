"""What `--task sentence-embedding` learns from: texts, or pairs of texts, perhaps with scores."""

import math
from dataclasses import dataclass
from typing import Any

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.finetuning.config import FinetuneConfig
from bert_pipeline.tasks.columns import Columns, choose_columns
from bert_pipeline.tasks.encoded import text_of
from bert_pipeline.tasks.read_rows import TEXT, Row, read_rows

MIN_TEXTS = 2
"""A text is compared with the others of its batch."""


@dataclass(frozen=True, slots=True)
class SentenceRows:
    """The columns of a table of texts."""

    texts: tuple[list[str], ...]
    """One column, or two for pairs."""
    scores: list[float] | None
    """The similarity of each pair; None where it is unknown."""

    def __len__(self) -> int:
        return len(self.texts[0])

    @property
    def are_pairs(self) -> bool:
        """Whether the texts are pairs."""
        return len(self.texts) == 2


def read_sentences(config: FinetuneConfig, source: str, split: str) -> SentenceRows:
    """All rows of a file or split, without blank lines of text files.

    Raises `BertpipeError` naming the place of a row that is broken.
    """
    rows = [
        row
        for row in read_rows(source, config.names_of_columns, split=split)
        if row.problem is not None or list(row.values) != [TEXT] or str(row.values[TEXT]).strip()
    ]
    for row in rows:
        if row.problem is not None:
            raise BertpipeError(f"{row.where}: {row.problem}.")
    if len(rows) < MIN_TEXTS:
        raise BertpipeError(f"{source}: has {len(rows)} rows; there is nothing to learn from.")
    columns = _choose_columns(rows[0], config)
    scores = None
    if columns.label is not None:
        scores = [_score_of(row, columns.label) for row in rows]
    return SentenceRows(
        tuple([text_of(row, name) for row in rows] for name in columns.texts), scores
    )


def read_scored_pairs(config: FinetuneConfig, source: str) -> SentenceRows:
    """Pairs with scores to validate on. Raises `BertpipeError` if there are none."""
    rows = read_sentences(config, source, "validation")
    if rows.scores is None:
        raise BertpipeError(
            f"{source}: validation of sentence embeddings needs pairs of texts with a score "
            "(--text-field twice, and --label-field)."
        )
    return rows


def _choose_columns(first: Row, config: FinetuneConfig) -> Columns:
    if len(config.text_field) > 2:
        raise UsageError("--text-field: give one column of texts, or two of pairs.")
    columns = choose_columns(
        first.values, first.where, config.text_field, config.label_field, needs_label=False
    )
    # Single texts have no use for a label that happens to be there.
    return columns if len(columns.texts) == 2 else Columns(columns.texts, None)


def _score_of(row: Row, column: str) -> float:
    value: Any = row.values.get(column)
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise BertpipeError(
            f"{row.where}: the score {value!r} in column {column!r} is no number. Pairs that "
            "belong together need no score: leave the column out."
        )
    return score
