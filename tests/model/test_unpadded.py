"""The unpadded forward pass against stock transformers, and Muon against torch."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining

from bert_pipeline.errors import UsageError
from bert_pipeline.model import attention
from bert_pipeline.model.architectures import PRESETS, make_config
from bert_pipeline.model.pretraining_model import PretrainingModel
from bert_pipeline.model.unpadded import UnpaddedEncoder
from bert_pipeline.model.unpadded_batch import HeadPositions
from bert_pipeline.tokenizer.load import SpecialIds
from bert_pipeline.training.optimizers.muon import BatchedMuon
from tests.helpers.model_rows import flatten, losses_and_gradients, make_rows, pad

CONFIG = BertConfig(
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=40,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
DROPOUT = {"hidden_dropout_prob": 0.4, "attention_probs_dropout_prob": 0.4}


@pytest.mark.parametrize(
    ("model_class", "kept_width"),
    [(BertForPreTraining, 128), (BertForMaskedLM, 128), (BertForMaskedLM, 0)],
)
@given(lengths=st.lists(st.integers(3, 40), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_loss_and_gradients_equal_the_stock_model(
    model_class: type, kept_width: int, lengths: list[int], seed: int
) -> None:
    """With materialized attention weights, and with torch's attention kernel."""
    torch.manual_seed(seed)
    with_pairs = model_class is BertForPreTraining
    rows = make_rows(lengths, seed)
    model = model_class(CONFIG)
    stock = model(**pad(rows, with_pairs)).loss
    stock.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    batch = flatten(rows, with_pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bert_pipeline.model.attention.MAX_MATERIALIZED_WIDTH", kept_width)
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


@pytest.mark.parametrize("read", ["first tokens", "some tokens", "all tokens"])
def test_encoder_returns_the_hidden_states_that_heads_read(read: str) -> None:
    """A classifier reads [CLS], a tagger some tokens, a span head all of them."""
    torch.manual_seed(0)
    model = BertForMaskedLM(CONFIG).eval()
    rows = make_rows([12, 25, 7], 1)
    batch = flatten(rows, False)
    inner = torch.cat([torch.arange(1, 12), torch.arange(13, 37), torch.arange(38, 44)])
    index = {
        "first tokens": inner[:0],
        "some tokens": inner[::3].contiguous(),
        "all tokens": inner,
    }[read]
    positions = HeadPositions.select(batch.cu_seqlens, index)
    padded = pad(rows, False)
    with torch.no_grad():
        hidden = UnpaddedEncoder(model, checkpoint_activations=False, compiled=False).eval()(
            batch, positions
        )
        inputs = {name: padded[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
        stock = model.bert(**inputs).last_hidden_state[padded["attention_mask"].bool()]
    torch.testing.assert_close(hidden[positions.first], stock[[0, 12, 37]])
    torch.testing.assert_close(hidden[positions.others], stock[index])


@pytest.mark.integration
def test_dropout_is_applied_where_the_stock_model_applies_it() -> None:
    """The mean loss over many draws equals the stock model's, and not the one without dropout."""
    torch.manual_seed(0)
    rows = make_rows([30, 17, 40, 9], 0)
    model = BertForPreTraining(BertConfig(**CONFIG.to_dict() | DROPOUT))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # far from the start, where dropout matters
        batch = flatten(rows, True)
        padded = pad(rows, True)

        def ours() -> float:
            mlm, nsp = PretrainingModel(model)(batch)
            return float(mlm / len(batch.masked_labels) + nsp / len(rows))

        mine = torch.tensor([ours() for _ in range(600)])
        stock = torch.tensor([float(model(**padded).loss) for _ in range(600)])
        error = math.sqrt(mine.var() / 600 + stock.var() / 600)
        assert abs(mine.mean() - stock.mean()) < 5 * error
        model.eval()
        assert abs(ours() - mine.mean()) > 5 * error
        assert ours() == pytest.approx(float(model(**padded).loss), rel=1e-5)


def test_examples_do_not_attend_to_each_other() -> None:
    torch.manual_seed(0)
    model = BertForPreTraining(CONFIG)
    rows = make_rows([12, 25, 7], 1)
    together = sum(PretrainingModel(model)(flatten(rows, True)))
    alone = sum(sum(PretrainingModel(model)(flatten([row], True))) for row in rows)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)


def test_activation_checkpointing_changes_only_memory() -> None:
    """With dropout: recomputation has to draw the same values."""
    torch.manual_seed(0)
    network = BertForPreTraining(BertConfig(**CONFIG.to_dict() | DROPOUT))
    batch = flatten(make_rows([12, 25, 7], 1), True)
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
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def attend_one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest: int,
    longest_key: int,
) -> torch.Tensor:
    """torch's varlen_attn, example by example: queries, keys and values `[T, heads, size]`."""
    assert bounds.dtype == key_bounds.dtype == torch.int32
    assert int(bounds.diff().max()) <= longest
    assert int(key_bounds.diff().max()) <= longest_key
    splits = [(query, bounds), (key, key_bounds), (value, key_bounds)]
    parts = [
        torch.softmax(q.transpose(0, 1) @ k.permute(1, 2, 0) / math.sqrt(q.shape[-1]), -1)
        @ v.transpose(0, 1)
        for q, k, v in zip(*(it.split(ends.diff().tolist()) for it, ends in splits), strict=True)
    ]
    return torch.cat([part.transpose(0, 1) for part in parts])


def test_varlen_kernel_gets_the_bounds_of_examples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel needs a GPU; the code around it does not."""
    torch.manual_seed(0)
    model = PretrainingModel(BertForPreTraining(CONFIG))
    batch = flatten(make_rows([12, 25, 7], 1), True)
    losses, expected = losses_and_gradients(model, batch)
    calls = []
    monkeypatch.setattr(
        attention, "has_varlen_kernel", lambda hidden, size: (hidden.shape[0], size) == (44, 8)
    )
    monkeypatch.setattr(
        attention, "varlen_attn", lambda *args: calls.append(1) or attend_one_by_one(*args)
    )
    again, found = losses_and_gradients(model, batch)
    assert len(calls) == CONFIG.num_hidden_layers
    torch.testing.assert_close(again, losses)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    with_dropout = PretrainingModel(BertForPreTraining(BertConfig(**CONFIG.to_dict() | DROPOUT)))
    with_dropout(batch)  # the kernel has none
    assert len(calls) == CONFIG.num_hidden_layers
    with_dropout.eval()(batch)
    assert len(calls) == 2 * CONFIG.num_hidden_layers


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
def test_model_sharded_by_layers_has_the_same_losses_and_scores(
    checkpoint_activations: bool,
) -> None:
    torch.manual_seed(0)
    model = PretrainingModel(
        BertForPreTraining(CONFIG), checkpoint_activations=checkpoint_activations
    )
    names = set(model.network.state_dict())
    batch = flatten(make_rows([12, 25, 7], 1), True)
    losses, expected = losses_and_gradients(model, batch)
    scores = model.score(batch)
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.network.parameters())
    assert set(model.network.state_dict()) == names
    again, found = losses_and_gradients(model, batch)
    torch.testing.assert_close(again, losses)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name].full_tensor(), gradient, msg=name)
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


PUBLISHED = {
    "tiny": 4.4,
    "mini": 11.3,
    "small": 29.1,
    "medium": 41.7,
    "base": 110.1,
    "large": 335.1,
}


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("bert-")])
def test_presets_have_the_published_sizes(name: str) -> None:
    config = make_config(name, 30522, SPECIAL, None)
    with torch.device("meta"):
        size = (
            sum(parameter.numel() for parameter in BertForPreTraining(config).bert.parameters())
            / 1e6
        )
    # Millions: Turc et al. 2019, table 1 (the papers print 110 and 340 for base and large).
    assert size == pytest.approx(PUBLISHED[name.removeprefix("bert-")], rel=0.03)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"hidden_sise": 64}, "hidden_sise"),
        ({"vocab_size": 64}, "vocab_size"),
        ({"hidden_size": 100, "num_attention_heads": 3}, "num_attention_heads"),
        ({"is_decoder": True}, "is_decoder"),
    ],
)
def test_unknown_model_fields_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        make_config(fields, 100, SPECIAL, None)
