"""What a person sees while waiting: one bar with rate and remaining time, and tables at the end.

Bars go to standard error and only to a terminal; results go to standard output.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Bar:
    """A bar that counts up to a total, with a short text beside it."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: float = 1) -> None:
        """Count `amount` more."""
        self._progress.update(self._task, advance=amount)

    def move_to(self, completed: float) -> None:
        """Set the count."""
        self._progress.update(self._task, completed=completed)

    def note(self, text: str) -> None:
        """Set the text beside the bar."""
        self._progress.update(self._task, note=text)


@contextmanager
def bar(
    title: str,
    total: float | None,
    *,
    quiet: bool = False,
    counted: bool = True,
    describe: Callable[[], str] | None = None,
) -> Iterator[Bar]:
    """A progress bar for the length of the block; invisible when quiet or when standard error is no terminal.

    `describe` is asked every second for the text beside the bar, where work is done that nobody reports.
    """
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        *([MofNCompleteColumn()] if counted else []),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False),
    ]
    hidden = quiet or not err.is_terminal
    with Progress(*columns, console=err, transient=True, disable=hidden) as progress:
        shown = Bar(progress, progress.add_task(title, total=total, note=""))
        ended = threading.Event()
        if describe and not hidden:
            threading.Thread(
                target=_keep_describing, args=(shown, describe, ended), daemon=True
            ).start()
        try:
            yield shown
        finally:
            ended.set()


def _keep_describing(shown: Bar, describe: Callable[[], str], ended: threading.Event) -> None:
    while not ended.wait(1):
        with suppress(OSError):  # files come and go while they are counted
            shown.note(describe())


def print_line(message: str, *, quiet: bool = False) -> None:
    """Print one line of result."""
    if not quiet:
        out.print(message, markup=False)


def print_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, quiet: bool = False
) -> None:
    """Print a small table; the first column is text, the others are figures."""
    if quiet:
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    out.print(table)


def print_pairs(title: str, pairs: Sequence[tuple[str, str]], *, quiet: bool = False) -> None:
    """Print a heading and named values below it."""
    width = max(len(name) for name, _ in pairs)
    print_line(
        "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in pairs)]), quiet=quiet
    )


def human_bytes(count: float) -> str:
    """`14.2 MB`: decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
