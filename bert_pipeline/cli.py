"""The command line: one short function a command. Heavy libraries are imported inside the bodies."""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal, NoReturn

# Pydantic would search all installed packages for plugins, which takes longer than the rest of `--help`.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

import typer

from bert_pipeline.config import ShardedConfig
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.errors import (
    BertpipeError,
    ReportedByMain,
    Stopped,
    UsageError,
    describe_os_error,
)
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.options import stage_command
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.tokenizer.config import TokenizeConfig

app = typer.Typer(
    name="bertpipe",
    help="From raw text to a pretrained BERT: corpus → tokenize → examples → pretrain, or `run` for all of them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    Path,
    typer.Argument(help="Model folder, or the folder of the run that made it.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON alone.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before any command."""
    if debug:
        os.environ["BERTPIPE_DEBUG"] = "1"


@app.command("run")
def run(
    recipe: Annotated[
        str, typer.Argument(help="A YAML file, or the name of a shipped recipe such as quickstart.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run.", show_default="runs/NAME")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="Change a value of the recipe."),
    ] = None,
    through: Annotated[
        Literal["corpus", "tokenize", "examples", "long_examples", "pretrain"],
        typer.Option(help="Last stage to run."),
    ] = "pretrain",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make anew what was made otherwise.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Run a recipe from its source to a model; what is complete is kept, what was stopped goes on."""
    from bert_pipeline.recipe import default_out, find_recipe, read_recipe, run_recipe

    path = find_recipe(recipe)
    run_recipe(
        read_recipe(path, out or default_out(path), settings or [], overwrite, quiet),
        through,
        quiet,
    )


@stage_command(app, "corpus", CorpusConfig)
def corpus(config: CorpusConfig) -> None:
    """Turn sources into clean documents in parquet."""
    _prepare_workers(config)
    from bert_pipeline.corpus.build import build_corpus

    build_corpus(config)


@stage_command(app, "tokenize", TokenizeConfig)
def tokenize(config: TokenizeConfig) -> None:
    """Train a WordPiece or byte-level BPE tokenizer on a corpus, or take an existing tokenizer, and measure it."""
    from bert_pipeline.tokenizer.train import train_tokenizer

    train_tokenizer(config)


@stage_command(app, "examples", ExamplesConfig)
def examples(config: ExamplesConfig) -> None:
    """Make masked examples from a corpus and a tokenizer."""
    _prepare_workers(config)
    from bert_pipeline.examples.build import build_examples

    build_examples(config)


@stage_command(app, "pretrain", PretrainConfig)
def pretrain(config: PretrainConfig) -> None:
    """Pretrain BERT on examples, or go on where a stopped run was."""
    from bert_pipeline.training.launch import run_pretrain

    run_pretrain(config)


@app.command("evaluate")
def evaluate(
    model: Model,
    examples: Annotated[
        Path, typer.Option(help="Folder made by `bertpipe examples`.", show_default=False)
    ],
    split: Annotated[
        Literal["validation", "train"], typer.Option(help="Examples to measure on.")
    ] = "validation",
    as_json: Json = False,
) -> None:
    """Measure a model on masked examples, beside the unigram baseline."""
    from dataclasses import asdict

    from bert_pipeline.pretraining.evaluation import describe, evaluate_folder
    from bert_pipeline.progress import print_pairs

    evaluation = evaluate_folder(model, examples, split, quiet=as_json)
    if as_json:
        print(json.dumps(asdict(evaluation)))  # noqa: T201
    else:
        print_pairs(f"{model} on {examples}, {split}", describe(evaluation, split))


@app.command("fill-mask")
def fill_mask(
    model: Model,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT...", help="Texts with [MASK] in place of words.")
    ],
    top_k: Annotated[int, typer.Option(help="Candidates for each mask.")] = 5,
    as_json: Json = False,
) -> None:
    """Fill the masks in texts."""
    from bert_pipeline.predict.fill_mask import MaskFiller, draw
    from bert_pipeline.progress import print_line

    filler = MaskFiller(model)
    if as_json:
        print(json.dumps(filler.fill(texts, top_k), ensure_ascii=False))  # noqa: T201
        return
    for text, masks in zip(texts, filler.fill_each(texts, top_k), strict=True):
        print_line("\n".join([text, *draw(masks)]))


def _prepare_workers(config: ShardedConfig) -> None:
    if config.engine == "local" and config.workers > 1:
        from bert_pipeline.engine.processes import prepare_processes

        prepare_processes()


def main() -> None:
    """Run the command line; every expected error ends here, as one message and an exit code."""
    # The training loop puts its own handlers in place, which save first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        app()
    except BertpipeError as error:
        if os.environ.get("BERTPIPE_DEBUG"):
            raise
        _fail(_name_rank(error), error.exit_code)
    except OSError as error:
        if os.environ.get("BERTPIPE_DEBUG"):
            raise
        _fail(describe_os_error(error), 1)


def _fail(message: str, code: int) -> NoReturn:
    if message:
        print(f"bertpipe: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


def _name_rank(error: BertpipeError) -> str:
    """The message, if it is for this process to print: what all processes of a launcher meet, the first one says."""
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        return str(error)
    return (
        "" if isinstance(error, ReportedByMain | UsageError | Stopped) else f"rank {rank}: {error}"
    )


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(
        "Stopped by a signal. What is finished is kept: run the same command again to go on.",
        number,
    )
