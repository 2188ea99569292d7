"""Planning examples: sentence pairs, full sentences, truncation and target lengths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_pipeline.examples.full_sentences import plan_full_sentences
from bert_pipeline.examples.layout import truncate
from bert_pipeline.examples.next_sentence import RANDOM_NEXT_PROBABILITY, plan_next_sentences
from bert_pipeline.examples.objective import DocumentBatch, Pair, draw_target
from bert_pipeline.examples.objectives import OBJECTIVES
from bert_pipeline.examples.sentence_order import SWAP_PROBABILITY, plan_sentence_order
from tests.helpers.example_rows import (
    CLS,
    MASK,
    SEP,
    distance,
)
from tests.helpers.original_algorithm import Settings, make_instances

lengths = st.lists(st.integers(1, 90), min_size=1, max_size=12)
"""Tokens of each sentence of a document."""


def bounds_of(sizes: Sequence[int], start: int = 1000) -> list[int]:
    return [start + int(n) for n in np.cumsum([0, *sizes])]


def plan(
    planner: Callable[..., None], sizes: Sequence[int], target: int, random: Random
) -> list[Pair]:
    pairs: list[Pair] = []
    # Sentences of other documents before and after must not be used.
    planner(pairs, bounds_of([7, *sizes, 7], 1000 - 7), 1, 1 + len(sizes), 5, target, random)
    return pairs


@given(lengths, st.integers(2, 125), st.integers(0, 99))
@settings(max_examples=200)
def test_next_sentence_pairs_cover_the_document(sizes: list[int], target: int, seed: int):
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
            at = a_stop  # the rest is used again
        else:
            assert wanted == 0
            assert b_start == a_stop < b_stop
            assert b_stop in bounds
            before_last = bounds[bounds.index(b_stop) - 1]
            assert before_last - a_start < target, "more sentences than needed for the target"
            assert b_stop - a_start >= target or b_stop == bounds[-1]
            at = b_stop
    assert at == bounds[-1], "the document is not covered"


@given(lengths, st.integers(2, 125), st.integers(0, 99))
@settings(max_examples=200)
def test_sentence_order_pairs_cover_the_document(sizes: list[int], target: int, seed: int):
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
            "split within a sentence"
        )
        at = second[1]
    assert at == bounds[-1] or (at == bounds[-2] and sizes[-1] == 1), (
        "only a single last token may be skipped"
    )


def test_sentence_order_swap_probability_and_uniform_split():
    random = Random(2)
    made = [plan(plan_sentence_order, [10] * 4, 40, random)[0] for _ in range(4000)]
    assert abs(
        sum(swapped for *_, swapped, _, _ in made) / 4000 - SWAP_PROBABILITY
    ) < 4 * math.sqrt(0.25 / 4000)
    middles = np.bincount([(max(a, b) - 1000) // 10 for a, _, b, _, *_ in made])
    assert middles[0] == 0
    assert float(((middles[1:] - 4000 / 3) ** 2 / (4000 / 3)).sum()) < 2 + 4 * math.sqrt(2 * 2)


@given(
    st.lists(lengths, min_size=1, max_size=5),
    st.integers(6, 126),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 9),
    st.booleans(),
)
@settings(max_examples=200)
def test_full_sentences_use_every_token_once(
    documents: list[list[int]], max_tokens: int, short: float, seed: int, across: bool
):
    bounds = bounds_of([size for sizes in documents for size in sizes])
    edges = np.cumsum([0, *map(len, documents)]).tolist()
    batch = DocumentBatch(
        bounds=bounds,
        documents=list(pairwise(edges)),
        numbers=range(len(documents)),
        max_tokens=max_tokens,
        short_seq_prob=short,
        across_documents=across,
        random=Random(seed),
    )
    runs = plan_full_sentences(batch)
    assert runs.start[0] == bounds[0]
    assert runs.start[1:] == runs.stop[:-1]
    assert runs.stop[-1] == bounds[-1]
    document_edges = {bounds[edge] for edge in edges}
    for first, last in pairwise([*runs.first_run, len(runs.start)]):
        inner = runs.stop[first : last - 1]
        assert sum(runs.stop[n] - runs.start[n] + 1 for n in range(first, last)) <= max_tokens + 1
        assert set(inner) <= document_edges, "a separator within a document"
        assert across or not inner
        assert not any(
            runs.start[n] < edge < runs.stop[n]
            for n in range(first, last)
            for edge in document_edges
        )
    longest = max(size for sizes in documents for size in sizes)
    if short == 0 and longest <= max_tokens:
        assert set(runs.stop) <= set(bounds), "a sentence that fits was split"
        for end in runs.first_run[1:]:
            begins = runs.start[end]
            here = bounds.index(runs.start[end])
            if across or begins not in document_edges:
                example = max(first for first in runs.first_run if first < end)
                held = sum(runs.stop[n] - runs.start[n] + 1 for n in range(example, end))
                needed = held - 1 + bounds[here + 1] - begins + (begins in document_edges)
                assert needed > max_tokens, "the next sentence fits"


@pytest.mark.integration
def test_truncation_at_both_ends_equals_the_bert_release():
    # Segments of 30 and 50 tokens are truncated to 20 each.
    draws = 3000
    a = np.full(draws, 30)
    b = np.full(draws, 50)
    cut = truncate(a, b, 40, np.random.default_rng(3))
    assert (cut.front_a + cut.back_a == 10).all()
    assert (cut.front_b + cut.back_b == 30).all()
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
    for part, fronts in enumerate((cut.front_a, cut.front_b)):
        assert distance(fronts.tolist(), [front[part] for front in expected]) < 0.05
    assert abs(float(np.corrcoef(cut.front_a, cut.front_b)[0, 1])) < 0.1


@given(st.integers(1, 500), st.integers(1, 500), st.integers(5, 509))
def test_longer_segment_is_truncated_first(a: int, b: int, max_tokens: int):
    cut = truncate(np.array([a]), np.array([b]), max_tokens, np.random.default_rng(0))
    left_a = a - (cut.front_a + cut.back_a).item()
    left_b = b - (cut.front_b + cut.back_b).item()
    slow_a = a
    slow_b = b
    while slow_a + slow_b > max_tokens:
        if slow_a > slow_b:
            slow_a -= 1
        else:
            slow_b -= 1
    assert (left_a, left_b) == (slow_a, slow_b)
    assert min(left_a, left_b) >= 1


def test_short_seq_prob_targets_are_uniform():
    random = Random(5)
    targets = [draw_target(61, 1.0, random) for _ in range(4000)]
    assert (min(targets), max(targets)) == (2, 61)
    counts = np.bincount(targets)[2:]
    assert float(((counts - counts.mean()) ** 2 / counts.mean()).sum()) < 59 + 4 * math.sqrt(2 * 59)
    shares = [draw_target(61, 0.3, random) == 61 for _ in range(4000)]
    assert abs(np.mean(shares) - 0.7 - 0.3 / 60) < 4 * math.sqrt(0.21 / 4000)


def test_objective_registry_names_labels_and_special_tokens():
    assert {name: record.name for name, record in OBJECTIVES.items()} == {n: n for n in OBJECTIVES}
    assert {n for n, record in OBJECTIVES.items() if record.has_pairs} == {"mlm+nsp", "mlm+sop"}
    for record in OBJECTIVES.values():
        labels = {record.describe_label(True), record.describe_label(False)}
        assert len(labels - {""}) == (2 if record.has_pairs else 0)
        assert record.special_tokens == (3 if record.has_pairs else 2)


def test_random_next_probability():
    random = Random(6)
    drawn = [plan(plan_next_sentences, [10] * 4, 40, random)[0] for _ in range(4000)]
    share = sum(is_random for *_, is_random, _, _ in drawn) / 4000
    assert abs(share - RANDOM_NEXT_PROBABILITY) < 4 * math.sqrt(0.25 / 4000)
