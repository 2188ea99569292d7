"""`python-docs`: the documentation of the installed Python packages as a source."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.documents import Document, Task
from bert_pipeline.corpus.sources.python_docs.harvest import (
    Harvest,
    ModuleProse,
    drop_repeated,
    harvest,
)
from bert_pipeline.corpus.sources.python_docs.packages import (
    Package,
    installed_packages,
    split_evenly,
)
from bert_pipeline.engine.run import run_tasks
from bert_pipeline.progress import bar
from bert_pipeline.storage.atomic import hash_json

SPEC = "python-docs"
LANGUAGE = "en"


def open_source(spec: str, config: CorpusConfig) -> "PythonDocs":
    """The documentation of what is installed."""
    return PythonDocs()


@dataclass(frozen=True, slots=True)
class DocumentsTask:
    """Documents that are in memory already."""

    in_memory: tuple[Document, ...]

    def documents(self, counts: Counter[str]) -> Iterator[Document]:
        """The documents in order; nothing is skipped, so nothing is counted."""
        yield from self.in_memory


class PythonDocs:
    """The docstrings of the installed packages.

    A paragraph occurs once in the corpus, so all packages are read before the first task exists.
    """

    def __init__(self) -> None:
        self._taken: dict[str, Any] = {}

    @cached_property
    def packages(self) -> list[Package]:
        """The standard library and the known packages that are installed."""
        return installed_packages()

    def fingerprint(self) -> str:
        """A hash of the versions and file sizes of what is installed."""
        return hash_json(
            [(p.name, p.version, [(f.module, f.size) for f in p.files]) for p in self.packages]
        )

    def tasks(self, config: CorpusConfig) -> list[Task]:
        """Read all files with all workers, drop repeated paragraphs, and split into shards."""
        harvests = self._harvest(config)
        skipped = sum((found.skipped for found in harvests), Counter[str]())
        prose = drop_repeated(document for found in harvests for document in found.documents)
        packages, shards = self._split_into_shards(prose, config.shard_mb * 1e6)
        self._taken = {"packages": packages, "files_without_prose": dict(sorted(skipped.items()))}
        return [DocumentsTask(tuple(documents)) for documents in shards]

    def describe(self) -> dict[str, Any]:
        """Documents and bytes per package, and the number of files without prose by reason."""
        return self._taken

    def _harvest(self, config: CorpusConfig) -> list[Harvest]:
        files = (file for package in self.packages for file in package.files)
        chunks = list(split_evenly(files))
        found: dict[int, Harvest] = {}
        with bar("reading documentation", len(chunks), quiet=config.quiet) as progress:
            for index, harvested in run_tasks(harvest, chunks, config.workers):
                found[index] = harvested
                progress.advance()
        return [found[index] for index in range(len(chunks))]

    def _split_into_shards(
        self, prose: Iterator[ModuleProse], shard_bytes: float
    ) -> tuple[dict[str, dict[str, Any]], list[list[Document]]]:
        """Counts by package, and the documents of each shard."""
        owner = {file.module: package.name for package in self.packages for file in package.files}
        packages: dict[str, dict[str, Any]] = {
            package.name: {"version": package.version, "documents": 0, "bytes": 0}
            for package in self.packages
        }
        shards: list[list[Document]] = []
        free = 0.0
        for module in prose:
            document = Document(module.id, "\n".join(module.paragraphs), SPEC, LANGUAGE)
            size = len(document.text.encode())
            package = packages[owner.get(module.id, "python")]
            package["documents"] += 1
            package["bytes"] += size
            if free <= 0:
                shards.append([])
                free = shard_bytes
            shards[-1].append(document)
            free -= size
        return packages, shards
