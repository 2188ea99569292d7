"""The source of the document of each validation row, for a corpus of several sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bert_pipeline.examples.encode_corpus import EncodeJob, encode_piece
from bert_pipeline.examples.token_store import TokenStore, piece_path
from bert_pipeline.storage.atomic import hash_file
from bert_pipeline.storage.manifest import read_manifest
from tests.helpers.example_rows import restore, rows_of, shard_bytes
from tests.helpers.unique_words import SPECIAL, Build, build

__all__ = ["build"]

LONG = [[8] * 150, [10] * 100, [5] * 300, [12] * 90, [7] * 200]
"""Few long documents: their ends are held out."""
SHORT = [[4, 9, 30, 6], [7] * 5, [], [3, 3], [21, 2, 8], [], *([6, 11, 4], [9]) * 12]
"""Short documents, some without a token."""


def read_sources(folder: Path) -> list[str]:
    """The column of sources of all validation rows."""
    files = sorted(folder.glob("validation-*.parquet"))
    tables = [pq.read_table(file, columns=["source"]) for file in files]
    sources: list[str] = pa.concat_tables(tables)["source"].to_pylist()
    return sources


def expected_sources(folder: Path, documents: Sequence[Sequence[int]]) -> list[str]:
    """The source of each row by its first word: words ascend, and each source has one half."""
    first, second = (f"jsonl:{file}" for file in sorted((folder.parent / "corpus-raw").iterdir()))
    in_first = sum(map(sum, documents[: -(-len(documents) // 2)]))
    end = len(SPECIAL) + in_first
    return [first if restore(row)[1] < end else second for row in rows_of(folder, "validation")]


@pytest.mark.parametrize("documents", [LONG, SHORT], ids=["divided", "short"])
@pytest.mark.parametrize(
    "options",
    [
        {"objective": "mlm+nsp", "pad": True},
        {"objective": "mlm+sop", "mask_unit": "whole-word", "masks": "dynamic"},
        {"objective": "mlm"},
        {"objective": "mlm", "across_documents": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_validation_rows_have_the_source_of_their_first_document(
    build: Build, tmp_path: Path, documents: list[list[int]], options: dict[str, Any]
) -> None:
    fraction = 0.02 if documents is LONG else 0.4
    counts = build(documents, several_sources=True, validation_fraction=fraction, **options)
    assert bool(counts["divided_documents"]) == (documents is LONG)
    folder = tmp_path / "examples"
    expected = expected_sources(folder, documents)
    assert len(set(expected)) == 2
    assert read_sources(folder) == expected
    assert "source" not in pq.read_schema(folder / "train-00000.parquet").names


def test_one_source_has_no_column(build: Build, tmp_path: Path) -> None:
    build(SHORT, validation_fraction=0.4)
    folder = tmp_path / "examples"
    assert "source" not in pq.read_schema(folder / "validation-00000.parquet").names
    assert "sources" not in read_manifest(folder, "examples").counts


@pytest.mark.integration
def test_sources_give_the_same_bytes_for_any_workers(build: Build, tmp_path: Path) -> None:
    given = {"several_sources": True, "validation_fraction": 0.02, "dupe_factor": 1}
    build(LONG, **given)
    build(LONG, **given, workers=2, out=tmp_path / "again")
    assert shard_bytes(tmp_path / "examples") == shard_bytes(tmp_path / "again")


def test_documents_of_one_piece_can_have_different_sources(tmp_path: Path) -> None:
    """The second document has no token."""
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "ba", "na", "."]), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    texts = ["Ba na. Ba.", "\u0300", "Na ba na.", "Na.\nBa."]
    columns = {"text": texts, "language": ["en"] * 4, "source": ["b", "b", "a", "b"]}
    shard = tmp_path / "corpus.parquet"
    pq.write_table(pa.table(columns), shard)
    given = (shard, hash_file(shard), 0, 4, tmp_path, False, ("a", "b"))
    encode_piece(EncodeJob(piece_path(tmp_path, 0), *given))
    piece = TokenStore(tmp_path, [3]).open(0)
    lengths = np.diff(piece.sentences[piece.documents])
    found = piece.find_sources(np.arange(len(piece.ids)))
    assert found.tolist() == np.repeat([1, 0, 1], lengths).tolist()
