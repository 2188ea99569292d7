"""The examples stage: invariants of every row, determinism, resuming, and errors."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_pipeline.errors import BertpipeError
from bert_pipeline.examples.build import build_examples
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.storage.manifest import read_manifest
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.load import load_tokenizer
from bert_pipeline.tokenizer.train import train_tokenizer
from tests.helpers.example_rows import (
    COLUMNS,
    MASK,
    Texts,
    check_row,
    encode,
    restore,
    rows_of,
    shard_bytes,
)
from tests.helpers.original_algorithm import EncodedDocument
from tests.helpers.text import invent_documents, make_corpus


@pytest.fixture(scope="module")
def encoded(documents: list[str], wordpiece_folder: Path) -> list[EncodedDocument]:
    return encode(documents, wordpiece_folder)


# Invariants, over documents, lengths and tokenizers

words = st.sampled_from(
    [
        "ba",
        "Nopi",
        "fe3",
        "[MASK]",
        "[SEP]",
        "[CLS]",
        "[PAD]",
        "[UNK]",
        "東京",
        "é",
        "\u200c",
        "۳.۵",
        "x" * 40,
        "##ba",
        "zu",
    ]
)
sentences = st.lists(words, min_size=1, max_size=12).map(lambda found: " ".join(found) + ".")
texts = st.lists(
    st.lists(sentences, min_size=1, max_size=6).map(" ".join), min_size=1, max_size=4
).map("\n".join)


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe"])
@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm+sop", "mlm", "mlm across documents"])
def test_invariants_of_every_row(
    tmp_path_factory: pytest.TempPathFactory,
    wordpiece_folder: Path,
    byte_bpe_folder: Path,
    kind: str,
    objective: str,
):
    tokenizer = wordpiece_folder if kind == "wordpiece" else byte_bpe_folder
    vocab_size = load_tokenizer(tokenizer).vocab_size

    @settings(
        max_examples=8, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
    )
    @given(
        st.lists(texts, min_size=4, max_size=7),
        st.integers(8, 70),
        st.sampled_from([0.0, 0.3, 1.0]),
        st.sampled_from([0.05, 0.15, 0.5, 0.95]),
        st.sampled_from([None, 1, 3, 200]),
    )
    def check(
        given_texts: list[str], length: int, short: float, rate: float, limit: int | None
    ) -> None:
        place = tmp_path_factory.mktemp("invariants")
        corpus = make_corpus(place / "corpus", given_texts, shards=2)
        config = ExamplesConfig(
            out=place / "examples",
            corpus=corpus,
            tokenizer=tokenizer,
            max_seq_length=length,
            objective=objective.split()[0],
            across_documents="across" in objective,
            mask_rate=rate,
            max_predictions=limit,
            short_seq_prob=short,
            dupe_factor=2,
            validation_fraction=0.3,
            workers=1,
            quiet=True,
        )
        manifest = build_examples(config)
        documents = Texts(encode(given_texts, tokenizer))
        for split in ("train", "validation"):
            rows = rows_of(config.out, split)
            assert len(rows) == manifest.counts[f"{split}_rows"] > 0
            assert sum(len(row.tokens) for row in rows) == manifest.counts[f"{split}_tokens"]
            assert (
                sum(len(row.masked_positions) for row in rows) == manifest.counts[f"{split}_masked"]
            )
            assert manifest.counts[f"{split}_masked_special"] == 0
            assert manifest.counts[f"{split}_padding"] == pytest.approx(
                1 - np.mean([len(row.tokens) for row in rows]) / length
            )
            if objective.startswith("mlm+"):
                share = np.mean([row.is_random_next for row in rows])
                assert manifest.counts[f"{split}_label_balance"] == pytest.approx(share)
            for row in rows:
                check_row(row, documents, config, vocab_size, rate if split == "train" else 0.15)
        shutil.rmtree(place)

    check()


# The stage


@pytest.mark.integration
def test_invariants_of_example_folders_and_disjoint_splits(
    examples_folder: Path,
    mlm_examples_folder: Path,
    wordpiece_folder: Path,
    encoded: list[EncodedDocument],
):
    found = Texts(encoded)
    for folder, objective in ((examples_folder, "mlm+nsp"), (mlm_examples_folder, "mlm")):
        config = ExamplesConfig(
            out=folder,
            corpus=folder,
            tokenizer=wordpiece_folder,
            max_seq_length=64,
            objective=objective,
        )
        owners: dict[str, set[int]] = {}
        for split in ("train", "validation"):
            sure = [check_row(row, found, config, 400, 0.15) for row in rows_of(folder, split)]
            owners[split] = {number for numbers in sure if len(numbers) == 1 for number in numbers}
        counts = read_manifest(folder, "examples").counts
        assert len(owners["train"]) == counts["train_documents"] == 36
        assert len(owners["validation"]) == counts["validation_documents"] == 4
        assert not owners["train"] & owners["validation"], "a document is in both splits"


def test_random_next_sentence_comes_from_the_same_split(
    examples_folder: Path, encoded: list[EncodedDocument]
):
    found = Texts(encoded)
    seconds: dict[str, set[int]] = {}
    for split in ("train", "validation"):
        seconds[split] = set()
        for row in rows_of(examples_folder, split):
            if row.is_random_next and row.lengths[1] >= 8:
                places = found.places(restore(row)[row.lengths[0] + 2 : -1])
                if len({number for number, _ in places}) == 1:
                    seconds[split] |= {number for number, _ in places}
    assert seconds["train"]
    assert seconds["validation"]
    assert not seconds["train"] & seconds["validation"]


def test_mlm_has_every_token_once_per_pass(
    make_examples: Callable[..., Path], encoded: list[EncodedDocument]
):
    folder = make_examples("all-tokens", objective="mlm", dupe_factor=1, short_seq_prob=0.5)
    made = [
        token
        for split in ("train", "validation")
        for row in rows_of(folder, split)
        for token in restore(row)[1:-1]
    ]
    given_tokens = [token for document in encoded for sentence in document for token in sentence]
    assert sorted(made) == sorted(given_tokens)
    train = np.bincount(
        [token for row in rows_of(folder) for token in restore(row)[1:-1]], minlength=400
    )
    assert (np.load(folder / "token_counts.npy") == train).all()


def test_passes_differ_in_pairs_and_masks(examples_folder: Path):
    passes = [pq.read_table(examples_folder / f"train-{number:05}.parquet") for number in (0, 4, 8)]
    for column in ("tokens", "masked_positions", "is_random_next"):
        assert len({str(table[column].to_pylist()) for table in passes}) == 3


def test_same_seed_same_bytes_and_other_seed_other_bytes(
    make_examples: Callable[..., Path], examples_folder: Path
):
    again = make_examples("again")
    other = make_examples("other", seed=1)
    assert shard_bytes(again) == shard_bytes(examples_folder)
    assert set(shard_bytes(other)) == set(shard_bytes(examples_folder))
    differing = [
        name
        for name, data in shard_bytes(other).items()
        if data != shard_bytes(examples_folder)[name]
    ]
    assert len(differing) > 12


@pytest.mark.integration
@pytest.mark.parametrize("workers", [2, 4])
def test_same_bytes_for_any_number_of_workers(
    make_examples: Callable[..., Path], examples_folder: Path, workers: int
):
    assert shard_bytes(make_examples(f"workers-{workers}", workers=workers)) == shard_bytes(
        examples_folder
    )


def test_file_names_and_columns(examples_folder: Path):
    names = [f"train-{number:05}.parquet" for number in range(12)]
    assert sorted(path.name for path in examples_folder.iterdir()) == [
        "manifest.json",
        "token_counts.npy",
        *names,
        "validation-00000.parquet",
    ]
    expected = ["list<int32>", "list<int8>", "bool", "list<int32>", "list<int32>"]
    schema = pq.read_schema(examples_folder / names[0])
    assert schema.names == COLUMNS
    assert [
        str(field.type).replace("element: ", "").replace("item: ", "") for field in schema
    ] == expected


@pytest.mark.integration
def test_datasets_library_loads_the_files(examples_folder: Path, tmp_path: Path):
    import datasets

    files = {
        split: str(examples_folder / f"{split}-*.parquet") for split in ("train", "validation")
    }
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))
    counts = read_manifest(examples_folder, "examples").counts
    assert {split: loaded[split].num_rows for split in files} == {
        split: counts[f"{split}_rows"] for split in files
    }
    assert loaded["train"][0]["tokens"] == rows_of(examples_folder)[0].tokens


def examples_command(out: Path, corpus: Path, tokenizer: Path) -> list[str]:
    options = {
        "out": out,
        "corpus": corpus,
        "tokenizer": tokenizer,
        "max-seq-length": 64,
        "dupe-factor": 60,
        "workers": 2,
    }
    named = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "bert_pipeline", "examples", *named, "--quiet"]


MANY_SHARDS: dict[str, Any] = {"dupe_factor": 60, "validation_fraction": 0.02}


@pytest.fixture(scope="module")
def never_killed(make_examples: Callable[..., Path]) -> dict[str, bytes]:
    return shard_bytes(make_examples("never-killed", **MANY_SHARDS))


@pytest.mark.integration
@pytest.mark.parametrize(
    "after", [pytest.param("tokens", marks=pytest.mark.slow), "train-00005.parquet"]
)
def test_killed_run_resumes_to_the_same_bytes(
    make_examples: Callable[..., Path],
    artifacts: Path,
    never_killed: dict[str, bytes],
    corpus_folder: Path,
    wordpiece_folder: Path,
    after: str,
):
    out = artifacts / f"killed-{after}"
    awaited = out / ".tokens" / "00000.arrow" if after == "tokens" else out / after
    with subprocess.Popen(examples_command(out, corpus_folder, wordpiece_folder)) as process:
        end = time.monotonic() + 60
        while not awaited.exists() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert awaited.exists()
    assert not (out / "manifest.json").exists(), "the run finished before it was killed"
    time.sleep(1)  # the workers notice within half a second
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("train-*.parquet")}
    make_examples(out.name, **MANY_SHARDS)
    assert shard_bytes(out) == never_killed
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., ExamplesConfig]:
    """A function that makes a corpus and a tokenizer, and configures their examples."""

    def configure(texts: Sequence[str], **options: Any) -> ExamplesConfig:
        for name in ("corpus", "corpus-raw", "tokenizer"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        corpus = make_corpus(tmp_path / "corpus", texts, shards=2)
        train_tokenizer(
            TokenizeConfig(
                out=tmp_path / "tokenizer",
                corpus=corpus,
                kind="byte-bpe",
                vocab_size=262,
                min_frequency=1,
                workers=1,
                quiet=True,
            )
        )
        given = {"max_seq_length": 32, "dupe_factor": 2, "workers": 1, "quiet": True} | options
        return ExamplesConfig(
            out=tmp_path / "examples", corpus=corpus, tokenizer=tmp_path / "tokenizer", **given
        )

    return configure


@pytest.mark.parametrize("text", ["One sentence only.", "One. Two. Three.\nFour."])
def test_one_document_is_rejected_for_nsp_and_accepted_for_mlm(
    small: Callable[..., ExamplesConfig], text: str
):
    for fraction in (0.0, 0.02):
        with pytest.raises(
            BertpipeError, match=r"1 document with sentences.*mlm\+nsp needs 2.*--objective mlm"
        ):
            build_examples(small([text], validation_fraction=fraction))
    config = small([text], validation_fraction=0, objective="mlm")
    build_examples(config)
    rows = rows_of(config.out)
    assert len(rows) >= 2
    assert not list(config.out.glob("validation*"))


def test_sentence_order_splits_a_single_sentence(small: Callable[..., ExamplesConfig]):
    config = small(
        ["One sentence only."],
        validation_fraction=0,
        objective="mlm+sop",
        dupe_factor=40,
        max_seq_length=64,
    )
    build_examples(config)
    decode = load_tokenizer(config.tokenizer).tokenizer.decode
    swapped = set()
    for row in rows_of(config.out):
        a, b = decode(restore(row)[1:-1], skip_special_tokens=False).split("[SEP]")
        swapped.add(row.is_random_next)
        assert (b + a if row.is_random_next else a + b).strip() == "One sentence only."
    assert swapped == {True, False}


def test_single_token_corpus_is_rejected(
    small: Callable[..., ExamplesConfig], wordpiece_folder: Path
):
    config = small(["x"], validation_fraction=0, objective="mlm+sop", masks="dynamic")
    with pytest.raises(
        BertpipeError, match=r"too little text for a single example \(1 document with 1 token"
    ):
        build_examples(config.model_copy(update={"tokenizer": wordpiece_folder}))


def test_documents_without_tokens_are_dropped(small: Callable[..., ExamplesConfig], tmp_path: Path):
    config = small(["The sea.", "The sky."], validation_fraction=0)
    train_tokenizer(
        TokenizeConfig(
            out=config.tokenizer,
            corpus=config.corpus,
            vocab_size=21,
            strip_accents=True,
            min_frequency=1,
            workers=1,
            quiet=True,
            overwrite=True,
        )
    )
    shutil.rmtree(config.corpus)
    make_corpus(config.corpus, ["\u0300", "The sea.", "\u0300 \u0300.", "\u0300\n\u0300"], shards=2)
    with pytest.raises(
        BertpipeError, match=r"2 documents.*needs 2 for training and 2 for validation"
    ):
        build_examples(config.model_copy(update={"validation_fraction": 0.1}))
    manifest = build_examples(config)
    assert (manifest.counts["documents"], manifest.counts["sentences"]) == (2, 2)


@pytest.mark.integration
def test_large_shard_is_divided_into_pieces_with_same_bytes_for_any_workers(
    tmp_path: Path, wordpiece_folder: Path, documents: list[str]
):
    texts = [f"{text}\n{number}." for number, text in enumerate(documents * 80)]
    corpus = make_corpus(tmp_path / "corpus", texts)
    made = []
    for workers in (1, 3):
        config = ExamplesConfig(
            out=tmp_path / str(workers),
            corpus=corpus,
            tokenizer=wordpiece_folder,
            max_seq_length=512,
            dupe_factor=1,
            objective="mlm",
            short_seq_prob=0,
            workers=workers,
            quiet=True,
        )
        manifest = build_examples(config)
        made.append(shard_bytes(config.out))
    assert made[0] == made[1]
    assert len(read_manifest(corpus, "corpus").files) == 1
    assert {"train-00000.parquet", "train-00001.parquet"} <= set(made[0])
    assert manifest.counts["documents"] == len(texts)


def test_two_documents_of_one_sentence_are_enough_for_nsp(small: Callable[..., ExamplesConfig]):
    config = small(["The sea.", "The sky."], validation_fraction=0)
    manifest = build_examples(config)
    rows = rows_of(config.out)
    assert len(rows) == 4
    assert all(row.is_random_next for row in rows)
    assert manifest.counts["train_documents"] == 2
    assert manifest.counts["validation_documents"] == 0


def test_too_few_documents_for_validation_is_an_error(
    small: Callable[..., ExamplesConfig],
):
    with pytest.raises(BertpipeError, match=r"3 documents.*--validation-fraction 0"):
        build_examples(small(["One. Two.", "Three. Four.", "Five."]))


def test_changed_tokenizer_corpus_or_setting_is_rejected(
    tmp_path: Path, small: Callable[..., ExamplesConfig]
):
    texts = invent_documents(9, 12)
    config = small(texts)
    build_examples(config)
    before = shard_bytes(config.out)
    shutil.rmtree(config.tokenizer)
    train_tokenizer(
        TokenizeConfig(
            out=config.tokenizer,
            corpus=config.corpus,
            kind="byte-bpe",
            vocab_size=263,
            workers=1,
            quiet=True,
        )
    )
    with pytest.raises(BertpipeError, match=r"tokenizer: its content changed"):
        build_examples(config)
    with pytest.raises(BertpipeError, match=r"corpus: its content changed"):
        build_examples(small([*texts[:-1], "Another text."]))
    assert shard_bytes(config.out) == before
    with pytest.raises(BertpipeError, match=r"max_seq_length: 32 → 48"):
        build_examples(small(texts, max_seq_length=48))
    build_examples(small(texts))
    assert shard_bytes(config.out) == before


def test_second_build_in_one_process_reads_the_second_corpus(
    small: Callable[..., ExamplesConfig],
):
    made = []
    for seed in (10, 11, 12):
        texts = invent_documents(seed, 12)
        config = small(texts, overwrite=True)
        build_examples(config)
        found = Texts(encode(texts, config.tokenizer))
        rows = rows_of(config.out)
        assert all(found.places(restore(row)[1 : row.lengths[0] + 1]) for row in rows)
        made.append(rows)
    assert made[0] != made[1] != made[2]


def test_special_token_names_in_text_are_plain_text(small: Callable[..., ExamplesConfig]):
    config = small(
        ["A [MASK] here [SEP] and [CLS] there. Next [PAD] one [UNK]."] * 2, validation_fraction=0
    )
    manifest = build_examples(config)
    assert manifest.counts["unknown"] == 0
    for row in rows_of(config.out):
        assert sum(token <= MASK for token in restore(row)) == 3


def test_invalid_input_folder_is_named_in_error(
    tmp_path: Path, corpus_folder: Path, wordpiece_folder: Path
):
    with pytest.raises(
        BertpipeError,
        match=r"made by `bertpipe corpus`; expected a folder made by `bertpipe tokenize`",
    ):
        build_examples(
            ExamplesConfig(
                out=tmp_path / "x", corpus=corpus_folder, tokenizer=corpus_folder, quiet=True
            )
        )
    with pytest.raises(BertpipeError, match="no such folder"):
        build_examples(
            ExamplesConfig(
                out=tmp_path / "x", corpus=tmp_path / "no", tokenizer=wordpiece_folder, quiet=True
            )
        )
    assert not (tmp_path / "x").exists()
