"""The texts that `--input` names: lines or rows of a file, or lines of standard input."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from bert_pipeline.corpus.sources.delimited import DELIMITERS, read_delimited
from bert_pipeline.corpus.sources.encodings import decode_text, split_lines
from bert_pipeline.corpus.sources.error_policy import ErrorPolicy
from bert_pipeline.corpus.sources.files import (
    CHUNK_BYTES,
    COMPRESSIONS,
    handle_broken_file,
    read_text,
)
from bert_pipeline.corpus.sources.guess_encoding import find_codec
from bert_pipeline.corpus.sources.json_lines import read_json_lines
from bert_pipeline.corpus.sources.parquet import read_parquet
from bert_pipeline.corpus.sources.rows import Row, number_rows
from bert_pipeline.errors import BertpipeError, UsageError

STANDARD_INPUT = Path("-")
JSON_LINES = ("jsonl", "ndjson")
PARQUET = "parquet"
LINES = "lines"


class InputTexts:
    """The texts of an input, one at a time, and what was wrong with it."""

    def __init__(
        self,
        path: Path,
        *,
        text_field: str | None = None,
        encoding: str | None = None,
        on_error: str = "fail",
    ) -> None:
        """The format is that of the name. Raises an error if there is no such file."""
        self.name = "standard input" if path == STANDARD_INPUT else str(path)
        self.counts: Counter[str] = Counter()
        self._path = path
        self._format = _find_format(path)
        if text_field is not None and self._format == LINES:
            raise UsageError(
                f"--text-field {text_field}: {self.name} has lines of text, no fields. Only files "
                "that end in .jsonl, .csv, .tsv or .parquet have some."
            )
        if path != STANDARD_INPUT and not path.exists():
            raise BertpipeError(f"{path}: no such file.")
        if path.is_dir():
            raise BertpipeError(f"{path}: is a folder. Give a file, or - for standard input.")
        advice = "Fix it, or skip broken rows with --on-error skip."
        if self._format == LINES:
            advice, on_error = "Give a file with one text per line.", "fail"
        self._policy = ErrorPolicy(text_field, None, _check_encoding(encoding), on_error, advice)

    @property
    def skipped(self) -> int:
        """Rows that were broken, or had no text."""
        return sum(count for name, count in self.counts.items() if name.startswith("skipped_"))

    def texts(self) -> Iterator[str]:
        """The texts in order; blank lines are blank texts."""
        return (text for _, text in self.rows())

    def rows(self) -> Iterator[tuple[int, str]]:
        """Each text after its row number, which counts from 0 and without a header."""
        with handle_broken_file(self._path, self._policy, self.counts):
            for row in self._read():
                if isinstance(row.text, str):
                    yield int(row.place), row.text
                else:
                    problem = f"{self.name}, row {int(row.place) + 1}: has no text."
                    self._policy.handle(problem, "no_text", self.counts)

    def _read(self) -> Iterator[Row]:
        if self._format == PARQUET:
            return read_parquet(self._path, self._policy, self.counts)
        lines = split_lines(self._pieces())
        if self._format in JSON_LINES:
            return read_json_lines(lines, self.name, self._policy, self.counts)
        if self._format in DELIMITERS:
            return read_delimited(lines, self._format, self.name, self._policy, self.counts)
        return number_rows(self._whole_lines(lines))

    def _pieces(self) -> Iterator[str]:
        if self._path.is_file():
            return read_text(self._path, self._policy, self.counts)
        return decode_text(self._read_stream(), self.name, self._policy, self.counts)

    def _read_stream(self) -> Iterator[bytes]:
        """What comes through a pipe, in chunks as they come."""
        is_standard = self._path == STANDARD_INPUT
        descriptor = sys.stdin.fileno() if is_standard else self._path
        with open(descriptor, "rb", closefd=not is_standard) as stream:
            yield from iter(lambda: stream.read1(CHUNK_BYTES), b"")

    def _whole_lines(self, lines: Iterable[str]) -> Iterator[str]:
        """The lines without what follows the last line end, if that is empty."""
        held: str | None = None
        for number, line in enumerate(lines):
            if held is not None:
                yield held
            self._policy.is_too_long(line, f"{self.name}, line {number + 1}", self.counts)
            held = line
        if held:
            yield held


def _find_format(path: Path) -> str:
    """The format by the suffix of a file, apart from that of a compression."""
    compressed = {suffix for suffixes, _ in COMPRESSIONS.values() for suffix in suffixes}
    name = path.name.lower()
    name = next((name.removesuffix(end) for end in compressed if name.endswith(end)), name)
    suffix = Path(name).suffix.removeprefix(".")
    return suffix if suffix in (*JSON_LINES, *DELIMITERS, PARQUET) else LINES


def _check_encoding(name: str | None) -> str | None:
    try:
        return name and find_codec(name)
    except ValueError as error:
        raise UsageError(f"--encoding {name}: {error}") from None
