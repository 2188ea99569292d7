"""Examples: exact promises for every row, and the release's algorithm as the oracle of every distribution."""

from __future__ import annotations

import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_pipeline.corpus.sentences import split_sentences
from bert_pipeline.errors import BertpipeError
from bert_pipeline.examples.build import build_examples
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.examples.XX import (
    Pair,
    Runs,
    draw_target,
    plan_full_sentences,
    plan_next_sentences,
    plan_sentence_order,
    truncate,
)
from bert_pipeline.storage.manifest import read_manifest
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.load import load_tokenizer
from bert_pipeline.tokenizer.train import train_tokenizer
from tests.conftest import invent_documents, make_corpus
from tests.helpers.original_algorithm import Document, Instance, Settings, make_instances

PAD, UNK, CLS, SEP, MASK = range(5)
COLUMNS = ["tokens", "segment_ids", "is_random_next", "masked_positions", "masked_labels"]


def rows_of(folder: Path, split: str = "train") -> list[Instance]:
    """The rows as the oracle's instances; what was cut off is not in the files."""
    table = pa.concat_tables(
        pq.read_table(path) for path in sorted(folder.glob(f"{split}-*.parquet"))
    )
    return [
        Instance(*row, (0, 0), (0, 0))
        for row in zip(*(table[name].to_pylist() for name in COLUMNS), strict=True)
    ]


def restore(row: Instance) -> list[int]:
    tokens = list(row.tokens)
    for position, label in zip(row.masked_positions, row.masked_labels, strict=True):
        tokens[position] = label
    return tokens


def encode(texts: Sequence[str], tokenizer_folder: Path, language: str = "en") -> list[Document]:
    """Documents of sentences of ids, one sentence at a time."""
    tokenizer = load_tokenizer(tokenizer_folder).tokenizer
    tokenizer.encode_special_tokens = True
    documents = []
    for text in texts:
        sentences = [
            tokenizer.encode(s, add_special_tokens=False).ids
            for s in split_sentences(text, language)
        ]
        documents.append([sentence for sentence in sentences if sentence])
    return [document for document in documents if document]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Texts:
    """Documents' ids end to end, as strings of one character an id, to find a run in."""

    def __init__(self, documents: list[Document]) -> None:
        self.strings = [
            "".join(chr(token) for sentence in document for token in sentence)
            for document in documents
        ]

    def places(self, run: Sequence[int]) -> set[tuple[int, int]]:
        """(document, position) wherever a run stands."""
        wanted = "".join(map(chr, run))
        found = set()
        for number, text in enumerate(self.strings):
            at = text.find(wanted)
            while at >= 0:
                found.add((number, at))
                at = text.find(wanted, at + 1)
        return found


def check_row(
    row: Instance, texts: Texts, config: ExamplesConfig, vocab_size: int, rate: float
) -> set[int]:
    """Assert every exact promise; return the documents that the first segment may have come from."""
    tokens = restore(row)
    length = len(tokens)
    assert len(row.segment_ids) == length <= config.max_seq_length
    assert tokens[0] == CLS
    assert tokens[-1] == SEP
    assert all(0 <= token < vocab_size for token in row.tokens)
    limit = config.max_predictions or math.ceil(rate * config.max_seq_length)
    ordinary = [i for i, token in enumerate(tokens) if token not in (PAD, CLS, SEP, MASK)]
    assert len(row.masked_positions) == min(limit, max(1, round(rate * length)), len(ordinary))
    assert row.masked_positions == sorted(set(row.masked_positions))
    assert set(row.masked_positions) <= set(ordinary)
    untouched = set(range(length)) - set(row.masked_positions)
    assert all(row.tokens[i] == tokens[i] for i in untouched)

    if config.objective == "mlm":
        assert row.is_random_next is None
        assert set(row.segment_ids) == {0}
        runs = [
            list(run)
            for is_separator, run in groupby(tokens[1:], lambda token: token == SEP)
            if not is_separator
        ]
        assert tokens == [CLS, *(token for run in runs for token in (*run, SEP))]
        assert len(runs) == 1 or config.across_documents
        owners = [{number for number, _ in texts.places(run)} for run in runs]
        assert all(owners), "no contiguous run of any document"
        return owners[0] if len(runs) == 1 else set()

    assert len(ordinary) == length - 3
    middle = tokens.index(SEP, 1)
    assert row.segment_ids == [0] * (middle + 1) + [1] * (length - middle - 1)
    a, b = tokens[1:middle], tokens[middle + 1 : -1]
    assert a
    assert b
    places_a, places_b = texts.places(a), texts.places(b)
    assert places_a
    assert places_b
    if row.is_random_next and config.objective == "mlm+sop":
        return follow(b, places_b, places_a, length == config.max_seq_length)
    if row.is_random_next:
        owners = {d for d, _ in places_a if any(e != d for e, _ in places_b)}
        assert owners, "a random next of the same document"
        return owners
    return follow(a, places_a, places_b, length == config.max_seq_length)


def follow(
    a: list[int], places_a: set[tuple[int, int]], places_b: set[tuple[int, int]], may_be_cut: bool
) -> set[int]:
    """The documents in which B follows A, perhaps with a gap where tokens were cut at the seam."""
    after = {d for d, i in places_a if (d, i + len(a)) in places_b}
    if may_be_cut:
        last = dict(sorted(places_b))
        after |= {d for d, i in places_a if last.get(d, -1) > i + len(a)}
    assert after, "the second segment does not follow the first"
    return after


# Exact promises, over documents, lengths and tokenizers

words = st.sampled_from(
    [
        "ba",
        "Nopi",
        "fe3",
        "[MASK]",
        "[SEP]",
        "[CLS]",
        "[PAD]",
        "[UNK]",
        "東京",
        "é",
        "\u200c",
        "۳.۵",
        "x" * 40,
        "##ba",
        "zu",
    ]
)
sentences = st.lists(words, min_size=1, max_size=12).map(lambda found: " ".join(found) + ".")
texts = st.lists(
    st.lists(sentences, min_size=1, max_size=6).map(" ".join), min_size=1, max_size=4
).map("\n".join)


@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe"])
@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm+sop", "mlm", "mlm across documents"])
def test_every_row_keeps_every_promise(
    tmp_path_factory: pytest.TempPathFactory,
    wordpiece_folder: Path,
    byte_bpe_folder: Path,
    kind: str,
    objective: str,
):
    tokenizer = wordpiece_folder if kind == "wordpiece" else byte_bpe_folder
    vocab_size = load_tokenizer(tokenizer).vocab_size

    @settings(
        max_examples=8, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
    )
    @given(
        st.lists(texts, min_size=4, max_size=7),
        st.integers(8, 70),
        st.sampled_from([0.0, 0.3, 1.0]),
        st.sampled_from([0.05, 0.15, 0.5, 0.95]),
        st.sampled_from([None, 1, 3, 200]),
    )
    def check(
        given_texts: list[str], length: int, short: float, rate: float, limit: int | None
    ) -> None:
        place = tmp_path_factory.mktemp("promise")
        corpus = make_corpus(place / "corpus", given_texts, shards=2)
        config = ExamplesConfig(
            out=place / "examples", corpus=corpus, tokenizer=tokenizer, max_seq_length=length,
            objective=objective.split()[0], across_documents="across" in objective,
            mask_rate=rate, max_predictions=limit, short_seq_prob=short, dupe_factor=2, validation_fraction=0.3,
            workers=1, quiet=True,
        )  # fmt: skip
        manifest = build_examples(config)
        documents = Texts(encode(given_texts, tokenizer))
        for split in ("train", "validation"):
            rows = rows_of(config.out, split)
            assert len(rows) == manifest.counts[f"{split}_rows"] > 0
            assert sum(len(row.tokens) for row in rows) == manifest.counts[f"{split}_tokens"]
            assert (
                sum(len(row.masked_positions) for row in rows) == manifest.counts[f"{split}_masked"]
            )
            assert manifest.counts[f"{split}_masked_special"] == 0
            assert manifest.counts[f"{split}_padding"] == pytest.approx(
                1 - np.mean([len(row.tokens) for row in rows]) / length
            )
            if objective.startswith("mlm+"):
                share = np.mean([row.is_random_next for row in rows])
                assert manifest.counts[f"{split}_label_balance"] == pytest.approx(share)
            for row in rows:
                check_row(row, documents, config, vocab_size, rate if split == "train" else 0.15)
        shutil.rmtree(place)

    check()


lengths = st.lists(st.integers(1, 90), min_size=1, max_size=12)
"""Tokens of each sentence of a document."""


def bounds_of(sizes: Sequence[int], start: int = 1000) -> list[int]:
    return [start + int(n) for n in np.cumsum([0, *sizes])]


def plan(
    planner: Callable[..., None], sizes: Sequence[int], target: int, random: Random
) -> list[Pair]:
    pairs: list[Pair] = []
    # Sentences of other documents lie before and after, and are none of the planner's business.
    planner(pairs, bounds_of([7, *sizes, 7], 1000 - 7), 1, 1 + len(sizes), 5, target, random)
    return pairs


@given(lengths, st.integers(2, 125), st.integers(0, 99))
@settings(max_examples=200)
def test_next_sentences_tile_their_document(sizes: list[int], target: int, seed: int):
    bounds = bounds_of(sizes)
    at = bounds[0]
    for a_start, a_stop, b_start, b_stop, is_random, wanted, document in plan(
        plan_next_sentences, sizes, target, Random(seed)
    ):
        assert document == 5
        assert a_start == at < a_stop
        assert a_stop in bounds
        assert a_stop - a_start < target or bounds.index(a_stop) - bounds.index(a_start) == 1
        if is_random:
            assert (b_start, b_stop) == (0, 0)
            assert wanted == max(1, target - (a_stop - a_start))
            at = a_stop  # what was not used comes again
        else:
            assert wanted == 0
            assert b_start == a_stop < b_stop
            assert b_stop in bounds
            before_last = bounds[bounds.index(b_stop) - 1]
            assert before_last - a_start < target, "more sentences than the target needs"
            assert b_stop - a_start >= target or b_stop == bounds[-1]
            at = b_stop
    assert at == bounds[-1], "the document was not used up"


@given(lengths, st.integers(2, 125), st.integers(0, 99))
@settings(max_examples=200)
def test_sentence_order_pairs_tile_their_document_in_both_orders(
    sizes: list[int], target: int, seed: int
):
    bounds = bounds_of(sizes)
    at = bounds[0]
    for a_start, a_stop, b_start, b_stop, swapped, wanted, _ in plan(
        plan_sentence_order, sizes, target, Random(seed)
    ):
        assert wanted == 0
        first, second = (
            ((b_start, b_stop), (a_start, a_stop))
            if swapped
            else ((a_start, a_stop), (b_start, b_stop))
        )
        assert first[0] == at < first[1] == second[0] < second[1]
        assert second[1] in bounds
        assert first[1] in bounds or (bounds.index(second[1]) - bounds.index(at) == 1), (
            "parted within a sentence"
        )
        at = second[1]
    assert at == bounds[-1] or (at == bounds[-2] and sizes[-1] == 1), (
        "only a last single token may be left out"
    )


def test_orders_are_swapped_half_of_the_time_and_parted_evenly():
    random = Random(2)
    made = [plan(plan_sentence_order, [10] * 4, 40, random)[0] for _ in range(4000)]
    assert abs(sum(swapped for *_, swapped, _, _ in made) / 4000 - 0.5) < 4 * math.sqrt(0.25 / 4000)
    middles = np.bincount([(max(a, b) - 1000) // 10 for a, _, b, _, *_ in made])
    assert middles[0] == 0
    assert float(((middles[1:] - 4000 / 3) ** 2 / (4000 / 3)).sum()) < 2 + 4 * math.sqrt(2 * 2)


@given(st.lists(lengths, min_size=1, max_size=5), st.integers(6, 126), st.sampled_from([0.0, 0.5, 1.0]),
       st.integers(0, 9), st.booleans())  # fmt: skip
@settings(max_examples=200)
def test_full_sentences_use_every_token_once(
    documents: list[list[int]], room: int, short: float, seed: int, across: bool
):
    bounds = bounds_of([size for sizes in documents for size in sizes])
    edges = np.cumsum([0, *map(len, documents)]).tolist()
    runs = Runs()
    plan_full_sentences(runs, bounds, list(pairwise(edges)), room, short, Random(seed), across)
    assert runs.start[0] == bounds[0]
    assert runs.start[1:] == runs.stop[:-1]
    assert runs.stop[-1] == bounds[-1]
    document_edges = {bounds[edge] for edge in edges}
    for first, last in pairwise([*runs.first_run, len(runs.start)]):
        inner = runs.stop[first : last - 1]
        assert sum(runs.stop[n] - runs.start[n] + 1 for n in range(first, last)) <= room + 1
        assert set(inner) <= document_edges, "a separator within a document"
        assert across or not inner
        assert not any(
            runs.start[n] < edge < runs.stop[n]
            for n in range(first, last)
            for edge in document_edges
        )
    longest = max(size for sizes in documents for size in sizes)
    if short == 0 and longest <= room:
        assert set(runs.stop) <= set(bounds), "a sentence that fits is never parted"
        for end in runs.first_run[1:]:
            begins, here = runs.start[end], bounds.index(runs.start[end])
            if across or begins not in document_edges:
                example = max(first for first in runs.first_run if first < end)
                held = sum(runs.stop[n] - runs.start[n] + 1 for n in range(example, end))
                needed = held - 1 + bounds[here + 1] - begins + (begins in document_edges)
                assert needed > room, "the next sentence would have fitted"


# Distributions, against the release's algorithm

PASSES = 40


@pytest.fixture(scope="module")
def ours(make_examples: Callable[..., Path]) -> list[Instance]:
    folder = make_examples("examples-many", dupe_factor=PASSES, validation_fraction=0)
    return rows_of(folder)


@pytest.fixture(scope="module")
def encoded(documents: list[str], wordpiece_folder: Path) -> list[Document]:
    return encode(documents, wordpiece_folder)


@pytest.fixture(scope="module")
def release(encoded: list[Document]) -> list[Instance]:
    given = Settings(64, CLS, SEP, MASK, vocab_size=400, max_predictions=math.ceil(0.15 * 64))
    return make_instances(encoded, PASSES, given, Random(1))


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Kolmogorov-Smirnov: the largest gap between two cumulative distributions."""
    values = np.unique(np.concatenate([one, other]))
    below = [
        np.searchsorted(np.sort(sample), values, side="right") / len(sample)
        for sample in (one, other)
    ]
    return float(np.max(np.abs(below[0] - below[1])))


def starts_of(documents: list[Document]) -> set[tuple[int, ...]]:
    """The first three ids of every sentence that has so many."""
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


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("is_random", [True, False])
def test_lengths_and_masks_are_spread_as_the_release_s(
    ours: list[Instance], release: list[Instance], measure: str, is_random: bool
):
    # With about 3,000 rows on each side, chance alone reaches 0.05 less than once in a thousand.
    measured = [
        [MEASURES[measure](row) for row in rows if row.is_random_next == is_random]
        for rows in (ours, release)
    ]
    assert min(map(len, measured)) > 2500
    assert distance(*measured) < 0.05


def test_rates_are_the_release_s(
    ours: list[Instance], release: list[Instance], encoded: list[Document]
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
        # Four standard errors of the difference of two shares.
        assert abs(p - q) < 4 * math.sqrt((p * (1 - p) + q * (1 - q)) / 5000), name


def test_of_the_chosen_tokens_eight_in_ten_are_masked_one_is_random_and_one_kept(
    ours: list[Instance],
):
    kinds = [0, 0, 0]
    for row in ours:
        for position, label in zip(row.masked_positions, row.masked_labels, strict=True):
            found = row.tokens[position]
            kinds[0 if found == MASK else 2 if found == label else 1] += 1
    total = sum(kinds)
    assert total > 40_000
    # A random id is the mask, or the label itself, once in 400.
    for count, share in zip(
        kinds, (0.8 + 0.1 / 400, 0.1 - 0.2 / 400, 0.1 + 0.1 / 400), strict=True
    ):
        assert abs(count / total - share) < 4 * math.sqrt(share * (1 - share) / total)


def test_random_ids_are_drawn_evenly_from_the_whole_vocabulary(ours: list[Instance]):
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


def test_every_ordinary_position_is_masked_equally_often(ours: list[Instance]):
    full = [row for row in ours if len(row.tokens) == 64]
    counts = np.bincount([p for row in full for p in row.masked_positions], minlength=64)
    assert counts[0] == counts[63] == 0
    # Where the middle separator may stand, there is a little less to mask; the ends have none.
    ends = np.concatenate([counts[1:8], counts[56:63]])
    expected = len(full) * 10 / 61
    assert float(((ends - expected) ** 2 / expected).sum()) < 14 + 4 * math.sqrt(2 * 14)


def test_tokens_are_cut_from_front_and_back_as_the_release_cuts_them():
    # Two sentences that fill a pair too well: of 30 and 50 tokens, 20 each remain.
    draws = 3000
    a, b = np.full(draws, 30), np.full(draws, 50)
    front_a, back_a, front_b, back_b = truncate(a, b, 40, np.random.default_rng(3))
    assert (front_a + back_a == 10).all()
    assert (front_b + back_b == 30).all()
    lists = [
        [list(range(100, 130)), list(range(130, 180))],
        [list(range(200 + n, 225 + n)) for n in (0, 25, 50)],
    ]
    given = Settings(43, CLS, SEP, MASK, vocab_size=400, short_seq_prob=0)
    instances = make_instances(lists, draws, given, Random(4))
    expected = [
        row.front_cut
        for row in instances
        if not row.is_random_next and sum(row.front_cut + row.back_cut) == 40
    ]
    assert len(expected) > 1300
    for part, fronts in enumerate((front_a, front_b)):
        assert distance(fronts.tolist(), [front[part] for front in expected]) < 0.05
    assert abs(float(np.corrcoef(front_a, front_b)[0, 1])) < 0.1


@given(st.integers(1, 500), st.integers(1, 500), st.integers(5, 509))
def test_the_longer_segment_is_cut_first_and_none_to_nothing(a: int, b: int, room: int):
    cut = truncate(np.array([a]), np.array([b]), room, np.random.default_rng(0))
    left_a, left_b = a - (cut[0] + cut[1]).item(), b - (cut[2] + cut[3]).item()
    slow_a, slow_b = a, b
    while slow_a + slow_b > room:
        if slow_a > slow_b:
            slow_a -= 1
        else:
            slow_b -= 1
    assert (left_a, left_b) == (slow_a, slow_b)
    assert min(left_a, left_b) >= 1


def test_short_targets_are_even_from_two_to_the_longest():
    random = Random(5)
    targets = [draw_target(61, 1.0, random) for _ in range(4000)]
    assert (min(targets), max(targets)) == (2, 61)
    counts = np.bincount(targets)[2:]
    assert float(((counts - counts.mean()) ** 2 / counts.mean()).sum()) < 59 + 4 * math.sqrt(2 * 59)
    shares = [draw_target(61, 0.3, random) == 61 for _ in range(4000)]
    assert abs(np.mean(shares) - 0.7 - 0.3 / 60) < 4 * math.sqrt(0.21 / 4000)


def test_the_other_document_and_its_sentence_are_drawn_evenly(tmp_path: Path):
    # Every sentence begins with a letter of its own, so that a second segment tells by its first token where it begins.
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
        out=tmp_path / "examples", corpus=corpus, tokenizer=tokenizer, max_seq_length=128, short_seq_prob=0,
        dupe_factor=150, validation_fraction=0, workers=1, quiet=True,
    )  # fmt: skip
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


# The stage


def test_shared_folders_keep_every_promise(
    examples_folder: Path,
    mlm_examples_folder: Path,
    wordpiece_folder: Path,
    encoded: list[Document],
):
    found = Texts(encoded)
    for folder, objective in ((examples_folder, "mlm+nsp"), (mlm_examples_folder, "mlm")):
        config = ExamplesConfig(
            out=folder,
            corpus=folder,
            tokenizer=wordpiece_folder,
            max_seq_length=64,
            objective=objective,
        )
        owners: dict[str, set[int]] = {}
        for split in ("train", "validation"):
            sure = [check_row(row, found, config, 400, 0.15) for row in rows_of(folder, split)]
            owners[split] = {number for numbers in sure if len(numbers) == 1 for number in numbers}
        counts = read_manifest(folder, "examples").counts
        assert len(owners["train"]) == counts["train_documents"] == 36
        assert len(owners["validation"]) == counts["validation_documents"] == 4
        assert not owners["train"] & owners["validation"], "a held-out document was trained on"


def test_a_random_next_comes_from_the_same_split(examples_folder: Path, encoded: list[Document]):
    found = Texts(encoded)
    seconds: dict[str, set[int]] = {}
    for split in ("train", "validation"):
        seconds[split] = set()
        for row in rows_of(examples_folder, split):
            if row.is_random_next and row.lengths[1] >= 8:
                places = found.places(restore(row)[row.lengths[0] + 2 : -1])
                if len({number for number, _ in places}) == 1:
                    seconds[split] |= {number for number, _ in places}
    assert seconds["train"]
    assert seconds["validation"]
    assert not seconds["train"] & seconds["validation"]


def test_without_pairs_every_token_of_every_document_is_there_once_a_pass(
    make_examples: Callable[..., Path], encoded: list[Document]
):
    folder = make_examples("all-tokens", objective="mlm", dupe_factor=1, short_seq_prob=0.5)
    made = [
        token
        for split in ("train", "validation")
        for row in rows_of(folder, split)
        for token in restore(row)[1:-1]
    ]
    given_tokens = [token for document in encoded for sentence in document for token in sentence]
    assert sorted(made) == sorted(given_tokens)
    train = np.bincount(
        [token for row in rows_of(folder) for token in restore(row)[1:-1]], minlength=400
    )
    assert (np.load(folder / "token_counts.npy") == train).all()


def test_each_pass_makes_other_pairs_and_other_masks(examples_folder: Path):
    passes = [pq.read_table(examples_folder / f"train-{number:05}.parquet") for number in (0, 4, 8)]
    for column in ("tokens", "masked_positions", "is_random_next"):
        assert len({str(table[column].to_pylist()) for table in passes}) == 3


def test_the_seed_decides(make_examples: Callable[..., Path], examples_folder: Path):
    again, other = make_examples("again"), make_examples("other", seed=1)
    assert shard_bytes(again) == shard_bytes(examples_folder)
    assert set(shard_bytes(other)) == set(shard_bytes(examples_folder))
    differing = [
        name
        for name, data in shard_bytes(other).items()
        if data != shard_bytes(examples_folder)[name]
    ]
    assert len(differing) > 12


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_writes_the_same_bytes(
    make_examples: Callable[..., Path], examples_folder: Path, workers: int
):
    assert shard_bytes(make_examples(f"workers-{workers}", workers=workers)) == shard_bytes(
        examples_folder
    )


def test_the_folder_holds_what_the_contract_says(examples_folder: Path):
    names = [f"train-{number:05}.parquet" for number in range(12)]
    assert sorted(path.name for path in examples_folder.iterdir()) == [
        "manifest.json", "token_counts.npy", *names, "validation-00000.parquet",
    ]  # fmt: skip
    expected = ["list<int32>", "list<int8>", "bool", "list<int32>", "list<int32>"]
    schema = pq.read_schema(examples_folder / names[0])
    assert schema.names == COLUMNS
    assert [
        str(field.type).replace("element: ", "").replace("item: ", "") for field in schema
    ] == expected


def test_datasets_opens_the_files(examples_folder: Path, tmp_path: Path):
    import datasets

    files = {
        split: str(examples_folder / f"{split}-*.parquet") for split in ("train", "validation")
    }
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))
    counts = read_manifest(examples_folder, "examples").counts
    assert {split: loaded[split].num_rows for split in files} == {
        split: counts[f"{split}_rows"] for split in files
    }
    assert loaded["train"][0]["tokens"] == rows_of(examples_folder)[0].tokens


def examples_command(out: Path, corpus: Path, tokenizer: Path) -> list[str]:
    options = {
        "out": out,
        "corpus": corpus,
        "tokenizer": tokenizer,
        "max-seq-length": 64,
        "dupe-factor": 60,
        "workers": 2,
    }
    named = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "bert_pipeline", "examples", *named, "--quiet"]


MANY_SHARDS: dict[str, Any] = {"dupe_factor": 60, "validation_fraction": 0.02}


@pytest.fixture(scope="module")
def never_killed(make_examples: Callable[..., Path]) -> dict[str, bytes]:
    return shard_bytes(make_examples("never-killed", **MANY_SHARDS))


@pytest.mark.parametrize("after", ["tokens", "train-00005.parquet"])
def test_a_killed_run_goes_on_to_the_same_bytes(
    make_examples: Callable[..., Path],
    artifacts: Path,
    never_killed: dict[str, bytes],
    corpus_folder: Path,
    wordpiece_folder: Path,
    after: str,
):
    out = artifacts / f"killed-{after}"
    awaited = out / ".tokens" / "00000.arrow" if after == "tokens" else out / after
    with subprocess.Popen(examples_command(out, corpus_folder, wordpiece_folder)) as process:
        end = time.monotonic() + 60
        while not awaited.exists() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert awaited.exists()
    assert not (out / "manifest.json").exists(), "the run was over before it could be killed"
    time.sleep(1)  # the workers notice within half a second
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("train-*.parquet")}
    make_examples(out.name, **MANY_SHARDS)
    assert shard_bytes(out) == never_killed
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., ExamplesConfig]:
    """A function that makes a corpus and a tokenizer of some texts, and configures their examples."""

    def configure(texts: Sequence[str], **options: Any) -> ExamplesConfig:
        for name in ("corpus", "corpus-raw", "tokenizer"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        corpus = make_corpus(tmp_path / "corpus", texts, shards=2)
        train_tokenizer(
            TokenizeConfig(
                out=tmp_path / "tokenizer", corpus=corpus, kind="byte-bpe", vocab_size=262, min_frequency=1,
                workers=1, quiet=True,
            )
        )  # fmt: skip
        given = {"max_seq_length": 32, "dupe_factor": 2, "workers": 1, "quiet": True} | options
        return ExamplesConfig(
            out=tmp_path / "examples", corpus=corpus, tokenizer=tmp_path / "tokenizer", **given
        )

    return configure


@pytest.mark.parametrize("text", ["One sentence only.", "One. Two. Three.\nFour."])
def test_one_document_has_no_random_next_but_will_do_without_pairs(
    small: Callable[..., ExamplesConfig], text: str
):
    for fraction in (0.0, 0.02):
        with pytest.raises(
            BertpipeError, match=r"1 document\(s\).*mlm\+nsp needs 2.*--objective mlm"
        ):
            build_examples(small([text], validation_fraction=fraction))
    config = small([text], validation_fraction=0, objective="mlm")
    build_examples(config)
    rows = rows_of(config.out)
    assert len(rows) >= 2
    assert not list(config.out.glob("validation*"))


def test_one_sentence_has_an_order_when_it_is_parted(small: Callable[..., ExamplesConfig]):
    config = small(
        ["One sentence only."],
        validation_fraction=0,
        objective="mlm+sop",
        dupe_factor=40,
        max_seq_length=64,
    )
    build_examples(config)
    decode = load_tokenizer(config.tokenizer).tokenizer.decode
    swapped = set()
    for row in rows_of(config.out):
        a, b = decode(restore(row)[1:-1], skip_special_tokens=False).split("[SEP]")
        swapped.add(row.is_random_next)
        assert (b + a if row.is_random_next else a + b).strip() == "One sentence only."
    assert swapped == {True, False}


def test_a_single_token_makes_no_pair_and_that_is_said(
    small: Callable[..., ExamplesConfig], wordpiece_folder: Path
):
    config = small(["x"], validation_fraction=0, objective="mlm+sop", masks="dynamic")
    with pytest.raises(
        BertpipeError, match=r"too little text for a single example \(1 document\(s\) of 1 token"
    ):
        build_examples(config.model_copy(update={"tokenizer": wordpiece_folder}))


def test_documents_without_a_single_token_are_no_documents(
    small: Callable[..., ExamplesConfig], tmp_path: Path
):
    config = small(["The sea.", "The sky."], validation_fraction=0)
    train_tokenizer(
        TokenizeConfig(
            out=config.tokenizer, corpus=config.corpus, vocab_size=21, min_frequency=1, workers=1, quiet=True,
            overwrite=True,
        )
    )  # fmt: skip
    shutil.rmtree(config.corpus)
    make_corpus(config.corpus, ["\u0300", "The sea.", "\u0300 \u0300.", "\u0300\n\u0300"], shards=2)
    with pytest.raises(
        BertpipeError, match=r"2 document\(s\).*needs 2 to train on and 2 to hold out"
    ):
        build_examples(config.model_copy(update={"validation_fraction": 0.1}))
    manifest = build_examples(config)
    assert (manifest.counts["documents"], manifest.counts["sentences"]) == (2, 2)


def test_a_large_shard_is_worked_on_in_pieces_whoever_does_it(
    tmp_path: Path, wordpiece_folder: Path, documents: list[str]
):
    texts = [f"{text}\n{number}." for number, text in enumerate(documents * 80)]
    corpus = make_corpus(tmp_path / "corpus", texts)
    made = []
    for workers in (1, 3):
        config = ExamplesConfig(
            out=tmp_path / str(workers), corpus=corpus, tokenizer=wordpiece_folder, max_seq_length=512,
            dupe_factor=1, objective="mlm", short_seq_prob=0, workers=workers, quiet=True,
        )  # fmt: skip
        manifest = build_examples(config)
        made.append(shard_bytes(config.out))
    assert made[0] == made[1]
    assert len(read_manifest(corpus, "corpus").files) == 1
    assert {"train-00000.parquet", "train-00001.parquet"} <= set(made[0])
    assert manifest.counts["documents"] == len(texts)


def test_two_documents_of_one_sentence_are_enough_for_pairs(small: Callable[..., ExamplesConfig]):
    config = small(["The sea.", "The sky."], validation_fraction=0)
    manifest = build_examples(config)
    rows = rows_of(config.out)
    assert len(rows) == 4
    assert all(row.is_random_next for row in rows)
    assert manifest.counts["train_documents"] == 2
    assert manifest.counts["validation_documents"] == 0


def test_too_few_documents_to_hold_some_out_are_an_error_that_says_so(
    small: Callable[..., ExamplesConfig],
):
    with pytest.raises(BertpipeError, match=r"3 document\(s\).*--validation-fraction 0"):
        build_examples(small(["One. Two.", "Three. Four.", "Five."]))


def test_a_changed_tokenizer_or_corpus_is_refused(
    tmp_path: Path, small: Callable[..., ExamplesConfig]
):
    texts = invent_documents(9, 12)
    config = small(texts)
    build_examples(config)
    before = shard_bytes(config.out)
    shutil.rmtree(config.tokenizer)
    train_tokenizer(
        TokenizeConfig(
            out=config.tokenizer,
            corpus=config.corpus,
            kind="byte-bpe",
            vocab_size=263,
            workers=1,
            quiet=True,
        )
    )
    with pytest.raises(BertpipeError, match=r"tokenizer: its content changed"):
        build_examples(config)
    with pytest.raises(BertpipeError, match=r"corpus: its content changed"):
        build_examples(small([*texts[:-1], "Another text."]))
    assert shard_bytes(config.out) == before
    with pytest.raises(BertpipeError, match=r"max_seq_length: 32 → 48"):
        build_examples(small(texts, max_seq_length=48))
    build_examples(small(texts))
    assert shard_bytes(config.out) == before


def test_a_second_build_in_one_process_reads_the_second_corpus(
    small: Callable[..., ExamplesConfig],
):
    made = []
    for seed in (10, 11, 12):
        texts = invent_documents(seed, 12)
        config = small(texts, overwrite=True)
        build_examples(config)
        found = Texts(encode(texts, config.tokenizer))
        rows = rows_of(config.out)
        assert all(found.places(restore(row)[1 : row.lengths[0] + 1]) for row in rows)
        made.append(rows)
    assert made[0] != made[1] != made[2]


def test_names_of_special_tokens_in_a_text_are_plain_text(small: Callable[..., ExamplesConfig]):
    config = small(
        ["A [MASK] here [SEP] and [CLS] there. Next [PAD] one [UNK]."] * 2, validation_fraction=0
    )
    manifest = build_examples(config)
    assert manifest.counts["unknown"] == 0
    for row in rows_of(config.out):
        assert sum(token <= MASK for token in restore(row)) == 3


SHOWN = re.compile(r"\[([^\[\]]+)\]")


@pytest.mark.parametrize("masks", ["static", "dynamic"])
@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe"])
def test_shown_examples_read_as_the_corpus_with_marks(
    tmp_path: Path, wordpiece_folder: Path, byte_bpe_folder: Path, corpus_folder: Path, documents: list[str],
    kind: str, masks: str,
):  # fmt: skip
    shutil.copytree(corpus_folder, tmp_path / "corpus")
    tokenizer = wordpiece_folder if kind == "wordpiece" else byte_bpe_folder
    given = f"--corpus {tmp_path}/corpus --tokenizer {tokenizer} --masks {masks} --max-seq-length 64 --pad"
    command = [
        sys.executable,
        "-m",
        "bert_pipeline",
        "examples",
        "--out",
        str(tmp_path / "out"),
        "--show",
        "7",
    ]
    first = subprocess.run(
        [*command, *given.split()], capture_output=True, text=True, check=True
    ).stdout
    shutil.rmtree(
        tmp_path / "corpus"
    )  # to look at a folder, what it was made from need not be there
    (tmp_path / "out").rename(tmp_path / "moved")
    command[command.index("--out") + 1] = str(tmp_path / "moved")
    again = subprocess.run(
        [*command, "--tokenizer", str(tokenizer)], capture_output=True, text=True, check=True
    ).stdout
    assert again in first
    spaceless = ["".join(text.split()).lower() for text in documents]
    heads = re.findall(
        r"^train-\d+\.parquet, row \d+: (\d+) tokens, (\d+) to predict; (.+)$", again, re.MULTILINE
    )
    assert len(heads) == 7
    lines = re.findall(r"^  ([AB])  (.*)$", again, re.MULTILINE)
    assert [name for name, _ in lines] == ["A", "B"] * 7
    for (_, _, meaning), (_, a), (_, b) in zip(heads, lines[::2], lines[1::2], strict=True):
        assert SHOWN.search(a + b)
        plain_a, plain_b = (
            SHOWN.sub(lambda m: m[1].split("←")[-1].removesuffix("="), line) for line in (a, b)
        )
        # What was cut within a word begins with the rest of it.
        texts = ["".join(plain.split()).lower().removeprefix("##") for plain in (plain_a, plain_b)]
        homes = [{n for n, text in enumerate(spaceless) if part in text} for part in texts]
        assert all(homes), texts
        assert bool(homes[0] & homes[1]) == (meaning == "B follows A") or max(map(len, homes)) > 1


def test_to_look_at_a_folder_no_other_options_are_taken(examples_folder: Path):
    def look(**options: object) -> None:
        build_examples(ExamplesConfig(**({"out": examples_folder, "show": 1} | options)))  # type: ignore[arg-type]

    look(dupe_factor=3, seed=0)
    with pytest.raises(BertpipeError, match="made with other --dupe-factor, --seed"):
        look(dupe_factor=4, seed=1)


def test_rows_are_shown_from_the_shards_that_have_some(
    tmp_path: Path, wordpiece_folder: Path, documents: list[str], capsys: pytest.CaptureFixture[str]
):
    # Two large documents in one shard make three pieces, one of them without a document.
    corpus = make_corpus(tmp_path / "corpus", ["\n".join(documents * 60) for _ in range(2)])
    config = ExamplesConfig(
        out=tmp_path / "examples", corpus=corpus, tokenizer=wordpiece_folder, max_seq_length=512, dupe_factor=1,
        validation_fraction=0, workers=1, show=5,
    )  # fmt: skip
    build_examples(config)
    rows = [pq.read_metadata(path).num_rows for path in sorted(config.out.glob("train-*"))]
    assert min(rows) == 0
    heads = re.findall(r"^(train-\d+\.parquet), row (\d+):", capsys.readouterr().out, re.MULTILINE)
    assert len(set(heads)) == 5
    assert len({name for name, _ in heads}) == len([count for count in rows if count])


def test_an_input_that_is_no_artifact_is_named(
    tmp_path: Path, corpus_folder: Path, wordpiece_folder: Path
):
    with pytest.raises(
        BertpipeError, match=r"made by `bertpipe corpus`.*`bertpipe tokenize` was expected"
    ):
        build_examples(
            ExamplesConfig(
                out=tmp_path / "x", corpus=corpus_folder, tokenizer=corpus_folder, quiet=True
            )
        )
    with pytest.raises(BertpipeError, match="no such folder"):
        build_examples(
            ExamplesConfig(
                out=tmp_path / "x", corpus=tmp_path / "no", tokenizer=wordpiece_folder, quiet=True
            )
        )
    assert not (tmp_path / "x").exists()
