"""Rows of labelled files in all formats, and what is wrong with broken ones."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bert_pipeline.errors import BertpipeError
from bert_pipeline.tasks.columns import choose_columns
from bert_pipeline.tasks.read_rows import read_rows
from bert_pipeline.tasks.token_classification import read_conll

ROWS = [
    {"text": 'He said "no", twice', "label": "a"},
    {"text": "می\u200cخواهم", "label": "b"},
]


def values_of(file: Path, *names: str) -> list[dict[str, str]]:
    rows = list(read_rows(str(file), names))
    assert not any(row.problem for row in rows)
    return [dict(row.values) for row in rows]


def test_same_rows_in_every_format(tmp_path: Path) -> None:
    csv = tmp_path / "a.csv"
    csv.write_text(
        'text,label\n"He said ""no"", twice",a\n"می\u200cخواهم",b\n', encoding="utf-8-sig"
    )
    tsv = tmp_path / "a.tsv"
    tsv.write_text("\n".join(["text\tlabel", *("\t".join(row.values()) for row in ROWS)]))
    jsonl = tmp_path / "a.jsonl.gz"
    jsonl.write_bytes(gzip.compress("\n\n".join(map(json.dumps, ROWS)).encode()))
    listed = tmp_path / "a.json"
    listed.write_text(json.dumps({"data": ROWS}))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for file in (csv, tsv, jsonl, listed, tmp_path / "a.parquet"):
        assert values_of(file) == ROWS, file


def test_names_of_columns_are_given_for_files_without_them(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_text("gj04\t1\t\tThey drank.\n")
    assert values_of(file, "source", "label", "mark", "sentence") == [
        {"source": "gj04", "label": "1", "mark": "", "sentence": "They drank."}
    ]


def test_quoted_tab_is_text(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_text('text\tlabel\n"one\ttwo"\ta\n"said" he\tb\n')
    assert [row["text"] for row in values_of(file)] == ["one\ttwo", '"said" he']


def test_broken_rows_are_named_by_line(tmp_path: Path) -> None:
    tsv = tmp_path / "a.tsv"
    tsv.write_bytes(b"text\tlabel\ngood\ta\nno label\nbad \xff bytes\tb\n")
    found = [(row.where.removeprefix(f"{tsv}, "), row.problem) for row in read_rows(str(tsv))]
    assert found == [
        ("line 2", None),
        ("line 3", "1 columns instead of 2"),
        ("line 4", "not valid UTF-8"),
    ]
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text('{"text": "a"}\n[1]\n{"text": \n')
    assert [bool(row.problem) for row in read_rows(str(jsonl))] == [False, True, True]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.xlsx", b"", "unknown format"),
        ("a.parquet", b"PAR1 and more", "broken"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 1000, mtime=0)[:20], "broken"),
        ("a.json", b"{", "not JSON"),
    ],
)
def test_unreadable_files_are_refused(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BertpipeError, match=problem):
        list(read_rows(str(tmp_path / name)))


def test_columns_are_found_by_usual_names_or_listed() -> None:
    pair = choose_columns({"premise": "", "hypothesis": "", "gold_label": ""}, "f, line 2")
    assert (pair.texts, pair.label) == (("premise", "hypothesis"), "gold_label")
    only = choose_columns({"utterance": "x", "intent": 3}, "f, line 2")
    assert (only.texts, only.label) == (("utterance",), "intent")
    given = choose_columns({"a": "x", "b": "y", "c": 1}, "f", ("b",), "c")
    assert (given.texts, given.label) == (("b",), "c")
    with pytest.raises(BertpipeError, match=r"label\? Give --label-field; it has a, b\."):
        choose_columns({"a": "x", "b": "y"}, "f")
    with pytest.raises(BertpipeError, match=r"text\? Give --text-field; it has a, b, label\."):
        choose_columns({"a": "x", "b": "y", "label": 1}, "f")
    with pytest.raises(BertpipeError, match="has no column 'z'; it has a"):
        choose_columns({"a": "x"}, "f", ("z",))


def test_conll_sentences(tmp_path: Path) -> None:
    file = tmp_path / "a.conll"
    file.write_text(
        "-DOCSTART- -X- O\n\n# id 1\nNew NNP B-LOC\nYork NNP I-LOC\n\t\n#one\tO\n\n\nlonely\n",
        encoding="utf-8",
    )
    rows = list(read_conll(file))
    assert [row.values.get("tokens") for row in rows] == [["New", "York"], ["#one"], None]
    assert rows[0].values["ner_tags"] == ["B-LOC", "I-LOC"]
    assert (rows[2].where, rows[2].problem) == (f"{file}, line 10", "a word without a tag")
