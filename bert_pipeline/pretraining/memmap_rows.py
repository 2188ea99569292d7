"""The rows of an examples folder as memory-mapped arrays, which all processes of a host share.

The first process writes them, shard by shard, while the others wait for the lock: no process waits
in a collective, and if the writer is killed, the next process starts again. A corpus may be larger
than memory.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bert_pipeline.errors import BertpipeError
from bert_pipeline.examples.objectives import OBJECTIVES
from bert_pipeline.examples.schema import SCHEMA, SOURCE, WORD_STARTS
from bert_pipeline.examples.splits import Split
from bert_pipeline.pretraining.row_checks import check_rows, number_sources
from bert_pipeline.progress import bar
from bert_pipeline.ragged import Array, BoolArray, Int64Array, offsets_of
from bert_pipeline.storage.atomic import (
    atomic_folder,
    hash_file,
    read_checked_json,
    write_checked_json,
)
from bert_pipeline.storage.locks import LockFile
from bert_pipeline.storage.manifest import Manifest, verify_file
from bert_pipeline.storage.shards import read_columns

FOLDER = ".examples"
"""The store's folder, in the folder of the run."""
HASHES = "hashes.json"
"""File in a store: the hash of each array."""


@dataclass(frozen=True, slots=True)
class RaggedColumn:
    """A ragged column: row r is `values[offsets[r]:offsets[r + 1]]`."""

    values: Array
    offsets: Int64Array

    @classmethod
    def from_arrow(cls, column: pa.ChunkedArray) -> "RaggedColumn":
        """NumPy copies of Arrow arrays, chunks end to end."""
        lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks]
        values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
        return cls(np.concatenate(values), offsets_of(np.concatenate(lengths)))

    def lengths(self, rows: Int64Array) -> Int64Array:
        """Number of values in each of the rows."""
        lengths: Int64Array = self.offsets[rows + 1] - self.offsets[rows]
        return lengths

    def keep(self, kept: BoolArray) -> "RaggedColumn":
        """The column with only the kept values."""
        return RaggedColumn(self.values[kept], offsets_of(kept)[self.offsets])


@dataclass(frozen=True, slots=True)
class StoredRows:
    """All rows of one split, without padding."""

    tokens: RaggedColumn
    first_segment: npt.NDArray[np.uint16]
    """Tokens of each row's first segment, special tokens included; the rest is its second."""
    masked_positions: RaggedColumn
    masked_labels: Array
    """Aligned with the values of `masked_positions`."""
    is_random_next: BoolArray | None
    """None without sentence pairs."""
    word_starts: BoolArray | None
    """Aligned with the values of `tokens`; None if no masking needs them."""
    sources: Array | None
    """The number of each row's source; None if that is not known."""
    in_use: LockFile
    """The lock that tells other processes that the store has been verified."""

    def __len__(self) -> int:
        return len(self.first_segment)


@dataclass(frozen=True, slots=True)
class SplitFiles:
    """The shards of one split, and the limits that their rows must respect."""

    shards: Mapping[Path, str]
    """The files and their hashes."""
    key: str
    """Identifies the content."""
    vocab_size: int
    max_seq_length: int
    with_pairs: bool
    with_starts: bool
    sources: tuple[str, ...] = ()
    """The sources that rows can have; empty without a column of sources."""

    @classmethod
    def from_manifest(
        cls, folder: Path, examples: Manifest, split: Split, vocab_size: int
    ) -> "SplitFiles":
        """One split of a finished examples folder, for a model of `vocab_size` token embeddings."""
        config = examples.config
        is_masked_later = config["masks"] == "dynamic" and config["mask_unit"] != "token"
        return cls(
            shards={
                folder / name: entry["sha256"]
                for name, entry in examples.files.items()
                if name.startswith(f"{split}-")
            },
            key=f"{examples.fingerprint[:16]}-{split}",
            vocab_size=vocab_size,
            max_seq_length=config["max_seq_length"],
            with_pairs=OBJECTIVES[config["objective"]].has_pairs,
            with_starts=split == "train" and is_masked_later,
            # An older version, or a corpus of one source, has none.
            sources=tuple(examples.counts.get("sources", ())) if split == "validation" else (),
        )

    def dtypes(self) -> dict[str, type[np.generic]]:
        """Data types of the store's arrays, by name."""
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
        sources: dict[str, type[np.generic]] = {"sources": np.int32} if self.sources else {}
        return always | pairs | starts | sources


def open_rows(files: SplitFiles, folder: Path | None = None, *, quiet: bool = False) -> StoredRows:
    """The rows of a split, from a store in `folder` that is written first if it is missing.

    Without a folder the store is temporary and removed with the process. Raises `BertpipeError` for
    a damaged shard, a row beyond the limits of its folder or the model, no row, or a full disk.
    """
    if folder is None:
        # Mapped files stay until they are unmapped.
        with tempfile.TemporaryDirectory(prefix="bertpipe-") as temporary:
            return open_rows(files, Path(temporary), quiet=quiet)
    complete = folder / files.key
    in_use = _prepare(files, complete, quiet)
    found = {name: _map(complete, name) for name in files.dtypes()}
    return StoredRows(
        in_use=in_use,
        tokens=RaggedColumn(found["tokens"], found["offsets"]),
        first_segment=found["first_segment"],
        masked_positions=RaggedColumn(found["masked_positions"], found["masked_offsets"]),
        masked_labels=found["masked_labels"],
        is_random_next=found.get("is_random_next"),
        word_starts=found.get("word_starts"),
        sources=found.get("sources"),
    )


def _prepare(files: SplitFiles, complete: Path, quiet: bool) -> LockFile:
    """Write the store unless it is there; returns the lock to keep while the store is used.

    Only the first process that uses the store reads it completely, to compare its hashes: the
    others would take as long again.
    """
    complete.parent.mkdir(parents=True, exist_ok=True)
    file = LockFile(complete.with_name(f"{complete.name}.lock"))
    is_ready = False
    while not is_ready:
        if file.lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
            try:
                if not _is_intact(files, complete, quiet):
                    _write(files, complete, quiet)
            finally:
                file.lock(fcntl.LOCK_UN)
        file.lock(fcntl.LOCK_SH)  # waits for the first process
        is_ready = complete.is_dir()  # else that process was killed while it wrote
    return file


def _is_intact(files: SplitFiles, complete: Path, quiet: bool) -> bool:
    try:
        hashes = read_checked_json(complete / HASHES)
    except (FileNotFoundError, ValueError):
        return False
    names = files.dtypes()
    with bar("verifying the laid out examples", len(names), quiet=quiet) as progress:
        for name in names:
            path = _file(complete, name)
            if not path.is_file() or hash_file(path) != hashes.get(name):
                return False
            progress.advance()
    return True


def remove_store(folder: Path) -> None:
    """Remove the stores in a folder, also if another process does so; a kill leaves all or none."""
    removed = folder.with_name(f"{folder.name}.tmp")
    with suppress(FileNotFoundError):
        folder.rename(removed)
    # A network file system keeps files that are still mapped.
    shutil.rmtree(removed, ignore_errors=True)


def _map(folder: Path, name: str) -> Array:
    # A plain view: NumPy's memmap class makes every small operation slower.
    return np.asarray(np.load(_file(folder, name), mmap_mode="r", allow_pickle=False))


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _write(files: SplitFiles, complete: Path, quiet: bool) -> None:
    """Write all arrays of a store, and their hashes."""
    with atomic_folder(complete) as temporary:
        with (
            bar("laying out examples", len(files.shards), quiet=quiet) as progress,
            ExitStack() as arrays,
        ):
            appends = {
                name: arrays.enter_context(_growing(_file(temporary, name), dtype))
                for name, dtype in files.dtypes().items()
            }
            _append_shards(files, appends, progress.advance)
        hashes = {name: hash_file(_file(temporary, name)) for name in files.dtypes()}
        write_checked_json(temporary / HASHES, hashes)
    pa.default_memory_pool().release_unused()


def _append_shards(
    files: SplitFiles, append: Mapping[str, Callable[[Array], None]], advance: Callable[[], None]
) -> None:
    ends = {"offsets": 0, "masked_offsets": 0}
    for name in ends:
        append[name](np.zeros(1, np.int64))
    rows = 0
    for path, sha256 in files.shards.items():
        verify_file(path, sha256)
        optional = {WORD_STARTS.name: files.with_starts, SOURCE.name: bool(files.sources)}
        names = [name for name, is_there in optional.items() if is_there]
        table = read_columns(path, [*SCHEMA.names, *names])
        rows += table.num_rows
        if table.num_rows:
            for name, values in _flatten(table, path, files).items():
                if name in ends:
                    values = values[1:] + ends[name]
                    ends[name] = int(values[-1])
                append[name](values)
        advance()
    if not rows:
        raise BertpipeError(
            "The examples have no row of this split; make them with --validation-fraction above 0."
        )


def _flatten(table: pa.Table, path: Path, files: SplitFiles) -> dict[str, Array]:
    """The arrays of one shard without padding, each row checked."""
    columns = {
        name: RaggedColumn.from_arrow(table[name])
        for name in table.column_names
        if name not in ("is_random_next", SOURCE.name)
    }
    # Remove padding, whose segment id is -1.
    aligned = [name for name in ("tokens", "segment_ids", WORD_STARTS.name) if name in columns]
    real = columns["segment_ids"].values >= 0
    if not real.all():
        columns |= {name: columns[name].keep(real) for name in aligned}
    tokens = columns["tokens"]
    segment_ids = columns["segment_ids"]
    positions = columns["masked_positions"]
    labels = columns["masked_labels"]
    first_segment = np.diff(offsets_of(segment_ids.values == 0)[segment_ids.offsets])
    check_rows(path, files, tokens, segment_ids.values, first_segment, positions, labels)
    arrays = {
        "tokens": tokens.values,
        "offsets": tokens.offsets,
        "first_segment": first_segment,
        "masked_positions": positions.values,
        "masked_offsets": positions.offsets,
        "masked_labels": labels.values,
    }
    if files.with_pairs:
        arrays["is_random_next"] = table["is_random_next"].to_numpy()
    if files.with_starts:
        arrays["word_starts"] = columns[WORD_STARTS.name].values
    if files.sources:
        arrays["sources"] = number_sources(path, files, table[SOURCE.name])
    return arrays


@contextmanager
def _growing(path: Path, dtype: type[np.generic]) -> Iterator[Callable[[Array], None]]:
    """A .npy file to append to; its header, which NumPy pads for growth, is written last."""
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
