"""Training steps and runs on a GPU: no synchronization, few graphs, flat memory, resume, errors."""

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForPreTraining

from bert_pipeline.errors import BertpipeError
from bert_pipeline.model.fixed_shapes import BatchShape, fill_up
from bert_pipeline.model.parameters import parameter_kinds
from bert_pipeline.model.pretraining_model import PretrainingModel
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.training.optimizers.combined import Optimizer
from bert_pipeline.training.optimizers.groups import group_parameters
from bert_pipeline.training.precision import Precision
from bert_pipeline.training.step import AllRanks
from bert_pipeline.training.trainer import Trainer
from tests.helpers.devices import ON_GPU
from tests.helpers.model_rows import flatten, make_rows
from tests.helpers.training_runs import (
    SHAPE,
    command,
    counts,
    finish,
    fork_run,
    has_begun,
    make_inputs,
    make_trainer,
    metrics,
    options,
    run,
    start,
    wait_for,
)

DEVICE = "cuda"
CPU_ONLY = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
LOSSES = {"mlm_loss": 1.0, "nsp_loss": 1.0}
pytestmark = [*ON_GPU, pytest.mark.integration]


@pytest.fixture
def synchronization_fails() -> Iterator[None]:
    """Within the test a step that waits for the GPU is an error."""
    yield
    torch.cuda.set_sync_debug_mode("default")


def make_step_trainer(
    optimizer: str,
    precision: Any,
    dropout: float = 0.0,
    *,
    cuda_graphs: bool = False,
    compiled: bool = False,
) -> Trainer:
    """A trainer of a small BERT on the GPU."""
    torch.manual_seed(0)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    network = BertForPreTraining(BertConfig(vocab_size=97, **SHAPE, **rates))
    model = PretrainingModel(network, compiled=compiled).to(DEVICE)
    given: dict[str, Any] = {"examples": "e", "tokenizer": "t", "out": "o", "max_steps": 10}
    groups = group_parameters(network, parameter_kinds(network))
    config = PretrainConfig(**given, optimizer=optimizer)
    updates = Optimizer(network, groups, config, Precision(precision), keeps_gradients=cuda_graphs)
    return make_trainer(model, LOSSES, updates, precision, DEVICE, cuda_graphs=cuda_graphs)


def take_step(trainer: Trainer, number: int, shape: BatchShape | None = None) -> Any:
    """A step of two micro-batches; the lengths depend on its number."""
    generator = torch.Generator().manual_seed(number)
    lengths = torch.randint(3, 64, (2, 24), generator=generator).tolist()
    batches = [flatten(make_rows(some, number), True) for some in lengths]
    masked = sum(len(batch.masked_labels) for batch in batches)
    if shape is not None:
        batches = [fill_up(batch, shape, padding=0) for batch in batches]
    if DEVICE == "cuda":
        batches = [batch.pin() for batch in batches]
    return trainer.train_step(
        make_inputs(batches, (masked, 48)), AllRanks(0.0, 0, (masked, 48.0), None), 0.3
    )


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon"])
@pytest.mark.parametrize(
    ("precision", "dropout"), [("bf16", 0.0), ("bf16", 0.1), ("fp16", 0.0), ("tf32", 0.0)]
)
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.usefixtures("synchronization_fails")
def test_steps_do_not_wait_for_the_gpu(optimizer: str, precision: str, dropout: float) -> None:
    trainer = make_step_trainer(optimizer, precision, dropout)
    take_step(trainer, 0)
    torch.cuda.set_sync_debug_mode("error")
    results = [take_step(trainer, number) for number in range(1, 4)]
    torch.cuda.set_sync_debug_mode("default")
    for result in results:
        losses, norm, _ = result.read()
        assert all(0 < loss < 1e4 for loss in losses)
        assert norm > 0


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.usefixtures("synchronization_fails")
def test_replayed_graphs_train_as_steps_without_them(dropout: float, compiled: bool) -> None:
    shape = BatchShape.from_budget(4000, 33.0, 64, 0.1)
    read = []
    for cuda_graphs in (False, True):
        trainer = make_step_trainer(
            "adamw", "bf16", dropout, cuda_graphs=cuda_graphs, compiled=compiled
        )
        results = [take_step(trainer, number, shape) for number in range(3)]
        torch.cuda.set_sync_debug_mode("error")
        results += [take_step(trainer, number, shape) for number in range(3, 12)]
        torch.cuda.set_sync_debug_mode("default")
        read.append([result.read() for result in results])
    for plain, replayed in zip(*read, strict=True):
        assert replayed[0] == pytest.approx(plain[0], rel=1e-2)
        assert replayed[1] == pytest.approx(plain[1], rel=5e-2)
    torch._dynamo.reset()


def test_graphs_are_captured_while_another_thread_pins_memory() -> None:
    """As the thread that prepares the next batches does."""
    shape = BatchShape.from_budget(4000, 33.0, 64, 0.1)
    done = threading.Event()

    def pin() -> None:
        kept = []
        while not done.is_set():
            kept = [*kept[-5:], torch.empty(2**18).pin_memory()]

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        trainer = make_step_trainer("adamw", "bf16", cuda_graphs=True)
        losses = [take_step(trainer, number, shape).read()[0] for number in range(6)]
    finally:
        done.set()
        thread.join()
    assert all(0 < loss < 1e4 for step in losses for loss in step)


def test_reserved_memory_is_flat_over_a_thousand_steps() -> None:
    """With a different number of tokens in each step."""
    trainer = make_step_trainer("adamw", "bf16")
    reserved = []
    for number in range(1000):
        result = take_step(trainer, number)
        if number % 100 == 99:
            result.read()
            reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] <= 1.05 * reserved[2]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_runs_learn_what_they_learn_on_a_cpu(
    precision: str, examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    given = options(examples_folder, wordpiece_folder, tmp_path / "gpu", precision=precision)
    fork_run(given | {"max_steps": 60}).join()
    config = tmp_path / "cpu.yaml"
    on_cpu = given | {"out": tmp_path / "cpu", "max_steps": 60, "precision": "fp32"}
    subprocess.run(
        [sys.executable, *command(config, on_cpu)], env=CPU_ONLY, check=True, capture_output=True
    )
    assert counts(tmp_path / "gpu")["eval_mlm_loss"] == pytest.approx(
        counts(tmp_path / "cpu")["eval_mlm_loss"], rel=0.02
    )
    assert not (tmp_path / "gpu" / "skipped").exists()


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize(
    ("model", "dropout"),
    [({}, 0.0), ({}, 0.1), ({"model_type": "modernbert", "local_attention": 20}, 0.0)],
)
def test_compiled_runs_have_at_most_five_graphs_and_no_break(
    model: dict[str, Any],
    dropout: float,
    mlm_examples_folder: Path,
    wordpiece_folder: Path,
    tmp_path: Path,
) -> None:
    """For batches of many different shapes: kinds of layers, and the loss of masked tokens.

    With dropout in attention, layers of batches without padding are others.
    """
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    changes = {
        "model": SHAPE | {"num_hidden_layers": 6} | model,
        "compile": "on",
        "dropout": dropout,
        "batch_size_start": 2,
        "batch_size_warmup": 0.9,
        "precision": "bf16",
    }
    run(mlm_examples_folder, wordpiece_folder, tmp_path / "out", **changes)
    assert 1 <= counters["stats"]["unique_graphs"] <= (5 if dropout or model else 3)
    assert not counters["graph_break"]
    torch._dynamo.reset()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "fp16"},
        {"tokens_per_batch": 256},
        {"tokens_per_batch": 256, "cuda_graphs": True},
        {"tokens_per_batch": 256, "cuda_graphs": True, "compile": "on"},
        {"dropout": 0.1},
    ],
)
def test_stopped_and_killed_runs_resume_with_the_same_losses(
    changes: dict[str, Any], examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    usual = {"precision": "bf16", "max_steps": 400, "checkpoint_every": 20, "dropout": 0.0}
    given = options(examples_folder, wordpiece_folder, tmp_path / "one", **(usual | changes))
    fork_run(given).join()
    other = given | {"out": tmp_path / "other"}
    stopped = start(tmp_path / "other.yaml", other)
    wait_for(lambda: has_begun(tmp_path / "other"), 180)
    stopped.send_signal(signal.SIGTERM)
    finish(stopped, 128 + signal.SIGTERM)
    killed = fork_run(other)
    saved = len(list((tmp_path / "other" / "checkpoints").glob("step-*")))
    wait_for(lambda: has_passed(tmp_path / "other", 200) or not killed.is_alive(), 180)
    killed.kill()
    killed.join()
    assert saved
    fork_run(other).join()
    losses = [
        {line["step"]: line["loss"] for line in metrics(tmp_path / name) if "loss" in line}
        for name in ("one", "other")
    ]
    assert list(losses[0]) == list(losses[1])
    # Sums of a GPU's kernels depend on the order in which they end.
    for step, loss in losses[0].items():
        assert losses[1][step] == pytest.approx(loss, rel=0.05), step


def has_passed(out: Path, step: int) -> bool:
    """Whether a run has written the metrics of a step."""
    return any(line["step"] >= step for line in metrics(out))


def test_out_of_memory_is_one_message_and_its_advice_helps(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    """The run may use a part of the GPU's memory only."""
    model = SHAPE | {"num_hidden_layers": 1, "intermediate_size": 2**17}
    changes = {"model": model, "batch_size": 256, "max_steps": 2, "precision": "bf16"}
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(6e9 / total)
    try:
        with pytest.raises(BertpipeError, match=r"The GPU ran out of memory.*--accumulate 2"):
            run(examples_folder, wordpiece_folder, tmp_path / "out", **changes)
        gc.collect()
        torch.cuda.empty_cache()
        run(examples_folder, wordpiece_folder, tmp_path / "out", **changes, accumulate=32)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert counts(tmp_path / "out")["steps"] == 2


def test_two_processes_on_one_gpu_are_refused(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    given = options(examples_folder, wordpiece_folder, tmp_path / "out")
    arguments = command(tmp_path / "run.yaml", given)
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": first}
    launchers = {
        "each process needs a GPU": [sys.executable, *arguments, "--num-processes", "2"],
        "Ranks 0 and 1 use the same GPU": [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *arguments,
        ],
    }
    for message, launcher in launchers.items():
        done = subprocess.run(
            launcher, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode
        assert done.stderr.count(message) == 1, done.stderr
        assert "Traceback" not in done.stderr.partition(message)[0]
    assert not (tmp_path / "out").exists()
