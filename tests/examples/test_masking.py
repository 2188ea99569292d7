"""Masking: invariants of every row, and distributions compared with a reference implementation.

Statistical tests have fixed seeds; each bound is stated in standard deviations beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.examples.counter_rng import make_key, random_bits
from bert_pipeline.examples.masking import MaskRule, Masks, draw_masks
from bert_pipeline.examples.rows import UnpaddedRows
from bert_pipeline.ragged import UInt64Array, offsets_of
from tests.helpers.literal_masks import SPAN_LENGTH_WEIGHTS, Row, Rule, draw_outcome

CLS = 2
SEP = 3
MASK = 4
VOCABULARY = 30_000
UNITS = ["token", "whole-word", "span"]


def lay(rows: Sequence[Row], with_word_starts: bool = True) -> UnpaddedRows:
    """Rows as flat arrays."""
    return UnpaddedRows(
        tokens=np.array([token for row in rows for token in row.tokens], dtype=np.int32),
        segment_ids=np.empty(0, dtype=np.int8),
        is_special=np.array([flag for row in rows for flag in row.special], dtype=np.bool_),
        word_starts=np.array([flag for row in rows for flag in row.word_starts], dtype=np.bool_)
        if with_word_starts
        else None,
        offsets=offsets_of(np.array([len(row.tokens) for row in rows], dtype=np.int64)),
    )


def make_row(*segments: Sequence[int], first_id: int = 10) -> Row:
    """A row of segments, each given as the lengths of its words; all ids differ."""
    row = Row([CLS], [True], [True])
    for segment in segments:
        for length in segment:
            row.tokens += range(first_id + len(row.tokens), first_id + len(row.tokens) + length)
            row.special += [False] * length
            row.word_starts += [True] + [False] * (length - 1)
        row.tokens.append(SEP)
        row.special.append(True)
        row.word_starts.append(True)
    return row


def rule_of(rule: Rule, vocab_size: int = VOCABULARY) -> MaskRule:
    return MaskRule(
        rule.unit,
        rule.rate,
        rule.max_predictions,
        rule.mask_share,
        rule.random_share,
        MASK,
        vocab_size,
    )


def keys_of(count: int, *seed: int) -> UInt64Array:
    return random_bits(make_key(*seed), np.arange(count))


def mask_repeatedly(row: Row, rule: Rule, times: int, seed: int = 0) -> Masks:
    """One row masked `times` times, in one call."""
    one = lay([row])
    lengths = np.full(times, len(row.tokens))
    rows = UnpaddedRows(
        np.tile(one.tokens, times),
        one.segment_ids,
        np.tile(one.is_special, times),
        None if rule.unit == "token" else np.tile(one.word_starts, times),
        offsets_of(lengths),
    )
    return draw_masks(rows, keys_of(times, seed), rule_of(rule))


def read_outcomes(row: Row, masks: Masks) -> list[str]:
    """The masks as outcomes in the notation of `draw_outcome`."""
    times = len(masks.offsets) - 1
    tokens = masks.tokens.reshape(times, -1)
    chosen = np.zeros(tokens.shape, dtype=bool)
    chosen[np.repeat(np.arange(times), np.diff(masks.offsets)), masks.positions] = True
    originals = np.array(row.tokens)
    outcome = np.full(tokens.shape, ".")
    # A random token is the mask or the original token with probability 1 in 15,000.
    outcome[chosen] = "r"
    outcome[chosen & (tokens == MASK)] = "m"
    outcome[chosen & (tokens == originals)] = "k"
    assert (tokens == originals)[~chosen].all()
    return ["".join(line) for line in outcome.tolist()]


def distance(one: Counter[str], other: Counter[str]) -> float:
    """Two-sample chi-square statistic, in standard deviations above its mean.

    Rare kinds are merged.
    """
    kinds = {kind: one[kind] + other[kind] for kind in one.keys() | other.keys()}
    pairs = [(one[kind], other[kind]) for kind in sorted(kinds) if kinds[kind] >= 20]
    rare = [(one[kind], other[kind]) for kind in kinds if kinds[kind] < 20]
    if sum(map(sum, rare)) >= 20:
        pairs.append((sum(a for a, _ in rare), sum(b for _, b in rare)))
    share = one.total() / (one.total() + other.total())
    statistic = sum((a - share * (a + b)) ** 2 / (share * (1 - share) * (a + b)) for a, b in pairs)
    freedom = max(1, len(pairs) - 1)
    return (statistic - freedom) / (2 * freedom) ** 0.5


# Invariants

word_lengths = st.lists(st.one_of(st.integers(1, 3), st.integers(1, 12)), min_size=1, max_size=15)
any_rows = st.lists(st.lists(word_lengths, min_size=1, max_size=3), min_size=1, max_size=8)
any_rules = st.builds(
    Rule,
    unit=st.sampled_from(UNITS),
    rate=st.sampled_from([0.001, 0.05, 0.15, 0.3, 0.5, 0.99]),
    max_predictions=st.sampled_from([1, 2, 3, 7, 20, 1000]),
    mask_share=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    random_share=st.sampled_from([0.0, 0.1]),
)


def check_row(
    row: Row,
    rule: Rule,
    vocab_size: int,
    tokens: list[int],
    positions: list[int],
    labels: list[int],
) -> None:
    assert positions == sorted(set(positions))
    assert not any(row.special[position] for position in positions)
    assert labels == [row.tokens[position] for position in positions]
    chosen = set(positions)
    assert all(tokens[i] == row.tokens[i] for i in range(len(tokens)) if i not in chosen)
    assert all(0 <= token < vocab_size for token in (tokens[i] for i in positions))
    for position in positions:
        if rule.mask_share == 1:
            assert tokens[position] == MASK
        if rule.mask_share == rule.random_share == 0:
            assert tokens[position] == row.tokens[position]
        if rule.random_share == 0:
            assert tokens[position] in (MASK, row.tokens[position])
    wanted = rule.wanted(row)
    words = row.words()
    if rule.unit != "whole-word":
        assert len(positions) == wanted
        return
    whole = [word for word in words if chosen.issuperset(word)]
    others = [word for word in words if not chosen.issuperset(word)]
    assert chosen == {position for word in whole for position in word}, "a word is masked in part"
    shortest = min(map(len, words))
    if shortest > wanted:
        assert len(positions) == (shortest if shortest <= rule.max_predictions else 0)
    else:
        assert 1 <= len(positions) <= wanted
        left = wanted - len(positions)
        assert all(len(word) > left for word in others), "a word that fits is not masked"


@pytest.mark.integration
@settings(max_examples=150)
@given(any_rows, any_rules, st.integers(0, 5), st.sampled_from([80, 3000]))
def test_invariants_of_every_masked_row(
    shapes: list[list[list[int]]], rule: Rule, seed: int, vocab_size: int
) -> None:
    rule.random_share = min(rule.random_share, 1 - rule.mask_share)
    rows = [make_row(*segments, first_id=10) for segments in shapes]
    for row in rows:
        row.tokens = [
            token if token < 10 else 10 + token % (vocab_size - 10) for token in row.tokens
        ]
    flat = lay(rows, with_word_starts=rule.unit != "token")
    keys = keys_of(len(rows), seed)
    before = flat.tokens.copy()
    masks = draw_masks(flat, keys, rule_of(rule, vocab_size))
    assert np.array_equal(flat.tokens, before), "the input was modified"
    assert (masks.tokens.dtype, masks.positions.dtype, masks.labels.dtype) == (np.int32,) * 3
    assert masks.offsets[0] == 0
    assert masks.offsets[-1] == len(masks.positions) == len(masks.labels)
    for number, row in enumerate(rows):
        run = slice(*masks.offsets[number : number + 2])
        place = slice(*flat.offsets[number : number + 2])
        drawn = (
            masks.tokens[place].tolist(),
            masks.positions[run].tolist(),
            masks.labels[run].tolist(),
        )
        check_row(row, rule, vocab_size, *drawn)


@given(any_rows, any_rules, st.data())
def test_masks_of_a_row_do_not_depend_on_other_rows(
    shapes: list[list[list[int]]], rule: Rule, data: st.DataObject
) -> None:
    rows = [make_row(*segments) for segments in shapes]
    keys = keys_of(len(shapes), 1)
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=12))
    together = draw_masks(lay([rows[number] for number in order]), keys[order], rule_of(rule))
    for place, number in enumerate(order):
        alone = draw_masks(lay([rows[number]]), keys[[number]], rule_of(rule))
        run = slice(*together.offsets[place : place + 2])
        assert together.positions[run].tolist() == alone.positions.tolist()
        assert together.labels[run].tolist() == alone.labels.tolist()
        begin = sum(len(rows[other].tokens) for other in order[:place])
        assert (
            together.tokens[begin : begin + len(rows[number].tokens)].tolist()
            == alone.tokens.tolist()
        )


@pytest.mark.integration
@pytest.mark.parametrize("unit", UNITS)
def test_masks_of_a_row_do_not_depend_on_the_number_of_rows(unit: str) -> None:
    # With this key, the 77th and 78th of the shuffled positions share 29 leading bits.
    key = random_bits(make_key(5), np.array([1_262_472]))
    many = 1 << 18
    long = lay([make_row([1] * 510)])
    short = lay([make_row([1])])
    rule = rule_of(Rule(unit, max_predictions=77))
    others = many - 1
    together = UnpaddedRows(
        np.concatenate([long.tokens, np.tile(short.tokens, others)]),
        long.segment_ids,
        np.concatenate([long.is_special, np.tile(short.is_special, others)]),
        np.ones(512 + 3 * others, dtype=np.bool_),
        np.concatenate([long.offsets, 512 + 3 * np.arange(1, others + 1)]),
    )
    alone = draw_masks(long, key, rule)
    masks = draw_masks(together, np.concatenate([key, keys_of(others, 1)]), rule)
    assert masks.positions[: masks.offsets[1]].tolist() == alone.positions.tolist()
    assert len(masks.positions) == 77 + others


@pytest.mark.integration
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("rate", [0.15, 0.5, 0.99])
def test_masking_of_the_longest_possible_row(unit: str, rate: float) -> None:
    lengths = [1 + (number * 7919) % 4 for number in range(26_000)]
    while sum(lengths) > 65_532:
        lengths.pop()
    lengths += [1] * (65_532 - sum(lengths))
    row = make_row(lengths[:20_000], lengths[20_000:])
    assert len(row.tokens) == 65_535
    rule = Rule(unit, rate=rate, max_predictions=60_000)
    masks = draw_masks(lay([row]), keys_of(1, 3), rule_of(rule, vocab_size=200_000))
    check_row(
        row, rule, 200_000, masks.tokens.tolist(), masks.positions.tolist(), masks.labels.tolist()
    )
    # Uniform over the row: the mean position is within 4.5 standard errors of the middle.
    assert (
        abs(masks.positions.mean() - 32_767) < 4.5 * 65_535 * 3 / (12 * len(masks.positions)) ** 0.5
    )


def test_masking_of_zero_rows() -> None:
    for unit in UNITS:
        masks = draw_masks(lay([]), keys_of(0, 1), rule_of(Rule(unit)))
        assert len(masks.tokens) == len(masks.positions) == len(masks.labels) == 0
        assert masks.offsets.tolist() == [0]


def test_number_of_masks_equals_bert_release_for_every_length() -> None:
    rows = [make_row([1] * length) for length in range(1, 510)]
    for rate, limit in [(0.15, 20), (0.15, 77), (0.4, 1000), (0.5, 1000), (0.99, 1000)]:
        masks = draw_masks(
            lay(rows, with_word_starts=False),
            keys_of(len(rows), 0),
            rule_of(Rule("token", rate, limit)),
        )
        expected = [
            min(limit, max(1, round((length + 2) * rate)), length) for length in range(1, 510)
        ]
        assert np.diff(masks.offsets).tolist() == expected


@pytest.mark.parametrize(("given_limit", "expected"), [(None, 20), (3, 3)])
def test_mask_rule_uses_the_rate_of_the_split(
    given_limit: int | None, expected: int, tmp_path: object
) -> None:
    options = {"mask_rate": 0.15, "validation_mask_rate": 0.25, "max_predictions": given_limit}
    config = ExamplesConfig(out=tmp_path, corpus=tmp_path, tokenizer=tmp_path, **options)  # type: ignore[arg-type]
    train = MaskRule.from_config(config, "train", MASK, 400)
    assert (train.rate, train.max_predictions, train.unit) == (0.15, expected, "token")
    assert MaskRule.from_config(config, "validation", MASK, 400).max_predictions == (
        given_limit or 32
    )


# Distributions: all outcomes of small rows

SMALL = {
    "words of one token": make_row([1, 1, 1, 1, 1, 1]),
    "uneven words": make_row([1, 3, 2, 1, 2]),
    "two segments": make_row([2, 1, 1], [1, 1, 2]),
    "no word fits": make_row([3, 4, 3, 5]),
    "three segments": make_row([1, 2], [1], [3, 1]),
}


@pytest.mark.integration
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.6])
def test_outcome_frequencies_equal_reference_masking(unit: str, name: str, rate: float) -> None:
    row = SMALL[name]
    times = 5000
    rule = Rule(unit, rate=rate, mask_share=0.5, random_share=0.2)
    random = Random(11)
    literal = Counter(draw_outcome(row, rule, random) for _ in range(times))
    ours = Counter(read_outcomes(row, mask_repeatedly(row, rule, times)))
    # Exceeded by chance with probability below 1 in 1000.
    assert distance(ours, literal) < 5


@pytest.mark.integration
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("limit", [1, 2, 4])
def test_outcome_frequencies_with_max_predictions_equal_reference_masking(
    unit: str, limit: int
) -> None:
    row = make_row([2, 1, 3], [3, 2])
    times = 12_000
    rule = Rule(unit, rate=0.9, max_predictions=limit, mask_share=0.4, random_share=0.0)
    random = Random(12)
    literal = Counter(draw_outcome(row, rule, random) for _ in range(times))
    assert distance(Counter(read_outcomes(row, mask_repeatedly(row, rule, times))), literal) < 5


# Distributions: masks of long rows

LONG = make_row([1 + (number * 37) % 3 for number in range(30)], [1, 4, 1, 1, 6, 1, 2] * 4)


def runs_of(outcome: str) -> list[str]:
    """Runs of consecutive masked tokens."""
    return "".join(kind if kind == "." else "x" for kind in outcome).replace(".", " ").split()


@pytest.fixture(
    scope="module", params=[(unit, limit) for unit in UNITS for limit in (10, 60)], ids=str
)
def long_rows(request: pytest.FixtureRequest) -> tuple[Rule, list[str], list[str]]:
    unit, limit = request.param
    rule = Rule(unit, rate=0.6, max_predictions=limit)
    random = Random(13)
    literal = [draw_outcome(LONG, rule, random) for _ in range(3000)]
    return rule, read_outcomes(LONG, mask_repeatedly(LONG, rule, 3000, 7)), literal


@pytest.mark.integration
def test_number_and_length_of_masked_runs_equal_reference_masking(
    long_rows: tuple[Rule, list[str], list[str]],
) -> None:
    _, ours, literal = long_rows
    counts = [Counter(str(len(f) - f.count(".")) for f in found) for found in (ours, literal)]
    assert distance(*counts) < 5
    runs = [Counter(str(len(runs_of(f))) for f in found) for found in (ours, literal)]
    assert distance(*runs) < 5
    # One run per row: the runs of a row are not independent.
    lengths = [Counter(str(len(runs_of(f)[0])) for f in found) for found in (ours, literal)]
    assert distance(*lengths) < 5
    lengths = [Counter(str(max(map(len, runs_of(f)))) for f in found) for found in (ours, literal)]
    assert distance(*lengths) < 5


@pytest.mark.integration
def test_masked_positions_equal_reference_masking(
    long_rows: tuple[Rule, list[str], list[str]],
) -> None:
    _, ours, literal = long_rows
    profiles = [
        np.array([[c != "." for c in f] for f in found]).mean(axis=0) for found in (ours, literal)
    ]
    both = (profiles[0] + profiles[1]) / 2
    error = np.sqrt(2 * both * (1 - both) / len(ours)) + 1e-12
    # Exceeded at one of 120 positions with probability below 1 in 1000.
    assert (np.abs(profiles[0] - profiles[1]) / error).max() < 4.5


@pytest.mark.integration
def test_mask_random_and_kept_shares(long_rows: tuple[Rule, list[str], list[str]]) -> None:
    rule, ours, _ = long_rows
    shares = np.array([[f.count(kind) / (len(f) - f.count(".")) for kind in "mrk"] for f in ours])
    error = shares.std(axis=0) / len(ours) ** 0.5
    # "Kept" includes random tokens that equal the original: 1 in 300,000.
    assert (np.abs(shares.mean(axis=0) - [0.8, 0.1, 0.1]) < 4.5 * error).all()
    joined = [len(set(run)) == 1 for f in ours for run in neighbouring_pairs(f)]
    if rule.unit == "span":
        assert np.mean(joined) > 0.93  # neighbouring spans are replaced independently
    else:
        assert np.mean(joined) == pytest.approx(0.8**2 + 2 * 0.1**2, abs=0.02)


def neighbouring_pairs(outcome: str) -> list[str]:
    """Pairs of masked neighbours, one per row."""
    pairs = [outcome[i : i + 2] for i in range(len(outcome) - 1) if "." not in outcome[i : i + 2]]
    return pairs[:1]


@pytest.mark.integration
def test_span_lengths_equal_spanbert() -> None:
    # In a row this long, spans hardly ever touch; only the last is cut, after the 15th token.
    row = make_row([1] * 1200)
    random = Random(14)
    rule = Rule("span", rate=15 / 1202, mask_share=0.0, random_share=0.0)
    lengths = [
        len(run)
        for outcome in read_outcomes(row, mask_repeatedly(row, rule, 1000))
        for run in runs_of(outcome)
    ]
    drawn = []
    for _ in range(20_000):
        left = 15
        while left:
            drawn.append(min(left, random.choices(range(1, 11), SPAN_LENGTH_WEIGHTS)[0]))
            left -= drawn[-1]
    # About 4,700 spans with a standard deviation of 2.5; one in a hundred touches another.
    assert np.mean(lengths) == pytest.approx(np.mean(drawn), abs=0.2)
    assert sum(length * chance for length, chance in enumerate(SPAN_LENGTH_WEIGHTS, 1)) / sum(
        SPAN_LENGTH_WEIGHTS
    ) == pytest.approx(3.8, abs=0.01)


@pytest.mark.parametrize("unit", UNITS)
def test_random_tokens_are_uniform_over_the_vocabulary(unit: str) -> None:
    row = make_row([1] * 100)
    flat = lay([row] * 2000)
    rule = MaskRule(unit, 0.5, 50, 0.0, 1.0, MASK, 97)
    masks = draw_masks(flat, keys_of(2000, 9), rule)
    where = np.repeat(flat.offsets[:-1], np.diff(masks.offsets)) + masks.positions
    counts = np.bincount(masks.tokens[where], minlength=97)
    assert len(counts) == 97
    expected = len(where) / 97
    assert (((counts - expected) ** 2).sum() / expected - 96) / (2 * 96) ** 0.5 < 4.5
    # Random tokens of a span are drawn independently.
    same = masks.tokens[where[1:]] == masks.tokens[where[:-1]]
    assert same.mean() == pytest.approx(1 / 97, abs=4.5 * (1 / 97 / len(where)) ** 0.5)
