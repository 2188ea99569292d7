"""`bertpipe embed`: the texts of a file become a file of vectors, with a bounded part in memory."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from bert_pipeline.corpus.cleaning.cleaner import join_surrogates
from bert_pipeline.predict.embed import Embedder
from bert_pipeline.predict.embedding_files import check_out, open_embeddings
from bert_pipeline.predict.read_inputs import InputTexts
from bert_pipeline.progress import bar, count_of

BAR_AFTER_S = 2.0


@dataclass
class Embedded:
    """What was embedded."""

    out: Path
    dimension: int
    max_length: int | None
    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    skipped: int = 0
    seconds: float = 0.0

    def describe(self) -> str:
        """A line for people."""
        speed = self.texts / max(self.seconds, 1e-9)
        parts = [
            f"{count_of(self.texts, 'text')}, {count_of(self.tokens, 'token')}",
            f"{self.dimension:,} dimensions",
            f"{self.seconds:.1f} s, {speed:,.0f} texts/s",
        ]
        if self.truncated:
            parts.append(f"{self.truncated:,} truncated to {self.max_length} tokens")
        if self.skipped:
            parts.append(f"{count_of(self.skipped, 'row')} without a text skipped")
        return f"{self.out}: {'; '.join(parts)}"


def embed_file(
    model: Path,
    source: InputTexts,
    out: Path,
    pooling: str | None = None,
    *,
    by_token: bool = False,
    normalized: bool | None = None,
    quiet: bool = False,
) -> Embedded:
    """Write the vectors of all texts of `source` to `out`, in order (see `Embedder`)."""
    check_out(out, by_token=by_token)
    embedder = Embedder(model, pooling, by_token=by_token, normalized=normalized)
    result = Embedded(out, embedder.dimension, embedder.max_length)
    started = perf_counter()
    waiting: deque[tuple[int, str]] = deque()  # read, but not written yet

    def read() -> Iterator[str]:
        for row, text in source.rows():
            waiting.append((row, join_surrogates(text)))
            yield text

    with (
        bar("embedding", None, quiet=quiet, delay_s=BAR_AFTER_S) as progress,
        open_embeddings(out, embedder.dimension, by_token=by_token) as write,
    ):
        for embeddings in embedder.embed(read()):
            count = len(embeddings.offsets) - 1
            rows, texts = zip(*(waiting.popleft() for _ in range(count)), strict=True)
            write(rows, texts, embeddings)
            result.texts += count
            result.tokens += int(embeddings.offsets[-1])
            result.truncated += embeddings.truncated
            progress.move_to(result.texts)
    result.skipped = source.skipped
    result.seconds = perf_counter() - started
    return result
