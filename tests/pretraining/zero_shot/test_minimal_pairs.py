"""Minimal pairs: files of several formats, accuracies by group, ties, intervals, the command."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import binomtest
from transformers import BertForMaskedLM

from bert_pipeline import evaluate_minimal_pairs
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.pretraining.zero_shot.minimal_pairs import read_pairs
from tests.helpers.cli import run_cli
from tests.helpers.random_models import save_random_model
from tests.helpers.text import write_rows

Row = dict[str, Any]


@pytest.fixture
def model(wordpiece_folder: Path, tmp_path: Path) -> Path:
    return save_random_model(tmp_path / "model", wordpiece_folder)


@pytest.fixture
def knowing_model(model: Path) -> Path:
    """A model that finds the letter `a` likely everywhere, and nothing else."""
    network = BertForMaskedLM.from_pretrained(model)
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.cls.predictions.bias[vocabulary["a"]] = 5.0
    network.save_pretrained(model)
    return model


def blimp_rows() -> list[Row]:
    """Of the first phenomenon 3 of 4 pairs are right, with a tie; of the second 1 of 2."""
    pairs = [("a a", "a b"), ("a b", "b b"), ("a", "b"), ("b a", "a b"), ("a", "b"), ("b", "a")]
    return [
        {
            "sentence_good": good,
            "sentence_bad": bad,
            "UID": "first" if number < 4 else "second",
            "linguistics_term": "terms",
        }
        for number, (good, bad) in enumerate(pairs)
    ]


def test_accuracies_by_phenomenon_and_over_all(knowing_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    write_rows(path, blimp_rows())
    found = evaluate_minimal_pairs(knowing_model, path)
    assert (found.pairs, found.ties, found.chance) == (6, 1, 0.5)
    assert found.accuracy.value == pytest.approx(4 / 6)
    by_phenomenon = found.groups["phenomenon"]
    assert {name: each.accuracy.value for name, each in by_phenomenon.items()} == {
        "first": 0.75,
        "second": 0.5,
    }
    assert [each.ties for each in by_phenomenon.values()] == [1, 0]
    assert found.groups["linguistics_term"]["terms"].pairs == 6
    assert found.mean_over_phenomena is not None
    assert found.mean_over_phenomena.value == pytest.approx(0.625)
    interval = binomtest(4, 6).proportion_ci(method="wilson")
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx(tuple(interval))


def test_formats_give_the_same_pairs(tmp_path: Path) -> None:
    """MultiBLiMP's columns in a table, BLiMP's in compressed JSON lines and in a folder."""
    rows = blimp_rows()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    folder = tmp_path / "folder"
    folder.mkdir()
    write_rows(folder / "a.jsonl", rows[:4])
    write_rows(folder / "b.jsonl", rows[4:])
    (folder / "README.md").write_text("not a file of pairs")
    names = {"sentence_good": "sen", "sentence_bad": "wrong_sen", "UID": "phenomenon"}
    renamed = [{names.get(key, key): value for key, value in row.items()} for row in rows]
    pq.write_table(pa.Table.from_pylist(renamed), tmp_path / "pairs.parquet")
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        with (tmp_path / f"pairs{suffix}").open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(renamed[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(renamed)
    expected = [(row["sentence_good"], row["sentence_bad"], row["UID"]) for row in rows]
    columns = set()
    for name in ("pairs.jsonl.gz", "folder", "pairs.parquet", "pairs.csv", "pairs.tsv"):
        found = read_pairs(tmp_path / name)
        read = [(pair.good, pair.bad, pair.groups["phenomenon"]) for pair in found]
        assert read == expected, name
        columns |= {pair.columns for pair in found}
    assert columns == {("sentence_good", "sentence_bad"), ("sen", "wrong_sen")}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"good": "x", "bad": "y"}\nno json\n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"good": "x", "bad": "y"}\n\n["x"]\n', "a.jsonl, line 3: a JSON object"),
        ("a.jsonl", '{"good": "x", "bad": " "}\n', "a.jsonl, line 1: bad must be a sentence"),
        ("a.jsonl", '{"text": "x", "label": 1}\n', "found text, label"),
        ("a.tsv", "sen\twrong_sen\nx\ty\nx\n", "a.tsv, line 3: 1 columns instead of 2"),
        ("a.csv", "sen,other\nx,y\n", "found sen, other"),
        ("a.jsonl", "", "has no pairs"),
        ("a.txt", "x\ty\n", "its name must end in .csv"),
        ("a.parquet", "no parquet", "a.parquet: broken or truncated"),
        ("a.jsonl.gz", "not gzip", "a.jsonl.gz: broken or truncated"),
    ],
)
def test_broken_file_is_refused_with_its_line(
    name: str, content: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(BertpipeError, match=said.replace(".", r"\.")):
        read_pairs(path)


def test_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_pairs(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="no file in it"):
        read_pairs(tmp_path)


def test_command_prints_accuracies_beside_chance(knowing_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    write_rows(path, blimp_rows())
    printed = run_cli("evaluate", knowing_model, "--minimal-pairs", path)
    assert printed.code == 0, printed.stderr
    for said in (
        "chance 50%",
        "first",
        "75.0%",
        "66.7% (30.0% to 90.3%)",
        "1 pairs with equal scores",
    ):
        assert said in printed.stdout
    as_json = run_cli("evaluate", knowing_model, "--minimal-pairs", path, "--json")
    found = json.loads(as_json.stdout)
    assert found["groups"]["phenomenon"]["second"]["accuracy"]["value"] == 0.5
    assert found["pll"] == "original"
    both = run_cli("evaluate", knowing_model, "--minimal-pairs", path, "--cloze", path)
    assert both.code == 2
    assert "give one of" in both.stderr
