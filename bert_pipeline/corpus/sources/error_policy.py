"""How files are read: `--text-field`, `--language-field`, `--encoding` and `--on-error`."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.errors import BertpipeError

MAX_LINE_CHARS = 32_000_000
"""A longer line or row is broken data: a small compressed file can hold a very large one."""
TEXT_FIELDS = ("text", "content")
"""Field names that are tried when `--text-field` is not given."""


@dataclass(frozen=True, slots=True)
class ErrorPolicy:
    """Which fields hold text and language, the encoding, and whether broken data ends the run."""

    text_field: str | None
    language_field: str | None
    encoding: str | None
    """The encoding of files that are not UTF-8."""
    on_error: str
    advice: str
    """What to do about broken data, for the error message."""

    @classmethod
    def from_config(cls, config: CorpusConfig, advice: str) -> "ErrorPolicy":
        """The policy that the options set."""
        return cls(
            config.text_field, config.language_field, config.encoding, config.on_error, advice
        )

    def handle(self, problem: str, reason: str, counts: Counter[str]) -> None:
        """Raise `BertpipeError` (`--on-error fail`), or count `skipped_<reason>` (`skip`)."""
        if self.on_error == "fail":
            raise BertpipeError(f"{problem} {self.advice}")
        counts[f"skipped_{reason}"] += 1

    def is_too_long(self, text: object, where: str, counts: Counter[str]) -> bool:
        """Whether a line or a row is too long to be read; hands it to `handle`."""
        if not isinstance(text, str) or len(text) <= MAX_LINE_CHARS:
            return False
        self.handle(f"{where}: longer than {MAX_LINE_CHARS:,} characters.", "too_long", counts)
        return True

    def find_field(self, fields: Collection[str]) -> str | None:
        """The field that holds the text; None when there is none."""
        candidates = (self.text_field,) if self.text_field else TEXT_FIELDS
        return next((field for field in candidates if field in fields), None)

    def choose_field(self, fields: Collection[str], where: str) -> str:
        """The field that holds the text.

        Raises `BertpipeError` when there is none, or none for the language.
        """
        if problem := self.find_missing_field(fields):
            raise BertpipeError(f"{where}: {problem}")
        field = self.find_field(fields)
        assert field is not None
        return field

    def find_missing_field(self, fields: Collection[str]) -> str | None:
        """What to say about a field that does not exist; else None."""
        expected, option = None, ""
        if self.find_field(fields) is None:
            expected, option = self.text_field or " or ".join(TEXT_FIELDS), "--text-field"
        elif self.language_field and self.language_field not in fields:
            expected, option = self.language_field, "--language-field"
        if expected is None:
            return None
        return f"no field {expected}; fields: {', '.join(fields)}. Choose one with {option}."
