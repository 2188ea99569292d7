"""WikiText on the hub: a row is a line there, and an article goes over many rows, some over the end of a file.

Source: Merity et al., 2016, "Pointer Sentinel Mixture Models"; https://huggingface.co/datasets/Salesforce/wikitext.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from bert_pipeline.corpus.documents import Document
from bert_pipeline.corpus.sources.hub_rows import HubFiles
from bert_pipeline.corpus.sources.plain_text import is_title, split_documents

REPOSITORY = "Salesforce/wikitext"


@dataclass(frozen=True, slots=True)
class ArticlesTask:
    """The articles that begin in the first of some files; the others follow it, and the last article may end there.

    Whether a title in a file's very first row begins an article hangs on the row before it, in another file. So that
    article counts to the task which reads across: tasks share no row, lose none, and need know nothing of each other.
    """

    files: HubFiles
    paths: tuple[str, ...]
    is_first: bool

    def documents(self, counts: Counter[str]) -> Iterator[Document]:
        """Articles in order, paragraphs one a line; ids are `PATH#ARTICLE`."""
        self.files.connect()
        for number, text in enumerate(split_documents(self._lines(counts))):
            yield Document(f"{self.paths[0]}#{number}", text, self.files.spec, self.files.language)

    def _lines(self, counts: Counter[str]) -> Iterator[str]:
        inside = self.is_first
        for path in self.paths:
            is_own = path == self.paths[0]
            after_blank = False
            # What is wrong in a file is for the task that owns it to count.
            with self.files.reading(path, counts if is_own else Counter()):
                for line in self.files.column(path):
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
