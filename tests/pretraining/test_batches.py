"""Memory-mapped rows and batches: what is written once, what is rejected, what a batch holds."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.errors import BertpipeError
from bert_pipeline.model.masked_cross_entropy import IGNORED
from bert_pipeline.model.unpadded_batch import PretrainingBatch
from bert_pipeline.pretraining.batches import Examples, MaskSubset
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.memmap_rows import SplitFiles, open_rows, remove_store
from bert_pipeline.pretraining.preflight import Inputs
from bert_pipeline.pretraining.sampler import choose_rows
from bert_pipeline.pretraining.task import PretrainingTask
from bert_pipeline.storage.atomic import hash_file
from bert_pipeline.storage.manifest import read_manifest
from bert_pipeline.training.distributed import start_ranks
from bert_pipeline.training.position import Position
from tests.helpers.stored_rows import load_examples, read_rows
from tests.helpers.training_runs import reset_accelerate

Rows = list[dict[str, Any]]
Shards = Callable[[Rows], Path]

# Two lengths, padding, and different segments.
ROWS: Rows = [
    {
        "tokens": [2, 7, 3, 8, 9, 3], "segment_ids": [0, 0, 0, 1, 1, 1], "is_random_next": True,
        "masked_positions": [1, 4], "masked_labels": [10, 11],
    },
    {
        "tokens": [2, 4, 3, 5, 3, 0], "segment_ids": [0, 0, 0, 1, 1, -1], "is_random_next": False,
        "masked_positions": [], "masked_labels": [],
    },
    {
        "tokens": [2, 3, 6, 3], "segment_ids": [0, 0, 1, 1], "is_random_next": False,
        "masked_positions": [2], "masked_labels": [12],
    },
]  # fmt: skip


@pytest.fixture
def make_source(tmp_path: Path, examples_folder: Path) -> Callable[..., SplitFiles]:
    """A function that writes shards of some rows, with the limits of their folder."""
    schema = pq.read_schema(next(examples_folder.glob("train-*")))

    def make(*parts: Rows, **changes: Any) -> SplitFiles:
        paths = [tmp_path / f"train-{number:05}.parquet" for number in range(len(parts))]
        for path, rows in zip(paths, parts, strict=True):
            pq.write_table(
                pa.Table.from_pylist(rows, schema=schema), path, write_page_checksum=True
            )
        shards = {path: hash_file(path) for path in paths}
        source = SplitFiles(
            shards, "some", vocab_size=13, max_seq_length=6, with_pairs=True, with_starts=False
        )
        return replace(source, **changes)

    return make


def changed(number: int, **columns: Any) -> Rows:
    """`ROWS` with one row changed."""
    return [row | columns if index == number else row for index, row in enumerate(ROWS)]


# Batches


def test_batch_is_the_rows_of_the_files_end_to_end(
    make_source: Callable[..., SplitFiles],
) -> None:
    examples = Examples(open_rows(make_source(ROWS[:2], [], ROWS[2:])))
    assert len(examples) == 3
    batch = examples.collate(np.array([2, 0, 1]))
    assert batch.tokens.tolist() == [2, 3, 6, 3, 2, 7, 3, 8, 9, 3, 2, 4, 3, 5, 3]
    assert batch.segment_ids.tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1]
    assert batch.positions.tolist() == [*range(4), *range(6), *range(5)]
    assert batch.cu_seqlens.tolist() == [0, 4, 10, 15]
    assert batch.max_seqlen == 6
    assert batch.masked_index.tolist() == [2, 5, 8]
    assert batch.masked_labels.tolist() == [12, 10, 11]
    assert batch.is_random_next is not None
    assert batch.is_random_next.tolist() == [0, 1, 0]
    tensors = [value for value in vars(batch).values() if hasattr(value, "dtype")]
    assert {str(tensor.dtype) for tensor in tensors} == {"torch.int64"}


@pytest.mark.parametrize("name", ["examples_folder", "mlm_examples_folder"])
def test_batch_equals_the_columns_of_the_shards(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    examples = load_examples(folder)
    rows = np.random.default_rng(0).permutation(len(examples))
    batch = examples.collate(rows)
    for column, found in (("tokens", batch.tokens), ("segment_ids", batch.segment_ids)):
        assert found.tolist() == [value for row in read_rows(folder, column, rows) for value in row]
    begins = dict(zip(range(len(rows)), batch.cu_seqlens.tolist(), strict=False))
    positions = read_rows(folder, "masked_positions", rows)
    index = [begins[number] + position for number, row in enumerate(positions) for position in row]
    assert batch.masked_index.tolist() == index
    assert batch.masked_labels.tolist() == [
        label for row in read_rows(folder, "masked_labels", rows) for label in row
    ]
    labels = read_rows(folder, "is_random_next", rows)
    assert (
        (batch.is_random_next is None) == (name == "mlm_examples_folder") == (set(labels) == {None})
    )
    if batch.is_random_next is not None:
        assert batch.is_random_next.tolist() == [int(label) for label in labels]
    assert examples.count_tokens(rows) == len(batch.tokens)


@pytest.mark.parametrize("vocab_size", [65536, 65537])
def test_ids_above_65535_are_kept(vocab_size: int, make_source: Callable[..., SplitFiles]) -> None:
    """Ids take two bytes where the vocabulary allows it."""
    largest = vocab_size - 1
    rows = changed(0, tokens=[2, 7, 3, largest, 9, 3], masked_labels=[largest, 11])
    examples = Examples(open_rows(make_source(rows, vocab_size=vocab_size)))
    batch = examples.collate(np.array([0]))
    assert batch.tokens.tolist() == rows[0]["tokens"]
    assert batch.masked_labels.tolist() == [largest, 11]


@pytest.mark.parametrize("keep", [None, MaskSubset(1.0, 0, 0), MaskSubset(0.5, 0, 0)])
def test_batch_without_rows_has_no_tokens(keep: MaskSubset | None, examples_folder: Path) -> None:
    none = np.empty(0, dtype=np.int64)
    batch = load_examples(examples_folder).collate(none, keep)
    assert batch.cu_seqlens.tolist() == [0]
    assert batch.max_seqlen == 0
    assert batch.is_random_next is not None
    for tensor in (
        batch.tokens,
        batch.segment_ids,
        batch.positions,
        batch.masked_index,
        batch.is_random_next,
    ):
        assert tensor.tolist() == []
        assert str(tensor.dtype) == "torch.int64"


@given(share=st.floats(0.0, 1.0), seed=st.integers(0, 99), step=st.integers(0, 10_000))
def test_dropped_masks_restore_the_original_tokens(
    share: float, seed: int, step: int, examples_folder: Path
) -> None:
    examples = load_examples(examples_folder)
    rows = np.array([5, 0, 77, 31])
    subset = MaskSubset(share, seed, step)
    full = examples.collate(rows)
    batch = examples.collate(rows, subset)
    # The same masks are kept for any distribution of the rows over ranks and micro-batches.
    assert len(batch.masked_index) == sum(
        len(examples.collate(rows[rank::2], subset).masked_index) for rank in range(2)
    )
    labels = dict(zip(full.masked_index.tolist(), full.masked_labels.tolist(), strict=True))
    kept = dict(zip(batch.masked_index.tolist(), batch.masked_labels.tolist(), strict=True))
    assert kept.items() <= labels.items()
    expected = full.tokens.clone()
    for place in labels.keys() - kept.keys():
        expected[place] = labels[place]
    assert batch.tokens.tolist() == expected.tolist()


def test_share_of_kept_masks(examples_folder: Path) -> None:
    examples = load_examples(examples_folder)
    rows = np.arange(len(examples))
    total = len(examples.collate(rows, MaskSubset(1.0, 0, 0)).masked_index)
    kept = [
        len(examples.collate(rows, MaskSubset(0.4, 0, step)).masked_index) for step in range(50)
    ]
    # 50 draws of about 1,000 masks: five standard errors are under 0.012.
    assert sum(kept) / (50 * total) == pytest.approx(0.4, abs=5 * (0.24 / (50 * total)) ** 0.5)
    assert len(set(kept)) > 10


@pytest.mark.parametrize(("tokens", "rows"), [(0, 1), (5, 1), (10, 2), (15, 3), (1000, 3)])
def test_sample_has_the_original_tokens_of_some_rows(
    tokens: int, rows: int, make_source: Callable[..., SplitFiles]
) -> None:
    examples = Examples(open_rows(make_source(ROWS[:1], ROWS[1:])))
    ids, offsets = examples.sample_unmasked(tokens)
    found = [ids[a:b].tolist() for a, b in pairwise(offsets.tolist())]
    whole = [[2, 10, 3, 8, 11, 3], [2, 4, 3, 5, 3], [2, 3, 12, 3]]
    assert len(found) == rows
    assert found == [row for row in whole if row in found]


def test_evaluated_rows_are_a_fixed_sample_of_all() -> None:
    """The first 512 of 10,000 rows would be those of one source."""
    rows = choose_rows(10_000, 512)
    assert rows.tolist() == choose_rows(10_000, 512).tolist() == sorted(set(rows.tolist()))
    # 512 draws in ten equal parts: each part has 51.2 on average, five standard deviations are 34.
    assert all(abs(np.sum(rows // 1000 == part) - 51.2) < 34 for part in range(10))
    assert choose_rows(3, 512).tolist() == [0, 1, 2]


# Ranks


@pytest.fixture
def make_run(
    make_examples: Callable[..., Path], wordpiece_folder: Path, tmp_path: Path
) -> Callable[..., list[PretrainingTask]]:
    """A function that makes each rank's task, with dynamic masks and longer examples at the end."""
    folders = [
        make_examples("drawn", masks="dynamic", mask_unit="whole-word"),
        make_examples(
            "drawn-longer",
            masks="dynamic",
            mask_unit="whole-word",
            max_seq_length=90,
            mask_rate=0.3,
        ),
    ]
    shape = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }

    def make(ranks: int, **options: Any) -> list[PretrainingTask]:
        reset_accelerate()
        config = PretrainConfig(
            examples=folders[0],
            long_examples=folders[1],
            tokenizer=wordpiece_folder,
            out=tmp_path / "out",
            model=shape,
            max_steps=100,
            mask_rate_end=0.1,
            precision="fp32",
            threads=1,
            quiet=True,
            **options,
        )
        own = start_ranks(config)
        tasks = [PretrainingTask(config, Inputs.check(config), own, tmp_path) for _ in range(ranks)]
        for rank, task in enumerate(tasks):
            # Only the rank matters here; other tests train in several processes.
            who = SimpleNamespace(
                rank=rank, world_size=ranks, device=own.device, precision=own.precision
            )
            task.ranks = who  # type: ignore[assignment]
        return tasks

    return make


def by_row(batch: PretrainingBatch) -> list[tuple[Any, ...]]:
    """Each row of a batch, with its masks and label; not what fills it up to a shape."""
    edges = batch.cu_seqlens.tolist()
    index = batch.masked_index.tolist()
    labels = batch.masked_labels.tolist()
    assert batch.is_random_next is not None
    rows = []
    for begin, end, is_random in zip(edges, edges[1:], batch.is_random_next.tolist(), strict=False):
        masks = [
            (place - begin, label)
            for place, label in zip(index, labels, strict=True)
            if begin <= place < end and label != IGNORED
        ]
        if is_random == IGNORED:
            continue
        rows.append((*batch.tokens[begin:end].tolist(), *masks, is_random))
    return rows


@pytest.mark.integration
@pytest.mark.parametrize(("ranks", "parts"), [(2, 1), (3, 2), (1, 4), (4, 5)])
@pytest.mark.parametrize("size", [1, 7, 48])
def test_step_is_distributed_over_any_ranks_and_micro_batches(
    ranks: int, parts: int, size: int, make_run: Callable[..., list[PretrainingTask]]
) -> None:
    given = {"batch_size": size, "long_batch_size": size}
    (alone,) = make_run(1, **given)
    runs = make_run(ranks, **given, accumulate=parts)
    # Between two epochs.
    between = 5 * len(alone.examples[0]) - size // 2
    for position, done in [
        (Position(), 0.0),
        (Position(50, cursor={"phase": 0, "rows": between}), 0.5),
        (Position(95, cursor={"phase": 1, "rows": 5 * size}), 0.95),
    ]:
        whole = alone.make_step(position, done)
        shares = [run.make_step(position, done) for run in runs]
        (batch,) = whole.micro_batches
        expected = by_row(batch)  # type: ignore[arg-type]
        assert len(expected) == size
        found = [
            [row for part in step.micro_batches if not part.is_placeholder for row in by_row(part)]  # type: ignore[attr-defined, arg-type]
            for step in shares
        ]
        assert sorted(row for rows in found for row in rows) == sorted(expected)
        assert all(found[rank] == expected[rank::ranks] for rank in range(ranks))
        assert all(len(step.micro_batches) == parts for step in shares)
        assert whole.terms == (len(batch.masked_labels), size)  # type: ignore[attr-defined]
        assert tuple(map(sum, zip(*(step.terms for step in shares), strict=True))) == whole.terms
        assert {step.tokens for step in [whole, *shares]} == {len(batch.tokens)}  # type: ignore[attr-defined]


@pytest.mark.integration
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("size", [1, 48])
def test_micro_batches_of_a_token_budget_have_one_shape(
    ranks: int, size: int, make_run: Callable[..., list[PretrainingTask]]
) -> None:
    given = {"batch_size": size, "long_batch_size": size}
    (alone,) = make_run(1, **given)
    runs = make_run(ranks, **given, tokens_per_batch=260)
    for position, done in [
        (Position(), 0.0),
        (Position(50, cursor={"phase": 0, "rows": 1000}), 0.5),
        (Position(95, cursor={"phase": 1, "rows": 5 * size}), 0.95),
    ]:
        whole = alone.make_step(position, done)
        shares = [run.make_step(position, done) for run in runs]
        (batch,) = whole.micro_batches
        expected = by_row(batch)  # type: ignore[arg-type]
        for rank, step in enumerate(shares):
            real = [part for part in step.micro_batches if not part.is_placeholder]  # type: ignore[attr-defined]
            assert [row for part in real for row in by_row(part)] == expected[rank::ranks]  # type: ignore[arg-type]
        parts: list[Any] = [part for step in shares for part in step.micro_batches]
        shapes = {
            (len(part.tokens), len(part.cu_seqlens), len(part.masked_index), part.max_seqlen)
            for part in parts
        }
        assert len(shapes) == 1
        assert len(parts[0].tokens) == 260
        assert len({len(step.micro_batches) for step in shares}) == 1
        assert tuple(map(sum, zip(*(step.terms for step in shares), strict=True))) == whole.terms
        assert {step.tokens for step in shares} == {whole.tokens}


def test_mask_rate_is_annealed_to_the_same_end_in_both_phases(
    make_run: Callable[..., list[PretrainingTask]],
) -> None:
    (run,) = make_run(1, batch_size=64)
    for position, done, rate in [
        (Position(), 0.0, 0.15),
        (Position(90, cursor={"phase": 1, "rows": 0}), 1.0, 0.1),
    ]:
        steps = [run.make_step(replace(position, step=step), done) for step in range(20)]
        masked, tokens = (
            sum(values) for values in zip(*((s.terms[0], s.tokens) for s in steps), strict=True)
        )
        # Whole-word masking falls short of the rate by up to a tenth.
        assert 0.88 * rate < masked / tokens < 1.03 * rate


# Rejected rows


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            changed(1, tokens=[2, 13, 3, 5, 3, 0]),
            "row 1: has a token id outside of the model's vocabulary of 13",
        ),
        (changed(2, tokens=[2, 3, -1, 3]), "row 2: has a token id outside"),
        (changed(0, masked_labels=[10, 13]), "row 0: has a token id outside"),
        (
            changed(2, tokens=[2] * 7, segment_ids=[0] * 7),
            "row 2: longer than its folder's 6 tokens",
        ),
        (changed(2, segment_ids=[0, 1, 0, 1]), "row 2: its segment ids are not 0, then 1"),
        (changed(2, segment_ids=[0, 0, 2, 2]), "row 2: its segment ids are not 0, then 1"),
        (changed(1, masked_positions=[1]), "row 1: has different numbers of masked labels"),
        (
            changed(1, masked_positions=[5], masked_labels=[1]),
            "row 1: has a masked position outside of its tokens",
        ),
    ],
)
def test_invalid_row_is_rejected_with_its_file_and_number(
    rows: Rows, said: str, make_source: Callable[..., SplitFiles], tmp_path: Path
) -> None:
    source = make_source(ROWS, rows)
    with pytest.raises(BertpipeError) as caught:
        open_rows(source, tmp_path / "store")
    assert f"train-00001.parquet, {said}" in str(caught.value)
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["some.lock"]


def test_damaged_shard_is_named(make_source: Callable[..., SplitFiles], tmp_path: Path) -> None:
    source = make_source(ROWS, ROWS * 50)
    damaged = list(source.shards)[1]
    raw = bytearray(damaged.read_bytes())
    raw[200] ^= 1
    damaged.write_bytes(raw)
    with pytest.raises(BertpipeError, match=r"train-00001\.parquet: damaged"):
        open_rows(source, tmp_path / "store")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "mlm"}, "has objective mlm, .* has mlm[+]nsp"),
        ({"max_seq_length": 600}, "up to 600 tokens, but the model has 512 positions"),
        ({"tokenizer": "byte_bpe_folder"}, "with another tokenizer than"),
        ({"mask_rate": 0.1}, "--mask-rate-end 0.12: above the mask rate 0.1 of"),
    ],
)
def test_long_examples_that_do_not_match_are_rejected(
    options: dict[str, Any],
    said: str,
    make_examples: Callable[..., Path],
    examples_folder: Path,
    wordpiece_folder: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if "tokenizer" in options:
        options = {"tokenizer": request.getfixturevalue(options["tokenizer"])}
    config = PretrainConfig(
        examples=examples_folder,
        long_examples=make_examples(f"other-{next(iter(options))}", **options),
        tokenizer=wordpiece_folder,
        out=tmp_path / "out",
        max_steps=10,
        mask_rate_end=0.12,
        quiet=True,
    )
    with pytest.raises(BertpipeError, match=said) as caught:
        Inputs.check(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shards", [(), ([],), ([], [])])
def test_split_without_rows_is_rejected(
    shards: tuple[Rows, ...], make_source: Callable[..., SplitFiles]
) -> None:
    with pytest.raises(BertpipeError, match="have no row of this split"):
        open_rows(make_source(*shards))


# Writing the store

OPENS = """
import sys, time
from dataclasses import replace
from pathlib import Path
from bert_pipeline.storage.manifest import read_manifest
from bert_pipeline.pretraining import memmap_rows

folder, store, slowly = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
read = memmap_rows.read_columns
def read_slowly(path, columns):
    print("reads", path.name, flush=True)
    time.sleep(slowly)
    return read(path, columns)
memmap_rows.read_columns = read_slowly
manifest = read_manifest(folder, "examples")
files = memmap_rows.SplitFiles.from_manifest(folder, manifest, "train", 400)
rows = memmap_rows.open_rows(files, store)
print("rows", len(rows), int(rows.tokens.values.astype(int).sum()), flush=True)
"""


def start_opening(folder: Path, store: Path, slowly: float) -> "subprocess.Popen[str]":
    """A process that opens the store, with a delay for every shard that it reads."""
    command = [sys.executable, "-c", OPENS, str(folder), str(store), str(slowly)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))


@pytest.mark.integration
def test_one_process_writes_the_store_and_the_others_wait(
    examples_folder: Path, tmp_path: Path
) -> None:
    shards = len(list(examples_folder.glob("train-*")))
    running = [start_opening(examples_folder, tmp_path / "store", 0.2) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sorted(output.count("reads") for output in outputs) == [0, 0, shards]
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    tokens = [
        token
        for row in read_rows(examples_folder, "tokens", range(len(load_examples(examples_folder))))
        for token in row
    ]
    assert outputs[0].splitlines()[-1].split()[2] == str(sum(tokens))


@pytest.mark.integration
def test_waiting_process_writes_the_store_when_the_writer_is_killed(
    examples_folder: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    writer = start_opening(examples_folder, store, 30)
    assert writer.stdout is not None
    assert writer.stdout.readline().startswith("reads")
    waiting = start_opening(examples_folder, store, 0)
    # Long enough to reach the lock on most machines; the result is the same if not.
    time.sleep(1)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    output, _ = waiting.communicate(timeout=60)
    assert output.splitlines()[-1].startswith("rows")
    assert output.count("reads") == len(list(examples_folder.glob("train-*")))
    assert not list(store.rglob("*.tmp"))
    (found,) = (path for path in store.iterdir() if path.is_dir())
    manifest = read_manifest(examples_folder, "examples")
    assert found.name == f"{manifest.fingerprint[:16]}-train"


def test_mapped_rows_stay_readable_after_the_store_is_removed(
    make_source: Callable[..., SplitFiles], tmp_path: Path
) -> None:
    """A run removes its store while its other processes may still read."""
    store = tmp_path / ".examples"
    examples = Examples(open_rows(make_source(ROWS), store))
    remove_store(store)
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith("train-")]
    assert examples.collate(np.arange(3)).tokens.tolist()[:6] == ROWS[0]["tokens"]
    remove_store(store)


@pytest.mark.parametrize("name", ["tokens.npy", "masked_offsets.npy", "hashes.json"])
def test_damaged_store_is_written_again(
    name: str, make_source: Callable[..., SplitFiles], tmp_path: Path
) -> None:
    """A resumed run would train on other tokens."""
    source = make_source(ROWS)
    file = tmp_path / "store" / "some" / name
    for damage in (lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b""):
        rows = open_rows(source, tmp_path / "store")
        assert rows.tokens.values[:6].tolist() == ROWS[0]["tokens"]
        del rows
        content = file.read_bytes()
        file.write_bytes(damage(content))
        open_rows(source, tmp_path / "store")
        assert file.read_bytes() == content


def test_rows_are_memory_mapped(make_source: Callable[..., SplitFiles], tmp_path: Path) -> None:
    rows = open_rows(make_source(ROWS), tmp_path / "store")
    maps = Path("/proc/self/maps").read_text()
    for name in (
        "tokens",
        "offsets",
        "first_segment",
        "masked_positions",
        "masked_labels",
        "is_random_next",
    ):
        assert f"{tmp_path}/store/some/{name}.npy" in maps
    assert not rows.tokens.values.flags.owndata
