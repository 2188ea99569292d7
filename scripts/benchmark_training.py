"""Training speed beside other training loops, in real (non-padding) tokens per second.

All contenders train the same stock model on the same rows in the same order, in turn, round after
round, each in a new process. Rows are synthetic: nine tenths are full, the others have a random
length; all are sentence pairs. Starting Python, reading rows and the first steps (with compilation,
if any) are not counted; `first steps` is the extra time of these. MFU counts only the FLOPs that
real tokens need. Ratios are taken within a round: median (minimum to maximum).
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("COLUMNS", "120")  # for tables written to a file

import torch
import transformers
import typer
from training_contenders import Job
from training_rows import make_examples, make_tokenizer, open_rows

from bert_pipeline.config import available_cores, read_yaml
from bert_pipeline.model.architectures import make_config
from bert_pipeline.model.flops import training_flops
from bert_pipeline.pretraining.sampler import draw_rows
from bert_pipeline.progress import out, print_table
from bert_pipeline.training.hardware import peak_of
from bert_pipeline.training.profile import OPERATORS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@dataclass(frozen=True, slots=True)
class Contender:
    """A training loop and its settings; `title` names them in the table."""

    name: str
    title: str
    dropout: float = 0.0
    precision: str = "fp32"
    fixed_shapes: bool = False
    """Whether bertpipe gives all batches one shape (`--tokens-per-batch`)."""
    cuda_graphs: bool = False


# On a GPU, Trainer is always in bf16.
CONTENDERS = {
    "a": Contender("classic", "tutorial loop, dropout 0.1", 0.1),
    "b": Contender("trainer", "Trainer"),
    "c": Contender("bertpipe", "bertpipe", precision="auto"),
    "d": Contender("bertpipe", "bertpipe, dropout 0.1", 0.1, "auto"),
    "e": Contender("trainer", "Trainer, dropout 0.1", 0.1),
    "f": Contender("classic", "tutorial loop"),
    "g": Contender("classic", "tutorial loop, bf16 autocast", precision="bf16"),
    "h": Contender("trainer", "Trainer, bf16", precision="bf16"),
    "i": Contender("bertpipe", "bertpipe, fp32"),
    "j": Contender("bertpipe", "bertpipe, fixed shapes", precision="auto", fixed_shapes=True),
    "k": Contender(
        "bertpipe",
        "bertpipe, CUDA graphs",
        precision="auto",
        fixed_shapes=True,
        cuda_graphs=True,
    ),
}
ON_GPU = torch.cuda.is_available()
BASES = "afgb"
"""Contenders that the others are compared with."""
PROFILE_LINES = 14
CONTENDER_SCRIPT = Path(__file__).with_name("training_contenders.py")


@dataclass(frozen=True, slots=True)
class Setting:
    """A model and its training rows."""

    title: str
    model: str | dict[str, Any]
    vocab_size: int
    length: int
    mask_rate: float
    batch: int
    contenders: str = "abcdefghij"
    with_pairs: bool = True


@dataclass(slots=True)
class Measured:
    """Tokens per second by round, extra seconds of the first steps, and bytes of GPU memory."""

    speed: dict[int, float] = field(default_factory=dict)
    extra: list[float] = field(default_factory=list)
    memory: int = 0


def settings(on_gpu: bool) -> list[Setting]:
    """The settings to measure on this kind of device."""
    if on_gpu:
        # Compilation takes most of the time, so not everything fits into a few minutes: the most
        # important contenders and settings come first.
        bert = [
            ("BERT-base", 128, 256, "cgbjkd"),
            ("BERT-base", 512, 64, "cgbjk"),
            ("BERT-mini", 128, 512, "ckgbj"),
            ("BERT-medium", 128, 512, "ckgbj"),
        ]
        found = [
            Setting(f"{name}, {batch} × {length}", name.lower(), 30522, length, 0.15, batch, some)
            for name, length, batch, some in bert
        ]
        title = "ModernBERT-base, 32 × 1024"
        modern = Setting(title, "modernbert-base", 50368, 1024, 0.3, 32, "cgbjk", with_pairs=False)
        return [*found, modern]
    recipe = read_yaml(Path(__file__).parents[1] / "configs" / "quickstart.yaml")
    examples = recipe["examples"]
    vocab_size = recipe["tokenize"]["vocab_size"]
    length = examples["max_seq_length"]
    quickstart = recipe["pretrain"]["model"]
    return [
        Setting(
            "the quickstart's model, 2 × 128",
            quickstart,
            vocab_size,
            length,
            examples["mask_rate"],
            32,
        ),
        Setting("4 layers × 256", "bert-mini", vocab_size, length, 0.15, 32),
        Setting("8 layers × 512", "bert-medium", vocab_size, length, 0.15, 32),
    ]


@app.command()
def training(
    rounds: Annotated[int, typer.Option(help="Maximum number of rounds.", min=1)] = 5,
    steps: Annotated[int, typer.Option(help="Measured steps per contender and round.", min=1)] = 60
    if ON_GPU
    else 40,
    warm_up: Annotated[
        int,
        typer.Option(help="Steps before these, not measured; bertpipe logs as often.", min=1),
    ] = 20 if ON_GPU else 5,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = available_cores(),
    only: Annotated[
        str, typer.Option(help="Contenders to run, by their letters in the table.")
    ] = "abcdefghijk",
    models: Annotated[
        str | None, typer.Option(help="Only models with this text in their title.")
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="Time limit; fewer rounds or contenders if necessary.", min=0)
    ] = 7.5,
    profile: Annotated[
        Path | None,
        typer.Option(help="Then profile bertpipe's steps (at least 10) into this folder."),
    ] = None,
) -> None:
    """Measure training steps."""
    deadline = time.monotonic() + minutes * 60
    chosen = [one for one in settings(ON_GPU) if models is None or models in one.title]
    with tempfile.TemporaryDirectory() as temporary:
        for number, setting in enumerate(chosen):
            share = (deadline - time.monotonic()) / (len(chosen) - number)
            letters = "".join(letter for letter in setting.contenders if letter in only)
            folder = Path(temporary) / str(number)
            measure = Measure(folder, setting, warm_up, steps, threads, deadline)
            measure.compare(letters, rounds, share)
            if profile is not None:
                measure.profile(profile / re.sub(r"\W+", "-", setting.title))


@dataclass(frozen=True, slots=True)
class Measure:
    """Measures contenders on one setting, in a folder of its own."""

    folder: Path
    setting: Setting
    warm_up: int
    steps: int
    threads: int
    deadline: float

    def compare(self, letters: str, rounds: int, seconds: float) -> None:
        """Measure contenders in turn in about this many seconds, and print the table."""
        began = time.monotonic()
        setting = self.setting
        tokens, flops = self._prepare()
        found = {letter: Measured() for letter in letters}
        device = ""
        failed: dict[str, str] = {}
        for done in range(rounds):
            round_began = time.monotonic()
            for letter in letters:
                if letter in failed:
                    continue
                result = _run(self._make_job(CONTENDERS[letter]), self.deadline - time.monotonic())
                if isinstance(result, str):
                    failed[letter] = result
                    continue
                measured = found[letter]
                device = result["device"]
                measured.speed[done] = tokens / result["measured"]
                first = result["first"] - result["measured"] * self.warm_up / self.steps
                measured.extra.append(first)
                measured.memory = result["memory"]
            took = time.monotonic() - round_began
            if time.monotonic() - began + took > seconds:
                break
        _print(setting, found, flops / tokens, device, done + 1, self.steps, self.threads)
        for letter, reason in failed.items():
            out.print(f"{CONTENDERS[letter].title}: {reason}", markup=False)

    def profile(self, folder: Path) -> None:
        """Write a profile of bertpipe's steps, and print the start of its table."""
        job = replace(self._make_job(CONTENDERS["c"]), profile=folder)
        result = _run(job, self.deadline - time.monotonic())
        if isinstance(result, str):
            out.print(f"profile: {result}", markup=False)
            return
        head = (folder / OPERATORS).read_text(encoding="utf-8").splitlines()[:PROFILE_LINES]
        out.print("\n".join(line[:120] for line in head), markup=False, highlight=False)

    def _prepare(self) -> tuple[int, float]:
        """Write the rows; return real tokens of the measured steps, and the FLOPs they need."""
        setting = self.setting
        self.folder.mkdir()
        tokenizer = make_tokenizer(self.folder / "tokenizer", setting.vocab_size)
        make_examples(
            self.folder / "examples",
            tokenizer,
            setting.batch * (self.warm_up + self.steps),
            setting.length,
            setting.mask_rate,
            with_pairs=setting.with_pairs,
        )
        examples = open_rows(self.folder, setting.vocab_size)
        config = make_config(setting.model, setting.vocab_size, tokenizer.special, None)
        first = setting.batch * self.warm_up
        rows, _ = draw_rows(len(examples), first, setting.batch * self.steps, seed=0)
        flops = training_flops(config, examples.collate(rows))
        assert flops is not None
        return examples.count_tokens(rows), flops

    def _make_job(self, contender: Contender) -> Job:
        setting = self.setting
        options: dict[str, Any] = {}
        if contender.fixed_shapes:
            options["tokens_per_batch"] = setting.batch * setting.length
            options["cuda_graphs"] = contender.cuda_graphs
        return Job(
            contender=contender.name,
            folder=self.folder,
            model=setting.model,
            vocab_size=setting.vocab_size,
            length=setting.length,
            batch=setting.batch,
            dropout=contender.dropout,
            precision=contender.precision,
            warm_up=self.warm_up,
            steps=self.steps,
            threads=self.threads,
            with_pairs=setting.with_pairs,
            options=options,
            profile=None,
        )


def _run(job: Job, seconds: float) -> dict[str, Any] | str:
    """What the contender's process reports, or the last line of its error."""
    given = job.folder / "job.json"
    result = job.folder / "result.json"
    given.write_text(json.dumps(asdict(job), default=str), encoding="utf-8")
    result.unlink(missing_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(CONTENDER_SCRIPT), str(given), str(result)]
    try:
        process = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=max(seconds, 0)
        )
    except subprocess.TimeoutExpired:
        return "no time left (--minutes)"
    if process.returncode:
        return (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    read: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return read


def _print(
    setting: Setting,
    found: dict[str, Measured],
    flops: float,
    device: str,
    rounds: int,
    steps: int,
    threads: int,
) -> None:
    """`flops` are those that a token needs; other work of a contender is not counted."""
    peak = peak_of(device)
    on_gpu = ["memory, GB", "MFU"] if device != "CPU" else []
    header = ["", "tokens/s (range)", *(f"÷ {base}" for base in BASES), "first steps, s", *on_gpu]
    rows = []
    for letter, measured in found.items():
        if not measured.speed:
            continue
        speeds = sorted(measured.speed.values())
        row = [
            f"{letter}  {CONTENDERS[letter].title}",
            f"{statistics.median(speeds):,.0f} ({speeds[0]:,.0f} to {speeds[-1]:,.0f})",
            *(_ratio(measured, found.get(base)) for base in BASES),
            f"{statistics.median(measured.extra):+.1f}",
        ]
        share = f"{statistics.median(speeds) * flops / peak:.1%}" if peak else "–"
        rows.append([*row, f"{measured.memory / 1e9:.1f}", share] if on_gpu else row)
    where = device if device != "CPU" else f"{threads} CPU thread(s)"
    title = (
        f"{setting.title}: {setting.batch} rows of up to {setting.length} tokens, "
        f"{setting.mask_rate:.0%} masked, vocabulary {setting.vocab_size:,}; {where}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; {rounds} round(s) of "
        f"{steps} steps"
    )
    print_table(title, header, rows)


def _ratio(measured: Measured, other: Measured | None) -> str:
    if other is None or other is measured:
        return ""
    ratios = sorted(
        speed / other.speed[done] for done, speed in measured.speed.items() if done in other.speed
    )
    return (
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})" if ratios else ""
    )


if __name__ == "__main__":
    app()
