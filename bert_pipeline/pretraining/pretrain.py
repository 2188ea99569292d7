"""`bertpipe pretrain`: assemble tokenizer, examples, model and optimizer, train, and export."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.utils import logging as transformers_logging

from bert_pipeline.errors import UsageError
from bert_pipeline.model.compile import should_compile
from bert_pipeline.model.parameters import parameter_kinds
from bert_pipeline.model.pretraining_model import PretrainingModel
from bert_pipeline.pretraining.adaptation import read_old_texts
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.export import export_model
from bert_pipeline.pretraining.longer_run import plan_longer_run
from bert_pipeline.pretraining.memmap_rows import FOLDER as STORE
from bert_pipeline.pretraining.memmap_rows import remove_store
from bert_pipeline.pretraining.preflight import Inputs
from bert_pipeline.pretraining.skipped_batches import FOLDER as SKIPPED
from bert_pipeline.pretraining.summary import announce, print_summary
from bert_pipeline.pretraining.task import PretrainingTask
from bert_pipeline.progress import print_line
from bert_pipeline.storage.workspace import Working, Workspace, workspace
from bert_pipeline.training.checkpoint import remove_damaged_checkpoints
from bert_pipeline.training.distributed import (
    Ranks,
    distribute,
    find_strategy,
    freeze_unused,
    start_ranks,
)
from bert_pipeline.training.hardware import peak_memory
from bert_pipeline.training.optimizers.combined import Optimizer
from bert_pipeline.training.optimizers.groups import group_parameters
from bert_pipeline.training.position import CHECKPOINTS
from bert_pipeline.training.profile import FOLDER as PROFILE
from bert_pipeline.training.profile import OPERATORS, TRACE
from bert_pipeline.training.reporter import METRICS
from bert_pipeline.training.run import check_processes, explain_failures
from bert_pipeline.training.state import TrainingState
from bert_pipeline.training.trackers import FOLDER as TRACKERS
from bert_pipeline.training.trackers import check_trackers
from bert_pipeline.training.trainer import Trainer

STAGE = "pretrain"
MODEL = "model"
WORKING = (
    *(STORE, METRICS, TRACKERS, f"{CHECKPOINTS}/step-*"),
    *(f"{SKIPPED}/step-*.parquet", f"{PROFILE}/{OPERATORS}", f"{PROFILE}/{TRACE}"),
    # A run that was killed after the export has no manifest that lists them.
    *(f"{MODEL}/config.json", f"{MODEL}/model.safetensors"),
)
"""What a run writes besides the files of its manifest, as globs."""


def pretrain(config: PretrainConfig) -> None:
    """Train to the end of the run's length, from the newest checkpoint if there is one.

    Writes `checkpoints/`, `metrics.jsonl` and, at the end, `model/` to `config.out`. Every process
    of a distributed run calls this; only the main one writes and prints.
    """
    transformers_logging.disable_progress_bar()
    ranks = start_ranks(config)
    with explain_failures(config, ranks), ExitStack() as stack:
        _pretrain(config, ranks, stack)


def _pretrain(config: PretrainConfig, ranks: Ranks, stack: ExitStack) -> None:
    work: Workspace | None = None

    def open_workspace() -> tuple[Path, bool]:
        nonlocal work
        check_trackers(config.tracker)
        inputs = Inputs.check(config).describe(config.out)
        work = stack.enter_context(
            workspace(STAGE, config, inputs, Working(WORKING, plan_extension=plan_longer_run))
        )
        if config.overwrite and (removed := remove_damaged_checkpoints(work.folder / CHECKPOINTS)):
            print_line(f"pretrain: damaged, removed: {', '.join(removed)}", quiet=config.quiet)
        return work.folder, work.finished is not None

    check_processes(config, ranks)
    if config.cuda_graphs and (ranks.device.type != "cuda" or ranks.world_size > 1):
        raise UsageError("--cuda-graphs: needs a run of one process on a GPU.")
    folder, is_finished = ranks.broadcast(open_workspace)
    if not is_finished:
        _train(config, Inputs.check(config), ranks, folder, work)
    elif work and work.finished:
        print_line(f"pretrain: already complete in {config.out}", quiet=config.quiet)
        print_summary(work.finished.counts, config)


def _train(
    config: PretrainConfig,
    inputs: Inputs,
    ranks: Ranks,
    folder: Path,
    work: Workspace | None,
) -> None:
    """Train, evaluate, export, and write the manifest; only the main process has a `work`."""
    # Read now, so that a text that is missing does not end a run of days.
    old_texts = ranks.broadcast(lambda: read_old_texts(config.old_text))
    trainer = make_trainer(config, inputs, ranks, folder)
    if ranks.is_main:
        announce(trainer.task, ranks, quiet=config.quiet)
    trainer.train()
    metrics = trainer.evaluate(final=True)
    weights = trainer.state.gather_weights()
    # All processes wait for the manifest, so that they can read it afterwards.
    ranks.broadcast(lambda: finish(trainer, work, weights, metrics, old_texts))


class PretrainingTrainer(Trainer):
    """A trainer whose task is pretraining."""

    task: PretrainingTask
    config: PretrainConfig


def make_trainer(
    config: PretrainConfig, inputs: Inputs, ranks: Ranks, folder: Path
) -> PretrainingTrainer:
    """The trainer of a run in `folder`, ready to start or resume."""
    # 1. Data and model.
    task = PretrainingTask(config, inputs, ranks, folder)
    steps = min_steps(config, inputs, len(task.examples[0]))
    task.model = PretrainingModel(
        task.make_network(),
        checkpoint_activations=config.checkpoint_activations,
        compiled=should_compile(config.compile, ranks.device, steps, config.max_minutes),
    )
    # 2. Distribution. Sharding replaces parameters, so the optimizer comes afterwards.
    if ranks.world_size > 1:
        freeze_unused(task.model, task.few_examples(), ranks)
    model = distribute(task.model, task.model.layers, ranks, find_strategy(config))
    # 3. Optimizer and checkpoints.
    network = task.model.network
    groups = group_parameters(network, parameter_kinds(network))
    optimizer = Optimizer(
        network, groups, config, ranks.precision, keeps_gradients=config.cuda_graphs
    )
    checkpoints = folder / CHECKPOINTS
    state = TrainingState(ranks, network, optimizer, checkpoints, config.keep_checkpoints)
    return PretrainingTrainer(
        config, ranks, model, optimizer, task, state, folder, cuda_graphs=config.cuda_graphs
    )


def min_steps(config: PretrainConfig, inputs: Inputs, examples: int) -> int | None:
    """The fewest steps that the run can take; None if its length is a time.

    `examples` is the number of training examples.
    """
    if config.max_tokens is not None:
        max_length: int = inputs.examples.config["max_seq_length"]
        return config.max_tokens // (config.batch_size * max_length)
    if config.max_epochs is not None:
        return int(config.max_epochs * examples / config.batch_size)
    return config.max_steps


def finish(
    trainer: PretrainingTrainer,
    work: Workspace | None,
    weights: Mapping[str, Tensor],
    metrics: Mapping[str, Any],
    old_texts: Mapping[str, Sequence[str]],
) -> None:
    """Export the model, compare it with the one that the run started from, write the manifest."""
    assert work is not None
    config = trainer.config
    position = trainer.position
    task = trainer.task
    folder = work.folder / MODEL
    batch = task.few_examples()
    files = export_model(folder, weights, task.inputs, config, position, metrics, batch)
    comparison = {}
    if (adaptation := task.adaptation(old_texts)) is not None:
        device = trainer.ranks.device
        comparison = adaptation.measure(folder, device, quiet=config.quiet)
    remove_store(work.folder / STORE)
    counts = {
        "steps": position.step,
        "tokens": position.tokens,
        "elapsed_s": position.elapsed_s,
        "skipped_steps": position.skipped,
        **trainer.reporter.totals.rates(trainer.reporter.peak_flops),
        "peak_memory_bytes": peak_memory(trainer.ranks.device),
        "bits_per_byte": comparison,
        **metrics,
    }
    work.finish(counts, [*files, work.folder / METRICS])
    print_summary(counts, config)
