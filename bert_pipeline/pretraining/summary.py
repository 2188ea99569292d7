"""What a pretraining run prints at its start and its end."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers import PreTrainedModel

from bert_pipeline.pretraining.adaptation import print_adaptation
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.evaluation import Evaluation
from bert_pipeline.pretraining.task import PretrainingTask
from bert_pipeline.pretraining.zero_shot.during_training import MINIMAL_PAIRS
from bert_pipeline.pretraining.zero_shot.minimal_pairs import CHANCE
from bert_pipeline.progress import human_bytes, human_count, print_line, print_pairs
from bert_pipeline.training.distributed import Ranks

SLOW_DATA_SHARE = 0.1
"""Share of the time waiting for batches from which on a warning is printed."""


def announce(task: PretrainingTask, ranks: Ranks, *, quiet: bool) -> None:
    """Print what is trained, from which weights, and on which devices."""
    network: PreTrainedModel = task.model.network
    parameters = sum(parameter.numel() for parameter in network.parameters())
    shape = network.config
    print_line(
        f"pretraining: {type(network).__name__}, {shape.num_hidden_layers} layers × "
        f"{shape.hidden_size}, {human_count(parameters)} parameters, "
        f"{ranks.device.type} × {ranks.world_size}, {ranks.precision.name}",
        quiet=quiet,
    )
    if (start := task.inputs.start) is not None:
        difference = start.describe_difference(task.inputs.tokenizer, task.new_heads)
        print_line(f"  {difference}", quiet=quiet)


def print_summary(counts: Mapping[str, Any], config: PretrainConfig) -> None:
    """Print the result of a finished run from the counts of its manifest."""
    minutes = counts["elapsed_s"] / 60
    print_line(
        f"pretrained: {counts['steps']:,} steps, {human_count(counts['tokens'])} tokens in "
        f"{minutes:.1f} min → {config.out / 'model'}",
        quiet=config.quiet,
    )
    lines = _describe_evaluation(counts)
    lines += _describe_speed(counts)
    if skipped := counts["skipped_steps"]:
        lines.append(("skipped", f"{skipped} steps with a loss or gradient not finite: skipped/"))
    if config.max_minutes or config.max_tokens or config.max_epochs:
        lines.append(("equivalent to", f"--max-steps {counts['steps']}"))
    print_pairs("Result", lines, quiet=config.quiet)
    if comparison := counts.get("bits_per_byte"):
        print_adaptation(comparison, quiet=config.quiet)
    print_line(f"Next: bertpipe fill-mask {config.out} 'A text with a [MASK].'", quiet=config.quiet)


def _describe_evaluation(counts: Mapping[str, Any]) -> list[tuple[str, str]]:
    prefix = "eval_"
    found = {
        name.removeprefix(prefix): value
        for name, value in counts.items()
        if name.startswith(prefix) and not name.startswith(f"{prefix}long_")
    }
    own = {field.name for field in fields(Evaluation)}
    metrics = {name: value for name, value in found.items() if name in own}
    lines = Evaluation(**metrics).describe() if metrics else []
    zero_shot = [(name, value) for name, value in found.items() if name not in own]
    return lines + [_describe_zero_shot(*item) for item in zero_shot]


def _describe_zero_shot(name: str, value: float) -> tuple[str, str]:
    """A line for a metric of --evaluate-with."""
    is_accuracy = name.startswith(MINIMAL_PAIRS)
    figure = f"{value:.1%}, chance {CHANCE:.0%}" if is_accuracy else f"{value:.3f}"
    return name.replace("_", " "), figure


def _describe_speed(counts: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = []
    tokens_per_second = counts["tokens_per_second"]
    if tokens_per_second is not None:
        speed = f"{tokens_per_second:,.0f} tokens/s"
        if counts["flops_per_second"] is not None:
            speed += f", {counts['flops_per_second'] / 1e12:,.2f} TFLOP/s"
        if counts["mfu"] is not None:
            speed += f", MFU {counts['mfu']:.1%}"
        lines.append(("speed", speed))
    lines.append(("peak memory", f"{human_bytes(counts['peak_memory_bytes'])} per process"))
    waiting = counts["data_wait"]
    if waiting is not None and waiting > SLOW_DATA_SHARE:
        lines.append(
            (
                "slow data",
                f"{waiting:.0%} of the time was spent waiting for batches. Put --out on a faster "
                "disk, use more CPU cores, or make the examples without --masks dynamic.",
            )
        )
    return lines
