"""A dataset on the Hugging Face Hub as a source: which files are read, at which commit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.documents import Task, shuffled
from bert_pipeline.corpus.sources.error_policy import ErrorPolicy
from bert_pipeline.corpus.sources.hub_files import HubFile, Repository
from bert_pipeline.corpus.sources.hub_rows import (
    COMPRESSION_SUFFIXES,
    READERS,
    HubFileReader,
    HubFilesTask,
    file_format,
)
from bert_pipeline.errors import BertpipeError
from bert_pipeline.hub.client import connect
from bert_pipeline.progress import print_line
from bert_pipeline.storage.atomic import hash_json

ADVICE = "Skip broken data with --on-error skip, or choose other files with --files."


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """The dataset that a `--source` value names."""

    repository: str
    config: str | None = None
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """The files that are read, at one commit."""

    repository: str
    commit: str
    config: str | None
    split: str | None
    files: tuple[HubFile, ...]


class HubSource:
    """Files of a dataset on the Hub. The Hub is asked which they are when first needed."""

    is_wikitext = False
    language = ""
    """That of all documents; empty when it is not known."""

    def __init__(self, spec: str, dataset: DatasetSpec, config: CorpusConfig) -> None:
        self.spec = spec
        self.dataset = dataset
        self.config = config
        self._revision = config.revision
        self._asked = {"repository": dataset.repository, "revision": config.revision}
        if dataset.language:
            self.language = dataset.language

    @cached_property
    def selection(self) -> Selection:
        """The files that are read. Raises `BertpipeError` when one has an unknown format."""
        config = self.config
        connect(config.max_wait, config.quiet)
        repository = Repository(
            self.dataset.repository, self._revision, config.max_wait, config.quiet
        )
        selection = self._select(repository)
        for file in selection.files:
            if not file_format(file.path):
                raise BertpipeError(
                    f"{repository.page}: {file.path} has an unknown format. Formats: "
                    f"{', '.join(READERS)}, also compressed ({', '.join(COMPRESSION_SUFFIXES)}). "
                    "Choose files with --files."
                )
        return selection

    def record_version(self) -> dict[str, str | None]:
        """The commit that is read, and the repository and revision that were asked for."""
        return self._asked | {"commit": self.selection.commit}

    def resume_version(self, recorded: dict[str, str | None]) -> None:
        """Read the recorded commit, if it is of the same repository and revision."""
        if self._asked.items() <= recorded.items():
            self._revision = recorded["commit"]
            print_line(
                f"{self.spec}: an unfinished run goes on from commit {self._revision}.",
                quiet=self.config.quiet,
            )

    def _select(self, repository: Repository) -> Selection:
        dataset = self.dataset
        split = None
        name = dataset.config
        if self.config.files:
            files = repository.find_matching(self.config.files)
        elif dataset.language:
            files = repository.find_language(dataset.language)
        else:
            split = self.config.split
            name, files = self._find_split(repository, split)
        return Selection(dataset.repository, repository.commit, name, split, tuple(files))

    def _find_split(self, repository: Repository, split: str) -> tuple[str | None, list[HubFile]]:
        """The config's name, and the files of one split."""
        return repository.find_declared(self.dataset.config, split)

    def fingerprint(self) -> str:
        """A hash of the files' names and contents, independent of the commit."""
        return hash_json(
            [self.is_wikitext, [(file.path, file.blob) for file in self.selection.files]]
        )

    def tasks(self, config: CorpusConfig) -> list[Task]:
        """Consecutive files, up to the shard size per task; a larger file is one task."""
        files = self.file_reader(config)
        chosen = shuffled(self.selection.files, config)
        return [HubFilesTask(files, paths) for paths in _group(chosen, config.shard_mb * 1e6)]

    def file_reader(self, config: CorpusConfig) -> HubFileReader:
        """The reader of the selected files, for tasks."""
        return HubFileReader(
            spec=self.spec,
            repository=self.selection.repository,
            commit=self.selection.commit,
            language=self.language,
            policy=ErrorPolicy.from_config(config, ADVICE),
            max_wait=config.max_wait,
            quiet=config.quiet,
        )

    def describe(self) -> dict[str, Any]:
        """The repository, commit, config, split, number of files and their size on the Hub."""
        chosen = self.selection
        return {
            "repository": chosen.repository,
            "commit": chosen.commit,
            "config": chosen.config,
            "split": chosen.split,
            "files": len(chosen.files),
            "bytes_on_hub": sum(file.size for file in chosen.files),
        }


def _group(files: Sequence[HubFile], max_bytes: float) -> Iterator[tuple[str, ...]]:
    group: list[str] = []
    size = 0
    for file in files:
        if group and size + file.size > max_bytes:
            yield tuple(group)
            group = []
            size = 0
        group.append(file.path)
        size += file.size
    if group:
        yield tuple(group)
