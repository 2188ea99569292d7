"""Results on standard output: tables and summaries fit 80 columns without a terminal."""

from __future__ import annotations

import pytest

from bert_pipeline.progress import human_bytes, human_count, print_line, print_pairs, print_table

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
