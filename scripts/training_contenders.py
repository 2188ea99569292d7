"""One contender of `scripts/benchmark training`: training_contenders.py JOB.json RESULT.json

Each trains the model of a job on the same rows in the same order, and reports the time of the steps
after the warm-up. The clock starts when libraries are loaded, rows are read and the model is made.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from training_rows import open_rows
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from bert_pipeline.examples.schema import STAGE as EXAMPLES
from bert_pipeline.model.architectures import make_config
from bert_pipeline.model.compile import has_compiler
from bert_pipeline.model.pretraining_model import make_network
from bert_pipeline.pretraining.batches import Examples
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.pretrain import STAGE, pretrain
from bert_pipeline.pretraining.sampler import draw_rows
from bert_pipeline.ragged import Int64Array
from bert_pipeline.tokenizer.load import load_tokenizer
from bert_pipeline.training.profile import FOLDER as PROFILE
from bert_pipeline.training.reporter import METRICS

LEARNING_RATE = 1e-4


@dataclass(frozen=True, slots=True)
class Job:
    """What to train, and for how long: `warm_up` steps, then the measured `steps`."""

    contender: str
    folder: Path
    """Has `tokenizer` and `examples`."""
    model: str | dict[str, Any]
    vocab_size: int
    length: int
    batch: int
    dropout: float
    precision: str
    warm_up: int
    steps: int
    threads: int
    with_pairs: bool
    options: dict[str, Any]
    """Further options of `bertpipe pretrain`."""
    profile: Path | None
    """Where the contender bertpipe writes a profile of some steps; None for none."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of the warm-up and of the measured steps; peak reserved GPU memory in bytes."""

    first: float
    measured: float
    memory: int


class Stopwatch:
    """Times steps; waits for the device only at the start and the end."""

    def __init__(self, job: Job) -> None:
        self._ends = (0, job.warm_up, job.warm_up + job.steps)
        self.times: list[float] = []

    def record(self, steps: int) -> None:
        """Record the time if `steps` is a start or an end."""
        if steps in self._ends:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    @property
    def timing(self) -> Timing:
        """The recorded times."""
        start, middle, end = self.times
        return Timing(middle - start, end - middle, torch.cuda.max_memory_reserved())


class PaddedRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of examples in some order, as arrays for the stock model.

    They are made once, so that the time of an item is that of looking it up.
    """

    def __init__(self, examples: Examples, rows: Int64Array) -> None:
        batch = examples.collate(rows)
        self._bounds = batch.cu_seqlens.tolist()
        labels = torch.full_like(batch.tokens, -100)
        labels[batch.masked_index] = batch.masked_labels
        self._arrays = {"input_ids": batch.tokens.numpy(), "labels": labels.numpy()}
        self._pairs: list[int] | None = None
        if batch.is_random_next is not None:
            self._arrays["token_type_ids"] = batch.segment_ids.numpy()
            self._pairs = batch.is_random_next.tolist()

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = slice(self._bounds[index], self._bounds[index + 1])
        row: dict[str, Any] = {name: array[place] for name, array in self._arrays.items()}
        if self._pairs is not None:
            row["next_sentence_label"] = self._pairs[index]
        return row


def rows_of_steps(job: Job) -> PaddedRows:
    """The rows in the order of the steps."""
    examples = open_rows(job.folder, job.vocab_size)
    rows, _ = draw_rows(len(examples), 0, job.batch * (job.warm_up + job.steps), seed=0)
    return PaddedRows(examples, rows)


def pad(rows: list[dict[str, Any]], width: int | None = None) -> dict[str, torch.Tensor]:
    """Stack rows, padded to `width` or to the longest row."""
    lengths = [len(row["input_ids"]) for row in rows]
    shape = (len(rows), width or max(lengths))
    fillers = {"input_ids": 0, "token_type_ids": 0, "labels": -100}
    arrays = {name: np.full(shape, fillers[name]) for name in fillers if name in rows[0]}
    for number, row in enumerate(rows):
        for name, array in arrays.items():
            array[number, : lengths[number]] = row[name]
    arrays["attention_mask"] = (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int64)
    if "next_sentence_label" in rows[0]:
        arrays["next_sentence_label"] = np.array([row["next_sentence_label"] for row in rows])
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def make_model(job: Job) -> PreTrainedModel:
    """The stock model."""
    torch.manual_seed(0)
    special = load_tokenizer(job.folder / "tokenizer").special
    config = make_config(job.model, job.vocab_size, special, job.dropout)
    model: PreTrainedModel = make_network(config, with_pairs=job.with_pairs)
    return model


def run_classic(job: Job) -> Timing:
    """The tutorial loop: rows padded to one length, the model's own loss, plain AdamW."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = rows_of_steps(job)
    model = make_model(job).to(device).train()
    loader = torch.utils.data.DataLoader(
        rows, job.batch, collate_fn=lambda some: pad(some, job.length)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    watch = Stopwatch(job)
    watch.record(0)
    for done, batch in enumerate(loader, start=1):
        inputs = {name: value.to(device) for name, value in batch.items()}
        with torch.autocast(device, torch.bfloat16, enabled=job.precision == "bf16"):
            loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch.record(done)
    return watch.timing


class InOrder(Trainer):
    """The stock trainer with a sequential sampler."""

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Watching(TrainerCallback):
    """Records the time between the trainer's steps."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._watch.record(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._watch.record(state.global_step)


def run_trainer(job: Job) -> Timing:
    """`transformers.Trainer` with its fastest settings."""
    on_gpu = torch.cuda.is_available()
    watch = Stopwatch(job)
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=job.warm_up + job.steps,
            per_device_train_batch_size=job.batch,
            learning_rate=LEARNING_RATE,
            optim="adamw_torch_fused",
            bf16=on_gpu or job.precision == "bf16",
            torch_compile=on_gpu and has_compiler(torch.device("cuda")),
            use_cpu=not on_gpu,
            dataloader_num_workers=4 if on_gpu else 0,
            dataloader_persistent_workers=on_gpu,
            logging_nan_inf_filter=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        InOrder(
            make_model(job),
            arguments,
            pad,
            train_dataset=rows_of_steps(job),
            callbacks=[Watching(watch)],
        ).train()
    return watch.timing


def run_bertpipe(job: Job) -> Timing:
    """`bertpipe pretrain`, timed by its metrics."""
    on_gpu = torch.cuda.is_available()
    with TemporaryDirectory() as folder:
        out = Path(folder) / STAGE
        steps = job.warm_up + job.steps
        # As in a run that is long enough to amortise compilation.
        compiles = on_gpu and has_compiler(torch.device("cuda"))
        config = PretrainConfig(
            out=out,
            examples=job.folder / EXAMPLES,
            tokenizer=job.folder / "tokenizer",
            model=job.model,
            dropout=job.dropout,
            max_steps=steps,
            batch_size=job.batch,
            learning_rate=LEARNING_RATE,
            precision=job.precision,
            compile="on" if compiles else "off",
            log_every=job.warm_up,
            checkpoint_every=steps,
            threads=job.threads,
            profile=job.profile is not None,
            quiet=True,
            **job.options,
        )
        pretrain(config)
        if job.profile is not None:
            shutil.copytree(out / PROFILE, job.profile, dirs_exist_ok=True)
        lines = [
            json.loads(line) for line in (out / METRICS).read_text(encoding="utf-8").splitlines()
        ]
    elapsed = {line["step"]: line["elapsed_s"] for line in lines}
    first = elapsed[job.warm_up]
    return Timing(first, elapsed[steps] - first, torch.cuda.max_memory_reserved())


RUNS: dict[str, Callable[[Job], Timing]] = {
    "classic": run_classic,
    "trainer": run_trainer,
    "bertpipe": run_bertpipe,
}


def main() -> None:
    """Run the job in the first file, and write the result to the second."""
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    profile = given["profile"] and Path(given["profile"])
    job = Job(**given | {"folder": Path(given["folder"]), "profile": profile})
    torch.set_num_threads(job.threads)
    result = asdict(RUNS[job.contender](job))
    result["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
