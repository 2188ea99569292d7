"""Results on standard output: tables and summaries fit 80 columns without a terminal."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from bert_pipeline import progress
from bert_pipeline.progress import (
    Bar,
    count_of,
    human_bytes,
    human_count,
    print_line,
    print_pairs,
    print_table,
)

LONG = "a text of several words that is repeated " * 5


def test_table_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Title", ["", "one", "runs/" + "x" * 90], [["tokens per word", LONG, "3"]])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    words = " ".join(lines).split()
    assert words.count("repeated") == 5
    assert "".join(lines).count("x") == 90 + LONG.count("x")


def test_pairs_are_wrapped_with_indentation(capsys: pytest.CaptureFixture[str]) -> None:
    print_pairs("Title", [("name", LONG), ("other name", "1")])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "Title"
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("  name        a text")
    assert lines[1].startswith(" " * 14)
    assert lines[-1] == "  other name  1"


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_line("text", quiet=True)
    print_table("Title", ["a"], [["b"]], quiet=True)
    print_pairs("Title", [("a", "b")], quiet=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 B"), (14_200_000, "14.2 MB"), (2.5e12, "2.5 TB")]
)
def test_human_bytes(count: float, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0"), (9_999, "9,999"), (35_965, "36.0 k"), (6_311_400, "6.3 M"), (1.1e9, "1.1 G")],
)
def test_human_count(count: float, shown: str) -> None:
    assert human_count(count) == shown


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [(1, "pass", "1 pass"), (2, "pass", "2 passes"), (1200, "token", "1,200 tokens")],
)
def test_count_of(count: int, noun: str, text: str) -> None:
    assert count_of(count, noun) == text


def test_line_of_progress_has_part_speed_time_left_and_note() -> None:
    now = 0.0
    progress = Progress(disable=True, get_time=lambda: now, speed_estimate_period=600)
    shards = Bar(progress, progress.add_task("tokenizing", total=40, note=""))
    share = Bar(progress, progress.add_task("training", total=1, note=""), counted=False)
    lines = Bar(progress, progress.add_task("embedding", total=None, note=""))
    assert lines.describe() == "embedding: 0"
    assert shards.describe() == "tokenizing: 0/40"
    assert share.describe() == "training: 0%"
    shards.move_to(8)  # a resumed run: done before the clock started
    share.move_to(0.5)
    now = 120
    shards.advance(4)
    share.move_to(0.75)
    share.note("step 7")
    assert shards.describe() == "tokenizing: 12/40, 2.0/min, 0:14:00 left"
    assert share.describe() == "training: 75%, 0:02:00 left · step 7"


SET_INTERVAL = "import sys, time; from bert_pipeline import progress; progress.HEARTBEAT_S = 0.05; "
WAIT = """
with progress.bar("reading", 3, quiet=len(sys.argv) > 1, describe=lambda: "2 parts") as shown:
    shown.advance()
    time.sleep(0.5)
"""
MAIN = "from bert_pipeline.cli import main; main()"


def run_piped(code: str, *arguments: object) -> list[str]:
    """Run code in a process whose lines of progress come every 50 ms; returns standard error."""
    command = [sys.executable, "-c", SET_INTERVAL + code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stderr.splitlines()


def test_lines_of_progress_without_a_terminal() -> None:
    lines = run_piped(WAIT)
    assert len(lines) > 1
    assert set(lines) == {"reading: 1/3 · 2 parts"}
    assert run_piped(WAIT, "quiet") == []


def test_bar_of_short_work_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    written = StringIO()
    terminal = Console(file=written, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "err", terminal)
    with progress.bar("reading", 3, delay_s=60) as shown:
        shown.advance()
    assert written.getvalue() == ""
    with progress.bar("reading", 3, delay_s=0.01):
        time.sleep(0.3)
    assert "reading" in written.getvalue()


@pytest.mark.slow
def test_piped_pretraining_prints_its_step(
    make_examples: Callable[..., Path], wordpiece_folder: Path, tmp_path: Path
) -> None:
    folders = ["--examples", make_examples("examples"), "--tokenizer", wordpiece_folder]
    small = ["--model", "bert-tiny", "--max-steps", 40, "--batch-size", 4, "--log-every", 1]
    lines = run_piped(MAIN, "pretrain", *folders, *small, "--out", tmp_path / "out")
    training = [line for line in lines if line.startswith("training: ")]
    assert any("%, " in line and " left · step " in line for line in training)
