"""Dropout on a CPU against its definition."""

import math

import pytest
import torch
from torch import Tensor

from bert_pipeline.model.kernels import dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.997])
def test_dropout_rate_is_uniform_and_independent(p: float) -> None:
    """Within 5 standard deviations: in total, per part of a random word, and for pairs."""
    torch.manual_seed(0)
    count = 4_000_000
    x = torch.ones(count)
    found = dropout(x, p, training=True)
    dropped = (found == 0).double()
    bound = 5 * math.sqrt(p * (1 - p) / count)
    # The rate is rounded to a multiple of 1/65536.
    assert abs(dropped.mean() - p) < bound + 2**-17
    for part in range(4):
        assert abs(dropped[part::4].mean() - p) < 2 * bound + 2**-17
    for apart in (1, 2, 3, 4):
        together = (dropped[apart:] * dropped[:-apart]).mean()
        assert abs(together - p**2) < 5 * math.sqrt(p**2 / count) + 2**-16
    assert found.max() == pytest.approx(1 / (1 - p), rel=2**-17 / (1 - p))
    assert found.unique().numel() == 2


def test_dropout_gradient_has_the_mask_of_the_output() -> None:
    x = torch.randn(7, 33, 5).transpose(0, 1).requires_grad_()
    found = dropout(x, 0.3, training=True)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(found, x * gradient)
    assert 0 < gradient.eq(0).double().mean() < 1


def test_dropout_depends_on_the_seed() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return dropout(torch.ones(10_001), 0.1, training=True)

    torch.testing.assert_close(draw(1), draw(1), rtol=0, atol=0)
    assert (draw(1) != draw(2)).any()
    torch.manual_seed(1)
    assert (
        dropout(torch.ones(10_001), 0.1, training=True)
        != dropout(torch.ones(10_001), 0.1, training=True)
    ).any()


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.3, False)])
def test_zero_dropout_draws_no_random_numbers(p: float, training: bool) -> None:
    before = torch.get_rng_state()
    x = torch.randn(9, generator=torch.Generator().manual_seed(0))
    assert dropout(x, p, training) is x
    assert torch.equal(torch.get_rng_state(), before)
