"""The text that a tokenizer is trained or measured on: a corpus, or documents sampled from it."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bert_pipeline.progress import bar
from bert_pipeline.storage.manifest import Manifest, verify_file
from bert_pipeline.storage.shards import iterate_rows

MAX_LINE_CHARACTERS = 1000
_LINE_PART = re.compile(
    rf".{{1,{MAX_LINE_CHARACTERS}}}(?=\s|$)|.{{1,{MAX_LINE_CHARACTERS}}}", re.DOTALL
)
MAX_SAMPLE_MB = 1000.0
LONG_WORD = 24
"""Symbols (characters for WordPiece, bytes for BPE) above which a word is long. Long words hardly
ever repeat, so the trainer keeps nearly all of them, and needs about 70 bytes of memory for every
symbol (measured with byte-level BPE on Chinese text)."""
MAX_LONG_WORDS_MB = 50.0
"""Megabytes of symbols in long words for which the trainer needs about 4 GB of memory."""


def choose_sample_mb(tokenizer: Tokenizer, paragraphs: Sequence[str]) -> float:
    """Megabytes to train on: less where words are long, which they are in text without spaces."""
    long = 0
    for paragraph in paragraphs:
        normal = paragraph
        if tokenizer.normalizer:
            normal = tokenizer.normalizer.normalize_str(paragraph)
        sizes = (len(word) for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
        long += sum(size for size in sizes if size > LONG_WORD)
    if not long:
        return MAX_SAMPLE_MB
    measured = sum(len(paragraph.encode()) for paragraph in paragraphs)
    return min(MAX_SAMPLE_MB, MAX_LONG_WORDS_MB * measured / long)


def split_lines(text: str) -> Iterator[str]:
    """The lines of a text; long ones in parts, split between words where there are spaces.

    The library needs about 200 bytes of memory for every byte of a line, and its trainer scans a
    complete word for every pair that it merges in it.
    """
    for line in text.split("\n"):
        yield from [line] if len(line) <= MAX_LINE_CHARACTERS else _LINE_PART.findall(line)


class Sample:
    """All documents of a corpus, or a random sample of about `megabytes` in total."""

    def __init__(
        self, folder: Path, corpus: Manifest, megabytes: float, seed: int, quiet: bool
    ) -> None:
        self.shards = {folder / name: entry["sha256"] for name, entry in corpus.files.items()}
        self.corpus_bytes = corpus.counts["bytes"]
        self.megabytes = megabytes
        self.seed = seed
        self.quiet = quiet
        self.share = min(1.0, megabytes * 1e6 / max(1, self.corpus_bytes))
        self.documents = 0
        """Documents in the sample, known after the first pass."""
        self.bytes = 0
        """Bytes in the sample, known after the first pass."""

    def texts(self, title: str) -> Iterator[str]:
        """The sampled documents, at least one; the same at every call. Shows a progress bar."""
        import numpy as np

        draw = np.random.default_rng(self.seed)
        self.documents = 0
        self.bytes = 0
        text = ""
        with bar(title, self.corpus_bytes, quiet=self.quiet, counted=False) as progress:
            for (text,) in iterate_rows(self._verified_shards(), ["text"]):
                progress.advance(len(text.encode()))
                if self.share == 1.0 or draw.random() < self.share:
                    yield self._count(text)
        if not self.documents:  # the corpus has few documents, each larger than the sample
            yield self._count(text)

    def lines(self, title: str) -> Iterator[str]:
        """The lines of the sampled documents; long ones in parts."""
        for text in self.texts(title):
            yield from split_lines(text)

    def to_json(self) -> dict[str, Any]:
        """The size of the sample, its share of the corpus, and the limit."""
        share = round(self.bytes / max(1, self.corpus_bytes), 6)
        drawn = {"documents": self.documents, "bytes": self.bytes}
        return drawn | {"share_of_corpus": share, "sample_mb": round(self.megabytes, 3)}

    def _verified_shards(self) -> Iterator[Path]:
        for path, sha256 in self.shards.items():
            verify_file(path, sha256)
            yield path

    def _count(self, text: str) -> str:
        self.documents += 1
        self.bytes += len(text.encode())
        return text
