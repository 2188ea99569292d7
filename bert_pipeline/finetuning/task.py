"""A task as the training engine trains it: batches, and evaluation on validation rows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bert_pipeline.finetuning.config import FinetuneConfig
from bert_pipeline.model.fixed_shapes import CPU_TOKEN_MULTIPLE, round_up_tokens
from bert_pipeline.model.task_model import TaskBatch, TaskModel
from bert_pipeline.pretraining.sampler import draw_rows
from bert_pipeline.progress import print_line
from bert_pipeline.ragged import Array, Int64Array
from bert_pipeline.tasks.encoded import Examples
from bert_pipeline.tasks.scoring import group_by_length, join_scores, select_read
from bert_pipeline.tasks.task import Task
from bert_pipeline.training.distributed import Ranks, reshard
from bert_pipeline.training.position import Position
from bert_pipeline.training.task import StepInputs

TOKENS_PER_BATCH = 4096
"""Tokens of a batch in evaluation, about."""
PROBED_EXAMPLES = 4
"""Examples with which unused parameters are found."""
SHOWN = ("accuracy", "f1", "matthews_correlation", "exact_match", "pearson", "spearman")
"""Metrics that are printed after each evaluation."""


class TaskLoss(nn.Module):
    """The model with the loss of its task."""

    def __init__(self, model: TaskModel, task: Task) -> None:
        """To shard, wrap the model's layers and then this module: all calls go through it."""
        super().__init__()
        self.model = model
        self._task = task

    def forward(self, batch: TaskBatch, *, scores: bool = False) -> tuple[Tensor]:
        """The summed loss, or the scores of the model."""
        found = self.model(batch)
        if scores:
            return (found,)
        loss = self._task.loss(found, batch)
        return (loss * 0.0 if batch.is_placeholder else loss,)


class FinetuningTask:
    """One process's part of fine-tuning."""

    losses: Mapping[str, float]

    def __init__(
        self,
        config: FinetuneConfig,
        task: Task,
        train: Examples,
        validation: Examples,
        ranks: Ranks,
    ) -> None:
        self.losses = {"task_loss": 1.0}
        self.config = config
        self.task = task
        self.train = train
        self.validation = validation
        self.ranks = ranks
        self.padding = 0
        """Id of the padding token; set with the model."""
        self.model: TaskLoss
        """What is trained; set once it has been made."""
        self.new_weights: Sequence[str] = ()
        """Names of the weights that the pretrained model lacked, which are random."""
        self.start: Mapping[str, Tensor]
        """The weights that the run started from; set with the model."""

    def few_examples(self) -> TaskBatch:
        """A batch of the first examples, on the CPU."""
        return self.train.collate(np.arange(min(len(self.train), PROBED_EXAMPLES)))

    def largest_batches(self) -> Iterator[TaskBatch]:
        """A micro-batch of the longest examples."""
        size = math.ceil(self.config.batch_size / self.config.accumulate / self.ranks.world_size)
        order = np.argsort(-self.train.count_tokens(np.arange(len(self.train))), kind="stable")
        yield self.train.collate(np.resize(order[:size], size))

    def initial_weights(self) -> Mapping[str, Tensor]:
        """The weights that the run started from."""
        return self.start

    def make_step(self, position: Position, progress: float) -> StepInputs:
        """This rank's micro-batches of the step at a position."""
        config = self.config
        ranks = self.ranks
        first = position.cursor.get("rows", 0)
        rows, epochs = draw_rows(len(self.train), first, config.batch_size, config.seed)
        own = rows[ranks.rank :: ranks.world_size]
        parts = [part for part in np.array_split(own, config.accumulate) if len(part)]
        batches = [self._collate(part) for part in parts]
        weight = sum(map(self.task.weight_of, batches))
        # With fewer examples than ranks × micro-batches, all ranks still join the all-reduce.
        if missing := config.accumulate - len(batches):
            batches += [self.train.collate(rows[:1], is_placeholder=True)] * missing
        if ranks.device.type == "cuda":
            batches = [batch.pin() for batch in batches]
        after = first + config.batch_size
        return StepInputs(
            micro_batches=batches,
            terms=(weight,),
            tokens=int(self.train.count_tokens(rows).sum()),
            epochs=after / len(self.train),
            cursor={"rows": after},
            metrics={"epoch": int(epochs[0])},
            source=rows,
        )

    def _collate(self, rows: Int64Array) -> TaskBatch:
        batch = self.train.collate(rows)
        if self.ranks.device.type != "cpu" or self.ranks.precision.half_dtype is None:
            return batch
        # oneDNN builds kernels for each number of rows, which takes longer than the padding.
        return round_up_tokens(batch, CPU_TOKEN_MULTIPLE, self.padding)

    def record_skipped(self, step: int, inputs: StepInputs) -> None:
        """Name the rows of a step that was skipped."""
        places = [self.train.where[row] for row in inputs.source.tolist()]
        print_line(
            f"  step {step:,} skipped: loss or gradient not finite; its rows: "
            f"{'; '.join(places[:3])}{'; …' if len(places) > 3 else ''}",
            quiet=self.config.quiet or not self.ranks.is_main,
        )

    def evaluate(self, *, final: bool) -> Mapping[str, Any]:
        """Metrics on the validation rows, with the prefix `eval_`."""
        metrics = self.measure(self.validation)
        if not final:
            shown = [f"{name} {metrics[name]:.3f}" for name in SHOWN if name in metrics]
            print_line(
                f"  validation: loss {metrics['loss']:.3f}, {', '.join(shown)}",
                quiet=self.config.quiet or not self.ranks.is_main,
            )
        return {f"eval_{name}": value for name, value in metrics.items()}

    def measure(self, examples: Examples) -> dict[str, float]:
        """Loss and metrics on labelled examples."""
        ranks = self.ranks
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad(), ranks.precision.autocast(ranks.device):
            scores, loss, weight = self._score(examples)
        self.model.train(was_training)
        reshard(self.model)
        predictions = self.task.decode(scores, examples)
        return {"loss": loss / weight, **self.task.measure(predictions, examples)}

    def _score(self, examples: Examples) -> tuple[Array, float, float]:
        """Scores of all examples, their summed loss and its weight; ranks share the batches."""
        ranks = self.ranks
        groups = group_by_length(examples, TOKENS_PER_BATCH)
        # All ranks do the same number of batches: a sharded model is gathered for each.
        rounds = math.ceil(len(groups) / ranks.world_size)
        own: list[tuple[Int64Array, Array, float, float]] = []
        for number in range(rounds):
            place = number * ranks.world_size + ranks.rank
            group = groups[min(place, len(groups) - 1)]
            batch = examples.collate(group).to(ranks.device)
            (scores,) = self.model(batch, scores=True)
            if place < len(groups):
                loss = float(self.task.loss(scores, batch))
                read = select_read(scores, examples, batch).cpu().numpy()
                own.append((group, read, loss, self.task.weight_of(batch)))
        gathered = [part for parts in ranks.gather_objects(own) for part in parts]
        # In the order of the batches: sums must not depend on the number of ranks.
        gathered.sort(key=lambda part: int(part[0][0]))
        return (
            join_scores(examples, [part[:2] for part in gathered]),
            sum(part[2] for part in gathered),
            sum(part[3] for part in gathered),
        )

    def interval_metrics(self, terms: Sequence[float], tokens: int) -> Mapping[str, float]:
        """None besides the loss."""
        return {}

    def on_metrics(self, line: Mapping[str, Any]) -> None:
        """Nothing to print."""
