"""Which examples each step takes: every one once an epoch, in batches that grow, and longer ones at the end."""

from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.sampler import BLOCK, Cursor, Order, Plan, draw_rows


def configure(**options: Any) -> PretrainConfig:
    required = {"examples": Path("e"), "tokenizer": Path("t"), "out": Path("o"), "max_steps": 100}
    return PretrainConfig(**(required | options))


def plan_all(order: Order, steps: int, start: Cursor | None = None) -> list[Plan]:
    """The steps from `start` to the end of a run of so many."""
    cursor, plans = start or Cursor(), []
    while cursor.step < steps:
        plans.append(order.plan(cursor, cursor.step / steps))
        cursor = plans[-1].next
    return plans


# The order of examples


@given(
    rows=st.integers(1, 300),
    batch_size=st.integers(1, 64),
    seed=st.integers(0, 9),
    ranks=st.sampled_from([1, 2, 4]),
)
def test_every_epoch_takes_every_row_once(
    rows: int, batch_size: int, seed: int, ranks: int
) -> None:
    steps = -(-3 * rows // batch_size)
    drawn = [draw_rows(rows, step * batch_size, batch_size, seed) for step in range(steps)]
    order = np.concatenate([taken for taken, _ in drawn])
    epochs = np.concatenate([of_row for _, of_row in drawn])
    for epoch in range(3):
        assert sorted(order[epoch * rows : (epoch + 1) * rows].tolist()) == list(range(rows))
        assert set(epochs[epoch * rows : (epoch + 1) * rows].tolist()) == {epoch}
    last = drawn[-1][0]
    assert sorted(np.concatenate([last[rank::ranks] for rank in range(ranks)])) == sorted(last)


@pytest.mark.parametrize("count", [BLOCK - 1, BLOCK, 2 * BLOCK + 77])
def test_the_order_does_not_hang_on_how_it_is_cut(count: int) -> None:
    whole, epochs = draw_rows(count, 0, 3 * count, seed=3)
    for epoch in range(3):
        assert np.array_equal(np.sort(whole[epochs == epoch]), np.arange(count))
    for first, size in [(0, 7), (BLOCK - 3, 11), (count - 5, 10), (count + BLOCK - 1, 2)]:
        rows, of_row = draw_rows(count, first, size, seed=3)
        assert np.array_equal(rows, whole[first : first + size])
        assert np.array_equal(of_row, epochs[first : first + size])


def test_epochs_seeds_and_phases_are_in_other_orders() -> None:
    count = 1000
    orders = [draw_rows(count, 0, count, seed, phase)[0] for seed in (0, 1) for phase in (0, 1)]
    orders += [draw_rows(count, count, count, 0)[0], np.arange(count)]
    for number, one in enumerate(orders):
        for other in orders[:number]:
            # Places that agree by chance: one on average, and more than ten of a thousand once in 10^8.
            assert (one == other).sum() <= 10
            # Neighbours too: two shuffles of a thousand have about two pairs in common.
            pairs = set(pairwise(one.tolist())) & set(pairwise(other.tolist()))
            assert len(pairs) <= 12


def test_a_step_far_into_a_large_corpus_takes_no_more_than_others() -> None:
    """300 million rows in epoch 1000: an order that were drawn whole would take gigabytes."""
    count = 300_000_000
    rows, epochs = draw_rows(count, count * 1000 - 128, 256, seed=0)
    assert set(epochs.tolist()) == {999, 1000}
    assert len(set(rows.tolist())) > 250
    assert 0 <= rows.min() < rows.max() < count


# Sizes of the steps


@pytest.mark.parametrize(
    ("size", "start", "warmup"), [(64, 8, 0.4), (48, 16, 0.1), (96, 32, 0.9), (30, 10, 0.3)]
)
def test_batches_grow_by_equal_amounts_for_equal_shares_of_the_run(
    size: int, start: int, warmup: float
) -> None:
    steps = 1000
    order = Order.of(configure(batch_size=size, batch_size_start=start, batch_size_warmup=warmup))
    plans = plan_all(order, steps)
    sizes = [(size, len(list(group))) for size, group in groupby(plan.size for plan in plans)]
    grown = size // start
    assert [size for size, _ in sizes] == [start * n for n in range(1, grown + 1)]
    for _, lasted in sizes[:-1]:
        assert lasted == pytest.approx(steps * warmup / grown, abs=1)
    assert sizes[-1][1] == pytest.approx(steps * (1 - warmup + warmup / grown), abs=2)
    assert [plan.first_row for plan in plans] == [
        0,
        *np.cumsum([plan.size for plan in plans[:-1]]).tolist(),
    ]


@given(
    size=st.integers(1, 6), grown=st.integers(2, 40), warmup=st.floats(0.001, 0.999), done=st.floats(0, 1),
    near=st.floats(-1e-15, 1e-15),
)  # fmt: skip
def test_no_batch_is_larger_than_asked_for(
    size: int, grown: int, warmup: float, done: float, near: float
) -> None:
    order = Order.of(
        configure(batch_size=size * grown, batch_size_start=size, batch_size_warmup=warmup)
    )
    for moment in (done, warmup + near, float(np.nextafter(warmup, 0))):
        assert order.plan(Cursor(), moment).size in range(size, size * grown + 1, size)


def test_longer_examples_come_last_and_begin_with_the_first() -> None:
    order = Order.of(
        configure(batch_size=8, long_examples=Path("l"), long_share=0.25, long_batch_size=3)
    )
    plans = plan_all(order, 100)
    assert [(plan.phase, plan.size) for plan in plans] == [(0, 8)] * 75 + [(1, 3)] * 25
    assert [plan.first_row for plan in plans[74:78]] == [74 * 8, 0, 3, 6]
    assert [plan.step for plan in plans] == list(range(100))
    same = Order.of(configure(batch_size=8, long_examples=Path("l")))
    assert [(plan.phase, plan.size) for plan in plan_all(same, 100)] == [(0, 8)] * 90 + [
        (1, 8)
    ] * 10
    assert {plan.phase for plan in plan_all(Order.of(configure(batch_size=8)), 100)} == {0}


@given(step=st.integers(0, 99))
def test_a_cursor_is_all_that_a_run_needs_to_go_on(step: int) -> None:
    options: dict[str, Any] = {"batch_size": 32, "batch_size_start": 8, "batch_size_warmup": 0.5}
    order = Order.of(configure(**options, long_examples=Path("l"), long_share=0.3))
    alone = plan_all(order, 100)
    cursor = alone[step - 1].next if step else Cursor()
    assert plan_all(order, 100, cursor) == alone[step:]


def test_a_clock_that_is_set_back_does_not_bring_the_short_examples_back() -> None:
    order = Order.of(configure(batch_size=8, long_examples=Path("l")))
    plan = order.plan(Cursor(50, 1, 24), 0.89)
    assert (plan.phase, plan.first_row, plan.next) == (1, 24, Cursor(51, 1, 32))


# Options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 8, "batch_size_start": 3}, "must be a multiple of --batch-size-start 3"),
        ({"batch_size": 8, "batch_size_start": 8}, "must be a multiple of --batch-size-start 8"),
        ({"batch_size": 8, "batch_size_start": 16}, "must be a multiple of --batch-size-start 16"),
        (
            {"batch_size_warmup": 0.2},
            "--batch-size-warmup is for --batch-size-start, which is not given",
        ),
        ({"long_share": 0.2}, "--long-share is for --long-examples, which is not given"),
        ({"long_batch_size": 2}, "--long-batch-size is for --long-examples, which is not given"),
        (
            {
                "batch_size_start": 8,
                "batch_size_warmup": 0.7,
                "long_examples": "l",
                "long_share": 0.4,
            },
            "add up to more than the run",
        ),
    ],
)
def test_sizes_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        configure(**options)


def test_where_longer_examples_lie_is_no_part_of_the_content() -> None:
    one, other, without = (configure(long_examples=path) for path in ("a", "b", None))
    assert one.content() == other.content() != without.content()
