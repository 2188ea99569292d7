"""Rows of files, and documents from them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bert_pipeline.corpus.documents import Document
from bert_pipeline.corpus.languages import normalize_language
from bert_pipeline.corpus.sources.error_policy import ErrorPolicy


@dataclass(frozen=True, slots=True)
class Row:
    """What a source has at one place of a file: a document, or a value that is not text."""

    place: str
    """The place in the file, for the id."""
    text: object
    language: object = None
    """The value of `--language-field`."""


def number_rows(texts: Iterable[object]) -> Iterator[Row]:
    """Rows whose places are their numbers, from 0."""
    return (Row(str(number), text) for number, text in enumerate(texts))


def make_documents(
    rows: Iterable[Row], name: str, source: str, policy: ErrorPolicy, counts: Counter[str]
) -> Iterator[Document]:
    """The rows of a file that have text; ids are `NAME#PLACE`. Counts the others as skipped."""
    for row in rows:
        if not isinstance(row.text, str):
            counts["skipped_no_text"] += 1
        elif not row.text or row.text.isspace():
            counts["skipped_empty"] += 1
        elif (language := _read_language(row, name, policy, counts)) is not None:
            yield Document(f"{name}#{row.place}", row.text, source, language)


def _read_language(row: Row, name: str, policy: ErrorPolicy, counts: Counter[str]) -> str | None:
    """The language that the row names, empty when it names none; None when it is unknown."""
    if row.language in (None, ""):
        return ""
    try:
        return normalize_language(str(row.language))
    except ValueError as error:
        problem = f"{name}, row {row.place}: {row.language!r} is {error}"
        policy.handle(problem, "unknown_language", counts)
        return None
