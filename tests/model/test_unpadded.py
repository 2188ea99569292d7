"""The unpadded forward pass against stock transformers, and Muon against torch."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from bert_pipeline.model.pretraining_model import PretrainingModel
from bert_pipeline.model.unpadded import UnpaddedEncoder
from bert_pipeline.model.unpadded_batch import HeadPositions
from bert_pipeline.training.optimizers.muon import BatchedMuon
from tests.helpers.model_rows import flatten, losses_and_gradients, make_rows
from tests.helpers.networks import CONFIG, NETWORKS, for_ours, for_stock


@pytest.mark.parametrize(
    ("name", "kept_bytes", "block"),
    [
        ("bert, pairs", 512, 128),
        ("bert", 512, 128),
        ("bert", 0, 128),
        ("modernbert", 512, 128),
        ("modernbert, global last", 512, 8),
        ("modernbert, biases", 0, 8),
    ],
)
@given(lengths=st.lists(st.integers(1, 40), max_size=5), seed=st.integers(0, 1000))
def test_loss_and_gradients_equal_the_stock_model(
    name: str, kept_bytes: int, block: int, lengths: list[int], seed: int
) -> None:
    """With materialized attention weights or torch's attention kernel; windows in blocks or not."""
    torch.manual_seed(seed)
    rows = make_rows([*lengths, 3], seed)
    model = NETWORKS[name]()
    stock = model(**for_stock(model, rows)).loss
    stock.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    batch = for_ours(model, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bert_pipeline.model.attention.MAX_KEPT_BYTES", kept_bytes)
        patch.setattr("bert_pipeline.model.attention.LOCAL_BLOCK", block)
        mlm, nsp = PretrainingModel(model)(batch)
    loss = mlm / len(batch.masked_labels) + nsp / len(rows)
    loss.backward()
    assert loss.item() == pytest.approx(stock.item(), rel=1e-5)
    scale = max(gradient.norm() for gradient in expected.values())
    for name, parameter in model.named_parameters():
        # The keys' biases have no gradient in exact arithmetic: softmax cancels them.
        assert (parameter.grad - expected[name]).norm() <= 1e-5 * max(
            expected[name].norm(), 1e-3 * scale
        ), name


@pytest.mark.parametrize("name", ["bert", "modernbert", "modernbert, global last"])
@pytest.mark.parametrize("read", ["first tokens", "some tokens", "all tokens"])
def test_encoder_returns_the_hidden_states_that_heads_read(read: str, name: str) -> None:
    """A classifier reads [CLS], a tagger some tokens, a span head all of them."""
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    rows = make_rows([12, 25, 7], 1)
    batch = flatten(rows, False)
    inner = torch.cat([torch.arange(1, 12), torch.arange(13, 37), torch.arange(38, 44)])
    index = {
        "first tokens": inner[:0],
        "some tokens": inner[::3].contiguous(),
        "all tokens": inner,
    }[read]
    positions = HeadPositions.select(batch.cu_seqlens, index)
    padded = for_stock(model, rows)
    mask = padded["attention_mask"]
    del padded["labels"]
    with torch.no_grad():
        hidden = UnpaddedEncoder(
            model.base_model, checkpoint_activations=False, compiled=False
        ).eval()(batch, positions)
        stock = model.base_model(**padded).last_hidden_state[mask.bool()]
    torch.testing.assert_close(hidden[positions.first], stock[[0, 12, 37]])
    torch.testing.assert_close(hidden[positions.others], stock[index])


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_hidden_states_of_all_layers_are_those_of_the_stock_model(name: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    rows = make_rows([12, 25, 7], 1)
    padded = for_stock(model, rows)
    del padded["labels"]
    encoder = UnpaddedEncoder(model.base_model, checkpoint_activations=False, compiled=False).eval()
    with torch.no_grad():
        found = list(encoder.hidden_states(flatten(rows, False)))
        stock = model.base_model(**padded, output_hidden_states=True).hidden_states
    is_token = padded["attention_mask"].bool()
    assert len(found) == len(stock)
    for mine, expected in zip(found, stock, strict=True):
        torch.testing.assert_close(mine, expected[is_token])


@pytest.mark.integration
@pytest.mark.parametrize("name", ["bert, dropout", "modernbert, dropout"])
def test_dropout_is_applied_where_the_stock_model_applies_it(name: str) -> None:
    """Mean and spread of the loss over many draws are those of the stock model."""
    torch.manual_seed(0)
    rows = make_rows([30, 17, 40, 9], 0)
    model = NETWORKS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # far from the start, where dropout matters
        batch = for_ours(model, rows)
        padded = for_stock(model, rows)

        def ours() -> float:
            mlm, nsp = PretrainingModel(model)(batch)
            return float(mlm / len(batch.masked_labels) + nsp / len(rows))

        mine = torch.tensor([ours() for _ in range(600)])
        stock = torch.tensor([float(model(**padded).loss) for _ in range(600)])
        error = math.sqrt(mine.var() / 600 + stock.var() / 600)
        assert abs(mine.mean() - stock.mean()) < 5 * error
        # 600 draws give a standard deviation to about 3%.
        assert float(mine.std()) == pytest.approx(float(stock.std()), rel=0.2)
        model.eval()
        assert ours() == pytest.approx(float(model(**padded).loss), rel=1e-5)


@pytest.mark.parametrize("name", ["bert, pairs", "modernbert"])
def test_examples_do_not_attend_to_each_other(name: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    rows = make_rows([12, 25, 7], 1)
    together = sum(PretrainingModel(model)(for_ours(model, rows)))
    alone = sum(sum(PretrainingModel(model)(for_ours(model, [row]))) for row in rows)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["bert, dropout", "modernbert, dropout"])
def test_activation_checkpointing_changes_only_memory(name: str) -> None:
    """With dropout: recomputation has to draw the same values."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    batch = for_ours(network, make_rows([12, 25, 7], 1))
    losses, expected = losses_and_gradients(PretrainingModel(network), batch)
    kept = []
    model = PretrainingModel(network, checkpoint_activations=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        model(batch)
    assert sum(tuple(tensor.shape) == (44, CONFIG.intermediate_size) for tensor in kept) == 0
    again, found = losses_and_gradients(model, batch)
    assert torch.equal(again, losses)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, msg=parameter)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_bfloat16_autocast_rounds_only_the_products(name: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    rows = make_rows([12, 25, 7], 1)
    batch = for_ours(model, rows)
    exact, expected = losses_and_gradients(PretrainingModel(model), batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses, found = losses_and_gradients(PretrainingModel(model), batch)
    assert not torch.equal(losses, exact)
    torch.testing.assert_close(losses, exact, rtol=2e-3, atol=0)
    scale = max(gradient.norm() for gradient in expected.values())
    for parameter, gradient in expected.items():
        assert (found[parameter] - gradient).norm() < 0.05 * max(gradient.norm(), 0.1 * scale)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("checkpoint_activations", [False, True])
@pytest.mark.parametrize("name", ["bert, pairs", "modernbert"])
def test_model_sharded_by_layers_has_the_same_losses_and_scores(
    name: str, checkpoint_activations: bool
) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    model = PretrainingModel(network, checkpoint_activations=checkpoint_activations)
    names = set(model.network.state_dict())
    batch = for_ours(network, make_rows([12, 25, 7], 1))
    losses, expected = losses_and_gradients(model, batch)
    scores = model.score(batch)
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.network.parameters())
    assert set(model.network.state_dict()) == names
    again, found = losses_and_gradients(model, batch)
    torch.testing.assert_close(again, losses)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter].full_tensor(), gradient, msg=parameter)
    torch.testing.assert_close(model.score(batch), scores)


def test_muon_equals_torch_muon() -> None:
    """To the rounding of the bfloat16 that torch's own works in."""
    torch.manual_seed(0)
    shapes = [(24, 16), (16, 24), (16, 16), (16, 16)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    options = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    mine = BatchedMuon(ours, **options)
    stock = torch.optim.Muon(theirs, **options)
    start = [parameter.detach().clone() for parameter in ours]
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        stock.step()
    for a, b, before in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.02 * (b - before).norm()
        torch.testing.assert_close(
            mine.state[a]["momentum_buffer"], stock.state[b]["momentum_buffer"]
        )
