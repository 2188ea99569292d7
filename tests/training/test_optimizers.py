"""Schedules and optimizers against references: transformers, torch, and the papers' algorithms."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    BertConfig,
    BertForPreTraining,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from bert_pipeline.model.parameters import parameter_kinds
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.training.distributed import gradient_norm
from bert_pipeline.training.optimizers.combined import Optimizer
from bert_pipeline.training.optimizers.groups import group_parameters
from bert_pipeline.training.optimizers.lamb import Lamb
from bert_pipeline.training.position import Position
from bert_pipeline.training.schedule import RunLength, Schedule

STEPS = 200


def reference(shape: str, warmup: int, decay: int) -> Any:
    """Transformers' schedule of that name."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    if shape == "linear":
        return get_linear_schedule_with_warmup(optimizer, warmup, STEPS)
    if shape == "cosine":
        return get_cosine_schedule_with_warmup(optimizer, warmup, STEPS)
    stable = STEPS - warmup - decay
    return get_wsd_schedule(
        optimizer,
        num_warmup_steps=warmup,
        num_decay_steps=decay,
        num_stable_steps=stable,
        decay_type="1-sqrt",
    )


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("shape", ["linear", "cosine", "wsd"])
@given(warmup=st.integers(0, 90), decay=st.integers(1, 100))
def test_schedules_equal_transformers_schedules(shape: Any, warmup: int, decay: int) -> None:
    schedule = Schedule(shape, warmup / STEPS, decay / STEPS)
    expected = reference(shape, warmup, decay)
    for step in range(STEPS):
        assert schedule.factor(step / STEPS) == pytest.approx(expected.get_last_lr()[0], abs=1e-7)
        expected.step()


def test_run_length_in_steps_tokens_epochs_or_seconds() -> None:
    position = Position(step=3, tokens=250, epochs=1.5)
    assert RunLength(steps=10).progress(position, 999.0) == 0.3
    assert RunLength(tokens=1000).progress(position, 999.0) == 0.25
    assert RunLength(epochs=2).progress(position, 999.0) == 0.75
    assert RunLength(seconds=60.0).progress(position, 45.0) == 0.75
    assert RunLength(tokens=100).progress(position, 0.0) == 1.0


def make_config(**changes: Any) -> PretrainConfig:
    given = {
        "examples": "e",
        "tokenizer": "t",
        "out": "o",
        "max_steps": 10,
        "warmup": 0.0,
        "schedule": "wsd",
    }
    return PretrainConfig(**(given | changes))


def test_lamb_defaults_follow_the_paper() -> None:
    """You et al. 2020, table 4 (https://arxiv.org/abs/1904.00962)."""
    table = {
        512: (5 / (2**3.0 * 1e3), 1 / 320),
        8192: (5 / (2**1.0 * 1e3), 1 / 20),
        32768: (5e-3, 1 / 5),
    }
    for batch_size, (rate, warmup) in table.items():
        config = make_config(
            optimizer="lamb", batch_size=batch_size, schedule="linear", warmup=None
        )
        assert config.find_learning_rate() == pytest.approx(rate)
        assert config.find_warmup() == pytest.approx(warmup)
    assert make_config(optimizer="lamb", learning_rate=0.5, warmup=0.25).find_learning_rate() == 0.5


class ReferenceLamb:
    """Algorithm 2 of You et al. 2020 for one weight in float64."""

    def __init__(self, weight: torch.Tensor, rate: float, decay: float, adapt: bool) -> None:
        self.weight = weight.double().clone()
        self.rate = rate
        self.decay = decay
        self.adapt = adapt
        self.m = torch.zeros_like(self.weight)
        self.v = torch.zeros_like(self.weight)
        self.t = 0

    def step(self, gradient: torch.Tensor) -> None:
        g = gradient.double()
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g * g
        r = (self.m / (1 - 0.9**self.t)) / ((self.v / (1 - 0.999**self.t)).sqrt() + 1e-6)
        u = r + self.decay * self.weight
        ratio = 1.0
        if self.adapt and self.weight.norm() > 0 and u.norm() > 0:
            ratio = float(self.weight.norm() / u.norm())
        self.weight = self.weight - self.rate * ratio * u


def test_lamb_equals_the_algorithm_of_the_paper() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(6, 5), torch.randn(7), torch.zeros(3)]
    parameters = [nn.Parameter(weight.clone()) for weight in weights]
    groups = [
        {"params": parameters[:1] + parameters[2:]},
        {"params": parameters[1:2], "weight_decay": 0.0, "adapt": False},
    ]
    lamb = Lamb(groups, lr=0.02, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01)
    references = [
        ReferenceLamb(weights[0], 0.02, 0.01, True),
        ReferenceLamb(weights[1], 0.02, 0.0, False),
        ReferenceLamb(weights[2], 0.02, 0.01, True),
    ]
    for _ in range(20):
        for parameter, other in zip(parameters, references, strict=True):
            parameter.grad = torch.randn_like(parameter)
            other.step(parameter.grad)
        lamb.step()
    for parameter, other in zip(parameters, references, strict=True):
        assert torch.allclose(parameter.double(), other.weight, rtol=1e-5, atol=1e-6)


def make_network() -> BertForPreTraining:
    torch.manual_seed(0)
    return BertForPreTraining(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
        )
    )


def give_gradients(network: nn.Module, seed: int, size: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)


def make_optimizer(network: nn.Module, **options: Any) -> Optimizer:
    groups = group_parameters(network, parameter_kinds(network))
    return Optimizer(network, groups, make_config(**options))


def step(optimizer: Optimizer, network: nn.Module) -> None:
    norm = gradient_norm(network.parameters())
    optimizer.step(norm, norm.isfinite())


@pytest.mark.parametrize("size", [1e-4, 1.0])
def test_adamw_equals_torch_adamw_with_gradient_clipping(size: float) -> None:
    ours = make_network()
    theirs = make_network()
    updates = make_optimizer(ours, learning_rate=1e-2)
    updates.set_progress(0.5)
    names = dict(theirs.named_parameters())
    plain = [value for name, value in names.items() if name.endswith("bias") or "LayerNorm" in name]
    decayed = [value for value in names.values() if all(value is not other for other in plain)]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    expected = torch.optim.AdamW(groups, lr=1e-2, eps=1e-6, foreach=False)
    for number in range(5):
        give_gradients(ours, number, size)
        give_gradients(theirs, number, size)
        step(updates, ours)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        expected.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lamb"])
def test_gradient_not_finite_skips_the_update_of_weights_and_state(optimizer: str) -> None:
    network = make_network()
    updates = make_optimizer(network, optimizer=optimizer)
    updates.set_progress(0.5)
    give_gradients(network, 0)
    step(updates, network)
    weights = {name: value.detach().clone() for name, value in network.named_parameters()}
    state = {name: value.clone() for name, value in updates.state_tensors()}
    give_gradients(network, 1)
    some = network.bert.encoder.layer[0].output.dense.weight.grad
    assert some is not None
    some[0, 0] = float("inf")
    step(updates, network)
    assert all(torch.equal(value, weights[name]) for name, value in network.named_parameters())
    assert {name for name, _ in updates.state_tensors()} == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in updates.state_tensors())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lamb"])
def test_gradients_above_max_grad_norm_are_clipped(optimizer: str) -> None:
    """Ten times the gradient gives the same step."""
    one = make_network()
    other = make_network()
    for network, size in ((one, 1.0), (other, 10.0)):
        updates = make_optimizer(network, optimizer=optimizer, max_grad_norm=0.5)
        updates.set_progress(0.5)
        for number in range(3):
            give_gradients(network, number, size)
            step(updates, network)
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lamb"])
def test_optimizer_state_round_trip(optimizer: str, tmp_path: Path) -> None:
    network = make_network()
    copy = make_network()
    updates = make_optimizer(network, optimizer=optimizer)
    updates.set_progress(0.5)
    give_gradients(network, 0)
    step(updates, network)
    copy.load_state_dict(network.state_dict())
    again = make_optimizer(copy, optimizer=optimizer)
    again.load_state_tensors({name: value.clone() for name, value in updates.state_tensors()})
    again.set_progress(0.5)
    for one, those in ((network, updates), (copy, again)):
        give_gradients(one, 1)
        step(those, one)
    assert all(
        torch.equal(a, b) for a, b in zip(network.parameters(), copy.parameters(), strict=True)
    )
