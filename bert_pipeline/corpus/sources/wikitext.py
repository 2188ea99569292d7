"""`wikitext-2` and `wikitext-103`: Wikipedia articles, one line of an article per row on the Hub.

An article spans many rows, and some articles span the end of a file.

Source: Merity et al., 2016, "Pointer Sentinel Mixture Models", https://arxiv.org/abs/1609.07843;
https://huggingface.co/datasets/Salesforce/wikitext.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.documents import Document, Task
from bert_pipeline.corpus.sources.hub_files import HubFile, Repository
from bert_pipeline.corpus.sources.hub_rows import HubFileReader
from bert_pipeline.corpus.sources.hub_source import DatasetSpec, HubSource
from bert_pipeline.corpus.sources.plain_text import is_title, split_documents

REPOSITORY = "Salesforce/wikitext"


def open_source(spec: str, config: CorpusConfig) -> "WikiTextSource":
    """The raw variant of `wikitext-2` or `wikitext-103`."""
    return WikiTextSource(spec, DatasetSpec(REPOSITORY, f"{spec}-raw-v1"), config)


class WikiTextSource(HubSource):
    """WikiText, one document per article."""

    is_wikitext = True
    language = "en"

    def _find_split(self, repository: Repository, split: str) -> tuple[str | None, list[HubFile]]:
        # The layout is known, which saves the request for the dataset card.
        name = self.dataset.config
        files = repository.find(f"{name}/{split}-*")
        return (name, files) if files else super()._find_split(repository, split)

    def tasks(self, config: CorpusConfig) -> list[Task]:
        """One task per file."""
        files = self.file_reader(config.model_copy(update={"language_field": None}))
        paths = [file.path for file in self.selection.files]
        return [
            ArticlesTask(files, tuple(paths[start:]), start == 0) for start in range(len(paths))
        ]


@dataclass(frozen=True, slots=True)
class ArticlesTask:
    """The articles that start in the first of some consecutive files.

    The other files are needed because the last article may end in one of them. Whether a title in
    the first row of a file starts an article depends on the last row of the file before it.
    Therefore that article belongs to the task that reads across the end of its file. So tasks share
    no row, lose none, and do not depend on each other.
    """

    files: HubFileReader
    paths: tuple[str, ...]
    is_first: bool

    def documents(self, counts: Counter[str]) -> Iterator[Document]:
        """Articles in order, one paragraph per line; ids are `PATH#ARTICLE`."""
        self.files.connect()
        for number, text in enumerate(split_documents(self._lines(counts))):
            yield Document(f"{self.paths[0]}#{number}", text, self.files.spec, self.files.language)

    def _lines(self, counts: Counter[str]) -> Iterator[str]:
        inside = self.is_first
        for path in self.paths:
            is_own = path == self.paths[0]
            after_blank = False
            # Broken rows of a file are counted by the task that the file belongs to.
            with self.files.reading(path, counts if is_own else Counter()):
                for line, _ in self.files.columns(path):
                    if not isinstance(line, str):
                        counts["skipped_no_text"] += is_own
                        continue
                    if after_blank and is_title(line.strip()):
                        if not is_own:
                            return
                        inside = True
                    if inside:
                        yield line
                    after_blank = not line.strip()
            if not inside:
                return
