"""What a pretraining objective is: the record that the registry in `objectives.py` lists.

Planning is pure Python on sentence boundaries, so that the registry loads without numpy or torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

SentenceBounds = Sequence[int]
"""Where sentences begin in the ids, and where the last one ends."""

Pair = tuple[int, int, int, int, bool, int, int]
"""(a_start, a_stop, b_start, b_stop, label, wanted, document) of one sentence pair.

Segment A is ids `a_start:a_stop`, B is `b_start:b_stop`. Where `wanted` is above 0, B is drawn
later, from a document other than `document`, up to `wanted` tokens.
"""


@dataclass(slots=True)
class PackedSentences:
    """Examples without pairs: each is one or more runs of ids, with a separator after each run."""

    start: list[int] = field(default_factory=list)
    """First id of each run."""
    stop: list[int] = field(default_factory=list)
    """End of each run."""
    first_run: list[int] = field(default_factory=list)
    """The first run of each example."""


@dataclass(frozen=True, slots=True)
class DocumentBatch:
    """Documents to plan examples for, and the settings that planning depends on."""

    bounds: SentenceBounds
    documents: Sequence[tuple[int, int]]
    """Document i has sentences `documents[i][0]`..`documents[i][1] - 1` of `bounds`."""
    numbers: Sequence[int]
    """The number of each document in the corpus."""
    max_tokens: int
    """Most tokens in one example, without special tokens."""
    short_seq_prob: float
    across_documents: bool
    random: Random

    def draw_target(self) -> int:
        """Target length in tokens: `max_tokens`, or with `short_seq_prob` a random number >= 2."""
        return draw_target(self.max_tokens, self.short_seq_prob, self.random)


PlanDocument = Callable[[list[Pair], SentenceBounds, int, int, int, int, Random], None]
"""Appends the pairs of one document: (pairs, bounds, first, last, document, target, random)."""


def plan_pairs(plan_document: PlanDocument, batch: DocumentBatch) -> list[Pair]:
    """Plan the pairs of documents one by one, each with its own target length."""
    pairs: list[Pair] = []
    for number, (first, last) in zip(batch.numbers, batch.documents, strict=True):
        target = batch.draw_target()
        plan_document(pairs, batch.bounds, first, last, number, target, batch.random)
    return pairs


@dataclass(frozen=True, slots=True)
class Objective:
    """One pretraining objective; `examples/objectives.py` lists them all."""

    name: str
    """Value of `--objective`."""
    has_pairs: bool
    """Whether an example is a sentence pair with a label for the pair head."""
    plan: Callable[[DocumentBatch], "list[Pair] | PackedSentences"]
    """Plans the examples of some documents: pairs if `has_pairs`, else packed sentences."""
    min_documents: int = 1
    """Fewest documents that each split needs."""
    positive_label: str = ""
    """What the label True says of segments A and B."""
    negative_label: str = ""
    """What the label False says of segments A and B."""

    @property
    def special_tokens(self) -> int:
        """Special tokens in an example of one document: `[CLS]`, and `[SEP]` after each segment."""
        return 3 if self.has_pairs else 2

    def describe_label(self, label: bool) -> str:
        """What a pair's label means."""
        return self.positive_label if label else self.negative_label


def draw_target(max_tokens: int, short_seq_prob: float, random: Random) -> int:
    """Target length in tokens: `max_tokens`, or with `short_seq_prob` a random number >= 2.

    As in the BERT release:
    https://github.com/google-research/bert/blob/master/create_pretraining_data.py
    """
    return random.randint(2, max_tokens) if random.random() < short_seq_prob else max_tokens
