"""Minimal pairs, as in BLiMP: does a model find the grammatical sentence of two more likely?

BLiMP: Warstadt et al. 2020, https://arxiv.org/abs/1912.00582. MultiBLiMP: Jumelet et al. 2025,
https://arxiv.org/abs/2504.02768.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.pretraining.zero_shot.intervals import Estimate
from bert_pipeline.pretraining.zero_shot.masked_lm import MaskedLM
from bert_pipeline.pretraining.zero_shot.pseudo_likelihood import (
    Pll,
    encode_sentences,
    score_sentences,
)
from bert_pipeline.pretraining.zero_shot.records import read_records
from bert_pipeline.progress import print_table
from bert_pipeline.tasks.read_rows import Row
from bert_pipeline.tokenizer.encode import SentenceEncoder

CHANCE = 0.5
SENTENCES = (
    ("sentence_good", "sentence_bad"),
    ("sen", "wrong_sen"),
    ("good", "bad"),
    ("grammatical", "ungrammatical"),
    ("acceptable", "unacceptable"),
    ("correct", "incorrect"),
)
"""Columns of the right and the wrong sentence: of BLiMP, of MultiBLiMP, and other usual ones."""
GROUPS = {
    "phenomenon": ("UID", "phenomenon"),
    "linguistics_term": ("linguistics_term",),
    "field": ("field",),
    "lang": ("lang", "language"),
}
"""By what accuracies are grouped, and the names of its column."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sentences of which the first is right."""

    good: str
    bad: str
    groups: Mapping[str, str]
    """Of `GROUPS`, those that the file has."""
    columns: tuple[str, str]
    """The names of the two sentences in the file."""
    where: str


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The share of pairs whose right sentence has the higher score."""

    accuracy: Estimate
    pairs: int
    ties: int
    """Pairs with equal scores, which count as wrong."""


@dataclass(frozen=True, slots=True)
class MinimalPairs:
    """Accuracies over all pairs and by group."""

    accuracy: Estimate
    pairs: int
    ties: int
    mean_over_phenomena: Estimate | None
    """The mean of their accuracies, as in the tables of papers; None without phenomena."""
    groups: Mapping[str, Mapping[str, Accuracy]]
    """By `phenomenon`, `linguistics_term`, `field` and `lang`, those that the file has."""
    columns: tuple[str, str]
    """The names of the right and the wrong sentence in the file."""
    pll: Pll
    chance: float = field(default=CHANCE)

    def describe(self) -> list[tuple[str, str]]:
        """The metrics as lines for people."""
        right, wrong = self.columns
        lines = [("accuracy", f"{self.accuracy.describe()}, chance {self.chance:.0%}")]
        if (mean := self.mean_over_phenomena) is not None:
            count = len(self.groups["phenomenon"])
            lines.append(("mean of phenomena", f"{mean.describe()}, {count} phenomena"))
        if self.ties:
            lines.append(("ties", f"{self.ties:,} pairs with equal scores, which count as wrong"))
        return [*lines, ("measured on", f"{self.pairs:,} pairs ({right}, {wrong})")]

    def print_groups(self, *, quiet: bool = False) -> None:
        """Print a table of each grouping."""
        for group, accuracies in self.groups.items():
            rows = [
                [
                    name,
                    f"{each.accuracy.value:.1%}",
                    f"{each.accuracy.low:.1%} to {each.accuracy.high:.1%}",
                    f"{each.pairs:,}",
                ]
                for name, each in accuracies.items()
            ]
            heading = f"Accuracy by {group}, chance {self.chance:.0%}"
            print_table(heading, [group, "accuracy", "95% interval", "pairs"], rows, quiet=quiet)


def is_pair(fields: Mapping[str, object]) -> bool:
    """Whether a row has the columns of a minimal pair."""
    return any(set(names) <= fields.keys() for names in SENTENCES)


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file or folder.

    Raises `UsageError` if it lacks the columns, and `BertpipeError` for a broken row.
    """
    pairs = [_parse(row) for row in read_records(path)]
    if not pairs:
        raise BertpipeError(f"{path}: has no pairs.")
    return pairs


def _parse(row: Row) -> Pair:
    fields = row.values
    names = next((names for names in SENTENCES if set(names) <= fields.keys()), None)
    if names is None:
        expected = " or ".join(" and ".join(names) for names in SENTENCES[:2])
        found = ", ".join(map(str, fields)) or "none"
        raise UsageError(f"{row.where}: columns {expected} were expected, found {found}.")
    sentences = [fields[name] for name in names]
    for name, sentence in zip(names, sentences, strict=True):
        if not isinstance(sentence, str) or not sentence.strip():
            raise BertpipeError(f"{row.where}: {name} must be a sentence.")
    groups = {
        group: str(fields[column])
        for group, columns in GROUPS.items()
        if (column := next((name for name in columns if fields.get(name)), None)) is not None
    }
    good, bad = (" ".join(sentence.split()) for sentence in sentences)
    return Pair(good, bad, groups, names, row.where)


def evaluate_minimal_pairs(
    model: Path, path: Path, pll: Pll, *, quiet: bool = False
) -> MinimalPairs:
    """Evaluate a model folder on a file or folder of minimal pairs."""
    pairs = read_pairs(path)
    lm = MaskedLM.load(model)
    return measure_pairs(lm, pairs, pll, quiet=quiet)


def measure_pairs(
    lm: MaskedLM, pairs: Sequence[Pair], pll: Pll, *, quiet: bool = True
) -> MinimalPairs:
    """Accuracies of a model on pairs, by the pseudo-log-likelihood of their sentences."""
    encoder = SentenceEncoder(lm.tokenizer, with_word_starts=True)
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    sentences = encode_sentences(encoder, texts)
    for number, sentence in enumerate(sentences):
        if not len(sentence.ids):
            raise BertpipeError(f"{pairs[number // 2].where}: a sentence has no token.")
    scores = score_sentences(lm, sentences, pll, quiet=quiet)
    good, bad = scores.reshape(-1, 2).T
    return _summarize(pairs, (good > bad).tolist(), (good == bad).tolist(), pll)


def _summarize(
    pairs: Sequence[Pair], right: Sequence[bool], ties: Sequence[bool], pll: Pll
) -> MinimalPairs:
    members: dict[str, dict[str, list[int]]] = {}
    for number, pair in enumerate(pairs):
        for group, name in pair.groups.items():
            members.setdefault(group, {}).setdefault(name, []).append(number)

    def of(numbers: Sequence[int]) -> Accuracy:
        count = sum(right[number] for number in numbers)
        share = Estimate.of_share(count, len(numbers))
        return Accuracy(share, len(numbers), sum(ties[number] for number in numbers))

    total = of(range(len(pairs)))
    by_name = members.get("phenomenon", {}).values()
    shares = [(sum(right[number] for number in own), len(own)) for own in by_name]
    return MinimalPairs(
        accuracy=total.accuracy,
        pairs=total.pairs,
        ties=total.ties,
        mean_over_phenomena=Estimate.of_mean_share(shares) if shares else None,
        groups={
            group: {name: of(numbers) for name, numbers in sorted(members[group].items())}
            for group in GROUPS
            if group in members
        },
        columns=pairs[0].columns,
        pll=pll,
    )
