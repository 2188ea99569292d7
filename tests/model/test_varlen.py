"""Variable-length attention as it is called on GPUs, against the padded grid."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bert_pipeline.model import attention
from bert_pipeline.model.fixed_shapes import BatchShape, fill_up
from bert_pipeline.model.pretraining_model import PretrainingModel
from tests.helpers.flash_attention import flash_attention_on_cpu
from tests.helpers.model_rows import flatten, losses_and_gradients, make_rows
from tests.helpers.networks import LAYERS, NETWORKS, for_ours

LENGTHS = [12, 25, 7]


@pytest.fixture
def varlen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The kernels, and the names of those that were called."""
    monkeypatch.setattr(attention, "has_varlen_kernel", lambda hidden, size: size == 8)
    with flash_attention_on_cpu() as called:
        yield called


def grid_losses(network: Any, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses and gradients with attention on the padded grid."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "has_varlen_kernel", lambda hidden, size: False)
        return losses_and_gradients(PretrainingModel(network), batch)


def assert_equal(model: PretrainingModel, batch: Any, expected: Any, tolerance: float) -> None:
    losses, gradients = losses_and_gradients(model, batch)
    torch.testing.assert_close(losses, expected[0], rtol=tolerance, atol=tolerance)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(
            gradients[name], gradient, rtol=10 * tolerance, atol=tolerance, msg=name
        )


@pytest.mark.parametrize("name", ["bert, pairs", "modernbert", "modernbert, global last"])
def test_losses_and_gradients_are_those_of_the_grid(name: str, varlen: list[str]) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    batch = for_ours(network, make_rows(LENGTHS, 1))
    expected = grid_losses(network, batch)
    assert not varlen
    assert_equal(PretrainingModel(network), batch, expected, 1e-5)
    assert varlen == ["forward"] * LAYERS + ["backward"] * LAYERS


@pytest.mark.parametrize("name", ["bert, pairs", "modernbert"])
def test_batches_of_fixed_shape_too(name: str, varlen: list[str]) -> None:
    """Longest lengths are then bounds, and examples of padding are added."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    batch = for_ours(network, make_rows(LENGTHS, 1))
    shape = BatchShape.from_budget(150, mean_length=20, max_length=40, mask_rate=0.2)
    filled = fill_up(batch, shape, padding=0)
    assert_equal(PretrainingModel(network), filled, grid_losses(network, batch), 1e-5)


@pytest.mark.parametrize("name", ["bert, pairs", "modernbert"])
def test_bf16_products_reach_the_kernel_as_bf16(name: str, varlen: list[str]) -> None:
    """The kernel takes no fp32, which autocast returns for some operations."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    batch = for_ours(network, make_rows(LENGTHS, 1))
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = losses_and_gradients(PretrainingModel(network), batch)
    torch.testing.assert_close(losses, grid_losses(network, batch)[0], rtol=2e-2, atol=2e-2)
    assert len(varlen) == 2 * LAYERS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize(("name", "graphs"), [("bert, pairs", 2), ("modernbert", 3)])
def test_compiled_layers_have_no_graph_break(
    name: str, graphs: int, varlen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One graph for each kind of layer, for all lengths, shorter than the window too."""
    torch._dynamo.reset()
    compiled: list[Any] = []

    def note(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(
        "torch.compile",
        lambda call, dynamic: real(call, dynamic=dynamic, fullgraph=True, backend=note),
    )
    torch.manual_seed(0)
    network = NETWORKS[name]()
    model = PretrainingModel(network, compiled=True)
    for seed, lengths in enumerate([[12, 25, 7, 9], [30, 9], [40, 3, 17, 22, 6], [5, 4, 6]]):
        batch = for_ours(network, make_rows(lengths, seed))
        assert_equal(model, batch, grid_losses(network, batch), 1e-5)
    torch._dynamo.reset()
    assert len(compiled) == graphs
    assert len(varlen) == 4 * 2 * LAYERS


def test_the_kernel_is_not_used_with_dropout(varlen: list[str]) -> None:
    """It has none."""
    batch = flatten(make_rows(LENGTHS, 1), True)
    model = PretrainingModel(NETWORKS["bert, dropout"]())
    model(batch)
    assert not varlen
    model.eval()(batch)
    assert varlen == ["forward"] * LAYERS
