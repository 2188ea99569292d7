"""The training of sentence embeddings: objectives, and the trainer of sentence-transformers."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.training_args import BatchSamplers
from sentence_transformers.sentence_transformer import losses
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback

from bert_pipeline.errors import BertpipeError
from bert_pipeline.finetuning.config import FinetuneConfig
from bert_pipeline.finetuning.sentence_rows import SentenceRows
from bert_pipeline.progress import Bar, bar
from bert_pipeline.training.distributed import Ranks
from bert_pipeline.training.metrics import MetricsLog

DELETED = 0.6
"""Share of the words that TSDAE deletes (Wang et al. 2021, https://arxiv.org/abs/2104.06979)."""
RANKING = ("simcse", "pairs")
"""Objectives whose negatives are the other texts of a batch."""


@dataclass(frozen=True, slots=True)
class Run:
    """What is trained, on what, and where it is saved."""

    config: FinetuneConfig
    objective: str
    """`simcse` and `tsdae` of texts, `pairs`, or `scores` of pairs."""
    model: Any
    dataset: Dataset
    steps: int
    ranks: Ranks
    checkpoints: Path
    metrics: Path


def find_objective(config: FinetuneConfig, rows: SentenceRows) -> str:
    """What is learned from the rows."""
    if rows.are_pairs:
        return "pairs" if rows.scores is None else "scores"
    return config.objective


def count_steps(config: FinetuneConfig, rows: int, default_epochs: float) -> int:
    """The steps of a run."""
    if config.max_steps is not None:
        return config.max_steps
    return math.ceil((config.max_epochs or default_epochs) * rows / config.batch_size)


def make_dataset(objective: str, rows: SentenceRows, seed: int) -> Dataset:
    """The columns that the loss of an objective takes, in its order."""
    if objective == "simcse":
        return Dataset.from_dict({"anchor": rows.texts[0], "positive": rows.texts[0]})
    if objective == "tsdae":
        draw = random.Random(seed)
        dataset = Dataset.from_dict({"text": rows.texts[0]})
        return dataset.with_transform(
            lambda batch: {
                "damaged": [delete_words(text, draw) for text in batch["text"]],
                "text": batch["text"],
            }
        )
    columns: dict[str, list[Any]] = dict(zip(("anchor", "positive"), rows.texts, strict=True))
    if rows.scores is not None:
        columns["score"] = rows.scores
    return Dataset.from_dict(columns)


def delete_words(text: str, draw: random.Random) -> str:
    """The text without a random share of its words; one stays."""
    words = text.split()
    kept = [word for word in words if draw.random() >= DELETED]
    return " ".join(kept or words[:1])


def make_loss(objective: str, model: Any) -> Any:
    """The loss of an objective. Raises `BertpipeError` for TSDAE of a model without a decoder."""
    if objective == "scores":
        return losses.CoSENTLoss(model)
    if objective in RANKING:
        return losses.MultipleNegativesRankingLoss(model)
    model_config = model.transformers_model.config
    if type(model_config) not in AutoModelForCausalLM._model_mapping:
        raise BertpipeError(
            f"--objective tsdae: transformers has no decoder for {model_config.model_type}; use "
            "simcse."
        )
    return losses.DenoisingAutoEncoderLoss(model)


def train(run: Run) -> None:
    """Train to the last step, from the newest checkpoint if there is one."""
    loss = make_loss(run.objective, run.model)
    start = newest_checkpoint(run.checkpoints)
    first = _step_of(start) if start else 0
    log = MetricsLog(run.metrics, first)
    with bar("training", run.steps, quiet=run.config.quiet) as shown:
        shown.move_to(first)
        trainer = _Trainer(
            model=run.model,
            args=_arguments(run),
            train_dataset=run.dataset,
            loss=loss,
            callbacks=[_Report(log, shown)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=str(start) if start else None)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of the library's trainer; None without one."""
    # The trainer writes this file last.
    complete = [file.parent for file in folder.glob("checkpoint-*/trainer_state.json")]
    return max(complete, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _arguments(run: Run) -> SentenceTransformerTrainingArguments:
    config = run.config
    per_epoch = math.ceil(len(run.dataset) / config.batch_size)
    is_ranking = run.objective in RANKING
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(run.checkpoints),
        max_steps=run.steps,
        per_device_train_batch_size=config.batch_size,
        # A text must not be its own negative.
        batch_sampler=BatchSamplers.NO_DUPLICATES if is_ranking else BatchSamplers.BATCH_SAMPLER,
        learning_rate=config.find_learning_rate(),
        warmup_steps=math.ceil(config.find_warmup() * run.steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=run.ranks.precision.name == "bf16",
        fp16=run.ranks.precision.name == "fp16",
        use_cpu=run.ranks.device.type == "cpu",
        dataloader_pin_memory=run.ranks.device.type != "cpu",
        logging_steps=min(config.log_every, run.steps),
        # A checkpoint lacks the decoder of TSDAE.
        save_strategy="no" if run.objective == "tsdae" else "steps",
        save_steps=config.checkpoint_every or per_epoch,
        save_total_limit=config.keep_checkpoints,
        report_to="none",
        disable_tqdm=True,
    )
    # One process uses one GPU; the trainer would replicate the model to all that it sees.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


class _Trainer(SentenceTransformerTrainer):  # type: ignore[misc]
    """A trainer that collects nothing for a model card."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: it would draw random examples and show a bar."""


class _Report(TrainerCallback):  # type: ignore[misc]
    """Writes losses to `metrics.jsonl` and moves the progress bar."""

    def __init__(self, log: MetricsLog, shown: Bar) -> None:
        self._log = log
        self._shown = shown

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **others: Any
    ) -> None:
        """Write a line for the steps since the last one."""
        if "loss" in logs:
            names = ("epoch", "loss", "learning_rate", "grad_norm")
            self._log.write({"step": state.global_step} | {name: logs[name] for name in names})
            self._shown.note(f"loss {logs['loss']:.3f}")

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Move the bar."""
        self._shown.move_to(state.global_step)
