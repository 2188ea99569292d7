"""The held-out text of corpora with few documents, and of documents that are divided."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.errors import BertpipeError
from bert_pipeline.examples.splits import Split, Splits
from tests.helpers.example_rows import CLS, SEP, restore, rows_of, shard_bytes
from tests.helpers.unique_words import SPECIAL, Build, build

__all__ = ["build"]

SPLITS: tuple[Split, ...] = ("train", "validation")
LONG = [[8] * 150, [10] * 100, [5] * 300, [12] * 90, [7] * 200]


def tokens_of(folder: Path, split: str) -> set[int]:
    return {token for row in rows_of(folder, split) for token in restore(row)} - {CLS, SEP}


@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm+sop", "mlm"])
@pytest.mark.parametrize("count", [2, 5])
def test_few_long_documents_hold_out_the_wanted_share(
    build: Build, tmp_path: Path, objective: str, count: int
) -> None:
    counts = build(LONG[:count], objective=objective, validation_fraction=0.02)
    assert counts["validation_share"] == pytest.approx(0.02, abs=0.005)
    assert counts["divided_documents"] == counts["train_documents"] == count
    train = tokens_of(tmp_path / "examples", "train")
    held_out = tokens_of(tmp_path / "examples", "validation")
    assert held_out
    assert not train & held_out, "a token is in both splits"
    last = [len(SPECIAL) - 1 + end for end in accumulate(map(sum, LONG[:count]))]
    assert held_out >= set(last), "the end of a document is not held out"


def test_random_next_sentence_is_from_another_divided_document(
    build: Build, tmp_path: Path
) -> None:
    build(LONG, validation_fraction=0.02)
    starts = [len(SPECIAL) + start for start in accumulate(map(sum, LONG), initial=0)]
    pairs = 0
    for split in SPLITS:
        for row in rows_of(tmp_path / "examples", split):
            tokens = restore(row)
            one = bisect_right(starts, tokens[1])
            other = bisect_right(starts, tokens[-2])
            assert (one != other) == row.is_random_next
            pairs += one != other
    assert pairs > 100


@pytest.mark.integration
def test_divided_documents_give_the_same_bytes_for_any_workers(
    build: Build, tmp_path: Path
) -> None:
    build(LONG, validation_fraction=0.02, dupe_factor=1)
    build(LONG, validation_fraction=0.02, dupe_factor=1, workers=2, out=tmp_path / "again")
    assert shard_bytes(tmp_path / "examples") == shard_bytes(tmp_path / "again")


def test_one_long_document_among_short_ones_is_divided(build: Build) -> None:
    short = [[9, 6]] * 60
    shares = {
        build([*short, LONG[0]], validation_fraction=0.05, seed=seed, overwrite=True)[
            "validation_share"
        ]
        for seed in range(3)
    }
    assert min(shares) > 0.03
    assert max(shares) < 0.08


def test_text_without_sentence_ends_is_divided_for_masked_lm(build: Build) -> None:
    counts = build([[900], [800]], objective="mlm", validation_fraction=0.02)
    assert counts["validation_share"] == pytest.approx(0.02, abs=0.01)


def test_documents_of_few_sentences_stay_whole(build: Build) -> None:
    counts = build([[9, 5, 7]] * 6, validation_fraction=0.02)
    assert counts["divided_documents"] == 0
    assert (counts["train_documents"], counts["validation_documents"]) == (4, 2)


def test_single_long_document_has_no_other_document_for_next_sentences(build: Build) -> None:
    with pytest.raises(BertpipeError, match="has 1 document with sentences, but mlm"):
        build(LONG[:1], validation_fraction=0.02)


@given(
    st.integers(0, 40),
    st.lists(st.integers(0, 60), max_size=6, unique=True),
    st.floats(0, 1),
    st.integers(0, 20),
)
def test_splits_of_divided_documents_partition_all_parts(
    others: int, places: list[int], share: float, seed: int
) -> None:
    divided = sorted(place for place in places if place < others + len(places))
    heads = np.array([number + before for before, number in enumerate(divided)], dtype=np.int64)
    count = others + len(places) - len(divided) + 2 * len(divided)
    whole = count - 2 * len(divided)
    held_out = int(share * whole)
    splits = Splits(count, held_out, seed, heads)
    train, validation = (splits.members(split, 0, count).tolist() for split in SPLITS)
    assert sorted(train + validation) == list(range(count))
    assert set(heads.tolist()) <= set(train)
    assert set((heads + 1).tolist()) <= set(validation)
    assert (splits.size("train"), splits.size("validation")) == (len(train), len(validation))
    random = np.random.default_rng(seed)
    for split, members in zip(SPLITS, (train, validation), strict=True):
        if members:
            drawn = set(splits.draw(split, 2000, random).tolist())
            assert drawn == set(members), "drawn documents are not those of the split"
