"""The command line in this process: much faster than a new one per command."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from bert_pipeline.cli import main


@dataclass(frozen=True)
class Result:
    """What a command printed, and its exit code."""

    code: int
    stdout: str
    stderr: str


def run_cli(*arguments: object, cwd: Path | None = None) -> Result:
    """Run `bertpipe ARGUMENTS` as a user would, in a terminal of 200 columns."""
    stdout = io.StringIO()
    stderr = io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with (
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        contextlib.chdir(cwd or Path.cwd()),
        mock.patch.dict(os.environ, {"COLUMNS": "200", "TERM": "dumb"}),
        mock.patch.object(sys, "argv", ["bertpipe", *map(str, arguments)]),
    ):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Result(code, stdout.getvalue(), stderr.getvalue())
