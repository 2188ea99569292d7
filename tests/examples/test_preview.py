"""`bertpipe examples --show`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bert_pipeline.errors import BertpipeError
from bert_pipeline.examples.build import build_examples
from bert_pipeline.examples.config import ExamplesConfig
from tests.helpers.cli import run_cli
from tests.helpers.text import make_corpus

MARK = re.compile(r"\[([^\[\]]+)\]")


@pytest.mark.integration
@pytest.mark.parametrize("masks", ["static", "dynamic"])
@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe"])
def test_show_prints_examples_as_text_with_marks(
    tmp_path: Path,
    wordpiece_folder: Path,
    byte_bpe_folder: Path,
    corpus_folder: Path,
    documents: list[str],
    kind: str,
    masks: str,
):
    shutil.copytree(corpus_folder, tmp_path / "corpus")
    tokenizer = wordpiece_folder if kind == "wordpiece" else byte_bpe_folder
    command = ["examples", "--show", 7, "--workers", 1, "--tokenizer", tokenizer]
    options = ["--masks", masks, "--max-seq-length", 64, "--pad", "--corpus", tmp_path / "corpus"]
    first = run_cli(*command, *options, "--out", tmp_path / "out")
    assert first.code == 0, first.stderr
    shutil.rmtree(tmp_path / "corpus")  # an existing folder can be shown without its corpus
    (tmp_path / "out").rename(tmp_path / "moved")
    shown = run_cli(*command, "--out", tmp_path / "moved")
    assert shown.code == 0, shown.stderr
    again = shown.stdout
    assert again in first.stdout
    spaceless = ["".join(text.split()).lower() for text in documents]
    heads = re.findall(
        r"^train-\d+\.parquet, row \d+: (\d+) tokens, (\d+) to predict; (.+)$", again, re.MULTILINE
    )
    assert len(heads) == 7
    lines = re.findall(r"^  ([AB])  (.*)$", again, re.MULTILINE)
    assert [name for name, _ in lines] == ["A", "B"] * 7
    for (_, _, meaning), (_, a), (_, b) in zip(heads, lines[::2], lines[1::2], strict=True):
        assert MARK.search(a + b)
        plain_a, plain_b = (
            MARK.sub(lambda m: m[1].split("←")[-1].removesuffix("="), line) for line in (a, b)
        )
        # A segment that is truncated within a word begins with the rest of it.
        texts = ["".join(plain.split()).lower().removeprefix("##") for plain in (plain_a, plain_b)]
        homes = [{n for n, text in enumerate(spaceless) if part in text} for part in texts]
        assert all(homes), texts
        assert bool(homes[0] & homes[1]) == (meaning == "B follows A") or max(map(len, homes)) > 1


def test_show_of_existing_folder_rejects_other_options(examples_folder: Path):
    def look(**options: object) -> None:
        build_examples(ExamplesConfig(**({"out": examples_folder, "show": 1} | options)))  # type: ignore[arg-type]

    look(dupe_factor=3, seed=0)
    with pytest.raises(BertpipeError, match=r"different settings \(--dupe-factor, --seed\)"):
        look(dupe_factor=4, seed=1)


@pytest.mark.integration
def test_show_skips_empty_shards(
    tmp_path: Path, wordpiece_folder: Path, documents: list[str], capsys: pytest.CaptureFixture[str]
):
    # A document of one token gives no pair to swap.
    texts = [*documents[:3], "ba", "ba", "ba"]
    corpus = make_corpus(tmp_path / "corpus", texts, shards=2)
    config = ExamplesConfig(
        out=tmp_path / "examples",
        corpus=corpus,
        tokenizer=wordpiece_folder,
        objective="mlm+sop",
        max_seq_length=32,
        dupe_factor=1,
        validation_fraction=0,
        workers=1,
        show=5,
    )
    build_examples(config)
    rows = [pq.read_metadata(path).num_rows for path in sorted(config.out.glob("train-*"))]
    assert min(rows) == 0
    heads = re.findall(r"^(train-\d+\.parquet), row (\d+):", capsys.readouterr().out, re.MULTILINE)
    assert len(set(heads)) == 5
    assert len({name for name, _ in heads}) == len([count for count in rows if count])
