"""Pseudo-perplexity of plain text: the mean pseudo-log-likelihood of its tokens."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from bert_pipeline.corpus.read_texts import read_texts
from bert_pipeline.errors import BertpipeError
from bert_pipeline.examples.counter_rng import make_key, random_bits
from bert_pipeline.pretraining.text_evaluation import DOCUMENTS_AT_A_TIME
from bert_pipeline.pretraining.zero_shot.intervals import Estimate
from bert_pipeline.pretraining.zero_shot.masked_lm import MaskedLM
from bert_pipeline.pretraining.zero_shot.pseudo_likelihood import (
    Pll,
    Sentence,
    encode_sentences,
    score_tokens,
)
from bert_pipeline.progress import human_bytes
from bert_pipeline.ragged import Int64Array, UInt64Array
from bert_pipeline.tokenizer.encode import SentenceEncoder


@dataclass(frozen=True, slots=True)
class PseudoPerplexity:
    """Metrics of a text; intervals are of the random choice of the tokens that were scored."""

    bits_per_byte: Estimate
    """Of all tokens, per UTF-8 byte."""
    word_perplexity: Estimate
    """Per word between spaces: it too compares across tokenizers."""
    pseudo_perplexity: Estimate
    """Per token (Salazar et al. 2020)."""
    pll: Pll
    scored_tokens: int
    tokens: int
    words: int
    bytes: int

    def describe(self) -> list[tuple[str, str]]:
        """The metrics as lines for people."""
        scored = f"{self.scored_tokens:,} of {self.tokens:,} tokens of {human_bytes(self.bytes)}"
        return [
            ("bits per byte", self.bits_per_byte.describe(".3f")),
            ("word perplexity", self.word_perplexity.describe(",.1f")),
            ("pseudo-perplexity", f"{self.pseudo_perplexity.describe(',.1f')} per token"),
            ("measured on", scored),
        ]


class TokenSample:
    """A fixed random choice of tokens of a text that is read once.

    Each token has a random number that depends on its place in the text alone; those with the
    smallest stay.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._key = make_key("pseudo-perplexity")
        self._bits = np.empty(0, dtype=np.uint64)
        self._places = np.empty(0, dtype=np.int64)
        self._row_of = np.empty(0, dtype=np.int64)
        self._rows: dict[int, Sentence] = {}
        self._row_count = 0
        self.tokens = 0

    def add(self, row: Sentence) -> None:
        """Add the next row of the text."""
        count = len(row.ids)
        bits: UInt64Array = random_bits(self._key, np.arange(self.tokens, self.tokens + count))
        self._bits = np.concatenate([self._bits, bits])
        self._places = np.concatenate([self._places, np.arange(count)])
        self._row_of = np.concatenate([self._row_of, np.full(count, self._row_count)])
        self._rows[self._row_count] = row
        self._row_count += 1
        self.tokens += count
        if len(self._bits) > 2 * self._limit + count:
            self._drop()

    def _drop(self) -> None:
        kept = np.sort(np.argsort(self._bits, kind="stable")[: self._limit])
        self._bits, self._places = self._bits[kept], self._places[kept]
        self._row_of = self._row_of[kept]
        self._rows = {number: self._rows[number] for number in np.unique(self._row_of).tolist()}

    def take(self) -> tuple[list[Sentence], Int64Array, Int64Array]:
        """The rows, and the row and place of each token that was chosen."""
        self._drop()
        numbers = np.fromiter(self._rows, dtype=np.int64)
        return list(self._rows.values()), np.searchsorted(numbers, self._row_of), self._places


def evaluate_pseudo_perplexity(
    model: Path,
    source: str,
    max_tokens: int,
    pll: Pll,
    *,
    quiet: bool = False,
) -> PseudoPerplexity:
    """Evaluate a model folder on a text file, or on a source of `bertpipe corpus`.

    Each of at most `max_tokens` tokens, a fixed random choice, is scored with all tokens of its row
    around it, but those that are masked with it. Raises `BertpipeError` if there is no text.
    """
    lm = MaskedLM.load(model)
    sample = TokenSample(max_tokens)
    words = 0
    size = 0
    encoder = SentenceEncoder(lm.tokenizer, with_word_starts=True)
    for text, sentence in _encode(read_texts(source), encoder):
        words += len(text.split())
        size += len(text.encode("utf-8", "surrogatepass"))
        for row in sentence.cut(lm.max_length - 2):
            sample.add(row)
    if not sample.tokens:
        raise BertpipeError(f"{source}: has no text to evaluate on.")
    rows, row_of, places = sample.take()
    scores = score_tokens(lm, rows, row_of, places, pll, quiet=quiet)
    loss = Estimate.of_mean((-scores).tolist())
    return _summarize(loss, pll, len(scores), sample.tokens, words, size)


def _encode(texts: Iterable[str], encoder: SentenceEncoder) -> Iterator[tuple[str, Sentence]]:
    remaining = iter(texts)
    while part := list(islice(remaining, DOCUMENTS_AT_A_TIME)):
        yield from zip(part, encode_sentences(encoder, part), strict=True)


def _summarize(
    loss: Estimate, pll: Pll, scored: int, tokens: int, words: int, size: int
) -> PseudoPerplexity:
    # Of a text that is scored completely nothing is left to chance.
    if scored == tokens:
        loss = Estimate(loss.value, loss.value, loss.value)

    def per(count: float) -> Estimate:
        """The loss per `count` units of the text, in nats."""
        return loss.map(lambda nats: nats * tokens / count)

    def perplexity(nats: float) -> float:
        return math.exp(min(nats, 700.0))

    return PseudoPerplexity(
        bits_per_byte=per(max(1, size) * math.log(2)),
        word_perplexity=per(max(1, words)).map(perplexity),
        pseudo_perplexity=loss.map(perplexity),
        pll=pll,
        scored_tokens=scored,
        tokens=tokens,
        words=words,
        bytes=size,
    )
