"""What a fine-tuning run reads: the model, its tokenizer, and labelled rows, checked."""

import os
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from bert_pipeline.errors import BertpipeError
from bert_pipeline.finetuning.config import FinetuneConfig
from bert_pipeline.model.architectures import count_positions
from bert_pipeline.predict.load import hash_model, load_auto_tokenizer, load_config
from bert_pipeline.pretraining.init_from import find_start
from bert_pipeline.storage.atomic import hash_file
from bert_pipeline.storage.manifest import Input
from bert_pipeline.tasks.classification import SINGLE, Classification
from bert_pipeline.tasks.encoded import Examples
from bert_pipeline.tasks.read_rows import HUB, Row, hub_splits
from bert_pipeline.tasks.registry import find_task, read_task_rows
from bert_pipeline.tasks.task import Task

MIN_ROWS = 2
SPLIT_SEED = 0
BASE_RATE = 3e-5
BASE_WIDTH = 768
"""The learning rate for BERT-base (Devlin et al. 2019, appendix A.3: 2e-5 to 5e-5), and its hidden
size."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The model folder and the examples of each split."""

    folder: Path
    tokenizer: Any
    task: Task
    train: Examples
    validation: Examples
    test: Examples | None
    default_learning_rate: float

    @classmethod
    def read(cls, config: FinetuneConfig) -> Self:
        """Raises `BertpipeError` naming the file and line of what is wrong."""
        folder = find_start(config.model, None, quiet=config.quiet)
        tokenizer = load_auto_tokenizer(folder)
        length = min(config.max_seq_length, find_max_length(folder))
        rows = _read(config, config.train, "train")
        task = find_task(config.task).from_rows(rows, tokenizer, length, config)
        train = task.encode(rows)
        if not len(train.labels):
            raise BertpipeError(f"{config.train}: has rows without a label.")
        if (source := _validation_source(config)) is not None:
            validation = task.encode(_read(config, *source))
            if not len(validation.labels):
                raise BertpipeError(f"{source[0]}: has rows without a label.")
        else:
            train, validation = _hold_out(task, train, config)
        test = None
        if config.test is not None:
            test = task.encode(_read(config, config.test, "test"))
            if not len(test.labels):
                raise BertpipeError(
                    f"{config.test}: has rows without a label; use `bertpipe predict` for them."
                )
        if config.class_weights == "balanced":
            task = _balance(task, train)
        rate = default_learning_rate(load_config(folder))
        return cls(folder, tokenizer, task, train, validation, test, rate)


def describe_inputs(folder: Path, config: FinetuneConfig) -> dict[str, Input]:
    """The record for the manifest of the model in `folder` and of the files of rows."""
    where = os.path.relpath(folder.resolve(), config.out.resolve())
    described = {"model": Input(path=where, fingerprint=hash_model(folder))}
    for name in ("train", "validation", "test"):
        source = getattr(config, name)
        if source is not None and not source.startswith(HUB):
            file = Path(source).expanduser()
            path = os.path.relpath(file.resolve(), config.out.resolve())
            described[name] = Input(path=path, fingerprint=hash_file(file))
    return described


def default_learning_rate(config: Any) -> float:
    """The peak learning rate of AdamW for the width of a model.

    That is 3e-5 for BERT-base, 1.9e-5 for BERT-large, 1.6e-4 for BERT-mini and 4.4e-4 for
    BERT-tiny; measured for the last (docs/benchmarks.md).
    """
    width = getattr(config, "hidden_size", BASE_WIDTH)
    return float(BASE_RATE * (BASE_WIDTH / width) ** 1.5)


def find_max_length(folder: Path) -> int:
    """The maximum number of tokens per text of a model; a large number without a limit."""
    return count_positions(load_config(folder)) or 1 << 20


def _read(config: FinetuneConfig, source: str, split: str) -> list[Row]:
    """All rows of a file or split; none may be broken."""
    rows = list(read_task_rows(config.task, source, config.names_of_columns, split=split))
    for row in rows:
        if row.problem is not None:
            raise BertpipeError(f"{row.where}: {row.problem}.")
    if len(rows) < (MIN_ROWS if split == "train" else 1):
        raise BertpipeError(f"{source}: has {len(rows)} rows; there is nothing to learn from.")
    return rows


def _validation_source(config: FinetuneConfig) -> tuple[str, str] | None:
    """The source and the split of the validation rows; None if they are held out."""
    if config.validation is not None:
        return config.validation, "validation"
    if config.train.startswith(HUB) and "validation" in hub_splits(config.train):
        return config.train, "validation"
    return None


def _hold_out(task: Task, examples: Examples, config: FinetuneConfig) -> tuple[Examples, Examples]:
    """Training and validation examples: a random share of each label, at least one in all.

    Examples of one group, such as the windows of a context, stay together. The choice does not
    depend on the seed of the run, so that runs with other seeds compare.
    """
    random = np.random.default_rng(SPLIT_SEED)
    groups = task.groups(examples)
    is_single = isinstance(task, Classification) and task.problem == SINGLE
    strata = defaultdict(list)
    for group in range(groups.max() + 1):
        strata[int(examples.labels[group]) if is_single else 0].append(group)
    chosen: list[int] = []
    for key in sorted(strata):
        members = random.permutation(strata[key])
        chosen += members[: round(len(members) * config.validation_share)].tolist()
    is_held_out = np.isin(groups, chosen or [groups.max()])
    if is_held_out.all():
        raise BertpipeError(f"{config.train}: too few rows to hold some out; give --validation.")
    return examples.select((~is_held_out).nonzero()[0]), examples.select(is_held_out.nonzero()[0])


def _balance(task: Any, examples: Examples) -> Task:
    """The task with class weights: rows per class if all were equal, over those there are."""
    if not isinstance(task, Classification) or task.problem != SINGLE:
        raise BertpipeError("--class-weights balanced is for classifiers with a single label.")
    counts = np.bincount(examples.labels, minlength=len(task.labels.names)).clip(min=1)
    weights = len(examples) / (len(counts) * counts)
    return replace(task, class_weights=tuple(weights.tolist()))
