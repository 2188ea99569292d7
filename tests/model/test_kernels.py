"""The vocabulary loss against torch, and dropout on a CPU against its definition."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bert_pipeline.model.kernels import dropout, masked_cross_entropy

ROWS = 70
SIZE = 24
VOCABULARY = 131


def make_inputs(rows: int = ROWS) -> tuple[list[Tensor], Tensor]:
    """Hidden states, weight and bias with logits of about ±10, and labels."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    labels = torch.randint(0, VOCABULARY, (rows,), generator=generator)
    return [draw(rows, SIZE), draw(VOCABULARY, SIZE), draw(VOCABULARY)], labels


def reference(inputs: list[Tensor], labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients in float64."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    loss = F.cross_entropy(F.linear(*exact), labels, reduction="sum")
    return loss.detach(), list(torch.autograd.grad(loss, exact))


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative error in norm."""
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("multiple", [None, 64, 1000])
@pytest.mark.parametrize("rows", [None, 1, 32])
def test_loss_and_gradients_equal_cross_entropy(rows: int | None, multiple: int | None) -> None:
    inputs, labels = make_inputs()
    loss = masked_cross_entropy(*inputs, labels, rows=rows, multiple=multiple)
    expected, gradients = reference(inputs, labels)
    assert distance(loss.detach(), expected) < 1e-6
    for found, gradient in zip(torch.autograd.grad(loss * 3, inputs), gradients, strict=True):
        assert distance(found, 3 * gradient) < 1e-6


@pytest.mark.parametrize("multiple", [None, 64])
def test_autocast_rounds_only_the_products(multiple: int | None) -> None:
    """bfloat16 has 8 bits: 0.4% in each factor. Sums in it would lose whole blocks of rows."""
    inputs, labels = make_inputs(4000)
    with torch.autocast("cpu", torch.bfloat16):
        loss = masked_cross_entropy(*inputs, labels, rows=16, multiple=multiple)
    found = torch.autograd.grad(loss, inputs)
    expected, gradients = reference(inputs, labels)
    assert loss.dtype == torch.float32
    assert distance(loss.detach(), expected) < 1e-3
    for x, own, gradient in zip(inputs, found, gradients, strict=True):
        assert own.dtype == x.dtype
        assert distance(own, gradient) < 1e-2


def test_loss_without_rows_is_zero() -> None:
    inputs, labels = make_inputs(0)
    loss = masked_cross_entropy(*inputs, labels)
    assert loss.item() == 0
    assert all(gradient.eq(0).all() for gradient in torch.autograd.grad(loss, inputs))


class Watch(TorchDispatchMode):
    """Collects the shapes of the tensors that are made, and the names of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[tuple[int, ...]] = set()
        self.called: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.called.add(func.name())
        if isinstance(result, Tensor) and not func.is_view:
            self.made.add(tuple(result.shape))
        return result


def test_gradients_that_are_not_required_are_not_computed() -> None:
    """Never the logits of all rows, and gradients only of what has some."""
    inputs, labels = make_inputs()
    logits = (ROWS, VOCABULARY)
    of_weight = (VOCABULARY, SIZE)
    with Watch() as watch:
        masked_cross_entropy(*inputs, labels, rows=16)
    assert of_weight in watch.made
    assert logits not in watch.made
    with Watch() as watch, torch.no_grad():
        masked_cross_entropy(*inputs, labels, rows=16)
    assert of_weight not in watch.made
    hidden, weight, bias = inputs
    with Watch() as watch:
        loss = masked_cross_entropy(hidden, weight.detach(), bias.detach(), labels, rows=16)
        (found,) = torch.autograd.grad(loss, hidden)
    assert of_weight not in watch.made
    assert distance(found, reference(inputs, labels)[1][0]) < 1e-6


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


def test_loss_does_not_synchronize_with_the_device() -> None:
    """No value is read back, and no shape depends on one."""
    inputs, labels = make_inputs()
    with Watch() as watch:
        masked_cross_entropy(*inputs, labels, rows=16, multiple=64).backward()
    assert {"aten::addmm.out", "aten::scatter_add_"} <= watch.called
    assert not watch.called & {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"}
