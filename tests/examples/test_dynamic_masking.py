"""Dynamic masking: new masks in every epoch, reproducible, distributed as static masks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.examples.dynamic_masking import DynamicMasks
from bert_pipeline.model.unpadded_batch import PretrainingBatch
from bert_pipeline.pretraining.batches import Examples, MaskSubset
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.preflight import Inputs
from bert_pipeline.pretraining.pretrain import pretrain
from bert_pipeline.pretraining.sampler import Cursor
from bert_pipeline.pretraining.task import PretrainingTask
from bert_pipeline.storage.manifest import read_manifest
from bert_pipeline.tokenizer.load import load_tokenizer
from bert_pipeline.training.distributed import start_ranks
from bert_pipeline.training.position import Position
from tests.helpers.stored_rows import load_examples

PAD, UNK, CLS, SEP, MASK = range(5)
UNITS = ["token", "whole-word", "span"]
COMBINATIONS = [
    ("token", "mlm+nsp"),
    ("whole-word", "mlm+sop"),
    ("span", "mlm"),
    ("whole-word", "mlm"),
]
"""Mask units and objectives, each at least once."""

Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(make_examples: Folder) -> Folder:
    """A function that makes an examples folder by masks, unit and objective, once."""

    @cache
    def make(masks: str, unit: str, objective: str = "mlm+nsp", pad: bool = False) -> Path:
        name = f"{masks}-{unit}-{objective}-{pad}"
        return make_examples(
            name, masks=masks, mask_unit=unit, objective=objective, pad=pad, mask_rate=0.25
        )

    return make


def load(path: Path, seed: int = 0) -> Examples:
    """The training rows of a folder, as `bertpipe pretrain` reads them."""
    return load_examples(path, seed=seed)


def read(path: Path, split: str = "train") -> pa.Table:
    return pa.concat_tables(pq.read_table(file) for file in sorted(path.glob(f"{split}-*.parquet")))


def at(epoch: int, rows: np.ndarray) -> np.ndarray:
    return np.full(len(rows), epoch)


def by_row(batch: PretrainingBatch) -> list[tuple[list[int], list[int], list[int]]]:
    """Tokens, positions to predict and labels of each row of a batch."""
    edges = batch.cu_seqlens.tolist()
    index = batch.masked_index.tolist()
    labels = batch.masked_labels.tolist()
    rows = []
    for begin, end in pairwise(edges):
        inside = [n for n, place in enumerate(index) if begin <= place < end]
        rows.append(
            (
                batch.tokens[begin:end].tolist(),
                [index[n] - begin for n in inside],
                [labels[n] for n in inside],
            )
        )
    return rows


def restore(tokens: list[int], positions: list[int], labels: list[int]) -> list[int]:
    restored = list(tokens)
    for position, label in zip(positions, labels, strict=True):
        restored[position] = label
    return restored


# Files


@pytest.mark.integration
@pytest.mark.parametrize(("unit", "objective"), COMBINATIONS)
def test_dynamic_folder_has_unmasked_rows_of_static_folder(
    unit: str, objective: str, folder: Folder, wordpiece_folder: Path
) -> None:
    dynamic, static = (read(folder(masks, unit, objective)) for masks in ("dynamic", "static"))
    assert (
        dynamic["masked_positions"].to_pylist()
        == dynamic["masked_labels"].to_pylist()
        == [[]] * len(dynamic)
    )
    columns = [static[name].to_pylist() for name in ("tokens", "masked_positions", "masked_labels")]
    originals = [restore(*row) for row in zip(*columns, strict=True)]
    assert dynamic["tokens"].to_pylist() == originals
    for name in ("segment_ids", "is_random_next"):
        assert dynamic[name].to_pylist() == static[name].to_pylist()
    assert ("word_starts" in dynamic.column_names) == (unit != "token")
    assert "word_starts" not in static.column_names
    if unit != "token":
        tokenizer = load_tokenizer(wordpiece_folder).tokenizer
        continues = {i for piece, i in tokenizer.get_vocab().items() if piece.startswith("##")}
        expected = [
            [
                i not in continues
                or n == 0
                or row[n - 1] in (CLS, SEP)  # the rest of a truncated word counts as a word
                for n, i in enumerate(row)
            ]
            for row in originals
        ]
        assert dynamic["word_starts"].to_pylist() == expected


@pytest.mark.integration
@pytest.mark.parametrize("unit", UNITS)
def test_validation_rows_have_static_masks(unit: str, folder: Folder) -> None:
    dynamic, static = (read(folder(masks, unit), "validation") for masks in ("dynamic", "static"))
    assert dynamic.equals(static)
    assert all(dynamic["masked_positions"].to_pylist())
    assert DynamicMasks.from_manifest(read_manifest(folder("static", unit), "examples"), 0) is None


@pytest.mark.integration
@pytest.mark.parametrize("split", ["train", "validation"])
def test_static_masks_differ_between_rows(split: str, make_examples: Folder) -> None:
    path = make_examples("half-held-out", validation_fraction=0.5)
    table = read(path, split)
    lengths = [len(row) for row in table["tokens"].to_pylist()]
    masks = [
        tuple(row)
        for row, n in zip(table["masked_positions"].to_pylist(), lengths, strict=True)
        if n == 64
    ]
    # 10 of 61 positions: two rows have the same with probability 1 in 10^10.
    assert len(set(masks)) == len(masks) > 20


# Masks


@pytest.mark.integration
@pytest.mark.parametrize(("unit", "objective"), COMBINATIONS)
def test_masks_differ_between_epochs_and_seeds(unit: str, objective: str, folder: Folder) -> None:
    path = folder("dynamic", unit, objective)
    examples = load(path)
    originals = read(path)["tokens"].to_pylist()
    starts = None if unit == "token" else read(path)["word_starts"].to_pylist()
    rows = np.arange(len(examples))
    epochs = [by_row(examples.collate(rows, epochs=at(epoch, rows))) for epoch in (0, 1, 7)]
    for drawn in epochs:
        for number, (tokens, positions, labels) in enumerate(drawn):
            assert restore(tokens, positions, labels) == originals[number]
            assert positions
            assert not {CLS, SEP, PAD, MASK} & set(labels)
            if starts is not None and unit == "whole-word":
                inside = [p for p in range(1, len(tokens)) if not starts[number][p]]
                assert all((p in positions) == (p - 1 in positions) for p in inside), (
                    "a word is masked in part"
                )
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        same = [
            a[1] == b[1] for a, b in zip(epochs[one], epochs[other], strict=True) if len(a[0]) > 30
        ]
        assert len(same) > 50
        assert np.mean(same) < 0.05
    seeds = [by_row(load(path, seed).collate(rows)) for seed in (0, 1)]
    assert seeds[0] == epochs[0], "the default is epoch 0"
    assert np.mean([a[1] == b[1] for a, b in zip(*seeds, strict=True) if len(a[0]) > 30]) < 0.05


@pytest.mark.integration
@pytest.mark.parametrize("unit", UNITS)
def test_masks_depend_only_on_seed_epoch_and_row(unit: str, folder: Folder) -> None:
    examples = load(folder("dynamic", unit), 3)
    row = st.tuples(st.integers(0, len(examples) - 1), st.integers(0, 9))

    @given(
        st.lists(row, min_size=1, max_size=24),
        st.integers(1, 4),
        st.integers(1, 3),
        st.floats(0, 1),
    )
    def check(drawn: list[tuple[int, int]], ranks: int, parts: int, share: float) -> None:
        rows, epochs = np.array(drawn).T
        whole = by_row(examples.collate(rows, epochs=epochs))
        keep = MaskSubset(share, 5, 17)
        everything = MaskSubset(1.0, 5, 17)
        kept = by_row(examples.collate(rows, keep, epochs))
        total = kept_total = 0
        for rank in range(ranks):
            own = np.arange(len(rows))[rank::ranks]
            for part in np.array_split(own, parts):
                alone = by_row(examples.collate(rows[part], epochs=epochs[part]))
                assert alone == [whole[number] for number in part]
                again = by_row(examples.collate(rows[part], keep, epochs[part]))
                assert again == [kept[number] for number in part]
            total += len(examples.collate(rows[own], everything, epochs[own]).masked_index)
            kept_total += len(examples.collate(rows[own], keep, epochs[own]).masked_index)
        assert total == sum(len(positions) for _, positions, _ in whole)
        assert kept_total == sum(len(positions) for _, positions, _ in kept)
        for (tokens, positions, labels), (some, fewer, fewer_labels) in zip(
            whole, kept, strict=True
        ):
            hidden = dict(zip(positions, labels, strict=True))
            assert dict(zip(fewer, fewer_labels, strict=True)).items() <= hidden.items()
            given_back = hidden.keys() - set(fewer)
            assert some == [
                hidden[n] if n in given_back else token for n, token in enumerate(tokens)
            ]

    check()


@pytest.mark.integration
def test_share_of_kept_masks(folder: Folder) -> None:
    examples = load(folder("dynamic", "token"))
    rows = np.arange(len(examples))
    total = kept = 0
    for step in range(20):
        total += len(examples.collate(rows, MaskSubset(1.0, 0, step), at(step, rows)).masked_index)
        kept += len(examples.collate(rows, MaskSubset(0.3, 0, step), at(step, rows)).masked_index)
    assert kept / total == pytest.approx(0.3, abs=4.5 * (0.21 / total) ** 0.5)


@pytest.mark.integration
@pytest.mark.parametrize(("unit", "objective"), COMBINATIONS)
def test_dynamic_and_static_masks_have_the_same_distribution(
    unit: str, objective: str, folder: Folder
) -> None:
    dynamic = load(folder("dynamic", unit, objective))
    static = load(folder("static", unit, objective))
    rows = np.arange(len(static))
    written = by_row(static.collate(rows))
    drawn = [by_row(dynamic.collate(rows, epochs=at(epoch, rows))) for epoch in range(4)]
    counts = np.array(
        [[len(positions) for _, positions, _ in found] for found in (written, *drawn)]
    )
    if unit == "whole-word":
        difference = counts[0] - counts[1:].mean(axis=0)
        assert abs(difference.mean()) < 4.5 * difference.std() / len(rows) ** 0.5 + 1e-9
    else:
        assert (counts == counts[0]).all(), "the number depends on the length only"
    measures: list[Callable[[list[int], list[int], list[int]], float]] = [
        lambda tokens, positions, labels: float(np.mean(positions)) / len(tokens),
        lambda tokens, positions, labels: positions[0] / len(tokens),
        lambda tokens, positions, labels: positions[-1] / len(tokens),
        lambda tokens, positions, labels: float(np.mean(np.diff([-1, *positions]) == 1)),
        lambda tokens, positions, labels: float(np.mean([tokens[p] == MASK for p in positions])),
        lambda tokens, positions, labels: float(
            np.mean([tokens[p] == label for p, label in zip(positions, labels, strict=True)])
        ),
    ]
    for measure in measures:
        one = np.array([measure(*row) for row in written])
        other = np.array([measure(*row) for found in drawn for row in found]).reshape(4, -1)
        # Paired by row, which removes the variance between rows.
        difference = one - other.mean(axis=0)
        assert abs(difference.mean()) < 4.5 * difference.std() / len(rows) ** 0.5


# Padded rows


@pytest.mark.integration
@pytest.mark.parametrize(
    ("masks", "unit"), [("static", "token"), ("dynamic", "token"), ("dynamic", "span")]
)
@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm"])
def test_padded_and_unpadded_rows_give_the_same_batches(
    masks: str, unit: str, objective: str, folder: Folder
) -> None:
    padded, plain = (folder(masks, unit, objective, pad) for pad in (True, False))
    table = read(padded)
    assert {len(row) for row in table["tokens"].to_pylist()} == {64}
    assert {len(row) for row in table["segment_ids"].to_pylist()} == {64}
    one = load(padded)
    other = load(plain)
    rows = np.random.default_rng(0).permutation(len(other))
    for part in np.array_split(rows, 5):
        epochs = part % 3
        batches = [
            examples.collate(part, MaskSubset(0.9, 1, 2), epochs) for examples in (one, other)
        ]
        for name in ("tokens", "segment_ids", "positions", "cu_seqlens", "masked_labels"):
            assert getattr(batches[0], name).tolist() == getattr(batches[1], name).tolist()
        assert batches[0].max_seqlen == batches[1].max_seqlen
        if masks == "static":  # kept masks are numbered the same way
            assert batches[0].masked_index.tolist() == batches[1].masked_index.tolist()
    for ours, theirs in zip(
        one.sample_unmasked(10_000), other.sample_unmasked(10_000), strict=True
    ):
        assert np.array_equal(ours, theirs)


# Training


def start(place: Path, given: dict[str, Any]) -> subprocess.Popen[str]:
    """Start `bertpipe pretrain` in a new process."""
    place.write_text(json.dumps({"pretrain": given}, default=str), encoding="utf-8")
    command = [sys.executable, "-m", "bert_pipeline", "pretrain", "--config", str(place)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


@pytest.mark.integration
@pytest.mark.parametrize("masks", ["dynamic", "static"])
def test_training_loss_changes_with_dynamic_masks_only(
    masks: str, folder: Folder, wordpiece_folder: Path, tmp_path: Path
) -> None:
    """Each step is an epoch with a learning rate near 0: only the masks change the loss."""
    examples = folder(masks, "token", "mlm")
    shape = {
        "num_hidden_layers": 1,
        "hidden_size": 16,
        "num_attention_heads": 1,
        "intermediate_size": 16,
        "max_position_embeddings": 64,
    }
    config = PretrainConfig(
        examples=examples,
        tokenizer=wordpiece_folder,
        out=tmp_path / "out",
        model=shape,
        max_steps=3,
        batch_size=len(load(examples)),
        learning_rate=1e-12,
        dropout=0.0,
        log_every=1,
        precision="fp32",
        threads=1,
        quiet=True,
    )
    pretrain(config)
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 3
    apart = max(losses) - min(losses)
    assert apart > 1e-4 if masks == "dynamic" else apart < 1e-5


@pytest.mark.integration
def test_loss_is_divided_by_the_number_of_masks_of_the_epoch(
    folder: Folder, wordpiece_folder: Path, tmp_path: Path
) -> None:
    # With whole words, the number of masks of a row differs between epochs.
    examples = folder("dynamic", "whole-word")
    shape: dict[str, Any] = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    config = PretrainConfig(
        examples=examples,
        tokenizer=wordpiece_folder,
        out=tmp_path / "out",
        model=shape,
        max_steps=1000,
        batch_size=48,
        accumulate=3,
        mask_rate_end=0.1,
        threads=1,
        quiet=True,
    )
    ranks = start_ranks(config)
    task = PretrainingTask(config, Inputs.check(config), ranks, tmp_path)
    totals = []
    for number in range(0, 60, 7):
        position = Position(number, cursor=Cursor(0, 48 * number).to_json())
        step = task.make_step(position, number / 60)
        assert step.terms[0] == sum(len(batch.masked_index) for batch in step.micro_batches)
        totals.append((step.metrics["epoch"], step.terms[0]))
    assert len({epoch for epoch, _ in totals}) > 3
    assert len({total for _, total in totals}) > 3


@pytest.mark.slow
def test_resume_with_dynamic_masks_gives_the_same_weights(
    folder: Folder, wordpiece_folder: Path, tmp_path: Path
) -> None:
    """Over several epochs and with unmasked tokens, so that masks of another epoch would differ."""
    shape = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": 64,
    }
    examples = folder("dynamic", "span")
    given = {
        "examples": examples,
        "tokenizer": wordpiece_folder,
        "model": shape,
        "max_steps": 60,
        "batch_size": 32,
        "learning_rate": 3e-3,
        "dropout": 0.1,
        "mask_rate_end": 0.08,
        "checkpoint_every": 2,
        "evaluate_every": 1000,
        "log_every": 10,
        "threads": 1,
        "quiet": True,
    }
    assert len(load(examples)) * 3 < 60 * 32
    finish(start(tmp_path / "alone.yaml", given | {"out": tmp_path / "alone"}))
    out = tmp_path / "killed"
    process = start(tmp_path / "killed.yaml", given | {"out": out})
    deadline = time.monotonic() + 60
    while not any(out.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (out / "model").exists(), "training finished before it was killed"
    finish(start(tmp_path / "killed.yaml", given | {"out": out}))
    files = [place / "model" / "model.safetensors" for place in (tmp_path / "alone", out)]
    assert files[0].read_bytes() == files[1].read_bytes()
