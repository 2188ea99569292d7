"""Metrics: data wait, MFU, profiles and trackers."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.pretraining.batches import Examples
from bert_pipeline.training.hardware import find_peak, peak_of
from bert_pipeline.training.metrics import MetricsLog, StepTotals
from bert_pipeline.training.profile import describe_kernels
from tests.helpers.training_runs import counts, metrics, run


@pytest.mark.integration
def test_slow_data_is_reported(
    examples_folder: Path,
    wordpiece_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(examples_folder, wordpiece_folder, tmp_path / "fast", quiet=False)
    capsys.readouterr()  # on a busy machine even this may wait a little
    lines = [line for line in metrics(tmp_path / "fast") if "loss" in line]
    assert lines[-1]["data_wait"] < 0.5
    step = 8 * 50 / lines[-1]["tokens_per_second"]
    collate = Examples.collate

    def slow(self: Examples, *args: Any) -> Any:
        time.sleep(10 * step)
        return collate(self, *args)

    monkeypatch.setattr(Examples, "collate", slow)
    run(examples_folder, wordpiece_folder, tmp_path / "slow", quiet=False)
    assert "slow data" in capsys.readouterr().out
    lines = [line for line in metrics(tmp_path / "slow") if "loss" in line]
    assert lines[-1]["data_wait"] > 0.5
    assert counts(tmp_path / "slow")["data_wait"] > 0.5


def test_rates_and_mfu_are_none_where_unknown() -> None:
    totals = StepTotals(seconds=2.0, waiting=0.5, tokens=100, flops=4e12)
    assert totals.rates(8e12) == {
        "tokens_per_second": 50.0,
        "flops_per_second": 2e12,
        "mfu": 0.25,
        "data_wait": 0.25,
    }
    assert totals.rates(None)["mfu"] is None
    unknown = totals.plus(StepTotals(flops=None)).rates(8e12)
    assert unknown["flops_per_second"] is None
    assert unknown["mfu"] is None


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Tesla T4", 65),
        ("Tesla V100-SXM2-16GB", 112),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Something New", None),
    ],
)
def test_peak_flops_by_device_name(name: str, teraflops: float | None) -> None:
    assert peak_of(name) == (teraflops and pytest.approx(teraflops * 1e12))
    assert find_peak(torch.device("cpu"), is_half=True) is None


@pytest.mark.integration
def test_metrics_report_flops_and_memory(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    run(examples_folder, wordpiece_folder, tmp_path / "out")
    for line in (line for line in metrics(tmp_path / "out") if "loss" in line):
        # 2 layers × 32 and 400 tokens: about 25,000 weights, 6 FLOPs per weight and token.
        assert 5e4 < line["flops_per_second"] / line["tokens_per_second"] < 5e5
        assert line["mfu"] is None
        assert 1e8 < line["peak_memory_bytes"] <= counts(tmp_path / "out")["peak_memory_bytes"]


@pytest.mark.integration
def test_profile_writes_a_trace_and_a_table_and_changes_no_weights(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(examples_folder, wordpiece_folder, out, profile=True)
    trace = json.loads((out / "profile" / "trace.json").read_text())
    assert any("addmm" in event.get("name", "") for event in trace["traceEvents"])
    table = (out / "profile" / "operators.txt").read_text()
    assert table.startswith("Steps 8 to 10")
    assert "aten::addmm" in table
    run(examples_folder, wordpiece_folder, tmp_path / "unseen")
    weights = [
        (folder / "model" / "model.safetensors").read_bytes()
        for folder in (out, tmp_path / "unseen")
    ]
    assert weights[0] == weights[1]


def test_profile_names_the_largest_kernels() -> None:
    """From a trace of a GPU: copies are work too, what the host does is not."""
    events = [
        {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 100.0, "dur": 500.0},
        {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 700.0, "dur": 1000.0},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy HtoD", "ts": 650.0, "dur": 10.0},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 0.0, "dur": 9000.0},
        {"ph": "M", "name": "process_name"},
        *(
            {"ph": "X", "cat": "kernel", "name": f"small {n}", "ts": 2000.0 + n, "dur": 1.0 + n / 9}
            for n in range(20)
        ),
    ]
    title, *lines = describe_kernels(events).splitlines()
    assert title.startswith("GPU: 1.55 ms of work in 1.92 ms, 23 launches.")
    assert len(lines) == 10
    assert lines[0].split() == ["96.7%", "1.500", "2", "gemm"]
    assert lines[2].split()[-2:] == ["small", "19"]
    assert not describe_kernels(events[3:5])


@pytest.mark.integration
def test_profile_of_a_too_short_run_is_reported(
    examples_folder: Path,
    wordpiece_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(examples_folder, wordpiece_folder, tmp_path / "out", profile=True, max_steps=9, quiet=False)
    assert "nothing profiled" in capsys.readouterr().out
    assert not (tmp_path / "out" / "profile").exists()


@pytest.mark.integration
def test_tensorboard_receives_the_metrics(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "out"
    run(examples_folder, wordpiece_folder, out, tracker="tensorboard")
    folder = out / "trackers" / "bertpipe"
    events = EventAccumulator(str(folder))
    events.Reload()
    lines = [line for line in metrics(out) if "loss" in line]
    points = events.Scalars("mlm_loss")
    assert [point.step for point in points] == [line["step"] for line in lines]
    assert [point.value for point in points] == pytest.approx([line["mlm_loss"] for line in lines])
    assert [point.step for point in events.Scalars("eval_mlm_loss")] == [20, 30]


@pytest.mark.integration
def test_unknown_or_missing_tracker_is_rejected(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"--tracker tensorbord: unknown\. Known: .*tensorboard"):
        run(examples_folder, wordpiece_folder, tmp_path / "out", tracker="tensorbord")
    with pytest.raises(BertpipeError, match="pip install aim"):
        run(examples_folder, wordpiece_folder, tmp_path / "out", tracker="aim")


def test_figures_that_are_not_finite_are_null(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    figures = {
        "loss": math.nan,
        "eval_sources": {"one": {"mlm_loss": math.inf, "masked_tokens": 2}},
    }
    MetricsLog(log, after_step=0).write(figures)
    written = '{"loss": null, "eval_sources": {"one": {"mlm_loss": null, "masked_tokens": 2}}}'
    assert log.read_text() == f"{written}\n"


def test_damaged_lines_of_the_log_are_dropped(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"step": 1}\n{"step": 2, "lo\xf3s": 3}\n{"step": 3}\n{"st')
    MetricsLog(log, after_step=9).write({"step": 4})
    assert log.read_bytes() == b'{"step": 1}\n{"step": 3}\n{"step": 4}\n'
