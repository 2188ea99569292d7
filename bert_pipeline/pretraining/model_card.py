"""The README of a finished model folder."""

from collections.abc import Mapping
from pathlib import Path

from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.storage.manifest import Manifest
from bert_pipeline.training.checkpoint import Position

FIGURES = {
    "eval_mlm_loss": "masked loss (nats)",
    "eval_unigram_loss": "the same of the unigram baseline",
    "eval_perplexity": "perplexity",
    "eval_top1_accuracy": "top-1 accuracy",
    "eval_top5_accuracy": "top-5 accuracy",
    "eval_nsp_accuracy": "sentence-pair accuracy",
}


def write_card(
    folder: Path,
    config: PretrainConfig,
    examples: Manifest,
    position: Position,
    figures: Mapping[str, float],
) -> None:
    """Write `README.md`: what the model learnt from, how, and how well it does."""
    rows = [
        f"| {title} | {figures[key]:.4f} |"
        for key, title in FIGURES.items()
        if figures.get(key) is not None
    ]
    table = ["", "| on held-out documents | |", "|---|---|", *rows] if rows else []
    objective, length = examples.config["objective"], examples.config["max_seq_length"]
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: fill-mask",
        "---",
        "",
        "# A masked language model pretrained with bertpipe",
        "",
        f"Objective {objective}, examples of up to {length} tokens, {examples.counts['train_documents']:,} documents; "
        f"{position.step:,} steps of {config.batch_size} examples, {position.tokens:,} tokens, optimizer "
        f"{config.optimizer}, seed {config.seed}.",
        *table,
        "",
        "```python",
        "from transformers import pipeline",
        "",
        'fill = pipeline("fill-mask", model="PATH_OF_THIS_FOLDER")',
        "```",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
