"""Speed of training steps without padding beside the padded path, in tokens/s without padding.

Both paths train the same model on the same rows in this process, step by step in turn. Rows are
synthetic: nine tenths are full, the others have a random length; 15% of the tokens are predicted.
The median step counts, and the ratio of the steps taken in turn: median (minimum to maximum).
"""

import copy
import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import nn

from bert_pipeline.model.architectures import make_config
from bert_pipeline.model.padded import PaddedNetwork
from bert_pipeline.model.pretraining_model import UnpaddedNetwork, make_network
from bert_pipeline.model.unpadded_batch import PretrainingBatch
from bert_pipeline.progress import print_table
from bert_pipeline.tokenizer.load import SpecialIds

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
VOCABULARY = 8192
WARM_UP = 2  # steps
PATHS: dict[str, type[nn.Module]] = {"unpadded": UnpaddedNetwork, "padded": PaddedNetwork}


@app.command(help=__doc__)
def paths(
    model: Annotated[str, typer.Option(help="A preset.")] = "modernbert-mini",
    length: Annotated[int, typer.Option(help="Tokens of full rows.")] = 128,
    tokens: Annotated[int, typer.Option(help="Tokens per batch, about.")] = 4096,
    steps: Annotated[int, typer.Option(help="Measured steps of each path.")] = 10,
    threads: Annotated[int, typer.Option(help="Threads of a CPU.")] = 1,
    dropout: Annotated[float, typer.Option(help="Dropout of all kinds.")] = 0.0,
    bf16: Annotated[bool, typer.Option(help="Products in bfloat16.")] = False,
) -> None:
    torch.set_num_threads(threads)
    speeds = _measure(model, length, tokens, steps, dropout, bf16)
    ratios = [a / b for a, b in zip(speeds["unpadded"], speeds["padded"], strict=True)]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    medians = [f"{statistics.median(speeds[path]):,.0f}" for path in PATHS]
    print_table("tokens per second", ["model", *PATHS, "ratio"], [[model, *medians, spread]])


def _measure(
    name: str, length: int, tokens: int, steps: int, dropout: float, bf16: bool
) -> dict[str, list[float]]:
    """Tokens per second of each step after the warm-up, by path."""
    torch.manual_seed(0)
    network = make_network(make_config(name, VOCABULARY, SPECIAL, dropout), with_pairs=False)
    runs = {path: _make_step(kind, copy.deepcopy(network), bf16) for path, kind in PATHS.items()}
    speeds: dict[str, list[float]] = {path: [] for path in PATHS}
    for number in range(WARM_UP + steps):
        batch = make_batch(number, tokens // length, length)
        for path, step in runs.items():
            start = time.perf_counter()
            step(batch)
            speeds[path].append(len(batch.tokens) / (time.perf_counter() - start))
    return {path: values[WARM_UP:] for path, values in speeds.items()}


def _make_step(
    kind: type[nn.Module], network: nn.Module, bf16: bool
) -> Callable[[PretrainingBatch], None]:
    model = kind(network, checkpoint_activations=False, compiled=False).train()
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step(batch: PretrainingBatch) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, _ = model(batch, logits=False)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_batch(seed: int, examples: int, length: int) -> PretrainingBatch:
    """Random tokens; the same rows for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.full((examples,), length)
    short = torch.rand(examples, generator=generator) < 0.1
    lengths[short] = torch.randint(5, length, (int(short.sum()),), generator=generator)
    bounds = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    total = int(bounds[-1])
    positions = torch.cat([torch.arange(int(it)) for it in lengths])
    is_masked = (torch.rand(total, generator=generator) < 0.15) & (positions > 0)
    masked = is_masked.nonzero().squeeze(1)
    return PretrainingBatch(
        tokens=torch.randint(5, VOCABULARY, (total,), generator=generator),
        segment_ids=torch.zeros(total, dtype=torch.long),
        positions=positions,
        cu_seqlens=bounds,
        max_seqlen=int(lengths.max()),
        masked_index=masked,
        masked_labels=torch.randint(5, VOCABULARY, (len(masked),), generator=generator),
    )


if __name__ == "__main__":
    app()
