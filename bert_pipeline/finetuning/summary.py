"""What a fine-tuning run prints at its start and its end."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bert_pipeline.finetuning.config import FinetuneConfig
from bert_pipeline.finetuning.inputs import Inputs
from bert_pipeline.finetuning.protocol import Summary
from bert_pipeline.progress import human_count, print_line, print_pairs

if TYPE_CHECKING:
    from bert_pipeline.finetuning.finetune import FinetuningTrainer

METRICS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "majority": "majority class",
    "chance": "chance",
    "f1": "F1",
    "f1_macro": "F1, mean of the labels",
    "precision": "precision",
    "recall": "recall",
    "matthews_correlation": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "mse": "mean squared error",
    "exact_match": "exact match (%)",
    "f1_answerable": "F1, answerable (%)",
    "f1_unanswerable": "F1, unanswerable (%)",
}
"""Metrics in the order of the summary."""


def announce(trainer: "FinetuningTrainer", inputs: Inputs) -> None:
    """Print what is trained, on which data, and on which devices."""
    config = trainer.config
    task = trainer.task
    ranks = trainer.ranks
    network = task.model.model.network
    parameters = list(network.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    total = sum(p.numel() for p in parameters)
    frozen = "" if trained == total else f", {human_count(trained)} of them trained"
    print_line(
        f"fine-tuning: {type(network).__name__}, {human_count(total)} parameters{frozen}, "
        f"{ranks.precision.name}, {ranks.world_size} × {ranks.device.type}",
        quiet=config.quiet,
    )
    sizes = f"{len(inputs.train):,} training, {len(inputs.validation):,} validation"
    test = "" if inputs.test is None else f", {len(inputs.test):,} test"
    lines = [
        f"  {sizes}{test} examples; {inputs.task.describe(inputs.train)}",
        f"  {config.find_length()}, batch size {config.batch_size}, learning rate "
        f"{config.find_learning_rate():g}",
    ]
    if len(task.new_weights) < len(parameters):
        lines.append(f"  random weights: {', '.join(task.new_weights) or 'none'}")
    else:
        lines.append("  all weights are random (--init random)")
    print_line("\n".join(lines), quiet=config.quiet)


def print_summary(counts: Mapping[str, Any], config: FinetuneConfig) -> None:
    """Print the result of a finished run, or of a protocol, from the counts of its manifest."""
    for summary in counts.get("protocol", ()):
        found = Summary(**summary)
        weights = "random weights" if found.init == "random" else "pretrained"
        split = "test" if found.test else "validation"
        print_line(
            f"{weights}, learning rate {found.learning_rate:.2g}: {split} {counts['metric']} "
            f"{found.describe()}",
            quiet=config.quiet,
        )
    print_line(
        f"fine-tuned: {counts['steps']:,} steps, {counts['epochs']:.1f} epochs in "
        f"{counts['elapsed_s'] / 60:.1f} min → {config.out / 'model'}",
        quiet=config.quiet,
    )
    for split, prefix in (("validation", "eval_"), ("test", "test_")):
        lines = [
            (title, f"{counts[prefix + name]:.4f}")
            for name, title in METRICS.items()
            if prefix + name in counts
        ]
        if lines:
            title = f"Result on {counts[f'{split}_examples']:,} {split} examples"
            print_pairs(title, lines, quiet=config.quiet)
    print_line(
        f"Next: bertpipe predict {config.out} --input FILE --out predictions.jsonl",
        quiet=config.quiet,
    )
