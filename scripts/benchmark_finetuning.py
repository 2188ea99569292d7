"""Fine-tuning speed beside `transformers.Trainer`, in examples per second.

Both fine-tune the same classifier on the same rows, with the same batch size and number of steps,
in turn, each in a new process. Starting Python, reading rows and evaluations are not counted.
Trainer pads each batch to its longest row (its default); ratios are taken within a round.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from bert_pipeline.progress import out, print_table

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
SETTINGS = {"batch_size": 32, "learning_rate": 3e-4}
CONTENDERS = {
    "bertpipe": ("bertpipe", "auto"),
    "bertpipe, fp32": ("bertpipe", "fp32"),
    "Trainer": ("trainer", "fp32"),
    "Trainer, bf16": ("trainer", "bf16"),
}


def train_with_bertpipe(job: dict[str, Any]) -> float:
    """Examples per second of `bertpipe finetune`, without its first steps."""
    from bert_pipeline.finetuning.config import FinetuneConfig
    from bert_pipeline.finetuning.finetune import finetune
    from bert_pipeline.storage.manifest import read_manifest

    config = FinetuneConfig(
        model=job["model"],
        train=job["train"],
        out=job["out"],
        max_steps=job["steps"],
        evaluate_every=10**9,
        checkpoint_every=10**9,
        dropout=0.1,
        precision=job["precision"],
        threads=job["threads"],
        quiet=True,
        **SETTINGS,
    )
    finetune(config)
    counts = read_manifest(config.out, "finetune").counts
    tokens_per_step = counts["tokens"] / counts["steps"]
    speed: float = counts["tokens_per_second"] / tokens_per_step * SETTINGS["batch_size"]
    return speed


def train_with_trainer(job: dict[str, Any]) -> float:
    """Examples per second of `Trainer`, without its first steps."""
    import time

    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from bert_pipeline.tasks.columns import choose_columns
    from bert_pipeline.tasks.labels import Labels
    from bert_pipeline.tasks.read_rows import read_rows

    torch.set_num_threads(job["threads"])
    rows = list(read_rows(job["train"]))
    columns = choose_columns(rows[0].values, rows[0].where)
    values = [row.values[columns.label] for row in rows]
    labels = Labels.from_values(values)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    texts = [row.values[columns.texts[0]] for row in rows]
    encoded = tokenizer(texts, truncation=True, max_length=128)["input_ids"]
    data = [
        {"input_ids": ids, "labels": labels.names.index(str(value))}
        for ids, value in zip(encoded, values, strict=True)
    ]
    network = AutoModelForSequenceClassification.from_pretrained(
        job["model"],
        num_labels=len(labels.names),
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )

    class Clock(TrainerCallback):  # type: ignore[misc]
        started = 0.0
        seconds = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                self.started = time.perf_counter()
            self.seconds = time.perf_counter() - self.started

    clock = Clock()
    arguments = TrainingArguments(
        output_dir=job["out"],
        max_steps=job["steps"],
        per_device_train_batch_size=SETTINGS["batch_size"],
        learning_rate=SETTINGS["learning_rate"],
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        bf16=job["precision"] == "bf16",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
    )
    Trainer(
        network,
        arguments,
        train_dataset=data,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[clock],
    ).train()
    return (job["steps"] - 3) * SETTINGS["batch_size"] / clock.seconds


@app.command()
def main(
    model: Annotated[str, typer.Argument(help="Model folder.")],
    train: Annotated[str, typer.Argument(help="Labelled file, such as that of SST-2.")],
    steps: int = 200,
    rounds: int = 3,
    threads: int = 2,
    job: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Compare all contenders in turn."""
    if job:
        given = json.loads(job)
        function = train_with_bertpipe if given["kind"] == "bertpipe" else train_with_trainer
        print("SPEED", function(given))
        return
    speeds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, (kind, precision) in CONTENDERS.items():
            with tempfile.TemporaryDirectory() as folder:
                given = {
                    "kind": kind,
                    "precision": precision,
                    "model": model,
                    "train": train,
                    "steps": steps,
                    "threads": threads,
                    "out": str(Path(folder, "run")),
                }
                command = [sys.executable, __file__, model, train, "--job", json.dumps(given)]
                printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            line = next(line for line in printed.splitlines() if line.startswith("SPEED"))
            speeds[name].append(float(line.split()[1]))
            out.print(f"{name}: {speeds[name][-1]:,.0f} examples/s", markup=False)
    ours = speeds["bertpipe"]
    rows = []
    for name, found in speeds.items():
        ratios = [mine / other for mine, other in zip(ours, found, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append((name, f"{statistics.median(found):,.0f}", spread))
    print_table("Fine-tuning", ("", "examples/s", "bertpipe ÷ this"), rows)


if __name__ == "__main__":
    app()
