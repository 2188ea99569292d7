"""The probability that one text follows another, by the head that pretraining trained.

Devlin et al. 2019, section 3.1, task 2 (https://arxiv.org/abs/1810.04805). After pretraining with
sentence order (sop) it is the probability that the two are in order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from bert_pipeline.errors import BertpipeError
from bert_pipeline.ragged import Array
from bert_pipeline.tasks.columns import Columns, choose_columns
from bert_pipeline.tasks.encoded import Examples, encode_rows
from bert_pipeline.tasks.read_rows import Row


@dataclass(frozen=True, slots=True)
class Following:
    """The probability that the second text follows the first."""

    follows: float

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        label = "follows" if self.follows >= 0.5 else "does not follow"
        return {"label": label, "score": self.follows}


@dataclass(frozen=True)
class NextSentence:
    """Prediction of pairs of texts; it is trained by `bertpipe pretrain`."""

    tokenizer: Any
    max_length: int
    columns: Columns
    auto_class = "AutoModelForNextSentencePrediction"

    @classmethod
    def from_model(
        cls, config: Any, tokenizer: Any, max_length: int, first: Row, options: Any
    ) -> Self:
        """The task of a pretrained model."""
        columns = choose_columns(first.values, first.where, options.text_field, needs_label=False)
        if len(columns.texts) != 2:
            raise BertpipeError(
                f"{first.where}: pairs of texts were expected; give --text-field twice. It has "
                f"{', '.join(first.values)}."
            )
        return cls(tokenizer, max_length, columns)

    def encode(self, rows: Iterable[Row]) -> Examples:
        """Encode pairs of texts."""
        return encode_rows(
            self.tokenizer, list(rows), self.columns.texts, self.max_length, np.empty(0)
        )

    def decode(self, scores: Array, examples: Examples) -> Sequence[Following]:
        """Class 0 is "B follows A"."""
        shares = torch.softmax(torch.from_numpy(scores), -1)[:, 0]
        return [Following(share) for share in shares.tolist()]
