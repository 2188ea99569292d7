"""CSV and TSV files as sources."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from bert_pipeline.corpus.sources.error_policy import MAX_LINE_CHARS
from bert_pipeline.errors import BertpipeError
from bert_pipeline.storage.shards import read_columns
from tests.helpers.corpora import Read, counts, read

__all__ = ["read"]


@pytest.mark.parametrize(("kind", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_quoted_fields_keep_delimiters_quotes_and_line_breaks(
    read: Read, kind: str, delimiter: str
):
    rows = ["n|text", '1|"She said ""yes""|twice.\r\nThen she left."', "", "2|Plain."]
    content = "\r\n".join(rows).replace("|", delimiter)
    said = f'She said "yes"{delimiter}twice.\nThen she left.'
    assert read(f"a.{kind}", content, clean="none") == [said, "Plain."]


@pytest.mark.parametrize(("kind", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_options_are_those_of_jsonl(read: Read, tmp_path: Path, kind: str, delimiter: str):
    rows = [
        ["lang", "body", "n"],
        ["ru", "Мы сидели у реки и молчали.", "1"],
        ["fas", "یک متن", "2"],
    ]
    text = "\n".join(delimiter.join(row) for row in rows).replace("یک متن", "Второй текст")
    found = read(
        f"a.{kind}.gz",
        gzip.compress(text.encode("cp1251")),
        text_field="body",
        language_field="lang",
        encoding="cp1251",
    )
    assert found == ["Мы сидели у реки и молчали.", "Второй текст"]
    table = read_columns(tmp_path / "corpus" / "00000.parquet", ["id", "language"])
    assert table["language"].to_pylist() == ["ru", "fa"]
    assert table["id"].to_pylist() == [f"a.{kind}.gz#0", f"a.{kind}.gz#1"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("2,Two,too many", "line 3: 3 columns instead of 2"),
        ("2", "line 3: 1 columns instead of 2"),
        ('2,"Two" and more', "line 3: ',' expected after '\"'"),
    ],
)
def test_row_of_wrong_form_is_broken_data(read: Read, tmp_path: Path, row: str, problem: str):
    content = f"n,text\n1,One.\n{row}\n3,Three.\n"
    with pytest.raises(BertpipeError, match=rf"a\.csv, {problem}.*--on-error skip"):
        read("a.csv", content)
    assert read("a.csv", content, on_error="skip") == ["One.", "Three."]
    assert counts(read)["skipped_broken_row"] == 1
    ids = read_columns(tmp_path / "corpus" / "00000.parquet", ["id"])["id"].to_pylist()
    assert ids == ["a.csv#0", "a.csv#2"]


def test_quote_that_is_never_closed_is_broken_data(read: Read):
    content = 'n,text\n1,One.\n2,"Two\n3,Three.\n'
    with pytest.raises(BertpipeError, match="unexpected end of data"):
        read("a.csv", content)
    assert read("a.csv", content, on_error="skip") == ["One."]


def test_long_field_is_read_and_a_too_long_one_is_broken_data(read: Read):
    long = "It goes on. " * 15_000
    content = f"text\n{'x' * (MAX_LINE_CHARS + 1)}\n{long}\n"
    with pytest.raises(BertpipeError, match="line 2: field larger than field limit"):
        read("a.csv", content)
    assert "".join(read("a.csv", content, on_error="skip")).split() == long.split()
    assert counts(read)["skipped_broken_row"] == 1


def test_missing_column_lists_columns(read: Read):
    with pytest.raises(BertpipeError, match="no field text or content; fields: id, body"):
        read("a.csv", "id,body\n1,One.\n")
    with pytest.raises(BertpipeError, match="no document with text"):
        read("a.csv", "")
