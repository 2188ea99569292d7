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
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from bert_pipeline.errors import UsageError
from bert_pipeline.model import attention
from bert_pipeline.model.architectures import PRESETS, make_config
from bert_pipeline.model.pretraining_model import PretrainingModel
from bert_pipeline.model.unpadded import UnpaddedEncoder
from bert_pipeline.model.unpadded_batch import HeadPositions, PretrainingBatch
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
# One global layer, then two with a window of 5 tokens before and after.
MODERN_CONFIG = ModernBertConfig(
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    local_attention=11,
    pad_token_id=0,
)
SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
DROPOUT = {"hidden_dropout_prob": 0.4, "attention_probs_dropout_prob": 0.4}
MODERN_DROPOUT = {"embedding_dropout": 0.4, "attention_dropout": 0.4, "mlp_dropout": 0.4}
BIASES = {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True}
GLOBAL_LAST = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
NETWORKS = {
    "bert, pairs": lambda: BertForPreTraining(CONFIG),
    "bert": lambda: BertForMaskedLM(CONFIG),
    "bert, dropout": lambda: BertForPreTraining(BertConfig(**CONFIG.to_dict() | DROPOUT)),
    "modernbert": lambda: modernbert(),
    "modernbert, global last": lambda: modernbert(**GLOBAL_LAST),
    "modernbert, biases": lambda: modernbert(**BIASES, decoder_bias=False),
    "modernbert, dropout": lambda: modernbert(**MODERN_DROPOUT),
}
LAYERS = CONFIG.num_hidden_layers


def modernbert(**fields: Any) -> ModernBertForMaskedLM:
    """With biases and weights of norms that matter."""
    network = ModernBertForMaskedLM(ModernBertConfig(**MODERN_CONFIG.to_dict() | fields))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def for_stock(model: Any, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The rows as a stock model takes them."""
    padded = pad(rows, isinstance(model, BertForPreTraining))
    if isinstance(model, ModernBertForMaskedLM):
        del padded["token_type_ids"]
    return padded


def for_ours(model: Any, rows: list[dict[str, Any]]) -> PretrainingBatch:
    return flatten(rows, isinstance(model, BertForPreTraining))


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
        hidden = UnpaddedEncoder(model, checkpoint_activations=False, compiled=False).eval()(
            batch, positions
        )
        stock = model.base_model(**padded).last_hidden_state[mask.bool()]
    torch.testing.assert_close(hidden[positions.first], stock[[0, 12, 37]])
    torch.testing.assert_close(hidden[positions.others], stock[index])


@pytest.mark.integration
@pytest.mark.parametrize("name", ["bert, dropout", "modernbert, dropout"])
def test_dropout_is_applied_where_the_stock_model_applies_it(name: str) -> None:
    """The mean loss over many draws equals the stock model's, and not the one without dropout."""
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
        model.eval()
        assert abs(ours() - mine.mean()) > 5 * error
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


def attend_one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest: int,
    longest_key: int,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """torch's varlen_attn, example by example: queries, keys and values `[T, heads, size]`."""
    assert bounds.dtype == key_bounds.dtype == torch.int32
    assert int(bounds.diff().max()) <= longest
    assert int(key_bounds.diff().max()) <= longest_key
    splits = [(query, bounds), (key, key_bounds), (value, key_bounds)]
    parts = []
    for q, k, v in zip(*(it.split(ends.diff().tolist()) for it, ends in splits), strict=True):
        scores = q.transpose(0, 1) @ k.permute(1, 2, 0) / math.sqrt(q.shape[-1])
        if window_size != (-1, -1):
            before, after = window_size
            # The kernel aligns the last query with the last key.
            ahead = torch.arange(len(k)) - torch.arange(len(q))[:, None] - (len(k) - len(q))
            scores = scores.masked_fill((ahead < -before) | (ahead > after), -torch.inf)
        parts.append((torch.softmax(scores, -1) @ v.transpose(0, 1)).transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("name", ["bert, pairs", "modernbert", "modernbert, global last"])
def test_varlen_kernel_gets_the_bounds_and_windows_of_examples(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel needs a GPU; the code around it does not."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    model = PretrainingModel(network)
    batch = for_ours(network, make_rows([12, 25, 7], 1))
    losses, expected = losses_and_gradients(model, batch)
    calls = []
    monkeypatch.setattr(
        attention, "has_varlen_kernel", lambda hidden, size: (hidden.shape[0], size) == (44, 8)
    )
    monkeypatch.setattr(
        attention,
        "varlen_attn",
        lambda *args, **windows: calls.append(1) or attend_one_by_one(*args, **windows),
    )
    again, found = losses_and_gradients(model, batch)
    assert len(calls) == LAYERS
    torch.testing.assert_close(again, losses)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-5, msg=parameter)


def test_varlen_kernel_is_not_used_with_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has none."""
    calls = []
    monkeypatch.setattr(attention, "has_varlen_kernel", lambda hidden, size: True)
    monkeypatch.setattr(
        attention,
        "varlen_attn",
        lambda *args, **windows: calls.append(1) or attend_one_by_one(*args, **windows),
    )
    batch = flatten(make_rows([12, 25, 7], 1), True)
    model = PretrainingModel(NETWORKS["bert, dropout"]())
    model(batch)
    assert not calls
    model.eval()(batch)
    assert len(calls) == LAYERS


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
