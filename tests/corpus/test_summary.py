"""What `bertpipe corpus` counts and prints."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.summary import print_summary
from bert_pipeline.storage.manifest import Manifest
from tests.helpers.corpora import (
    build,
    objects,
)


def test_explain_removes_terminal_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "a.txt").write_text("A\x1b[31mred\x1b]0;title\x07 text.", encoding="utf-8")
    build(tmp_path / "out", f"text:{tmp_path}/a.txt", explain=True, quiet=False)
    printed = capsys.readouterr().out
    assert "A·[31mred" in printed
    assert not re.search("[\x00-\x09\x0b-\x1f]", printed)


def test_counts_of_read_changed_removed_and_written_documents_add_up(tmp_path: Path):
    texts = [
        "One  text.",
        "One text.",
        "",
        "\x00",
        " \n",
        "Two.",
        "Two.\n",
        "Cafe\u0301.",
        None,
        4,
        "Three.",
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found, counts = build(
        tmp_path / "out", f"jsonl:{tmp_path}/a.jsonl", clean=("basic,exact",), shard_mb=1
    )
    assert found == ["One text.", "Two.", "Café.", "Three."]
    removed = {reason: line["documents"] for reason, line in counts["removed"].items()}
    assert removed == {"exact duplicate": 2, "empty": 1}
    assert (counts["skipped_empty"], counts["skipped_no_text"]) == (2, 2)
    assert counts["read"]["documents"] == counts["documents"] + sum(removed.values()) == 7
    assert (
        len(texts)
        == counts["read"]["documents"] + counts["skipped_empty"] + counts["skipped_no_text"]
    )
    assert counts["changed"]["whitespace"]["documents"] == 2
    assert counts["changed"]["unicode"]["documents"] == 1
    assert ["Two.", "Two."] in counts["removed"]["exact duplicate"]["samples"]


@pytest.mark.integration
def test_explain_prints_samples_also_for_a_finished_corpus(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(
        objects(*({"text": f"Text  number {n % 6} of {'x' * 99}"} for n in range(12)))
    )
    command = [
        sys.executable,
        "-m",
        "bert_pipeline",
        "corpus",
        "--source",
        f"jsonl:{tmp_path}/a.jsonl",
    ]
    command += ["--out", str(tmp_path / "out"), "--clean", "whitespace,exact"]
    plain, explained = (
        subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout
        for more in ([], ["--explain"])
    )
    assert re.search(r"read +12", plain)
    assert re.search(r"changed by whitespace +12", plain)
    assert re.search(r"removed: exact duplicate +6", plain)
    assert re.search(r"written +6", plain)
    assert "Text  number" not in plain
    assert explained.count("before  Text  number") == 3
    assert explained.count("duplicates  Text number") == 3
    samples = explained.partition("\n")[2]  # the first line has the path
    assert max(map(len, samples.splitlines())) < 110


def test_cleaning_table_has_one_row_per_step_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    texts = [
        "Too  short.",
        "Too short.",
        "The end of the day is near, and that is all there is to say of it.",
    ]
    (tmp_path / "a.jsonl").write_text(objects(*({"text": text} for text in texts)))
    build(
        tmp_path / "out",
        f"jsonl:{tmp_path}/a.jsonl",
        clean=("exact,whitespace,unicode,language,near",),
        quiet=False,
    )
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    table = [re.split(r"  +", line.strip())[:2] for line in lines[lines.index("Cleaning") + 2 :]]
    assert table == [
        ["read", "3"],
        ["changed by unicode", "0"],
        ["changed by whitespace", "1"],
        ["removed: language", "0"],
        ["removed: exact duplicate", "1"],
        ["removed: near", "0"],
        ["written", "2"],
    ]


def test_summary_of_cleaning_without_removals_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a.txt").write_text("One  text.", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    build(Path("out"), "text:a.txt", quiet=False, language=("en",))
    assert capsys.readouterr().out.splitlines() == [
        "corpus: 1 document, 9 B of text in 1 shard → out",
        "  cleaning (unicode, control, whitespace): no documents removed",
    ]


def test_verbose_prints_the_cleaning_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.txt").write_text("One  text.", encoding="utf-8")
    build(tmp_path / "out", f"text:{tmp_path}/a.txt", quiet=False, verbose=True)
    printed = capsys.readouterr().out
    assert re.search(r"changed by whitespace +1", printed)
    assert re.search(r"written +1", printed)


def test_verbose_prints_the_packages(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    package = {"version": "1.2", "documents": 3, "bytes": 4000}
    counts = {
        "documents": 3,
        "bytes": 4000,
        "read": {"documents": 3, "bytes": 4000},
        "changed": {},
        "removed": {},
        "taken": {"python-docs": {"packages": {"numpy": package}}},
    }
    manifest = Manifest("corpus", {}, {}, counts, {"00000.parquet": {}}, {}, "f")
    for verbose in (False, True):
        config = CorpusConfig(out=tmp_path, source=("python-docs",), verbose=verbose)
        print_summary(manifest, config)
        assert bool(re.search(r"numpy +1\.2 +3 +4\.0 kB", capsys.readouterr().out)) == verbose
