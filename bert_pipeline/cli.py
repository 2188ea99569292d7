"""The command line: one short function per command. Heavy libraries are imported in the bodies."""

import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal, NoReturn

# Pydantic would search all installed packages for plugins, which takes longer than the rest of
# `--help`.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

import typer

from bert_pipeline import api, model_commands
from bert_pipeline.errors import (
    BertpipeError,
    ReportedByMain,
    Stopped,
    UsageError,
    describe_os_error,
)
from bert_pipeline.options import Commands, stage_command
from bert_pipeline.stages import STAGES

app = typer.Typer(
    name="bertpipe",
    cls=Commands,
    help="From raw text to a pretrained BERT: corpus → tokenize → examples → pretrain, or `run` "
    "for all of them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]


def _print_version(is_given: bool) -> None:
    if is_given:
        print(f"bertpipe {version('bertpipe')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Options before any command."""
    if debug:
        os.environ["BERTPIPE_DEBUG"] = "1"


@app.command("run")
def run(
    recipe: Annotated[
        str, typer.Argument(help="YAML file, or the name of a shipped recipe such as quickstart.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run.", show_default="runs/NAME")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="Change a value of the recipe."),
    ] = None,
    through: Annotated[
        Literal[tuple(STAGES)] | None,  # type: ignore[valid-type]
        typer.Option(help="Last stage to run.", show_default="the recipe's last"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Rebuild stages whose settings changed.")
    ] = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print all tables of the summaries.")
    ] = False,
) -> None:
    """Run a recipe from its source to a model; complete stages are skipped, stopped ones resume."""
    api.run_recipe(
        recipe,
        out,
        settings or [],
        through=through,
        overwrite=overwrite,
        quiet=quiet,
        verbose=verbose,
    )


for _name, _stage in STAGES.items():
    if _stage.help:
        stage_command(app, _name, _stage)


app.registered_commands += model_commands.app.registered_commands


@app.command("verify")
def verify(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a stage, or of a run.", show_default=False)
    ],
    quiet: Quiet = False,
) -> None:
    """Compare every file and checkpoint with its hash, and the inputs with the manifests."""
    from bert_pipeline.progress import count_of, print_line

    found = api.verify(folder, quiet=quiet)
    for verified in found:
        print_line(verified.describe(), quiet=quiet and not verified.problems)
    if damaged := [verified for verified in found if verified.problems]:
        raise BertpipeError(
            f"{len(damaged)} of {count_of(len(found), 'folder')} damaged or out of date. Run the "
            "command that makes it again: with --overwrite if it was finished."
        )


def main() -> None:
    """Run the command line; every expected error ends here, as one message and an exit code."""
    # The training loop installs its own handlers, which save first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        app()
    except BertpipeError as error:
        if os.environ.get("BERTPIPE_DEBUG"):
            raise
        _fail(_message_of_rank(error), error.exit_code)
    except OSError as error:
        if os.environ.get("BERTPIPE_DEBUG"):
            raise
        _fail(describe_os_error(error), 1)


def _fail(message: str, code: int) -> NoReturn:
    if message:
        print(f"bertpipe: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


def _message_of_rank(error: BertpipeError) -> str:
    """The message, if this process is to print it: errors that all ranks meet, rank 0 prints."""
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        return str(error)
    is_printed_by_main = isinstance(error, ReportedByMain | UsageError | Stopped)
    return "" if is_printed_by_main else f"rank {rank}: {error}"


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(
        "Stopped by a signal. Finished work is kept: run the same command again to resume.", number
    )
