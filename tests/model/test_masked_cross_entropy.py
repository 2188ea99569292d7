"""The loss of masked tokens against torch's cross-entropy in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bert_pipeline.model import masked_cross_entropy as module
from bert_pipeline.model.masked_cross_entropy import IGNORED, masked_cross_entropy

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


def test_loss_does_not_synchronize_with_the_device() -> None:
    """No value is read back, and no shape depends on one."""
    inputs, labels = make_inputs()
    with Watch() as watch:
        masked_cross_entropy(*inputs, labels, rows=16, multiple=64).backward()
    assert {"aten::addmm.out", "aten::scatter_add_"} <= watch.called
    assert not watch.called & {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_function_computes_the_same(dtype: torch.dtype) -> None:
    """Used on GPUs; with ignored labels, a padded vocabulary and blocks of several sizes."""
    torch._dynamo.reset()
    module._compile.cache_clear()
    for rows in (ROWS, 50, 33):
        inputs, labels = make_inputs(rows)
        labels[::3] = IGNORED
        found = []
        for compiled in (True, False):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = masked_cross_entropy(
                    *inputs,
                    labels,
                    rows=32,
                    multiple=64,
                    with_ignored=True,
                    compiled=compiled,
                )
            found.append([loss.detach(), *torch.autograd.grad(loss, inputs)])
        for ours, eager in zip(*found, strict=True):
            assert distance(ours, eager) < (1e-2 if dtype == torch.bfloat16 else 1e-6)
    torch._dynamo.reset()
