"""Hub sources with broken data: an error, or skipped and counted."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.helpers.local_hub import LocalHub

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd
from tests.helpers.hub_reading import (
    LINES,
    RAW,
    TEXTS,
    Read,
    Run,
    add_wikitext,
    environment,
    hub,
    invent_texts,
    pack,
    read,
    reader,
    run,
    server,
    to_parquet,
)

__all__ = ["environment", "hub", "read", "reader", "run", "server"]

pytestmark = pytest.mark.integration


# Damaged files
def break_data(form: str) -> bytes:
    """A file whose second half is damaged."""
    whole = pack(TEXTS, form)
    if form == "parquet":
        place = whole.index(TEXTS[250].encode())
        return whole[: place + 20] + bytes([whole[place + 20] ^ 1]) + whole[place + 21 :]
    return whole[: len(whole) // 2]


@pytest.mark.parametrize("form", ["parquet", "jsonl.gz", "jsonl.zst"])
def test_broken_file_is_an_error_or_skipped(hub: LocalHub, read: Read, form: str) -> None:
    """A flipped bit in parquet, truncated .gz and .zst."""
    broken = break_data(form)
    hub.add(
        "me/data", {f"data/train-0.{form}": broken, f"data/train-1.{form}": pack(["next"], form)}
    )
    reading = read("hub:me/data")
    assert re.search(
        rf"/datasets/me/data/resolve/\w+/data/train-0\.{form}: broken or truncated \(.+\)\.",
        reading.error,
    )
    assert "--on-error skip" in reading.error
    skipped = [read("hub:me/data", on_error="skip") for _ in range(5)]
    assert skipped[0].counts == Counter(skipped_broken_file=1)
    assert skipped[0].texts[-1] == "next"
    assert skipped[0].texts[:-1] == TEXTS[: len(skipped[0].texts) - 1]
    assert all(again.texts == skipped[0].texts for again in skipped)
    assert skipped[0].printed == reading.printed == ""  # not retried


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_bit_changed_in_a_small_file_is_downloaded_again(
    hub: LocalHub, read: Read, form: str
) -> None:
    hub.add("me/data", {f"train.{form}": pack(TEXTS, form)})
    hub.plant("flip", "/cdn/|resolve/.*train", after=60_000, min_size=100_000)
    reading = read("hub:me/data", on_error="skip")
    assert (reading.texts, reading.counts) == (TEXTS, Counter())
    assert "bytes that differ from the hash of the file; retrying" in reading.printed


@pytest.mark.parametrize(
    "form",
    ["parquet", *(pytest.param(form, marks=pytest.mark.slow) for form in ("jsonl", "jsonl.gz"))],
)
def test_bit_changed_in_one_range_is_neither_passed_on_nor_broken_data(
    hub: LocalHub, run: Run, tmp_path: Path, form: str
) -> None:
    """The hash is that of the complete file: shards that were finished are read again."""
    texts = invent_texts(2500, 400)
    content = pack(texts, form)
    if form == "parquet":  # without checksums of pages
        content = to_parquet({"text": texts}, row_group_size=500, compression="none")
    hub.add("me/data", {f"train.{form}": content})
    command = ["corpus", "--source", "hub:me/data", "--shard-mb", "1", "--on-error", "skip"]
    hub.plant("flip", "/cdn/|resolve/.*train", after=60_000, min_size=1_000_000)
    damaged = run(*command, "--language", "en", "--quiet", "--out", tmp_path / "out")
    assert damaged.returncode == 1
    assert f"train.{form}: the bytes received differ from the hash" in damaged.stderr
    assert run(*command, "--language", "en", "--out", tmp_path / "out").returncode == 0
    found = [
        text
        for path in sorted((tmp_path / "out").glob("*.parquet"))
        for text in pq.read_table(path)["text"].to_pylist()
    ]
    assert found == texts


def test_truncated_parquet_is_an_error_or_skipped(hub: LocalHub, read: Read) -> None:
    whole = pack(TEXTS, "parquet")
    hub.add("me/data", {"0.parquet": whole[:-5000], "1.parquet": pack(["next"], "parquet")})
    assert "0.parquet: broken or truncated (" in read("hub:me/data").error
    skipped = read("hub:me/data", on_error="skip")
    assert (skipped.texts, skipped.counts) == (["next"], Counter(skipped_broken_file=1))


def test_footer_changed_on_the_way_is_not_broken_data(hub: LocalHub, read: Read) -> None:
    """The footer is read first, and a range has no hash."""
    hub.add("me/data", {"train.parquet": pack(TEXTS, "parquet")})
    hub.plant("flip", "/cdn/|resolve/.*train", after=65_534, min_size=65_536)
    reading = read("hub:me/data", on_error="skip")
    assert (reading.texts, reading.counts) == (TEXTS, Counter())
    assert not hub.faults[0].times


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_invalid_json_line_is_an_error_or_skipped(hub: LocalHub, read: Read, form: str) -> None:
    lines = [json.dumps({"text": text}) for text in TEXTS]
    lines[1], lines[300], lines[301] = "", '{"text": "cut o', "[1]"
    plain = "\n".join(lines).encode()
    hub.add(
        "me/data",
        {
            f"train.{form}": {"jsonl.gz": gzip.compress, "jsonl.zst": zstd.compress}.get(
                form, bytes
            )(plain)
        },
    )
    reading = read("hub:me/data")
    assert re.search(
        rf"/train\.{form}, line 301: not a JSON object \(Unterminated string", reading.error
    )
    assert reading.texts == [TEXTS[0], *TEXTS[2:300]]
    skipped = read("hub:me/data", on_error="skip")
    assert skipped.texts == [TEXTS[0], *TEXTS[2:300], *TEXTS[302:]]
    assert skipped.counts == Counter(skipped_not_json=2)
    assert skipped.ids[-1] == f"train.{form}#{len(TEXTS) - 1}"


def test_all_frames_of_a_zstd_file_are_read(hub: LocalHub, read: Read) -> None:
    """The package `zstandard` ends after the first frame, and at a truncated one, silently."""
    frames = [pack(TEXTS[start : start + 50], "jsonl.zst") for start in range(0, 400, 50)]
    hub.add("me/data", {"train.jsonl.zst": b"".join(frames)})
    assert read("hub:me/data").texts == TEXTS
    hub.add("me/cut", {"train.jsonl.zst": b"".join(frames)[:-10]})
    assert "broken or truncated" in read("hub:me/cut").error


def test_wikitext_broken_file_is_counted_once(hub: LocalHub, read: Read) -> None:
    folder = add_wikitext(hub, LINES[:3], LINES[3:12], LINES[12:])
    path = next(folder.glob(f"{RAW}/train-00001-*"))
    path.write_bytes(path.read_bytes()[:-20])
    reading = read("wikitext-2", on_error="skip")
    assert reading.counts == Counter(skipped_broken_file=1)
    assert "train-00001-of-00003.parquet: broken" in read("wikitext-2").error
