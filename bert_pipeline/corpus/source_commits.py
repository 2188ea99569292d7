"""The commits of datasets on the Hub: an unfinished run goes on from those that it began with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from bert_pipeline.corpus.documents import Source
from bert_pipeline.storage.atomic import read_record

COMMITS = "commits.json"


@runtime_checkable
class Versioned(Protocol):
    """A source whose content has versions."""

    def record_version(self) -> dict[str, str | None]:
        """The version that is read, and what was asked for."""

    def resume_version(self, recorded: dict[str, str | None]) -> None:
        """Read the recorded version, if the same is asked for."""


def resume_commits(folder: Path, sources: Mapping[str, Source]) -> None:
    """Let the sources read the commits that an unfinished run recorded in `folder`, if any."""
    recorded = read_record(folder / COMMITS)
    for spec, source in sources.items():
        if spec in recorded and isinstance(source, Versioned):
            source.resume_version(recorded[spec])


def find_commits(sources: Mapping[str, Source]) -> dict[str, dict[str, str | None]]:
    """What a run that resumes needs to read the same commits."""
    return {
        spec: source.record_version()
        for spec, source in sources.items()
        if isinstance(source, Versioned)
    }
