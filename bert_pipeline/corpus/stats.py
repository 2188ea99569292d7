"""The account of a corpus: what came in, what each cleaning step changed or removed, what went out.

A tally is kept for every part, written into its footer, and added up in order, so that the sum is the same for any
number of workers. Samples are for people: the first three of each reason.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bert_pipeline.progress import human_bytes, print_line, print_table

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
EDITING_STEPS = frozenset({"mojibake", "html", "unicode", "control", "whitespace"})
"""Steps that change documents and remove none."""
SAMPLES = 3
SAMPLE_CHARS = 80
EMPTY = "empty"


class CorpusStats:
    """Documents and bytes by what happened to them; `source` counts what the reader skipped or replaced."""

    def __init__(self) -> None:
        self.source: Counter[str] = Counter()
        self.read: Counter[str] = Counter(documents=0, bytes=0)
        self.written: Counter[str] = Counter(documents=0, bytes=0)
        self.changed: dict[str, dict[str, Any]] = {}
        self.removed: dict[str, dict[str, Any]] = {}

    def count_read(self, size: int) -> None:
        """A document of `size` bytes came from the source."""
        self.read.update(documents=1, bytes=size)

    def count_written(self, size: int) -> None:
        """A document of `size` bytes went to the corpus."""
        self.written.update(documents=1, bytes=size)

    def count_changed(self, step: str, sample: tuple[str, str] | None = None) -> None:
        """A cleaning step changed a document."""
        _add(self.changed, step, 1, 0, [[_writable(text) for text in sample]] if sample else [])

    def count_removed(self, reason: str, size: int, sample: str) -> None:
        """A document of `size` bytes was left out."""
        _add(self.removed, reason, 1, size, [shorten(sample)])

    def wants_sample(self, step: str) -> bool:
        """Whether a change by this step is still to be shown."""
        return len(self.changed.get(step, {}).get("samples", ())) < SAMPLES

    def add(self, counts: dict[str, Any]) -> None:
        """Add what `to_json` gave for a part."""
        self.source.update(counts["source"])
        self.read.update(counts["read"])
        self.written.update(documents=counts["documents"], bytes=counts["bytes"])
        for mine, theirs in ((self.changed, counts["changed"]), (self.removed, counts["removed"])):
            for name, line in theirs.items():
                _add(mine, name, line["documents"], line["bytes"], line["samples"])

    def to_json(self) -> dict[str, Any]:
        """Plain values for a shard's footer; `documents` and `bytes` are what was written."""
        return {
            **self.written,
            "read": dict(self.read),
            "source": dict(sorted(self.source.items())),
            "changed": dict(sorted(self.changed.items())),
            "removed": dict(sorted(self.removed.items())),
        }


def _add(
    table: dict[str, dict[str, Any]], name: str, documents: int, size: int, samples: Iterable[Any]
) -> None:
    line = table.setdefault(name, {"documents": 0, "bytes": 0, "samples": []})
    line["documents"] += documents
    line["bytes"] += size
    line["samples"] = [*line["samples"], *samples][:SAMPLES]


def shorten(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(_writable(text[: 4 * SAMPLE_CHARS]).split())
    return line if len(line) <= SAMPLE_CHARS else line[: SAMPLE_CHARS - 1] + "…"


def _writable(text: str) -> str:
    """Lone surrogates replaced: a sample shows a text as it came."""
    return text.encode("utf-8", "replace").decode()


def print_stats(
    counts: dict[str, Any], steps: Sequence[str], *, explain: bool, quiet: bool
) -> None:
    """The table of what came in and went out, with samples when `explain` is asked for."""
    read, changed, removed = counts["read"], counts["changed"], counts["removed"]
    rows = [["read", f"{read['documents']:,}", human_bytes(read["bytes"])]]
    for name, line in _in_order(changed, removed, steps):
        is_change = name in changed or (name in EDITING_STEPS and name not in removed)
        sign, size = ("  changed by ", "") if is_change else ("− ", human_bytes(line["bytes"]))
        rows.append([sign + name, f"{line['documents']:,}", size])
    rows.append(["written", f"{counts['documents']:,}", human_bytes(counts["bytes"])])
    print_table("Documents in and out", ["", "documents", "text"], rows, quiet=quiet)
    for name, line in _in_order(changed, removed, steps) if explain else ():
        for sample in line["samples"]:
            print_line(_describe(name, sample, name in removed), quiet=quiet)


def _in_order(
    changed: dict[str, Any], removed: dict[str, Any], steps: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines of the account in the order of the steps; a step that had nothing to do has a line of zeros."""
    left = dict(changed) | dict(removed)
    for step in [*(name for name in changed if name not in steps), *steps]:
        names = [
            name
            for name in left
            if name == step or name.startswith((f"{step}:", f"{step} duplicate"))
        ]
        for name in names:
            yield name, left.pop(name)
        if not names:
            yield step, {"documents": 0, "bytes": 0, "samples": []}
    yield from left.items()


def _describe(name: str, sample: str | list[str], is_removed: bool) -> str:
    # A document's control characters are not for the terminal to obey.
    shown = [
        _CONTROL.sub("·", text.replace("\n", " ⏎ "))
        for text in ([sample] if isinstance(sample, str) else sample)
    ]
    if len(shown) == 1:
        return f"− {name}\n  {shown[0]}"
    first, second = shown
    if is_removed:
        return f"− {name}\n  {first}\n  is like  {second}"
    return f"changed by {name}\n  from  {first}\n  to    {second}"
