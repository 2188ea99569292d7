"""`token-classification`: a tag for each word, such as named entities.

The tag is predicted from the first sub-token of the word (Devlin et al. 2019, section 5.3,
https://arxiv.org/abs/1810.04805).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bert_pipeline.errors import BertpipeError
from bert_pipeline.model.task_model import TaskBatch
from bert_pipeline.ragged import Array, Int64Array
from bert_pipeline.tasks.encoded import Examples
from bert_pipeline.tasks.labels import Labels, describe_counts, label_name
from bert_pipeline.tasks.read_rows import Row, read_text
from bert_pipeline.tasks.words import encode_words

WORDS = ("tokens", "words", "text", "sentence")
TAGS = ("ner_tags", "tags", "labels", "pos_tags", "label")
OUTSIDE = "O"
DOCUMENT = "-DOCSTART-"
"""The first word of a line between documents in CoNLL 2003."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """The words of a text with their tags and the probabilities of these."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    scores: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Words, tags and probabilities, and the entities that the tags mark."""
        entities = [
            {
                "type": kind,
                "text": " ".join(self.words[first:end]),
                "first": first,
                "end": end,
                "score": sum(self.scores[first:end]) / (end - first),
            }
            for kind, first, end in find_entities(self.tags)
        ]
        return {
            "tokens": list(self.words),
            "tags": list(self.tags),
            "scores": list(self.scores),
            "entities": entities,
        }


@dataclass(frozen=True)
class TokenClassification:
    """Tagging of words."""

    tokenizer: Any
    max_length: int
    fields: tuple[str, str | None]
    """The columns of words and tags."""
    labels: Labels
    auto_class = "AutoModelForTokenClassification"

    @property
    def metric(self) -> str:
        """Entity F1 where the tags are those of entities, else accuracy."""
        return "f1" if self._has_entities else "accuracy"

    @property
    def _has_entities(self) -> bool:
        return any(name[:2] in ("B-", "I-") for name in self.labels.names)

    @classmethod
    def from_rows(cls, rows: Sequence[Row], tokenizer: Any, max_length: int, options: Any) -> Self:
        """The task that training rows set."""
        words, tags = _choose_fields(rows[0], options, needs_tags=True)
        assert tags is not None
        labels = Labels.from_values(tag for row in rows for tag in _tags_of(row, words, tags))
        if OUTSIDE in labels.names:
            # Names of entities by type, after "outside".
            rest = [name for name in labels.names if name != OUTSIDE]
            labels = Labels((OUTSIDE, *sorted(rest, key=lambda name: (name[2:], name))))
        return cls(tokenizer, max_length, (words, tags), labels)

    @classmethod
    def from_model(
        cls, config: Any, tokenizer: Any, max_length: int, first: Row, options: Any
    ) -> Self:
        """The task of a fine-tuned model."""
        words, _ = _choose_fields(first, options, needs_tags=False)
        return cls(tokenizer, max_length, (words, None), Labels.from_config(config))

    def encode(self, rows: Iterable[Row]) -> Examples:
        """Encode the words of rows, and their tags where all rows have some."""
        rows = list(rows)
        words, tags = self.fields
        texts = [_words_of(row, words) for row in rows]
        where = [row.where for row in rows]
        examples = encode_words(self.tokenizer, texts, self.max_length, where)
        if tags is None or any(row.values.get(tags) is None for row in rows):
            return examples
        labels = []
        extra = []
        for row, known in zip(rows, examples.extra, strict=True):
            names = _tags_of(row, words, tags)
            numbers = [self.labels.number_of(name, row.where) for name in names]
            labels += [numbers[word] for word in known.read_words]
            extra.append((known, tuple(names)))
        return replace(examples, labels=np.array(labels, np.int64), extra=extra)

    def loss(self, scores: Tensor, batch: TaskBatch) -> Tensor:
        """Cross-entropy of the words."""
        own = scores[batch.head_positions.others]
        return F.cross_entropy(own, batch.labels, reduction="sum")

    def weight_of(self, batch: TaskBatch) -> float:
        """The number of words."""
        return float(len(batch.labels))

    def decode(self, scores: Array, examples: Examples) -> list[Tagged]:
        """The tag of each word; words without a token are outside."""
        shares = torch.softmax(torch.from_numpy(scores), -1)
        best, number = shares.max(-1)
        found = iter(zip(best.tolist(), number.tolist(), strict=True))
        default = OUTSIDE if OUTSIDE in self.labels.names else self.labels.names[0]
        results = []
        for extra in examples.extra:
            words = extra[0] if isinstance(extra, tuple) else extra
            tags = [default] * len(words.words)
            probabilities = [0.0] * len(words.words)
            for word, (probability, tag) in zip(words.read_words, found, strict=False):
                tags[word] = self.labels.names[tag]
                probabilities[word] = probability
            results.append(Tagged(words.words, tuple(tags), tuple(probabilities)))
        return results

    def measure(self, predictions: Sequence[Tagged], examples: Examples) -> dict[str, float]:
        """Accuracy of words; precision, recall and F1 of entities, which must match exactly."""
        given = [list(tags) for _, tags in examples.extra]
        found = [list(prediction.tags) for prediction in predictions]
        pairs = [pair for row in zip(given, found, strict=True) for pair in zip(*row, strict=True)]
        accuracy = sum(a == b for a, b in pairs) / max(1, len(pairs))
        if not self._has_entities:
            return {"accuracy": accuracy}
        from nervaluate import Evaluator

        types = sorted({name[2:] for name in self.labels.names if name != OUTSIDE})
        strict = Evaluator(given, found, tags=types, loader="list").evaluate()["overall"]["strict"]
        return {
            "f1": float(strict.f1),
            "precision": float(strict.precision),
            "recall": float(strict.recall),
            "accuracy": accuracy,
        }

    def groups(self, examples: Examples) -> Int64Array:
        """Each example is a group."""
        return np.arange(len(examples))

    def config_fields(self) -> Mapping[str, Any]:
        """`id2label` and so on."""
        return self.labels.config_fields()

    def describe(self, examples: Examples) -> str:
        """How often each tag occurs."""
        return describe_counts(self.labels.names, examples.labels.tolist())


def find_entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Type, first word and end of each entity that BIO tags mark.

    `I-` after another type begins an entity too.
    """
    start = 0
    kind = ""
    for number, tag in enumerate((*tags, OUTSIDE)):
        prefix, _, own = tag.partition("-")
        continues = prefix == "I" and own == kind
        if kind and not continues:
            yield kind, start, number
            kind = ""
        if prefix in ("B", "I") and own and not continues:
            kind = own
            start = number


def read_conll(path: Path) -> Iterator[Row]:
    """Sentences of a CoNLL file: a word per line, its tag in the last column, blank lines between.

    Columns are separated by tabs or spaces. Lines that begin with `#` before a sentence's first
    word are comments where they have a single column.
    """
    words: list[str] = []
    tags: list[str] = []
    start = 1
    lines = read_text(path).split("\n")
    for number, line in enumerate(chain(lines, [""]), start=1):
        text = line.strip(" \t\r\n")
        if text and not (text.startswith(DOCUMENT) or (not words and text.startswith("# "))):
            columns = text.split("\t") if "\t" in text else text.split()
            if len(columns) < 2:
                yield Row(f"{path}, line {number}", problem="a word without a tag")
                continue
            start = start if words else number
            words.append(columns[0].strip() or "\N{REPLACEMENT CHARACTER}")
            tags.append(columns[-1].strip())
        elif words and not text:
            values = {WORDS[0]: words, TAGS[0]: tags}
            yield Row(f"{path}, line {start}", values)
            words = []
            tags = []


def _choose_fields(row: Row, options: Any, *, needs_tags: bool) -> tuple[str, str | None]:
    present = list(row.values)
    given = tuple(options.text_field)[:1]
    words = next((name for name in (*given, *WORDS) if name in present), None)
    wanted = (options.label_field,) if options.label_field else TAGS
    tags = next((name for name in wanted if name in present), None)
    if words is None or (needs_tags and tags is None):
        missing = "words (--text-field)" if words is None else "tags (--label-field)"
        raise BertpipeError(
            f"{row.where}: which column has the {missing}? It has {', '.join(present)}."
        )
    return words, tags


def _words_of(row: Row, column: str) -> list[str]:
    """The words of a list, or of a text at its spaces."""
    value = row.values.get(column)
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise BertpipeError(f"{row.where}: column {column!r} is not a list of words.")
    return list(value)


def _tags_of(row: Row, words: str, column: str) -> list[str]:
    value = row.values.get(column)
    if not isinstance(value, list | tuple):
        raise BertpipeError(f"{row.where}: column {column!r} is not a list of tags.")
    count = len(_words_of(row, words))
    if len(value) != count:
        raise BertpipeError(f"{row.where}: {len(value)} tags for {count} words.")
    return [label_name(tag) for tag in value]
