"""Rows that hold a document's text in one of their fields, and what is done with those that do not."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.sources.plain_text import decode
from bert_pipeline.errors import BertpipeError

TEXT_FIELDS = ("text", "content")


@dataclass(frozen=True, slots=True)
class Policy:
    """Which field is the text, and whether what is broken ends the run; `advice` is what else to do about it."""

    text_field: str | None
    on_error: str
    advice: str

    @classmethod
    def of(cls, config: CorpusConfig, advice: str) -> "Policy":
        """The policy that the options ask for."""
        return cls(config.text_field, config.on_error, advice)

    def handle(self, problem: str, reason: str, counts: Counter[str]) -> None:
        """Fail with the problem, or count it as `skipped_<reason>`."""
        if self.on_error == "fail":
            raise BertpipeError(f"{problem} {self.advice}")
        counts[f"skipped_{reason}"] += 1

    def find_field(self, fields: Collection[str]) -> str | None:
        """The field that holds the text."""
        wanted = (self.text_field,) if self.text_field else TEXT_FIELDS
        return next((field for field in wanted if field in fields), None)

    def choose_field(self, fields: Collection[str], where: str) -> str:
        """The field that holds the text, or an error that lists those there are."""
        if (field := self.find_field(fields)) is None:
            raise BertpipeError(f"{where}: {self.no_field(fields)}")
        return field

    def no_field(self, fields: Collection[str]) -> str:
        """What is missing, and what there is."""
        wanted = self.text_field or " or ".join(TEXT_FIELDS)
        return f"no field {wanted}; it has: {', '.join(fields)}. Choose one with --text-field."


def read_json_lines(
    lines: Iterable[bytes], name: str, policy: Policy, counts: Counter[str]
) -> Iterator[tuple[int, Any]]:
    """Numbers of rows, from 0, and what their text field holds; blank lines are none."""
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        where = f"{name}, line {number + 1}"
        try:
            row = json.loads(decode(line.rstrip(b"\r\n"), counts))
            if not isinstance(row, dict):
                raise ValueError("a JSON object was expected")
        except (ValueError, RecursionError) as error:
            policy.handle(f"{where}: not a JSON object ({error}).", "not_json", counts)
            continue
        if (field := policy.find_field(row)) is None:
            policy.handle(f"{where}: {policy.no_field(row)}", "no_text_field", counts)
        else:
            yield number, row[field]
