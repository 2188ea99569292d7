"""Sources by name: what a `--source` value stands for."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bert_pipeline.corpus.config import WIKITEXT, CorpusConfig, is_hub
from bert_pipeline.corpus.documents import Document, Source, Task
from bert_pipeline.corpus.sources.files import READERS, FileSource
from bert_pipeline.corpus.sources.python_docs import packages as python_docs
from bert_pipeline.engine.run import run_tasks
from bert_pipeline.errors import UsageError
from bert_pipeline.progress import bar
from bert_pipeline.storage.atomic import hash_json

PYTHON_DOCS = "python-docs"


@dataclass(frozen=True, slots=True)
class DocumentsTask:
    """Documents that are already in memory."""

    held: tuple[Document, ...]

    def documents(self, counts: Counter[str]) -> Iterator[Document]:
        """The documents in order; there is nothing to count."""
        yield from self.held


class PythonDocs:
    """The prose of the installed documentation. A paragraph is kept once in the whole corpus, so all is read first."""

    def __init__(self) -> None:
        self._taken: dict[str, Any] = {}

    @cached_property
    def packages(self) -> list[python_docs.Package]:
        """The standard library and the known packages that are installed."""
        return python_docs.installed_packages()

    def fingerprint(self) -> str:
        """A hash of the versions and sizes of what is installed."""
        return hash_json(
            [(p.name, p.version, [(f.module, f.size) for f in p.files]) for p in self.packages]
        )

    def tasks(self, config: CorpusConfig) -> list[Task]:
        """Harvest with all workers, drop what is repeated, and cut into shards."""
        owner = {file.module: package.name for package in self.packages for file in package.files}
        chunks = list(
            python_docs.split_evenly(file for package in self.packages for file in package.files)
        )
        harvests: dict[int, python_docs.Harvest] = {}
        with bar("reading documentation", len(chunks), quiet=config.quiet) as progress:
            for index, harvest in run_tasks(python_docs.harvest, chunks, config.workers):
                harvests[index] = harvest
                progress.advance()
        versions = {package.name: package.version for package in self.packages}
        taken: dict[str, dict[str, Any]] = {
            name: {"version": versions[name], "documents": 0, "bytes": 0} for name in versions
        }
        shards: list[list[Document]] = []
        room = 0.0
        for prose in python_docs.drop_repeated(
            d for index in range(len(chunks)) for d in harvests[index].documents
        ):
            document = Document(prose.id, "\n".join(prose.paragraphs), PYTHON_DOCS, "en")
            size = len(document.text.encode())
            package = taken[owner.get(prose.id, "python")]
            package["documents"] += 1
            package["bytes"] += size
            if room <= 0:
                shards.append([])
                room = config.shard_mb * 1e6
            shards[-1].append(document)
            room -= size
        skipped = sum((harvest.skipped for harvest in harvests.values()), Counter[str]())
        self._taken = {"packages": taken, "files_without_prose": dict(sorted(skipped.items()))}
        return [DocumentsTask(tuple(documents)) for documents in shards]

    def describe(self) -> dict[str, Any]:
        """Documents and bytes of each package, and the files that gave nothing, by reason."""
        return self._taken


def parse_sources(config: CorpusConfig) -> dict[str, Source]:
    """The sources by their `--source` values; a file that several patterns match is the first one's."""
    sources = {spec: parse_source(spec, config) for spec in dict.fromkeys(config.source)}
    first: dict[Path, Path] = {}
    for source in sources.values():
        if isinstance(source, FileSource):
            # By place: a link to a file is that file.
            source.files = [
                file for file in source.files if first.setdefault(file.resolve(), file) is file
            ]
    return sources


def parse_source(spec: str, config: CorpusConfig) -> Source:
    """The source that a `--source` value names."""
    if spec == PYTHON_DOCS:
        return PythonDocs()
    if is_hub(spec):
        from bert_pipeline.corpus.sources.hub_datasets import (
            HubSource,  # takes a second to load, which files need not wait for
        )

        return HubSource(spec, config)
    kind, _, pattern = spec.partition(":")
    if kind in READERS and pattern:
        return FileSource(spec)
    hub = [*WIKITEXT, "oscar:LANG", "hub:REPO[:CONFIG]"]
    known = ", ".join([PYTHON_DOCS, *hub, *(f"{kind}:GLOB" for kind in READERS)])
    raise UsageError(f"--source {spec}: unknown. Known: {known}.")
