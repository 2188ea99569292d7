"""`bertpipe finetune`: a pretrained model on labelled rows, the best epoch kept."""

import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.utils import logging as transformers_logging

from bert_pipeline.finetuning.config import EPOCHS, SENTENCE_EMBEDDING, FinetuneConfig
from bert_pipeline.finetuning.export import export_model
from bert_pipeline.finetuning.inputs import Inputs, describe_inputs
from bert_pipeline.finetuning.network import freeze, layer_scales, make_network
from bert_pipeline.finetuning.protocol import FOLDER, choose, plan_runs, summarize, to_json
from bert_pipeline.finetuning.sentence_embedding import train_sentence_embedding
from bert_pipeline.finetuning.summary import announce, print_summary
from bert_pipeline.finetuning.task import FinetuningTask, TaskLoss
from bert_pipeline.model.compile import should_compile
from bert_pipeline.model.parameters import parameter_kinds
from bert_pipeline.model.task_model import TaskModel
from bert_pipeline.progress import print_line
from bert_pipeline.storage.atomic import atomic_folder
from bert_pipeline.storage.manifest import read_manifest
from bert_pipeline.storage.workspace import Working, Workspace, workspace
from bert_pipeline.training.checkpoint import remove_damaged_checkpoints
from bert_pipeline.training.distributed import (
    Ranks,
    distribute,
    find_strategy,
    freeze_unused,
    start_ranks,
)
from bert_pipeline.training.optimizers.combined import Optimizer
from bert_pipeline.training.optimizers.groups import group_parameters
from bert_pipeline.training.position import CHECKPOINTS
from bert_pipeline.training.profile import FOLDER as PROFILE
from bert_pipeline.training.reporter import METRICS
from bert_pipeline.training.run import check_processes, explain_failures
from bert_pipeline.training.state import TrainingState
from bert_pipeline.training.step import BestMetric
from bert_pipeline.training.trackers import FOLDER as TRACKERS
from bert_pipeline.training.trackers import check_trackers
from bert_pipeline.training.trainer import Trainer

STAGE = "finetune"
MODEL = "model"
WORKING = (
    *(METRICS, TRACKERS, f"{CHECKPOINTS}/step-*", f"{PROFILE}/*"),
    # A run that was killed after the export has no manifest that lists them.
    *(f"{MODEL}/config.json", f"{MODEL}/model.safetensors", FOLDER),
)
"""What a run writes besides the files of its manifest, as globs."""


class FinetuningTrainer(Trainer):
    """A trainer whose task is one of `bert_pipeline.tasks`."""

    task: FinetuningTask
    config: FinetuneConfig


def finetune(config: FinetuneConfig) -> None:
    """Train to the end of the run's length, from the newest checkpoint if there is one.

    Writes `checkpoints/`, `metrics.jsonl` and, at the end, `model/` to `config.out`. Every process
    of a distributed run calls this; only the main one writes and prints.
    """
    if config.task == SENTENCE_EMBEDDING:
        train_sentence_embedding(config)
        return
    transformers_logging.disable_progress_bar()
    ranks = start_ranks(config)
    with explain_failures(config, ranks), ExitStack() as stack:
        _finetune(config, ranks, stack)


def _finetune(
    config: FinetuneConfig, ranks: Ranks, stack: ExitStack, inputs: Inputs | None = None
) -> None:
    work: Workspace | None = None

    def open_workspace() -> tuple[Path, bool]:
        nonlocal work, inputs
        check_trackers(config.tracker)
        inputs = inputs or Inputs.read(config)
        described = describe_inputs(inputs.folder, config)
        work = stack.enter_context(workspace(STAGE, config, described, Working(WORKING)))
        if config.overwrite and (removed := remove_damaged_checkpoints(work.folder / CHECKPOINTS)):
            print_line(f"finetune: damaged, removed: {', '.join(removed)}", quiet=config.quiet)
        return work.folder, work.finished is not None

    check_processes(config, ranks)
    folder, is_finished = ranks.broadcast(open_workspace)
    inputs = inputs or Inputs.read(config)
    config = resolve_learning_rate(config, inputs)
    if not is_finished and config.protocol == "single":
        _train(config, inputs, ranks, folder, work)
    elif not is_finished:
        _run_protocol(config, inputs, ranks, folder, work)
    elif work and work.finished:
        print_line(f"finetune: already complete in {config.out}", quiet=config.quiet)
        print_summary(work.finished.counts, config)


def _train(
    config: FinetuneConfig, inputs: Inputs, ranks: Ranks, folder: Path, work: Workspace | None
) -> None:
    """Train, choose the best epoch, export it, and write the manifest."""
    trainer = make_trainer(resolve_length(config, len(inputs.train)), inputs, ranks, folder)
    if ranks.is_main:
        announce(trainer, inputs)
    trainer.train()
    last = trainer.evaluate(final=True)
    validation = last
    if not trainer.select(last) and trainer.state.load_best() is not None:
        validation = {
            f"eval_{name}": value for name, value in trainer.task.measure(inputs.validation).items()
        }
    test = {}
    if inputs.test is not None:
        test = {f"test_{name}": value for name, value in trainer.task.measure(inputs.test).items()}
    weights = trainer.state.gather_weights()
    # All processes wait for the manifest, so that they can read it afterwards.
    ranks.broadcast(lambda: _finish(trainer, inputs, work, weights, {**validation, **test}))


def _run_protocol(
    config: FinetuneConfig, inputs: Inputs, ranks: Ranks, folder: Path, work: Workspace | None
) -> None:
    """Do all runs of a protocol, and copy the best model of the chosen learning rate."""
    metric = inputs.task.metric
    runs = plan_runs(config, folder, config.find_learning_rate())
    counts = []
    for number, run in enumerate(runs, start=1):
        with ExitStack() as stack:
            _finetune(run, ranks, stack, inputs)
        counts.append(read_manifest(run.out, STAGE).counts)
        value = counts[-1][f"eval_{metric}"]
        print_line(
            f"  run {number} of {len(runs)}: {run.out.name}: validation {metric} {value:.4f}",
            quiet=config.quiet or not ranks.is_main,
        )
    ranks.broadcast(lambda: _finish_protocol(config, metric, runs, counts, folder, work))


def _finish_protocol(
    config: FinetuneConfig,
    metric: str,
    runs: Sequence[FinetuneConfig],
    counts: Sequence[Mapping[str, Any]],
    folder: Path,
    work: Workspace | None,
) -> None:
    assert work is not None
    summaries = summarize(runs, counts, metric)
    init = runs[0].init
    chosen = choose(summaries, init)
    candidates = [
        number
        for number, run in enumerate(runs)
        if (run.init, run.find_learning_rate()) == (init, chosen.learning_rate)
    ]
    best = max(candidates, key=lambda number: counts[number][f"eval_{metric}"])
    with atomic_folder(folder / MODEL) as temporary:
        shutil.copytree(runs[best].out / MODEL, temporary, dirs_exist_ok=True)
    figures = {**counts[best], "metric": metric, "protocol": to_json(summaries), "runs": len(runs)}
    files = [path for name in (MODEL, FOLDER) for path in (folder / name).rglob("*")]
    work.finish(figures, sorted(path for path in files if path.is_file()))
    print_summary(figures, config)


def resolve_learning_rate(config: FinetuneConfig, inputs: Inputs) -> FinetuneConfig:
    """The options with a learning rate: by default one for the width of the model."""
    if config.learning_rate is not None:
        return config
    return config.model_copy(update={"learning_rate": inputs.default_learning_rate})


def resolve_length(config: FinetuneConfig, examples: int) -> FinetuneConfig:
    """The options with a length, and with evaluations and checkpoints each epoch by default."""
    per_epoch = math.ceil(examples / config.batch_size)
    changes: dict[str, Any] = {}
    lengths = (config.max_steps, config.max_tokens, config.max_minutes, config.max_epochs)
    if all(length is None for length in lengths):
        changes["max_epochs"] = EPOCHS
    for name in ("evaluate_every", "checkpoint_every"):
        if not getattr(config, name):
            changes[name] = per_epoch
    return config.model_copy(update=changes)


def make_trainer(
    config: FinetuneConfig, inputs: Inputs, ranks: Ranks, folder: Path
) -> FinetuningTrainer:
    """The trainer of a run in `folder`, ready to start or resume."""
    # 1. Data and model. The head is drawn at random, so the main process decides the weights.
    network, new = make_network(config, inputs.folder, inputs.task)
    task = FinetuningTask(config, inputs.task, inputs.train, inputs.validation, ranks)
    task.new_weights = new
    task.padding = network.config.pad_token_id or 0
    steps = config.max_steps or math.ceil(
        (config.max_epochs or 0) * len(inputs.train) / config.batch_size
    )
    freeze(network, config.freeze)
    model = TaskModel(
        network,
        checkpoint_activations=config.checkpoint_activations,
        compiled=should_compile(config.compile, ranks.device, steps, config.max_minutes),
    )
    task.start = {name: value.detach().clone() for name, value in network.named_parameters()}
    task.model = TaskLoss(model, inputs.task)
    # 2. Distribution. Sharding replaces parameters, so the optimizer comes afterwards.
    if ranks.world_size > 1:
        freeze_unused(task.model, task.few_examples(), ranks)
    trained = distribute(task.model, model.layers, ranks, find_strategy(config))
    # 3. Optimizer and checkpoints.
    scales = layer_scales(network, config.layer_decay)
    groups = group_parameters(network, parameter_kinds(network), scales)
    optimizer = Optimizer(network, groups, config, ranks.precision)
    state = TrainingState(ranks, network, optimizer, folder / CHECKPOINTS, config.keep_checkpoints)
    best = BestMetric(f"eval_{inputs.task.metric}", patience=config.patience)
    return FinetuningTrainer(config, ranks, trained, optimizer, task, state, folder, best)


def _finish(
    trainer: FinetuningTrainer,
    inputs: Inputs,
    work: Workspace | None,
    weights: Mapping[str, Tensor],
    metrics: Mapping[str, Any],
) -> None:
    """Export the model, write the manifest, print the summary."""
    assert work is not None
    config = trainer.config
    position = trainer.position
    files = export_model(work.folder / MODEL, weights, inputs, config, metrics)
    counts = {
        "steps": position.step,
        "epochs": position.epochs,
        "tokens": position.tokens,
        "elapsed_s": position.elapsed_s,
        "skipped_steps": position.skipped,
        "train_examples": len(inputs.train),
        "validation_examples": len(inputs.validation),
        "test_examples": 0 if inputs.test is None else len(inputs.test),
        **trainer.reporter.totals.rates(trainer.reporter.peak_flops),
        **metrics,
    }
    work.finish(counts, [*files, work.folder / METRICS])
    print_summary(counts, config)
