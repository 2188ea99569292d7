"""Examples of documents in which no word occurs twice, so that a token tells where it is from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest

from bert_pipeline.examples.build import build_examples
from bert_pipeline.examples.config import ExamplesConfig
from tests.helpers.text import invent_words, make_corpus

Build = Callable[..., dict[str, float]]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """A function that makes examples of sentences of these lengths, and returns the counts.

    Each line is a sentence. Each word is one token; their ids ascend in the order of the text. A
    document without sentences is an accent, which is no token.
    """

    def make(
        sentence_lengths: Sequence[Sequence[int]],
        *,
        several_sources: bool = False,
        **options: object,
    ) -> dict[str, float]:
        words = invent_words(Random(3), sum(map(sum, sentence_lengths)))
        left = iter(words)
        texts = [
            "\n".join(" ".join(next(left) for _ in range(length)) for length in lengths) or "\u0300"
            for lengths in sentence_lengths
        ]
        tokenizer = tmp_path / "tokenizer"
        tokenizer.mkdir(exist_ok=True)
        (tokenizer / "vocab.txt").write_text("\n".join([*SPECIAL, *words]), encoding="utf-8")
        (tokenizer / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
        given_options: dict[str, object] = {
            "out": tmp_path / "examples",
            "corpus": make_corpus(
                tmp_path / "corpus", texts, shards=2, several_sources=several_sources
            ),
            "tokenizer": tokenizer,
            "max_seq_length": 32,
            "validation_fraction": 0,
            "workers": 1,
        }
        config = ExamplesConfig(**(given_options | options))  # type: ignore[arg-type]
        counts = build_examples(config).counts
        assert counts["tokens"] == len(words), "a word is not one token"
        return counts

    return make
