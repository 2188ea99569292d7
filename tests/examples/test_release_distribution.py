"""Examples are distributed as in the BERT release (compared with a reference implementation)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest

from bert_pipeline.examples.build import build_examples
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.load import load_tokenizer
from bert_pipeline.tokenizer.train import train_tokenizer
from tests.helpers.example_rows import (
    CLS,
    MASK,
    SEP,
    distance,
    encode,
    restore,
    rows_of,
)
from tests.helpers.original_algorithm import EncodedDocument, Instance, Settings, make_instances
from tests.helpers.text import make_corpus


@pytest.fixture(scope="module")
def encoded(documents: list[str], wordpiece_folder: Path) -> list[EncodedDocument]:
    return encode(documents, wordpiece_folder)


# Distributions, compared with the reference implementation

PASSES = 40


@pytest.fixture(scope="module")
def ours(make_examples: Callable[..., Path]) -> list[Instance]:
    folder = make_examples("examples-many", dupe_factor=PASSES, validation_fraction=0)
    return rows_of(folder)


@pytest.fixture(scope="module")
def release(encoded: list[EncodedDocument]) -> list[Instance]:
    given = Settings(64, CLS, SEP, MASK, vocab_size=400, max_predictions=math.ceil(0.15 * 64))
    return make_instances(encoded, PASSES, given, Random(1))


def starts_of(documents: list[EncodedDocument]) -> set[tuple[int, ...]]:
    """The first three ids of every sentence with at least three."""
    return {
        tuple(sentence[:3]) for document in documents for sentence in document if len(sentence) >= 3
    }


MEASURES: dict[str, Callable[[Instance], float]] = {
    "length": lambda row: len(row.tokens),
    "first segment": lambda row: row.lengths[0],
    "second segment": lambda row: row.lengths[1],
    "share of the first": lambda row: row.lengths[0] / sum(row.lengths),
    "difference": lambda row: row.lengths[0] - row.lengths[1],
    "masks": lambda row: len(row.masked_positions),
    "first mask": lambda row: row.masked_positions[0] / len(row.tokens),
    "last mask": lambda row: row.masked_positions[-1] / len(row.tokens),
    "masks in the first segment": lambda row: sum(
        p <= row.lengths[0] for p in row.masked_positions
    ),
}


@pytest.mark.integration
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("is_random", [True, False])
def test_lengths_and_masks_are_distributed_as_in_the_bert_release(
    ours: list[Instance], release: list[Instance], measure: str, is_random: bool
):
    # With about 3,000 rows on each side, exceeded by chance with probability below 1 in 1000.
    measured = [
        [MEASURES[measure](row) for row in rows if row.is_random_next == is_random]
        for rows in (ours, release)
    ]
    assert min(map(len, measured)) > 2500
    assert distance(*measured) < 0.05


@pytest.mark.integration
def test_rates_equal_the_bert_release(
    ours: list[Instance], release: list[Instance], encoded: list[EncodedDocument]
):
    starts = starts_of(encoded)
    rates: dict[str, Callable[[Instance], bool]] = {
        "random next": lambda row: row.is_random_next,
        "full": lambda row: len(row.tokens) == 64,
        "first begins with a sentence": lambda row: tuple(restore(row)[1:4]) in starts,
        "second begins with a sentence": lambda row: (
            tuple(restore(row)[row.lengths[0] + 2 : row.lengths[0] + 5]) in starts
        ),
    }
    assert abs(len(ours) / len(release) - 1) < 0.02
    for name, holds in rates.items():
        p, q = (sum(map(holds, rows)) / len(rows) for rows in (ours, release))
        # Four standard errors of the difference.
        assert abs(p - q) < 4 * math.sqrt((p * (1 - p) + q * (1 - q)) / 5000), name


@pytest.mark.integration
def test_80_10_10_replacement_in_written_examples(
    ours: list[Instance],
):
    kinds = [0, 0, 0]
    for row in ours:
        for position, label in zip(row.masked_positions, row.masked_labels, strict=True):
            found = row.tokens[position]
            if found == MASK:
                kinds[0] += 1
            else:
                kinds[2 if found == label else 1] += 1
    total = sum(kinds)
    assert total > 40_000
    # A random id equals the mask or the label with probability 1 in 400.
    for count, share in zip(
        kinds, (0.8 + 0.1 / 400, 0.1 - 0.2 / 400, 0.1 + 0.1 / 400), strict=True
    ):
        assert abs(count / total - share) < 4 * math.sqrt(share * (1 - share) / total)


@pytest.mark.integration
def test_random_ids_in_written_examples_are_uniform(ours: list[Instance]):
    counts = np.zeros(400, dtype=int)
    for row in ours:
        for position, label in zip(row.masked_positions, row.masked_labels, strict=True):
            if row.tokens[position] not in (MASK, label):
                counts[row.tokens[position]] += 1
    others = np.delete(counts, MASK)
    assert others.min() > 0, "some ids are never drawn"
    expected = others.mean()
    chi_square = float(((others - expected) ** 2 / expected).sum())
    assert chi_square < 398 + 4 * math.sqrt(2 * 398)


@pytest.mark.integration
def test_masked_positions_in_written_examples_are_uniform(ours: list[Instance]):
    full = [row for row in ours if len(row.tokens) == 64]
    counts = np.bincount([p for row in full for p in row.masked_positions], minlength=64)
    assert counts[0] == counts[63] == 0
    # Only positions near the ends, where there is never a separator.
    ends = np.concatenate([counts[1:8], counts[56:63]])
    expected = len(full) * 10 / 61
    assert float(((ends - expected) ** 2 / expected).sum()) < 14 + 4 * math.sqrt(2 * 14)


@pytest.mark.integration
def test_random_next_sentence_is_uniform_over_other_documents(tmp_path: Path):
    # Every sentence begins with a different letter, which identifies it.
    letters = "ABCDEFGHIJKLMNOPQRST"
    texts = [
        " ".join(f"{letter}oo is here." for letter in letters[n : n + 4]) for n in range(0, 20, 4)
    ]
    corpus = make_corpus(tmp_path / "corpus", texts, shards=3)
    tokenizer = tmp_path / "tokenizer"
    train_tokenizer(
        TokenizeConfig(
            out=tokenizer,
            corpus=corpus,
            kind="byte-bpe",
            vocab_size=262,
            min_frequency=1,
            workers=1,
            quiet=True,
        )
    )
    vocabulary = load_tokenizer(tokenizer).tokenizer
    config = ExamplesConfig(
        out=tmp_path / "examples",
        corpus=corpus,
        tokenizer=tokenizer,
        max_seq_length=128,
        short_seq_prob=0,
        dupe_factor=150,
        validation_fraction=0,
        workers=1,
        quiet=True,
    )
    build_examples(config)
    begins = np.zeros((5, 20), dtype=int)
    for row in rows_of(config.out):
        if row.is_random_next:
            first, second = vocabulary.decode(restore(row)[1:-1], skip_special_tokens=False).split(
                "[SEP]"
            )
            begins[letters.index(first.strip()[0]) // 4, letters.index(second.strip()[0])] += 1
    for document in range(5):
        own = begins[document, 4 * document : 4 * document + 4]
        others = np.delete(begins[document], range(4 * document, 4 * document + 4))
        assert not own.any(), "its own document"
        assert others.sum() > 100
        expected = others.mean()
        assert float(((others - expected) ** 2 / expected).sum()) < 15 + 4 * math.sqrt(2 * 15)
