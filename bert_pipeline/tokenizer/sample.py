"""The text that a tokenizer learns from, or is measured on: a corpus, or documents drawn from it."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bert_pipeline.progress import bar
from bert_pipeline.storage.manifest import Manifest
from bert_pipeline.storage.shards import iterate_rows

LONGEST_LINE = 1000
_PART = re.compile(rf".{{1,{LONGEST_LINE}}}(?=\s|$)|.{{1,{LONGEST_LINE}}}", re.DOTALL)
MOST_MB = 1000.0
LONG_WORD = 24
"""Symbols (characters for WordPiece, bytes for BPE). Longer words are hardly ever met again, so the trainer gains one
with each of them; it holds about 70 bytes for every symbol of a word (measured on Chinese text by byte-level BPE)."""
LONG_WORDS_MB = 50.0
"""Megabytes of symbols in long words that the trainer holds in about 4 GB."""


def bound_sample(tokenizer: Tokenizer, paragraphs: Sequence[str]) -> float:
    """Megabytes to learn from, judging by some of the text: without spaces, a whole clause may be one word."""
    long = 0
    for paragraph in paragraphs:
        normal = (
            tokenizer.normalizer.normalize_str(paragraph) if tokenizer.normalizer else paragraph
        )
        sizes = (len(word) for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
        long += sum(size for size in sizes if size > LONG_WORD)
    return (
        min(MOST_MB, LONG_WORDS_MB * sum(len(p.encode()) for p in paragraphs) / long)
        if long
        else MOST_MB
    )


def split_lines(text: str) -> Iterator[str]:
    """Lines as they are, and long ones in parts, between words where there are any.

    The libraries need some 200 bytes for every byte of a line, and their trainer looks through a whole word again for
    every pair that it joins in it.
    """
    for line in text.split("\n"):
        yield from [line] if len(line) <= LONGEST_LINE else _PART.findall(line)


class Sample:
    """All documents of a corpus, or some drawn at random that are about `megabytes` in all."""

    def __init__(
        self, folder: Path, corpus: Manifest, megabytes: float, seed: int, quiet: bool
    ) -> None:
        self.shards = [folder / name for name in corpus.files]
        self.corpus_bytes = corpus.counts["bytes"]
        self.megabytes, self.seed, self.quiet = megabytes, seed, quiet
        self.share = min(1.0, megabytes * 1e6 / max(1, self.corpus_bytes))
        self.documents = self.bytes = 0
        """What was drawn, known after the first reading."""

    def texts(self, title: str) -> Iterator[str]:
        """The same documents at every call, at least one, with a progress bar."""
        import numpy as np

        draw = np.random.default_rng(self.seed)
        self.documents = self.bytes = 0
        text = ""
        with bar(title, self.corpus_bytes, quiet=self.quiet, counted=False) as progress:
            for (text,) in iterate_rows(self.shards, ["text"]):
                progress.advance(len(text.encode()))
                if self.share == 1.0 or draw.random() < self.share:
                    yield self._count(text)
        if not self.documents:  # few of them, each larger than the sample
            yield self._count(text)

    def lines(self, title: str) -> Iterator[str]:
        """Their paragraphs, or parts of long ones."""
        for text in self.texts(title):
            yield from split_lines(text)

    def to_json(self) -> dict[str, Any]:
        """What was drawn, of how much, and up to where."""
        share = round(self.bytes / max(1, self.corpus_bytes), 6)
        drawn = {"documents": self.documents, "bytes": self.bytes}
        return drawn | {"share_of_corpus": share, "sample_mb": round(self.megabytes, 3)}

    def _count(self, text: str) -> str:
        self.documents += 1
        self.bytes += len(text.encode())
        return text
