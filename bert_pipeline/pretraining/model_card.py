"""The model card: the README of a finished model folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.storage.manifest import Manifest
from bert_pipeline.training.position import Position

METRIC_TITLES = {
    "eval_mlm_loss": "masked-LM loss (nats)",
    "eval_unigram_loss": "unigram baseline (nats)",
    "eval_perplexity": "perplexity",
    "eval_bits_per_byte": "bits per byte of text",
    "eval_top1_accuracy": "top-1 accuracy",
    "eval_top5_accuracy": "top-5 accuracy",
    "eval_nsp_accuracy": "sentence-pair accuracy",
}


def write_model_card(
    folder: Path,
    config: PretrainConfig,
    examples: Manifest,
    position: Position,
    metrics: Mapping[str, Any],
) -> None:
    """Write `README.md`: training data, settings and metrics of the model."""
    rows = [
        f"| {title} | {metrics[key]:.4f} |"
        for key, title in METRIC_TITLES.items()
        if metrics.get(key) is not None
    ]
    table = ["", "| on held-out documents | |", "|---|---|", *rows] if rows else []
    objective = examples.config["objective"]
    length = examples.config["max_seq_length"]
    documents = examples.counts["train_documents"]
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: fill-mask",
        "---",
        "",
        "# A masked language model pretrained with bertpipe",
        "",
        f"Objective {objective}, examples of up to {length} tokens, {documents:,} documents; "
        f"{position.step:,} steps with batch size {config.batch_size}, {position.tokens:,} tokens, "
        f"optimizer {config.optimizer}, seed {config.seed}.",
        *table,
        "",
        "```python",
        "from transformers import pipeline",
        "",
        'fill = pipeline("fill-mask", model="PATH_OF_THIS_FOLDER")',
        "```",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
