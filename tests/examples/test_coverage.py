"""The share of the training text that reaches an example, and text with few sentence ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.examples.long_sentences import divide_long_sentences
from bert_pipeline.ragged import offsets_of
from tests.helpers.example_rows import CLS, SEP, restore, rows_of
from tests.helpers.unique_words import Build, build

__all__ = ["build"]

ORDINARY = [[5, 9, 12, 40, 3, 7], [20, 25, 18], [1, 30, 2, 8, 8, 8, 8], [11, 6]]


@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm+sop", "mlm"])
def test_share_of_the_text_counts_every_token_that_an_example_has(
    build: Build, tmp_path: Path, objective: str
) -> None:
    counts = build(ORDINARY, objective=objective, dupe_factor=2)
    used: set[int] = set()
    for row in rows_of(tmp_path / "examples"):
        tokens = restore(row)
        has_foreign_second = objective == "mlm+nsp" and row.is_random_next
        used |= set(tokens[: row.lengths[0] + 1] if has_foreign_second else tokens)
    used -= {CLS, SEP}
    assert counts["train_tokens_used"] == len(used)
    assert counts["train_document_tokens"] == counts["tokens"]
    assert counts["train_used_rate"] == len(used) / counts["tokens"]
    assert (counts["train_used_rate"] == 1) == (objective == "mlm")


@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm+sop"])
def test_text_without_sentence_ends_is_used(
    build: Build, capsys: pytest.CaptureFixture[str], objective: str
) -> None:
    counts = build([[600], [400, 300], [500]], objective=objective)
    assert counts["train_used_rate"] > 0.95
    printed = capsys.readouterr().out
    assert f"{counts['train_used_rate']:.1%} of the training text is in at least one" in printed
    assert "warning" not in printed


def test_low_share_is_a_warning_that_names_the_cause(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    # An example has room for 29 tokens: of two sentences of 25, half is lost.
    counts = build([[25] * 6] * 4, dupe_factor=1, validation_fraction=0.3)
    printed = capsys.readouterr().out
    assert counts["train_used_rate"] < 0.8
    assert "long (here 25 tokens on average). Use --objective mlm" in printed


@given(
    st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=5), max_size=5), st.integers(4, 60)
)
def test_only_sentences_that_do_not_fit_are_divided(
    lengths: list[list[int]], max_tokens: int
) -> None:
    sentences = offsets_of(np.array([n for each in lengths for n in each], dtype=np.int64))
    documents = offsets_of(np.array([len(each) for each in lengths], dtype=np.int64))
    divided, bounds = divide_long_sentences(sentences, documents, max_tokens)
    assert divided[bounds].tolist() == sentences[documents].tolist()
    assert set(sentences.tolist()) <= set(divided.tolist())
    for number, each in enumerate(lengths):
        found = np.diff(divided[bounds[number] : bounds[number + 1] + 1]).tolist()
        if 2 * sum(each) <= max_tokens * len(each):
            assert found == each
        else:
            assert max(found) <= max_tokens
            assert min(found) >= 1
            assert [n for n in each if n <= max_tokens and n > max_tokens // 4 + 1] == [
                n for n in found if n > max_tokens // 4 + 1
            ]
