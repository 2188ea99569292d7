"""The sampler: every example once per epoch, growing batch sizes, longer examples at the end."""

from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.sampler import BLOCK, Cursor, Sampler, StepPlan, draw_rows


def configure(**options: Any) -> PretrainConfig:
    required = {"examples": Path("e"), "tokenizer": Path("t"), "out": Path("o"), "max_steps": 100}
    return PretrainConfig(**(required | options))


def plan_all(
    sampler: Sampler, steps: int, first: int = 0, start: Cursor | None = None
) -> list[StepPlan]:
    """The steps from number `first`, at the cursor `start`, to the end of a run of `steps`."""
    cursor = start or Cursor()
    plans = []
    for step in range(first, steps):
        plans.append(sampler.plan(cursor, step / steps))
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
def test_order_does_not_depend_on_the_batch_size(count: int) -> None:
    whole, epochs = draw_rows(count, 0, 3 * count, seed=3)
    for epoch in range(3):
        assert np.array_equal(np.sort(whole[epochs == epoch]), np.arange(count))
    for first, size in [(0, 7), (BLOCK - 3, 11), (count - 5, 10), (count + BLOCK - 1, 2)]:
        rows, of_row = draw_rows(count, first, size, seed=3)
        assert np.array_equal(rows, whole[first : first + size])
        assert np.array_equal(of_row, epochs[first : first + size])


def test_epochs_seeds_and_phases_have_different_orders() -> None:
    count = 1000
    orders = [draw_rows(count, 0, count, seed, phase)[0] for seed in (0, 1) for phase in (0, 1)]
    orders += [draw_rows(count, count, count, 0)[0], np.arange(count)]
    for number, one in enumerate(orders):
        for other in orders[:number]:
            # Equal places by chance: one on average, more than ten of a thousand once in 10^8.
            assert (one == other).sum() <= 10
            # Neighbours too: two shuffles of a thousand have about two pairs in common.
            pairs = set(pairwise(one.tolist())) & set(pairwise(other.tolist()))
            assert len(pairs) <= 12


def test_step_far_into_a_large_corpus_is_cheap() -> None:
    """300 million rows in epoch 1000: a complete permutation in memory would take gigabytes."""
    count = 300_000_000
    rows, epochs = draw_rows(count, count * 1000 - 128, 256, seed=0)
    assert set(epochs.tolist()) == {999, 1000}
    assert len(set(rows.tolist())) > 250
    assert 0 <= rows.min() < rows.max() < count


# Sizes of the steps


@pytest.mark.parametrize(
    ("size", "start", "warmup"), [(64, 8, 0.4), (48, 16, 0.1), (96, 32, 0.9), (30, 10, 0.3)]
)
def test_batch_size_grows_in_equal_steps(size: int, start: int, warmup: float) -> None:
    steps = 1000
    order = Sampler.from_config(
        configure(batch_size=size, batch_size_start=start, batch_size_warmup=warmup)
    )
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
    size=st.integers(1, 6),
    grown=st.integers(2, 40),
    warmup=st.floats(0.001, 0.999),
    done=st.floats(0, 1),
    near=st.floats(-1e-15, 1e-15),
)
def test_batch_size_is_a_multiple_of_the_start_and_within_the_limit(
    size: int, grown: int, warmup: float, done: float, near: float
) -> None:
    order = Sampler.from_config(
        configure(batch_size=size * grown, batch_size_start=size, batch_size_warmup=warmup)
    )
    for moment in (done, warmup + near, float(np.nextafter(warmup, 0))):
        assert order.plan(Cursor(), moment).size in range(size, size * grown + 1, size)


def test_long_examples_are_the_last_share_of_the_run() -> None:
    order = Sampler.from_config(
        configure(batch_size=8, long_examples=Path("l"), long_share=0.25, long_batch_size=3)
    )
    plans = plan_all(order, 100)
    assert [(plan.phase, plan.size) for plan in plans] == [(0, 8)] * 75 + [(1, 3)] * 25
    assert [plan.first_row for plan in plans[74:78]] == [74 * 8, 0, 3, 6]
    same = Sampler.from_config(configure(batch_size=8, long_examples=Path("l")))
    assert [(plan.phase, plan.size) for plan in plan_all(same, 100)] == [(0, 8)] * 90 + [
        (1, 8)
    ] * 10
    assert {plan.phase for plan in plan_all(Sampler.from_config(configure(batch_size=8)), 100)} == {
        0
    }


@given(step=st.integers(0, 99))
def test_cursor_is_sufficient_to_resume(step: int) -> None:
    options: dict[str, Any] = {"batch_size": 32, "batch_size_start": 8, "batch_size_warmup": 0.5}
    order = Sampler.from_config(configure(**options, long_examples=Path("l"), long_share=0.3))
    alone = plan_all(order, 100)
    cursor = alone[step - 1].next if step else Cursor()
    assert plan_all(order, 100, step, cursor) == alone[step:]


def test_phase_never_returns_to_the_short_examples() -> None:
    order = Sampler.from_config(configure(batch_size=8, long_examples=Path("l")))
    plan = order.plan(Cursor(1, 24), 0.89)
    assert (plan.phase, plan.first_row, plan.next) == (1, 24, Cursor(1, 32))


# Options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 8, "batch_size_start": 3}, "must be a multiple of --batch-size-start 3"),
        ({"batch_size": 8, "batch_size_start": 8}, "must be a multiple of --batch-size-start 8"),
        ({"batch_size": 8, "batch_size_start": 16}, "must be a multiple of --batch-size-start 16"),
        (
            {"batch_size_warmup": 0.2},
            "--batch-size-warmup requires --batch-size-start",
        ),
        ({"long_share": 0.2}, "--long-share requires --long-examples"),
        ({"long_batch_size": 2}, "--long-batch-size requires --long-examples"),
        (
            {
                "batch_size_start": 8,
                "batch_size_warmup": 0.7,
                "long_examples": "l",
                "long_share": 0.4,
            },
            "add up to more than 1",
        ),
    ],
)
def test_contradictory_batch_sizes_are_rejected(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        configure(**options)


def test_max_epochs_and_long_examples_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="--max-epochs counts passes over --examples"):
        configure(max_steps=None, max_epochs=2, long_examples="l")


def test_path_of_the_long_examples_is_not_part_of_the_fingerprint() -> None:
    one, other, without = (configure(long_examples=path) for path in ("a", "b", None))
    assert one.content() == other.content() != without.content()
