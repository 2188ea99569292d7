"""Files of embeddings, written part by part: `.parquet`, `.npy` and `.npz`."""

import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.predict.embed import Embeddings
from bert_pipeline.ragged import Array
from bert_pipeline.storage.atomic import atomic
from bert_pipeline.storage.shards import list_column

SUFFIXES = (".parquet", ".npy", ".npz")

Write = Callable[[Sequence[int], Sequence[str], Embeddings], None]
"""Appends the rows, texts and vectors of consecutive texts."""


def check_out(path: Path, *, by_token: bool) -> None:
    """Raise `UsageError` if no such file can be written."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--out {path}: must end in {', '.join(SUFFIXES)}.")
    if by_token and path.suffix != ".parquet":
        raise UsageError(f"--out {path}: only .parquet holds a list of vectors for each text.")
    if path.is_dir():
        raise BertpipeError(f"--out {path}: is a folder. Name a file.")


@contextmanager
def open_embeddings(path: Path, dimension: int, *, by_token: bool) -> Iterator[Write]:
    """What appends to a new file, which replaces `path` when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        if path.suffix == ".parquet":
            with _write_parquet(temporary, dimension, by_token=by_token) as write:
                yield write
        elif path.suffix == ".npy":
            with temporary.open("w+b") as file, _write_array(file, (dimension,), "<f4") as append:
                yield lambda rows, texts, embeddings: append(embeddings.vectors)
        else:
            with _write_archive(temporary, dimension) as write:
                yield write


@contextmanager
def _write_parquet(path: Path, dimension: int, *, by_token: bool) -> Iterator[Write]:
    """Columns `id` (the row of the input), `text`, `embedding`; by token also `tokens`, spans."""
    vector = pa.list_(pa.float32(), dimension)
    fields = [("id", pa.int64()), ("text", pa.string())]
    if by_token:
        fields += [("tokens", pa.list_(pa.string()))]
        fields += [(name, pa.list_(pa.int32())) for name in ("starts", "ends")]
    fields.append(("embedding", pa.list_(vector) if by_token else vector))
    schema = pa.schema(fields)
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:

        def write(rows: Sequence[int], texts: Sequence[str], embeddings: Embeddings) -> None:
            values = pa.FixedSizeListArray.from_arrays(embeddings.vectors.ravel(), dimension)
            columns = [pa.array(rows, pa.int64()), pa.array(texts, pa.string())]
            if by_token:
                starts, ends = (
                    [[span[end] for span in spans] for spans in embeddings.spans] for end in (0, 1)
                )
                columns += map(pa.array, (embeddings.tokens, starts, ends), schema.types[2:5])
                values = list_column(values, embeddings.offsets)
            writer.write_batch(pa.record_batch([*columns, values], schema))

        yield write


@contextmanager
def _write_array(
    file: IO[bytes], shape: tuple[int, ...], dtype: str
) -> Iterator[Callable[[Array], None]]:
    """What appends items of a shape to an array in `.npy` format, which can be mapped to memory."""
    count = 0

    def write_header() -> None:
        file.seek(0)
        header = {"descr": dtype, "fortran_order": False, "shape": (count, *shape)}
        # numpy leaves room in the header for the first dimension to grow.
        np.lib.format.write_array_header_1_0(file, header)

    def append(items: Array) -> None:
        nonlocal count
        file.write(np.ascontiguousarray(items, dtype=dtype).data)
        count += len(items)

    write_header()
    yield append
    write_header()
    file.flush()


@contextmanager
def _write_archive(path: Path, dimension: int) -> Iterator[Write]:
    """The arrays `embeddings` and `ids`, the rows of the input, not compressed."""
    folder = path.parent  # on the same disk, which has room for the result
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,
        TemporaryFile(dir=folder) as vectors,
        TemporaryFile(dir=folder) as ids,
    ):
        with (
            _write_array(vectors, (dimension,), "<f4") as append_vectors,
            _write_array(ids, (), "<i8") as append_ids,
        ):

            def write(rows: Sequence[int], texts: Sequence[str], embeddings: Embeddings) -> None:
                append_vectors(embeddings.vectors)
                append_ids(np.array(rows))

            yield write
        for name, file in (("embeddings", vectors), ("ids", ids)):
            file.seek(0)
            # A fixed date, so that the same vectors give the same file.
            member = zipfile.ZipInfo(f"{name}.npy")
            with archive.open(member, "w", force_zip64=True) as target:
                shutil.copyfileobj(file, target)
