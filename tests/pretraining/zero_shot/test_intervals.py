"""95% intervals of proportions and means."""

import pytest
from scipy.stats import norm

from bert_pipeline.pretraining.zero_shot.intervals import Estimate


def test_mean_of_proportions_is_surer_than_one_of_them() -> None:
    one = Estimate.of_mean_share([(50, 100)])
    assert one.value == 0.5
    assert one.high - one.low == pytest.approx(2 * 1.96 * (0.25 / 104) ** 0.5, rel=1e-3)
    four = Estimate.of_mean_share([(50, 100)] * 4)
    assert four.high - four.low == pytest.approx((one.high - one.low) / 2)
    perfect = Estimate.of_mean_share([(100, 100)])
    assert 0.9 < perfect.low < perfect.value == perfect.high == 1.0


def test_interval_of_a_mean_is_normal_and_within_bounds() -> None:
    values = [0.1, 0.4, 0.2, 0.9, 0.0]
    found = Estimate.of_mean(values)
    expected = norm.interval(0.95, loc=0.32, scale=0.35637 / 5**0.5)
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-3)
    assert Estimate.of_mean([0.0, 0.0, 0.3], 0.0, 1.0).low == 0.0
    single = Estimate.of_mean([0.5])
    assert single.low == single.value == single.high
