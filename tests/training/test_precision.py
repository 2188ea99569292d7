"""Which precision a run uses, the loss scale of fp16, and runs in fp16 on a CPU."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.training.optimizers.muon import orthogonalize
from bert_pipeline.training.precision import LossScale, resolve_precision
from tests.helpers.training_runs import counts, metrics, run

CPU = torch.device("cpu")
FEATURES = ("avx512_bf16", "amx_bf16", "avx10_2")


def test_auto_is_fp32_on_a_cpu_without_bf16_instructions() -> None:
    chosen = resolve_precision("auto", CPU).name
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    # With the instructions, the choice depends on what a trial measures.
    assert chosen in (("bf16", "fp32") if set(FEATURES) & set(flags) else ("fp32",))


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_products_are_in_the_precision_and_weights_are_not(name: str) -> None:
    precision = resolve_precision(name, CPU)
    layer = torch.nn.Linear(4, 4)
    with precision.autocast(CPU):
        result = layer(torch.ones(2, 4))
    assert result.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}.get(name, torch.float16)
    assert layer.weight.dtype == torch.float32


@given(st.lists(st.sampled_from([0.0, 0.0, 0.0, 1.0]), max_size=30))
def test_loss_scale_is_that_of_grad_scaler(overflows: list[float]) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=LossScale.INITIAL, growth_interval=3)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scale = LossScale(CPU)
    scale.GROWTH_STEPS = 3
    for overflow in overflows:
        scaler.scale(parameter.sum()).backward()
        parameter.grad = torch.full((1,), float("inf") if overflow else 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scale.update(torch.tensor(overflow))
        assert float(scale.factor) == max(scaler.get_scale(), LossScale.LOWEST)
        if scaler.get_scale() < LossScale.LOWEST:
            return


def test_loss_scale_continues_where_it_was_saved() -> None:
    saved = LossScale(CPU)
    for overflow in (0.0, 1.0, 0.0):
        saved.update(torch.tensor(overflow))
    loaded = LossScale(CPU)
    loaded.load({name: value.clone() for name, value in saved.state().items()})
    assert loaded.state() == saved.state()


@pytest.mark.integration
def test_fp16_learns_what_fp32_learns(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    """In fp16 small gradients would become 0 without the loss scale."""
    for name in ("fp32", "fp16"):
        run(examples_folder, wordpiece_folder, tmp_path / name, precision=name, max_steps=40)
    assert counts(tmp_path / "fp16")["eval_mlm_loss"] == pytest.approx(
        counts(tmp_path / "fp32")["eval_mlm_loss"], rel=0.02
    )
    scales = [line["loss_scale"] for line in metrics(tmp_path / "fp16") if "loss" in line]
    assert scales
    assert all(scale >= 1.0 for scale in scales)
    assert not (tmp_path / "fp16" / "skipped").exists()


def test_bf16_iterations_of_muon_are_as_orthogonal_as_torchs() -> None:
    torch.manual_seed(0)
    updates = torch.randn(3, 48, 96)
    coefficients = (3.4445, -4.7750, 2.0315)
    ours = orthogonalize(updates, coefficients, 5, 1e-7, torch.bfloat16)
    assert ours.dtype == torch.float32
    for update, result in zip(updates, ours, strict=True):
        stock = torch.optim._muon._zeropower_via_newtonschulz(update, coefficients, 5, 1e-7)
        torch.testing.assert_close(result, stock.float(), rtol=0.1, atol=0.02)
