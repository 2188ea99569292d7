"""What is learnt in equal time: `bertpipe pretrain` beside `transformers.Trainer`.

Both train the same model on the same examples for the same time, sequentially, in separate
processes, and are evaluated on the same held-out examples during training. The clock
counts training steps and evaluations, compilation too. Trainer has its fastest settings, AdamW and
linear decay to the end of the time; bertpipe those of a recipe. Curves are in OUT/curves.json.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from training_contenders import PaddedRows, pad
from transformers import Trainer, TrainerCallback, TrainingArguments

from bert_pipeline.config import available_cores, read_yaml
from bert_pipeline.model.compile import has_compiler
from bert_pipeline.model.pretraining_model import PretrainingModel, make_network
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.evaluation import (
    compute_metrics,
    sum_metrics,
    unigram_log_probabilities,
)
from bert_pipeline.pretraining.preflight import Inputs
from bert_pipeline.pretraining.pretrain import pretrain
from bert_pipeline.pretraining.sampler import choose_rows
from bert_pipeline.progress import print_table
from bert_pipeline.storage.manifest import read_manifest
from bert_pipeline.training.precision import resolve_precision
from bert_pipeline.training.reporter import METRICS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CURVES = "curves.json"
SHARES = (0.25, 0.5, 0.75, 1.0)
WARMUP = 0.01
Curve = list[dict[str, float]]
"""Evaluations: `seconds`, `tokens`, `loss`, `top1_accuracy`."""


def learn_with_bertpipe(config: PretrainConfig) -> Curve:
    """Run `bertpipe pretrain`; its last evaluation uses all held-out examples."""
    pretrain(config)
    curve: Curve = []
    seconds = 0.0
    tokens = 0
    for text in (config.out / METRICS).read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        seconds = line.get("elapsed_s", seconds)
        tokens = line.get("tokens", tokens)
        if "eval_mlm_loss" in line:
            curve.append(_point(seconds, tokens, line["eval_mlm_loss"], line["eval_top1_accuracy"]))
    return curve


class Learning(TrainerCallback):
    """Evaluates at intervals of time, and stops at its end."""

    def __init__(self, config: PretrainConfig, inputs: Inputs, network: Any) -> None:
        self._config = config
        self._model = PretrainingModel(network)
        self._validation = inputs.open(0, "validation", config, None)
        self._unigram = unigram_log_probabilities(config.examples)
        self._limit = (config.max_minutes or 0.0) * 60
        self._started = 0.0
        self.curve: Curve = []

    @property
    def progress(self) -> float:
        """The completed share of the time."""
        seconds = time.perf_counter() - self._started if self._started else 0.0
        return min(1.0, seconds / self._limit)

    def learning_rate_factor(self, step: int) -> float:
        """Warm-up, then linear decay to the end of the time."""
        done = self.progress
        return done / WARMUP if done < WARMUP else (1 - done) / (1 - WARMUP)

    def evaluate(self, tokens: float) -> None:
        """Add an evaluation to the curve; the last one uses all held-out examples."""
        rows = len(self._validation)
        limit = rows if self.progress >= 1.0 else self._config.evaluate_rows
        precision = resolve_precision(self._config.precision, DEVICE)
        with precision.autocast(DEVICE):
            chosen = choose_rows(rows, limit)
            sums = sum_metrics(self._model, self._validation, chosen, self._unigram)
        found = compute_metrics(sums, self._validation)
        seconds = time.perf_counter() - self._started
        self.curve.append(_point(seconds, tokens, found.mlm_loss, found.top1_accuracy))

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        control.should_training_stop = self.progress >= 1.0
        if not control.should_training_stop and self.progress * 8 >= len(self.curve) + 1:
            self.evaluate(state.num_input_tokens_seen)


class InTime(Trainer):
    """The stock trainer with a learning-rate schedule that follows the clock."""

    learning: Learning

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        factor = self.learning.learning_rate_factor
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        return self.lr_scheduler


def learn_with_trainer(config: PretrainConfig, learning_rate: float) -> Curve:
    """Train with `Trainer`."""
    inputs = Inputs.check(config)
    torch.manual_seed(config.seed)
    network = make_network(inputs.model_config, with_pairs=inputs.has_pairs)
    examples = inputs.open(0, "train", config, None)
    learning = Learning(config, inputs, network)
    on_gpu = DEVICE.type == "cuda"
    arguments = TrainingArguments(
        output_dir=str(config.out),
        max_steps=10**9,  # the callback stops it
        per_device_train_batch_size=config.batch_size,
        learning_rate=learning_rate,
        optim="adamw_torch_fused",
        bf16=resolve_precision(config.precision, DEVICE).name == "bf16",
        torch_compile=on_gpu and has_compiler(DEVICE),
        use_cpu=not on_gpu,
        dataloader_num_workers=4 if on_gpu else 0,
        include_num_input_tokens_seen="non_padding",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    rows = PaddedRows(examples, np.arange(len(examples)))
    trainer = InTime(network, arguments, pad, train_dataset=rows, callbacks=[learning])
    trainer.learning = learning
    trainer.train()
    learning.evaluate(trainer.state.num_input_tokens_seen)
    return learning.curve


@app.command(help=__doc__)
def learning(
    examples: Annotated[Path, typer.Option(help="Folder written by `bertpipe examples`.")],
    tokenizer: Annotated[Path, typer.Option(help="Their tokenizer.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    recipe: Annotated[Path, typer.Option(help="Recipe with bertpipe's options.")] = Path(
        "configs/quickstart.yaml"
    ),
    minutes: Annotated[float, typer.Option(help="Minutes for each of the two.")] = 15.0,
    trainer_learning_rate: Annotated[float, typer.Option(help="Peak rate of Trainer.")] = 1e-3,
    evaluate_every: Annotated[int, typer.Option(help="Steps between bertpipe's evaluations.")] = 50,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = available_cores(),
    only: Annotated[str, typer.Option(help="bertpipe, Trainer, or both.")] = "bertpipe,Trainer",
    in_this_process: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    given = read_yaml(recipe)["pretrain"] | {"max_minutes": minutes}
    curves = {}
    for name in only.split(","):
        folder = out / name
        config = PretrainConfig(
            **given
            | {"examples": examples, "tokenizer": tokenizer, "out": folder, "quiet": True}
            | {"evaluate_every": evaluate_every, "threads": threads}
        )
        if in_this_process:
            torch.set_num_threads(threads)
            is_ours = name == "bertpipe"
            curve = (
                learn_with_bertpipe(config)
                if is_ours
                else learn_with_trainer(config, trainer_learning_rate)
            )
            (out / f"{name}.json").write_text(json.dumps(curve), encoding="utf-8")
            return
        out.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, *sys.argv, "--only", name, "--in-this-process"], check=True)
        curves[name] = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    (out / CURVES).write_text(json.dumps(curves), encoding="utf-8")
    rows = []
    for share in SHARES:
        row = [f"{share * minutes:g} min"]
        for curve in curves.values():
            until = [point for point in curve if point["seconds"] <= share * minutes * 60]
            point = curve[-1] if share == 1.0 else (until or curve)[-1]
            row.append(f"{point['loss']:.3f}, {point['top1_accuracy']:.1%}")
            row.append(f"{point['tokens'] / 1e6:.2f} M")
        rows.append(row)
    rows_of = read_manifest(examples, "examples").counts["train_rows"]
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{threads} CPU thread(s)"
    header = ["", *(title for name in curves for title in (f"{name}: loss, top-1", "tokens"))]
    print_table(f"{rows_of:,} examples; {device}, torch {torch.__version__}", header, rows)


def _point(seconds: float, tokens: float, loss: float, top1: float) -> dict[str, float]:
    return {"seconds": seconds, "tokens": tokens, "loss": loss, "top1_accuracy": top1}


if __name__ == "__main__":
    app()
