"""Cleans one document with the steps of `--clean`, except deduplication."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from bert_pipeline.corpus.cleaning.registry import CLEANING_STEPS

EXCERPT_CHARS = 80

_MAX_ROUNDS = 20
"""Limit of the repetitions of the editing steps. Two are usual; only nested markup needs more."""

Edit = Callable[[str], str]
"""Returns the edited text."""
Filter = Callable[[str], tuple[str, str | None]]
"""Returns the text, possibly edited, and the reason to remove the document or None."""


@dataclass(frozen=True, slots=True)
class Change:
    """An edit of a text by one step: the complete text before and after."""

    step: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A cleaned document."""

    text: str
    removed: str | None
    """The reason to remove the document, or None."""
    changes: tuple[Change, ...]
    """The first change by each step."""


class Cleaner:
    """Some cleaning steps, loaded once for any number of documents."""

    def __init__(self, steps: Sequence[str], language: str) -> None:
        """Load the steps; deduplication is ignored.

        Raises `UsageError` when a filter does not support the language.
        """
        self._edits: list[tuple[str, Edit]] = []
        self._filters: list[tuple[str, Filter]] = []
        for step in CLEANING_STEPS.values():
            if step.name in steps and step.action == "edit":
                base = language.partition("-")[0]
                self._edits.append((step.name, _load(step.functions.get(base, step.function))))
            elif step.name in steps and step.action == "filter":
                self._filters.append((step.name, _load(step.function)(language)))

    def clean(self, text: str) -> Cleaned:
        """Run the steps in order; the result can always be encoded as UTF-8.

        The editing steps are repeated until the text no longer changes, because the result of one
        step may need another: an HTML entity may decode to mojibake, and letters compose (NFC)
        after a control character between them is removed.
        """
        changes: dict[str, Change] = {}

        def record(step: str, before: str, after: str) -> str:
            if after != before:
                changes.setdefault(step, Change(step, before, after))
            return after

        text = record("surrogates", text, join_surrogates(text))
        for _ in range(_MAX_ROUNDS):
            start = text
            for step, edit in self._edits:
                text = record(step, text, edit(text))
            if text == start:
                break
        removed = None if text.strip() else "empty"
        for step, apply_filter in self._filters:
            if removed is None:
                after, removed = apply_filter(text)
                text = record(step, text, after)
        return Cleaned(text, removed, tuple(changes.values()))


def _load(function: str) -> Any:
    module, _, name = function.partition(":")
    return getattr(import_module(f"bert_pipeline.corpus.cleaning.{module}"), name)


def excerpt(before: str, after: str) -> tuple[str, str]:
    """The parts of two texts around their first difference, `EXCERPT_CHARS` long."""
    shared = min(len(before), len(after))
    first = next((at for at in range(shared) if before[at] != after[at]), shared)
    start = max(0, first - EXCERPT_CHARS // 4)
    return before[start : start + EXCERPT_CHARS], after[start : start + EXCERPT_CHARS]


def join_surrogates(text: str) -> str:
    """Join surrogate pairs that JSON escaped as two characters; lone surrogates become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
