"""Statistics of a corpus: documents read, changed and removed per cleaning step, and written.

The statistics of each part are stored in its footer and added in order, so that the result is the
same for any number of workers. Samples are the first three of each step or reason.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

SAMPLES = 3
SAMPLE_CHARS = 80


class CorpusStats:
    """Counts of documents and bytes, with samples."""

    def __init__(self) -> None:
        self.source: Counter[str] = Counter()
        """Rows and files that the source skipped or replaced, by reason."""
        self.read: Counter[str] = Counter(documents=0, bytes=0)
        self.written: Counter[str] = Counter(documents=0, bytes=0)
        self.languages: Counter[str] = Counter()
        self.changed: dict[str, dict[str, Any]] = {}
        self.removed: dict[str, dict[str, Any]] = {}

    def count_read(self, size: int) -> None:
        """Count a document of `size` bytes from the source."""
        self.read.update(documents=1, bytes=size)

    def count_written(self, size: int, language: str) -> None:
        """Count a document of `size` bytes in the corpus."""
        self.languages[language] += 1
        self.written.update(documents=1, bytes=size)

    def count_changed(self, step: str, sample: tuple[str, str] | None = None) -> None:
        """Count a document that a cleaning step changed."""
        _add(
            self.changed,
            step,
            1,
            0,
            [[_replace_surrogates(text) for text in sample]] if sample else [],
        )

    def count_removed(self, reason: str, size: int, sample: str) -> None:
        """Count a removed document of `size` bytes."""
        _add(self.removed, reason, 1, size, [shorten(sample)])

    def needs_sample(self, step: str) -> bool:
        """Whether there are fewer than `SAMPLES` samples of changes by this step."""
        return len(self.changed.get(step, {}).get("samples", ())) < SAMPLES

    def add(self, counts: dict[str, Any]) -> None:
        """Add the result of `to_json` of a part."""
        self.source.update(counts["source"])
        self.read.update(counts["read"])
        self.written.update(documents=counts["documents"], bytes=counts["bytes"])
        self.languages.update(counts["languages"])
        for table, added in ((self.changed, counts["changed"]), (self.removed, counts["removed"])):
            for name, line in added.items():
                _add(table, name, line["documents"], line["bytes"], line["samples"])

    def to_json(self) -> dict[str, Any]:
        """JSON values for the footer of a part; `documents` and `bytes` are those written."""
        return {
            **self.written,
            "languages": most_first(self.languages),
            "read": dict(self.read),
            "source": dict(sorted(self.source.items())),
            "changed": dict(sorted(self.changed.items())),
            "removed": dict(sorted(self.removed.items())),
        }


def most_first(counts: Mapping[str, int]) -> dict[str, int]:
    """The counts in descending order."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _add(
    table: dict[str, dict[str, Any]], name: str, documents: int, size: int, samples: Iterable[Any]
) -> None:
    line = table.setdefault(name, {"documents": 0, "bytes": 0, "samples": []})
    line["documents"] += documents
    line["bytes"] += size
    line["samples"] = [*line["samples"], *samples][:SAMPLES]


def shorten(text: str) -> str:
    """The beginning of a text on one line, at most `SAMPLE_CHARS` long."""
    line = " ".join(_replace_surrogates(text[: 4 * SAMPLE_CHARS]).split())
    return line if len(line) <= SAMPLE_CHARS else line[: SAMPLE_CHARS - 1] + "…"


def _replace_surrogates(text: str) -> str:
    """The text with lone surrogates replaced; samples are from before cleaning."""
    return text.encode("utf-8", "replace").decode()
