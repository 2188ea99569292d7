"""Minimal pairs and cloze probes that a run is evaluated on (`pretrain --evaluate-with`)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bert_pipeline.config import flag
from bert_pipeline.errors import UsageError
from bert_pipeline.pretraining.sampler import choose_rows
from bert_pipeline.pretraining.zero_shot.cloze import Cloze, measure_cloze
from bert_pipeline.pretraining.zero_shot.masked_lm import MaskedLM
from bert_pipeline.pretraining.zero_shot.minimal_pairs import (
    MinimalPairs,
    Pair,
    is_pair,
    measure_pairs,
    read_pairs,
)
from bert_pipeline.pretraining.zero_shot.probes import Probe, is_probe, read_probes
from bert_pipeline.pretraining.zero_shot.pseudo_likelihood import Pll
from bert_pipeline.pretraining.zero_shot.records import read_records

OPTION = flag("evaluate_with")
SAMPLE = 256
"""Pairs, or probes, of each file per evaluation during training; the final one uses all."""
MINIMAL_PAIRS = "minimal_pairs"
CLOZE = "cloze"
PLL: Pll = "original"


@dataclass(frozen=True, slots=True)
class ZeroShotFile:
    """The content of a file, and the name of its metrics."""

    name: str
    """`minimal_pairs` or `cloze`; with several files of the kind, and the name of the file."""
    items: Sequence[Pair] | Sequence[Probe]

    def measure(self, lm: MaskedLM, *, final: bool) -> Mapping[str, float]:
        """Metrics by name; all processes call this together and get the same."""
        count = len(self.items)
        chosen = [self.items[row] for row in choose_rows(count, count if final else SAMPLE)]
        pairs = [item for item in chosen if isinstance(item, Pair)]
        probes = [item for item in chosen if isinstance(item, Probe)]
        if pairs:
            return self._name_pairs(measure_pairs(lm, pairs, PLL))
        return self._name_cloze(measure_cloze(lm, probes))

    def _name_pairs(self, found: MinimalPairs) -> dict[str, float]:
        mean = found.mean_over_phenomena
        by_phenomenon = {} if mean is None else {f"{self.name}_phenomena": mean.value}
        return {self.name: found.accuracy.value} | by_phenomenon

    def _name_cloze(self, found: Cloze) -> dict[str, float]:
        return {
            f"{self.name}_top1": found.top1_accuracy.value,
            f"{self.name}_top5": found.top5_accuracy.value,
            f"{self.name}_reciprocal_rank": found.mean_reciprocal_rank.value,
            f"{self.name}_probability": found.probability.value,
        }


def read_zero_shot_files(paths: Sequence[str]) -> list[ZeroShotFile]:
    """The files of --evaluate-with, of the kind that their fields tell.

    Raises `BertpipeError` for a file that cannot be read, or has a wrong row.
    """
    kinds = [_find_kind(Path(path)) for path in paths]
    counts = Counter(kinds)
    found: dict[str, ZeroShotFile] = {}
    for given, kind in zip(paths, kinds, strict=True):
        path = Path(given)
        name = kind if counts[kind] == 1 else f"{kind}_{path.name.partition('.')[0]}"
        if name in found:
            raise UsageError(f"{OPTION} {path}: another file has that name too. Rename one.")
        items = read_pairs(path) if kind == MINIMAL_PAIRS else read_probes(path)
        found[name] = ZeroShotFile(name, items)
    return list(found.values())


def _find_kind(path: Path) -> str:
    row = next(read_records(path), None)
    if row is None:
        raise UsageError(f"{OPTION} {path}: has no rows.")
    if is_pair(row.values):
        return MINIMAL_PAIRS
    if is_probe(row.values):
        return CLOZE
    found = ", ".join(map(str, row.values)) or "none"
    raise UsageError(
        f"{OPTION} {row.where}: minimal pairs (sentence_good, sentence_bad) or cloze probes "
        f"(text, expect) were expected, found the fields {found}."
    )
