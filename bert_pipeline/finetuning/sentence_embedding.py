"""`--task sentence-embedding`: an encoder whose pooled states are compared.

The library sentence-transformers trains and saves the model; transformers loads its folder too.
"""

import importlib.util
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.finetuning.config import EPOCHS, FinetuneConfig
from bert_pipeline.finetuning.inputs import default_learning_rate, describe_inputs, find_max_length
from bert_pipeline.finetuning.sentence_rows import SentenceRows, read_scored_pairs, read_sentences
from bert_pipeline.model.architectures import set_dropout
from bert_pipeline.predict.load import load_config, load_with_new_heads
from bert_pipeline.pretraining.init_from import find_start
from bert_pipeline.progress import print_line
from bert_pipeline.storage.atomic import atomic_folder
from bert_pipeline.storage.workspace import Working, Workspace, workspace
from bert_pipeline.tasks.metrics import measure_regression
from bert_pipeline.training.distributed import Ranks, start_ranks
from bert_pipeline.training.position import CHECKPOINTS
from bert_pipeline.training.reporter import METRICS

STAGE = "finetune"
MODEL = "model"
WORKING = Working((METRICS, f"{CHECKPOINTS}/checkpoint-*", f"{MODEL}/*"))
SIMCSE_DROPOUT = 0.1
"""Two passes over a text differ by dropout alone (Gao et al. 2021,
https://arxiv.org/abs/2104.08821, section 3)."""
CARD = """\
---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
---

# Sentence embeddings, trained with bertpipe

Objective `{objective}`, {pooling} pooling, learning rate {rate:g}, batch size {batch_size}, {steps}
steps, seed {seed}.
"""


def train_sentence_embedding(config: FinetuneConfig) -> None:
    """Train on texts or pairs of texts, from the newest checkpoint if there is one.

    Writes `metrics.jsonl` and, at the end, `model/` to `config.out`.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise UsageError(
            "--task sentence-embedding needs sentence-transformers: "
            "pip install 'bertpipe[sentence-transformers]'"
        )
    ranks = start_ranks(config)
    if ranks.world_size > 1:
        raise UsageError("--task sentence-embedding trains in one process.")
    if ranks.precision.name == "fp16" and ranks.device.type == "cpu":
        raise UsageError("--task sentence-embedding: --precision fp16 needs a GPU.")
    folder = find_start(config.model, None, quiet=config.quiet)
    if config.learning_rate is None:
        rate = default_learning_rate(load_config(folder))
        config = config.model_copy(update={"learning_rate": rate})
    rows = read_sentences(config, config.train, "train")
    _check_options(config, rows)
    validation = read_scored_pairs(config, config.validation) if config.validation else None
    described = describe_inputs(folder, config)
    with workspace(STAGE, config, described, WORKING) as work, _explain_failures():
        if work.finished is None:
            _train(config, folder, (rows, validation), ranks, work)
        else:
            print_line(f"finetune: already complete in {config.out}", quiet=config.quiet)
            _print_summary(work.finished.counts, config)


@contextmanager
def _explain_failures() -> Iterator[None]:
    """Keep transformers quiet in the block, and explain a lack of memory."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise BertpipeError(
            "The GPU ran out of memory. Use a smaller --batch-size or --max-seq-length."
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _check_options(config: FinetuneConfig, rows: SentenceRows) -> None:
    """Raise `UsageError` for options that have no effect on these rows."""
    if rows.are_pairs and "objective" in config.model_fields_set:
        raise UsageError(
            f"--objective {config.objective}: is for single texts, and {config.train} has pairs."
        )
    if not rows.are_pairs and config.label_field is not None:
        raise UsageError(f"--label-field: {config.train} has single texts, which need no label.")


def _train(
    config: FinetuneConfig,
    folder: Path,
    data: tuple[SentenceRows, SentenceRows | None],
    ranks: Ranks,
    work: Workspace,
) -> None:
    """Train, measure before and after, export, and write the manifest."""
    from bert_pipeline.finetuning.sentence_training import (
        Run,
        count_steps,
        find_objective,
        make_dataset,
        train,
    )

    rows, validation = data
    objective = find_objective(config, rows)
    model = make_model(config, folder, objective, ranks.device)
    counts: dict[str, Any] = {
        "train_examples": len(rows),
        "steps": count_steps(config, len(rows), EPOCHS),
        "objective": objective,
    }
    _announce(counts, config)
    if validation is not None:
        counts["validation_examples"] = len(validation)
        counts["start_spearman"] = measure(model, validation)
    dataset = make_dataset(objective, rows, config.seed)
    places = (work.folder / CHECKPOINTS, work.folder / METRICS)
    if counts["steps"]:
        train(Run(config, objective, model, dataset, counts["steps"], ranks, *places))
    if validation is not None:
        counts["eval_spearman"] = measure(model, validation)
    files = _export(model, work.folder / MODEL, counts, config)
    manifest = work.finish(counts, files)
    # A finished run is not continued.
    shutil.rmtree(config.out / CHECKPOINTS, ignore_errors=True)
    _print_summary(manifest.counts, config)


def make_model(config: FinetuneConfig, folder: Path, objective: str, device: torch.device) -> Any:
    """The encoder of a model folder with a pooling layer."""
    from sentence_transformers import SentenceTransformer, SentenceTransformerModelCardData
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    torch.manual_seed(config.seed)
    model_config = load_config(folder)
    dropout = SIMCSE_DROPOUT if objective == "simcse" else None
    set_dropout(model_config, dropout if config.dropout is None else config.dropout)
    local: dict[str, Any] = {"local_files_only": True}
    transformer = Transformer(
        str(folder),
        max_seq_length=min(config.max_seq_length, find_max_length(folder)),
        model_kwargs=local | {"use_safetensors": True},
        config_kwargs=dict(local),
        processor_kwargs=dict(local),
    )
    # Unlike the library, this checks that no weight is missing or damaged.
    transformer.model, _ = load_with_new_heads(folder, AutoModel, model_config)
    pooling = Pooling(transformer.get_embedding_dimension(), config.pooling)
    # Checkpoints have a model card, for which the library would look on the Hub.
    card = SentenceTransformerModelCardData(local_files_only=True, generate_widget_examples=False)
    return SentenceTransformer(
        modules=[transformer, pooling], device=str(device), model_card_data=card
    )


def measure(model: Any, pairs: SentenceRows) -> float:
    """Spearman correlation of scores and cosine similarities."""
    first, second = (
        model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        for texts in pairs.texts
    )
    return measure_regression(np.array(pairs.scores), (first * second).sum(1))["spearman"]


def _export(
    model: Any, folder: Path, counts: Mapping[str, Any], config: FinetuneConfig
) -> list[Path]:
    """Write the model and its card; return the files."""
    card = CARD.format(
        objective=counts["objective"],
        pooling=config.pooling,
        rate=config.find_learning_rate(),
        batch_size=config.batch_size,
        steps=counts["steps"],
        seed=config.seed,
    )
    with atomic_folder(folder) as temporary:
        model.save_pretrained(str(temporary), create_model_card=False)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _announce(counts: Mapping[str, Any], config: FinetuneConfig) -> None:
    print_line(
        f"fine-tuning: sentence embeddings, objective {counts['objective']}, "
        f"{counts['train_examples']:,} rows, {counts['steps']:,} steps, batch size "
        f"{config.batch_size}, learning rate {config.find_learning_rate():g}",
        quiet=config.quiet,
    )


def _print_summary(counts: Mapping[str, Any], config: FinetuneConfig) -> None:
    print_line(f"fine-tuned: {counts['steps']:,} steps → {config.out / MODEL}", quiet=config.quiet)
    if "eval_spearman" in counts:
        print_line(
            f"Spearman correlation on {counts['validation_examples']:,} validation pairs: "
            f"{counts['start_spearman']:.4f} before, {counts['eval_spearman']:.4f} after",
            quiet=config.quiet,
        )
    print_line(
        f'Next: sentence_transformers.SentenceTransformer("{config.out / MODEL}")',
        quiet=config.quiet,
    )
