"""Cloze probes: texts with one mask, and the words that a good model ranks first there."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.predict.load import MASK
from bert_pipeline.pretraining.zero_shot.records import read_records
from bert_pipeline.tasks.read_rows import Row

FIELDS = ("text", "expect")


@dataclass(frozen=True, slots=True)
class Probe:
    """A text with one `[MASK]`, and the words any of which is right."""

    text: str
    expect: tuple[str, ...]
    where: str


def is_probe(fields: Mapping[str, object]) -> bool:
    """Whether a row has the fields of a probe."""
    return set(FIELDS) <= fields.keys()


def read_probes(path: Path) -> list[Probe]:
    """The probes of a file, or of the `probes:` of a recipe.

    Raises `UsageError` naming the first wrong row.
    """
    probes = [parse_probe(row) for row in read_records(path)]
    if not probes:
        raise BertpipeError(f"{path}: has no probes.")
    return probes


def parse_probe(row: Row) -> Probe:
    """The probe in a row."""
    fields, where = row.values, row.where
    if not is_probe(fields):
        found = ", ".join(map(str, fields)) or "none"
        raise UsageError(f"{where}: the fields text and expect were expected, found {found}.")
    text, expect = (fields[name] for name in FIELDS)
    words = expect if isinstance(expect, list) else [expect]
    if not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise UsageError(f"{where}: expect must be a word or a list of words.")
    if not isinstance(text, str) or text.count(MASK) != 1:
        raise UsageError(f"{where}: {text!r} must be a text with one {MASK}.")
    return Probe(text, tuple(word.strip() for word in words), where)
