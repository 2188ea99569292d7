"""`--max-documents`, `--max-bytes` and `--shuffle-buffer`."""

from __future__ import annotations

from pathlib import Path

import pytest

from bert_pipeline.errors import BertpipeError
from tests.helpers.corpora import (
    big_rows,
    build,
)
from tests.helpers.text import write_jsonl


@pytest.mark.parametrize("steps", ["basic", "basic,exact,near"])
@pytest.mark.parametrize(
    ("limit", "workers"),
    [
        *((limit, 1) for limit in (1, 40, 41, 137, 200)),
        pytest.param(41, 3, marks=pytest.mark.integration),
        *(pytest.param(limit, 1, marks=pytest.mark.slow) for limit in (2, 39, 1000)),
        pytest.param(1000, 3, marks=pytest.mark.slow),
    ],
)
def test_max_documents_keeps_the_first_documents(
    tmp_path: Path, steps: str, limit: int, workers: int
):
    source, texts = big_rows(tmp_path)
    found, counts = build(
        tmp_path / "out", source, max_documents=limit, workers=workers, clean=(steps,)
    )
    assert found == texts[:limit]
    assert counts["documents"] == min(limit, 200)


@pytest.mark.parametrize("steps", ["basic", "basic,exact"])
@pytest.mark.parametrize("limit", [30, 1000, 1001, 5000, 10**6])
def test_max_bytes_keeps_complete_documents(tmp_path: Path, limit: int, steps: str):
    source, texts = big_rows(tmp_path)
    found, counts = build(tmp_path / "out", source, max_bytes=limit, clean=(steps,))
    fitting = [
        n for n in range(len(texts) + 1) if sum(len(text.encode()) for text in texts[:n]) <= limit
    ]
    assert found == texts[: fitting[-1]]
    assert counts["bytes"] == sum(len(text.encode()) for text in found) <= limit


def test_max_documents_is_counted_after_cleaning_and_deduplication(tmp_path: Path):
    texts = [
        f"Text {n // 4} is here in four copies, as it were, and that is that." for n in range(400)
    ]
    for number in range(4):
        write_jsonl(
            tmp_path / "raw" / f"{number}.jsonl", [" \n", *texts[number * 100 : number * 100 + 100]]
        )
    found, counts = build(
        tmp_path / "out", f"jsonl:{tmp_path}/raw/*.jsonl", max_documents=30, clean=("basic,exact",)
    )
    assert found == [texts[4 * n] for n in range(30)]
    assert counts["documents"] == 30


def test_max_bytes_below_first_document_is_an_error(tmp_path: Path):
    source, _ = big_rows(tmp_path)
    for steps in ("exact", "basic"):
        with pytest.raises(
            BertpipeError,
            match=r"the first document has \d+ bytes or more, which exceeds --max-bytes 3",
        ):
            build(tmp_path / steps, source, max_bytes=3, clean=(steps,))


@pytest.mark.integration
@pytest.mark.parametrize("buffer", [2, 16, pytest.param(1000, marks=pytest.mark.slow)])
def test_shuffle_buffer_is_reproducible_and_keeps_all_documents(tmp_path: Path, buffer: int):
    source, texts = big_rows(tmp_path)
    first, _ = build(tmp_path / "a", source, shuffle_buffer=buffer, seed=5)
    again, _ = build(tmp_path / "b", source, shuffle_buffer=buffer, seed=5, workers=3)
    other, _ = build(tmp_path / "c", source, shuffle_buffer=buffer, seed=6)
    assert first == again
    assert first != other
    assert first != texts
    assert sorted(first) == sorted(other) == sorted(texts)


def test_shuffle_buffer_shuffles_files(tmp_path: Path):
    for number in range(200):
        write_jsonl(tmp_path / "raw" / f"{number:03}.jsonl", [f"Text {number:03}."])
    source = f"jsonl:{tmp_path}/raw/*.jsonl"
    first, _ = build(tmp_path / "out", source, shuffle_buffer=2, max_documents=20, shard_mb=16)
    assert min(first) < "Text 060." < "Text 140." < max(first)


def test_shuffle_buffer_size_limits_the_distance(tmp_path: Path):
    source, texts = big_rows(tmp_path, files=1, rows=300)
    found, _ = build(tmp_path / "out", source, shuffle_buffer=10)
    earlier = [texts.index(text) - place for place, text in enumerate(found)]
    assert max(earlier) <= 10
    assert sum(map(abs, earlier)) / len(earlier) > 2
