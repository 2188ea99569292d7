"""Terminal output: progress bars while a command runs, results and tables at its end.

Progress goes to standard error: a bar in a terminal, else a line every `HEARTBEAT_S`. Results go to
standard output.
"""

import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

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

HEARTBEAT_S = 60.0
"""Seconds between lines of progress where standard error is not a terminal."""

PLAIN_WIDTH = 80
"""Columns of tables where standard output is not a terminal."""

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Bar:
    """A progress bar with a short text next to it."""

    def __init__(self, progress: Progress, task: TaskID, *, counted: bool = True) -> None:
        self._progress = progress
        self._task = task
        self._counted = counted

    def advance(self, amount: float = 1) -> None:
        """Add `amount` to the completed part."""
        self._progress.update(self._task, advance=amount)

    def move_to(self, completed: float) -> None:
        """Set the completed part."""
        self._progress.update(self._task, completed=completed)

    def note(self, text: str) -> None:
        """Set the text next to the bar."""
        self._progress.update(self._task, note=text)

    def describe(self) -> str:
        """The progress as a line: `tokenizing: 12/40, 0.2/s, 0:02:20 left`."""
        task = self._progress.tasks[self._task]
        if self._counted:
            total = "" if task.total is None else f"/{task.total:,.0f}"
            parts = [f"{task.completed:,.0f}{total}"]
            if speed := task.speed:
                parts.append(f"{speed:.1f}/s" if speed >= 1 else f"{speed * 60:.1f}/min")
        else:
            parts = [f"{task.percentage:.0f}%"]
        if (left := task.time_remaining) is not None:
            parts.append(f"{timedelta(seconds=left)} left")
        note = task.fields["note"]
        return f"{task.description}: {', '.join(parts)}" + (f" · {note}" if note else "")


@contextmanager
def bar(
    title: str,
    total: float | None,
    *,
    quiet: bool = False,
    counted: bool = True,
    describe: Callable[[], str] | None = None,
    delay_s: float = 0,
) -> Iterator[Bar]:
    """Show progress during the block, unless quiet: a bar, or lines where there is no terminal.

    `describe` is called for the text next to the bar: every second, or before each line. The bar
    appears after `delay_s`, for what is often done at once.
    """
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        *([MofNCompleteColumn()] if counted else []),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False),
    ]
    in_terminal = err.is_terminal
    progress = Progress(
        *columns,
        console=err,
        transient=True,
        disable=quiet or not in_terminal,
        # The speed of lines is that of the last ten lines, because a part may take minutes.
        speed_estimate_period=30 if in_terminal else 10 * HEARTBEAT_S,
    )
    with _shown_after(delay_s, progress):
        shown = Bar(progress, progress.add_task(title, total=total, note=""), counted=counted)
        ended = threading.Event()
        if not quiet and (describe or not in_terminal):
            threading.Thread(
                target=_keep_describing, args=(shown, describe, ended, in_terminal), daemon=True
            ).start()
        try:
            yield shown
        finally:
            ended.set()


@contextmanager
def _shown_after(delay_s: float, progress: Progress) -> Iterator[None]:
    """Show the bar from `delay_s` after now until the end of the block."""
    starter = threading.Timer(delay_s, progress.start)
    starter.daemon = True
    if delay_s:
        starter.start()
    else:
        progress.start()
    try:
        yield
    finally:
        starter.cancel()
        if delay_s:
            starter.join()
        if progress.live.is_started:
            progress.stop()


def _keep_describing(
    shown: Bar, describe: Callable[[], str] | None, ended: threading.Event, in_terminal: bool
) -> None:
    while not ended.wait(1 if in_terminal else HEARTBEAT_S):
        if describe:
            with suppress(OSError):  # files may disappear while they are counted
                shown.note(describe())
        if not in_terminal:
            err.print(shown.describe(), markup=False)


def _width() -> int:
    return out.width if out.is_terminal else PLAIN_WIDTH


def print_line(message: str, *, quiet: bool = False) -> None:
    """Print a line of the result, as it is."""
    if not quiet:
        out.print(message, markup=False)


def print_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, quiet: bool = False
) -> None:
    """Print a small table; the first column is text, the others are figures.

    Cells are wrapped to the width of the terminal, or to 80 columns.
    """
    if quiet:
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(header):
        justify = "left" if index == 0 else "right"
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*row)
    out.print(table, soft_wrap=False, width=_width())


def print_pairs(title: str, pairs: Sequence[tuple[str, str]], *, quiet: bool = False) -> None:
    """Print a heading and named values below it, wrapped to the width of the terminal or to 80."""
    name_width = max(len(name) for name, _ in pairs)
    lines = [title]
    for name, value in pairs:
        first = f"  {name:<{name_width}}  "
        wrapped = textwrap.wrap(
            value,
            _width(),
            initial_indent=first,
            subsequent_indent=" " * len(first),
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += wrapped or [first.rstrip()]
    print_line("\n".join(lines), quiet=quiet)


def count_of(count: int, noun: str) -> str:
    """`1 pass`, `2 passes`: a count and what is counted."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{count:,} {noun if count == 1 else plural}"


def human_count(count: float) -> str:
    """`6.3 M`: a large number with three digits or less; exact below 10,000."""
    if count < 10_000:
        return f"{count:,.0f}"
    for unit in ("k", "M", "G"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:,.1f} T"


def human_bytes(count: float) -> str:
    """A size in decimal units, such as `14.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
