"""Data sets of the hub as sources: `wikitext-2`, `wikitext-103`, `oscar:LANG` and `hub:REPO[:CONFIG]`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.documents import Task, shuffled
from bert_pipeline.corpus.sources import wikitext
from bert_pipeline.corpus.sources.hub_files import HubFile, Repository
from bert_pipeline.corpus.sources.hub_rows import READERS, HubFiles, HubTask, file_format
from bert_pipeline.corpus.sources.json_lines import Policy
from bert_pipeline.corpus.sources.wikitext import ArticlesTask
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.hub.client import connect
from bert_pipeline.progress import err
from bert_pipeline.storage.atomic import hash_json

OSCAR = "oscar-corpus/OSCAR-2301"
WIKITEXT = {"wikitext-2": "wikitext-2-raw-v1", "wikitext-103": "wikitext-103-raw-v1"}
MOVED = {
    "ag_news": "fancyzhx/ag_news",
    "bookcorpus": "bookcorpus/bookcorpus",
    "c4": "allenai/c4",
    "cc_news": "vblagoje/cc_news",
    "imdb": "stanfordnlp/imdb",
    "mc4": "allenai/c4",
    "openwebtext": "Skylion007/openwebtext",
    "wikipedia": "wikimedia/wikipedia",
    "wikitext": wikitext.REPOSITORY,
}
"""Names without an owner, which the hub no longer knows, and where the data lies now."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a spec stands for."""

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
    """Files of a data set on the hub. The hub is asked which they are when that is first needed."""

    def __init__(self, spec: str, config: CorpusConfig) -> None:
        self.spec, self.config = spec, config
        self.wanted = parse_spec(spec, config)

    @cached_property
    def selection(self) -> Selection:
        """The files that are read."""
        config, wanted = self.config, self.wanted
        connect(config.max_wait, config.quiet)
        repository = Repository(wanted.repository, config.revision, config.max_wait, config.quiet)
        name, split = wanted.config, None
        if config.files:
            files = repository.matching(config.files)
        elif wanted.language:
            files = repository.of_language(wanted.language)
        else:
            split = config.split
            # Where the files of WikiText lie is known: its card need not be asked.
            name, files = (
                wanted.config,
                repository.find(f"{wanted.config}/{split}-*") if self._holds_articles else [],
            )
            if not files:
                name, files = repository.declared(wanted.config, split)
        for file in files:
            if not file_format(file.path):
                raise BertpipeError(
                    f"{repository.page}: {file.path} cannot be read. Formats: {', '.join(READERS)}, also compressed as "
                    ".gz, .zst, .bz2 or .xz. Choose files with --files."
                )
        return Selection(wanted.repository, repository.commit, name, split, tuple(files))

    def fingerprint(self) -> str:
        """A hash of the files' names and contents, whatever commit they are taken from."""
        return hash_json(
            [self._holds_articles, [(file.path, file.blob) for file in self.selection.files]]
        )

    def tasks(self, config: CorpusConfig) -> list[Task]:
        """Consecutive files up to the shard size, or a larger file; of WikiText, each file."""
        files = HubFiles(
            self.spec,
            self.selection.repository,
            self.selection.commit,
            self.wanted.language or config.language,
            Policy.of(
                config, "Leave such things out with --on-error skip, or choose others with --files."
            ),
            config.max_wait,
            config.quiet,
        )
        if self._holds_articles:
            paths = [file.path for file in self.selection.files]
            return [
                ArticlesTask(files, tuple(paths[start:]), start == 0) for start in range(len(paths))
            ]
        chosen = shuffled(self.selection.files, config)
        return [HubTask(files, paths) for paths in _group(chosen, config.shard_mb * 1e6)]

    def describe(self) -> dict[str, Any]:
        """What was taken, from where."""
        chosen = self.selection
        return {
            "repository": chosen.repository,
            "commit": chosen.commit,
            "config": chosen.config,
            "split": chosen.split,
            "files": len(chosen.files),
            "bytes_on_hub": sum(file.size for file in chosen.files),
        }

    @property
    def _holds_articles(self) -> bool:
        return self.wanted.repository == wikitext.REPOSITORY


def parse_spec(spec: str, config: CorpusConfig) -> Wanted:
    """What a spec stands for. Raises `UsageError` for one that names nothing on a hub."""
    if spec in WIKITEXT:
        return Wanted(wikitext.REPOSITORY, WIKITEXT[spec])
    kind, _, rest = spec.partition(":")
    if kind == "oscar":
        rest = rest.lower()
    if kind == "oscar" and re.fullmatch(r"[a-z]{2,5}", rest):
        if config.split != "train":
            raise UsageError(f"--source {spec}: it has no --split {config.split}, only train.")
        return Wanted(config.repository or OSCAR, language=rest)
    repository, _, name = rest.partition(":")
    if kind == "hub" and repository in MOVED:
        moved = MOVED[repository]
        if not config.quiet:
            err.print(f"--source {spec}: {repository} is {moved} now.", markup=False)
        return Wanted(moved, name or None)
    if kind == "hub" and re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        return Wanted(repository, name or None)
    hint = (
        "`oscar:LANG`, such as oscar:fa"
        if "oscar" in (kind, repository)
        else "`hub:OWNER/NAME[:CONFIG]`"
    )
    raise UsageError(f"--source {spec}: not a data set of the hub. Write {hint}.")


def _group(files: Sequence[HubFile], room: float) -> Iterator[tuple[str, ...]]:
    group: list[str] = []
    size = 0
    for file in files:
        if group and size + file.size > room:
            yield tuple(group)
            group, size = [], 0
        group.append(file.path)
        size += file.size
    if group:
        yield tuple(group)
