"""`--engine` and `--engine-option`: validation, and missing software."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from bert_pipeline.engine.run import run_stage
from bert_pipeline.errors import BertpipeError, UsageError
from tests.engine.test_clusters import config_for
from tests.engine.test_engine import (
    square,
)


def test_ray_not_installed_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'bertpipe\[ray\]'"):
        list(run_stage(square, range(4), config_for("ray", tmp_path), tmp_path))


@pytest.mark.skipif(shutil.which("sbatch") is not None, reason="this machine has Slurm")
def test_slurm_not_installed_is_an_error(tmp_path: Path):
    with pytest.raises(BertpipeError, match="sbatch, squeue, scancel not found"):
        list(run_stage(square, range(2), config_for("slurm", tmp_path), tmp_path))


@pytest.mark.parametrize(
    ("engine", "option", "message"),
    [
        ("local", "partition=cpu", "--engine local has no options"),
        ("ray", "partition=cpu", "unknown option. --engine ray supports memory_gb"),
        ("ray", "memory_gb=much", "must be an integer >= 1"),
        ("slurm", "partition", "KEY=VALUE"),
        ("slurm", "two words=1", "KEY=VALUE"),
        ("slurm", "array=0-3", "reserved; bertpipe sets this sbatch option itself"),
        ("slurm", "job-name=mine", "reserved; bertpipe sets this sbatch option itself"),
        ("slurm", "max-array-size=0", "must be an integer >= 1"),
    ],
)
def test_wrong_engine_options_are_usage_errors(
    engine: str, option: str, message: str, tmp_path: Path
):
    with pytest.raises(UsageError, match=message) as caught:
        config_for(engine, tmp_path, option)
    assert option in str(caught.value)


def test_engine_is_not_part_of_the_settings(tmp_path: Path):
    assert (
        config_for("slurm", tmp_path, "partition=cpu").content()
        == config_for("local", tmp_path).content()
    )
