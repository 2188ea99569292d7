"""The rows of an examples folder as flat arrays on disk, which all processes of a host map into memory and share.

Whoever comes first writes them, shard by shard, while the others wait for the lock: so nobody waits in a collective,
and when the writer is killed, the next one begins anew. A corpus larger than memory trains from them as any other.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bert_pipeline.errors import BertpipeError
from bert_pipeline.examples.schema import SCHEMA, WORD_STARTS
from bert_pipeline.examples.splits import Split
from bert_pipeline.progress import bar
from bert_pipeline.ragged import Array, BoolArray, Int64Array, expand, offsets_of
from bert_pipeline.storage.atomic import explain_full_disk
from bert_pipeline.storage.manifest import Manifest
from bert_pipeline.storage.shards import read_columns

FOLDER = ".examples"
"""Where a run keeps its store, in its own folder."""


@dataclass(frozen=True, slots=True)
class Lists:
    """A column of lists: row r is `values[offsets[r]:offsets[r + 1]]`."""

    values: Array
    offsets: Int64Array

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "Lists":
        """Numpy copies of Arrow's arrays, chunks end to end."""
        lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks]
        values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
        return cls(np.concatenate(values), offsets_of(np.concatenate(lengths)))

    def lengths(self, rows: Int64Array) -> Int64Array:
        """Number of values in each of the rows."""
        lengths: Int64Array = self.offsets[rows + 1] - self.offsets[rows]
        return lengths

    def keep(self, kept: BoolArray) -> "Lists":
        """The lists without the values that are not kept."""
        return Lists(self.values[kept], offsets_of(kept)[self.offsets])


@dataclass(frozen=True, slots=True)
class StoredRows:
    """All rows of one split, padding left out."""

    tokens: Lists
    first_segment: npt.NDArray[np.uint16]
    """Tokens of each row's first segment, special ones included; the others are its second."""
    masked_positions: Lists
    masked_labels: Array
    """Beside the values of `masked_positions`."""
    is_random_next: BoolArray | None
    """None without sentence pairs."""
    word_starts: BoolArray | None
    """Beside the values of `tokens`; None where nobody has to know."""

    def __len__(self) -> int:
        return len(self.first_segment)


@dataclass(frozen=True, slots=True)
class Source:
    """Shards, and what their rows promise."""

    shards: Sequence[Path]
    key: str
    """Names the content."""
    vocab_size: int
    max_seq_length: int
    with_pairs: bool
    with_starts: bool

    @classmethod
    def of(cls, folder: Path, examples: Manifest, split: Split, vocab_size: int) -> "Source":
        """One split of a finished examples folder, for a model of `vocab_size` token embeddings."""
        config = examples.config
        return cls(
            shards=[folder / name for name in examples.files if name.startswith(f"{split}-")],
            key=f"{examples.fingerprint[:16]}-{split}",
            vocab_size=vocab_size,
            max_seq_length=config["max_seq_length"],
            with_pairs=config["objective"] != "mlm",
            with_starts=split == "train"
            and config["masks"] == "dynamic"
            and config["mask_unit"] != "token",
        )

    def dtypes(self) -> dict[str, type[np.generic]]:
        """Arrays of the store by name."""
        ids = np.uint16 if self.vocab_size <= 1 << 16 else np.int32
        always: dict[str, type[np.generic]] = {
            "tokens": ids,
            "offsets": np.int64,
            "first_segment": np.uint16,
            "masked_positions": np.uint16,
            "masked_offsets": np.int64,
            "masked_labels": ids,
        }
        pairs: dict[str, type[np.generic]] = {"is_random_next": np.bool_} if self.with_pairs else {}
        starts: dict[str, type[np.generic]] = {"word_starts": np.bool_} if self.with_starts else {}
        return always | pairs | starts


def open_rows(source: Source, folder: Path | None = None, *, quiet: bool = False) -> StoredRows:
    """The rows of a split, out of a store in `folder` that is written first where there is none.

    Without a folder the store lies in a temporary one, and is gone with the process. Raises `BertpipeError` when a
    shard is damaged, a row breaks what its folder or the model promises, there is no row, or the disk is full.
    """
    if folder is None:
        # What is mapped stays until nobody maps it any more.
        with tempfile.TemporaryDirectory(prefix="bertpipe-") as temporary:
            return open_rows(source, Path(temporary), quiet=quiet)
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / source.key
    with (folder / f"{source.key}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.is_dir():
            _write(source, whole, quiet)
    found = {name: _map(whole, name) for name in source.dtypes()}
    return StoredRows(
        tokens=Lists(found["tokens"], found["offsets"]),
        first_segment=found["first_segment"],
        masked_positions=Lists(found["masked_positions"], found["masked_offsets"]),
        masked_labels=found["masked_labels"],
        is_random_next=found.get("is_random_next"),
        word_starts=found.get("word_starts"),
    )


def remove_store(folder: Path) -> None:
    """Remove the stores in a folder, whoever else is doing so; a kill leaves all of them, or none that is found."""
    doomed = folder.with_name(f"{folder.name}.tmp")
    with suppress(FileNotFoundError):
        folder.rename(doomed)
    shutil.rmtree(
        doomed, ignore_errors=True
    )  # a network file system keeps files that are still mapped


def _map(folder: Path, name: str) -> Array:
    # A plain view of the map: numpy's own class of them makes every small operation slower.
    return np.asarray(np.load(_file(folder, name), mmap_mode="r", allow_pickle=False))


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _write(source: Source, whole: Path, quiet: bool) -> None:
    """Write all arrays under a temporary name, and rename their folder when they are safe on disk."""
    temporary = whole.with_name(f".{whole.name}.tmp")
    if temporary.exists():  # left by a kill
        shutil.rmtree(temporary)
    temporary.mkdir()
    try:
        with (
            explain_full_disk(whole),
            bar("laying out examples", len(source.shards), quiet=quiet) as progress,
            ExitStack() as files,
        ):
            arrays = {
                name: files.enter_context(_growing(_file(temporary, name), dtype))
                for name, dtype in source.dtypes().items()
            }
            _append_shards(source, arrays, progress.advance)
        temporary.rename(whole)
        pa.default_memory_pool().release_unused()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _append_shards(
    source: Source, append: Mapping[str, Callable[[Array], None]], advance: Callable[[], None]
) -> None:
    ends = {"offsets": 0, "masked_offsets": 0}
    for name in ends:
        append[name](np.zeros(1, np.int64))
    rows = 0
    for path in source.shards:
        table = read_columns(
            path, [*SCHEMA.names, *([WORD_STARTS.name] if source.with_starts else [])]
        )
        rows += table.num_rows
        if table.num_rows:
            for name, values in _flatten(table, path, source).items():
                if name in ends:
                    values = values[1:] + ends[name]
                    ends[name] = int(values[-1])
                append[name](values)
        advance()
    if not rows:
        raise BertpipeError(
            "The examples hold no row of this split; make them with a --validation-fraction above 0."
        )


def _flatten(table: pa.Table, path: Path, source: Source) -> dict[str, Array]:
    """The arrays of one shard, padding left out, each row checked."""
    tokens, segment_ids = Lists.of(table["tokens"]), Lists.of(table["segment_ids"])
    starts = Lists.of(table[WORD_STARTS.name]) if source.with_starts else None
    real = segment_ids.values >= 0
    if not real.all():
        tokens, segment_ids = tokens.keep(real), segment_ids.keep(real)
        starts = starts and starts.keep(real)
    positions, labels = Lists.of(table["masked_positions"]), Lists.of(table["masked_labels"])
    first_segment = np.diff(offsets_of(segment_ids.values == 0)[segment_ids.offsets])
    _check(path, source, tokens, segment_ids.values, first_segment, positions, labels)
    arrays = {
        "tokens": tokens.values,
        "offsets": tokens.offsets,
        "first_segment": first_segment,
        "masked_positions": positions.values,
        "masked_offsets": positions.offsets,
        "masked_labels": labels.values,
    }
    if source.with_pairs:
        arrays["is_random_next"] = table["is_random_next"].to_numpy()
    if starts is not None:
        arrays["word_starts"] = starts.values
    return arrays


def _check(
    path: Path, source: Source, tokens: Lists, segment_ids: Array, first_segment: Int64Array, positions: Lists,
    labels: Lists,
) -> None:  # fmt: skip
    """Refuse what would fail, or mean something else, in the midst of training."""
    lengths, masked = np.diff(tokens.offsets), np.diff(positions.offsets)
    rows = np.arange(len(lengths) + 1)

    def refuse(wrong: BoolArray, offsets: Int64Array, why: str) -> None:
        if wrong.any():
            row = int(np.searchsorted(offsets, wrong.argmax(), side="right")) - 1
            raise BertpipeError(
                f"{path}, row {row}: {why}. Make its folder again with --overwrite."
            )

    refuse(
        lengths > source.max_seq_length,
        rows,
        f"longer than its folder's {source.max_seq_length} tokens",
    )
    for ids in (tokens, labels):
        unknown = (ids.values < 0) | (ids.values >= source.vocab_size)
        refuse(
            unknown,
            ids.offsets,
            f"holds a token id beyond the model's vocabulary of {source.vocab_size}",
        )
    second = expand(np.zeros_like(lengths), lengths) >= np.repeat(first_segment, lengths)
    refuse(segment_ids != second, tokens.offsets, "its segment ids are not 0 first and 1 then")
    refuse(masked != np.diff(labels.offsets), rows, "has not as many masked labels as positions")
    outside = (positions.values < 0) | (positions.values >= np.repeat(lengths, masked))
    refuse(outside, positions.offsets, "has a masked position beyond its tokens")


@contextmanager
def _growing(path: Path, dtype: type[np.generic]) -> Iterator[Callable[[Array], None]]:
    """A .npy file that values are appended to; its header, which numpy leaves room for growth in, is written last."""
    header: dict[str, Any] = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
    }
    count = 0
    with path.open("wb") as file:

        def append(values: Array) -> None:
            nonlocal count
            count += len(values)
            file.write(np.ascontiguousarray(values, dtype).data)

        np.lib.format.write_array_header_1_0(file, header | {"shape": (0,)})
        yield append
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header | {"shape": (count,)})
        file.flush()
        os.fsync(file.fileno())
