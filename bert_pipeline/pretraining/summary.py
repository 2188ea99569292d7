"""What a training run tells people: at its start, and at its end."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.evaluation import Evaluation, describe
from bert_pipeline.progress import human_bytes, print_line, print_pairs
from bert_pipeline.training.checkpoint import Position
from bert_pipeline.training.distributed import Ranks
from bert_pipeline.training.hardware import peak_memory
from bert_pipeline.training.metrics import Account

MUCH_WAITING = 0.1
"""Share of the steps' time that is worth a warning when they wait for data."""


def announce(network: PreTrainedModel, ranks: Ranks, start: Position, *, quiet: bool) -> None:
    """What is trained, and where."""
    parameters, shape = sum(parameter.numel() for parameter in network.parameters()), network.config
    print_line(
        f"pretraining: {type(network).__name__}, {shape.num_hidden_layers} layers × {shape.hidden_size}, "
        f"{parameters / 1e6:.1f} M parameters, on {ranks.accelerator.device.type} × {ranks.count}"
        + (f", going on from step {start.step:,}" if start.step else ""),
        quiet=quiet,
    )


def summarise_run(
    config: PretrainConfig, position: Position, account: Account, ranks: Ranks, peak: float | None
) -> None:
    """How long the run was and what its speed was; what to do where the data held it up."""
    minutes = position.elapsed_s / 60
    device, out = ranks.accelerator.device, config.out / "model"
    print_line(
        f"pretrained: {position.step:,} steps, {position.tokens:,} tokens in {minutes:.1f} min → {out}",
        quiet=config.quiet,
    )
    rates = account.rates(peak)
    pairs = [
        (
            "memory",
            f"{human_bytes(peak_memory(device))} at most, of {'the GPU' if device.type == 'cuda' else 'a process'}",
        )
    ]
    if rates["tokens_per_second"] is not None and rates["data_wait"] is not None:
        speed, waiting = (
            f"{rates['tokens_per_second']:,.0f} tokens/s without padding",
            rates["data_wait"],
        )
        if rates["flops_per_second"] is not None:
            speed += f", {rates['flops_per_second'] / 1e12:,.2f} TFLOP/s"
        if rates["mfu"] is not None:
            speed += f", {rates['mfu']:.1%} of the peak (MFU)"
        pairs = [("steps", speed), ("waited for data", f"{waiting:.1%} of the time"), *pairs]
        if waiting > MUCH_WAITING:
            pairs.append(
                (
                    "SLOW DATA",
                    f"the steps waited {waiting:.0%} of their time for batches. Put --out on a faster disk, give the "
                    "run more CPU cores, or make the examples without --masks dynamic.",
                )
            )
    if position.skipped:
        pairs.append(
            (
                "left out",
                f"{position.skipped} steps with a loss or gradient that is not finite, see skipped/",
            )
        )
    if config.max_minutes or config.max_tokens:
        pairs.append(("amounts to", f"--max-steps {position.step}"))
    print_pairs("The steps", pairs, quiet=config.quiet)


def print_figures(counts: Mapping[str, Any], quiet: bool) -> None:
    """Print the final evaluation out of a manifest's counts, if there was one."""
    figures = {
        name.removeprefix("eval_"): value
        for name, value in counts.items()
        if name.startswith("eval_")
    }
    if figures:
        print_pairs("On held-out text", describe(Evaluation(**figures)), quiet=quiet)
