"""Training runs of a second or two, in this process or in others."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.pretrain import pretrain
from bert_pipeline.training.config import TrainConfig
from bert_pipeline.training.distributed import Ranks
from bert_pipeline.training.precision import Name, Precision
from bert_pipeline.training.task import StepInputs
from bert_pipeline.training.trainer import Trainer

SHAPE = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
SLOW = {
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 2,
    "intermediate_size": 512,
}


def options(examples: Path, tokenizer: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Options of a run that takes a second; from an existing model if `init_from` is given."""
    shape = {} if "init_from" in changes else {"model": SHAPE}
    return {
        "examples": examples,
        "tokenizer": tokenizer,
        "out": out,
        **shape,
        "max_steps": 30,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "log_every": 10,
        "evaluate_every": 20,
        "checkpoint_every": 10,
        "threads": 1,
        "precision": "fp32",
        "quiet": True,
    } | changes


def long_run(examples: Path, tokenizer: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Options of a run of seconds, with dropout, Muon and frequent checkpoints."""
    usual = {
        "max_steps": 100,
        "checkpoint_every": 3,
        "optimizer": "muon",
        "dropout": 0.1,
        "mask_rate_end": 0.08,
        "model": SLOW,
        "batch_size": 16,
    }
    return options(examples, tokenizer, out, **(usual | changes))


def run(*args: Any, **changes: Any) -> PretrainConfig:
    """Train in this process; return the config."""
    reset_accelerate()
    config = PretrainConfig(**options(*args, **changes))
    pretrain(config)
    return config


def reset_accelerate() -> None:
    """Reset the settings of an earlier run."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def fork_run(given: dict[str, Any]) -> multiprocessing.process.BaseProcess:
    """Train in another process, forked from one that has loaded the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bert_pipeline.pretraining.pretrain"])
    process = context.Process(target=pretrain, args=(PretrainConfig(**given),))
    process.start()
    return process


def start(
    config_file: Path, given: dict[str, Any], *extra: str, new_session: bool = False
) -> subprocess.Popen[str]:
    """Start `bertpipe pretrain` in a new process."""
    return subprocess.Popen(
        [sys.executable, *command(config_file, given), *extra],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "default"},
        start_new_session=new_session,
    )


def command(config_file: Path, given: dict[str, Any]) -> list[str]:
    """The arguments of `python` for `bertpipe pretrain`."""
    config_file.write_text(json.dumps({"pretrain": given}, default=str), encoding="utf-8")
    return ["-m", "bert_pipeline", "pretrain", "--config", str(config_file)]


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a process and check its exit code; return its standard error."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    return errors


def weights(out: Path) -> bytes:
    """The bytes of the weights of the finished model."""
    return (out / "model" / "model.safetensors").read_bytes()


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def counts(out: Path) -> dict[str, Any]:
    """The counts in the manifest."""
    counted: dict[str, Any] = json.loads((out / "manifest.json").read_text())["counts"]
    return counted


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait until a condition is true; fails after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def has_begun(out: Path) -> bool:
    """Whether a run has written metrics."""
    return (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size > 0


class NoUpdate:
    """An optimizer that changes nothing."""

    loss_scale = torch.ones(())

    def set_progress(self, progress: float) -> float:
        return 0.0

    def step(self, norm: torch.Tensor, finite: torch.Tensor) -> None: ...


def make_trainer(
    model: torch.nn.Module,
    losses: dict[str, float],
    optimizer: Any = None,
    precision: Name = "fp32",
    device: str = "cpu",
    cuda_graphs: bool = False,
) -> Trainer:
    """A trainer of single steps, without a run's folder."""
    reset_accelerate()
    config = TrainConfig(out=Path("out"), max_steps=10)
    ranks = Ranks.from_accelerator(Accelerator(cpu=device == "cpu"), Precision(precision))
    task: Any = SimpleNamespace(losses=losses)
    state: Any = None
    updates = optimizer or NoUpdate()
    out = Path("out")
    return Trainer(config, ranks, model, updates, task, state, out, cuda_graphs=cuda_graphs)


def make_inputs(micro_batches: list[Any], terms: tuple[int, ...]) -> StepInputs:
    """The inputs of one step."""
    return StepInputs(micro_batches, terms, tokens=0, epochs=0.0, cursor={})
