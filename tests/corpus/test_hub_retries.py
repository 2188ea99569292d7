"""Retries with exponential backoff: network errors lose and repeat no row."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.local_hub import LocalHub

if sys.version_info >= (3, 14):
    pass
else:
    pass
from tests.helpers.hub_reading import (
    DATA,
    FEWER_FORMATS,
    FOREVER,
    TEXTS,
    Read,
    Run,
    environment,
    hub,
    invent_texts,
    long_texts,
    pack,
    read,
    reader,
    run,
    server,
)

__all__ = ["environment", "hub", "read", "reader", "run", "server"]

pytestmark = pytest.mark.integration


def list_paths(repository: str, path: str) -> list[str]:
    import huggingface_hub

    from bert_pipeline.hub.client import connect

    connect(20, True)
    found = huggingface_hub.HfApi().get_paths_info(repository, [path], repo_type="dataset")
    return [entry.path for entry in found]


# What the libraries do by themselves, and why lines are not read through `load_dataset`
def load_plainly(builder: str, path: str, **options: Any) -> list[Any] | str:
    """The texts that `load_dataset` streams with our settings, or the name of its exception."""
    import datasets

    from bert_pipeline.hub.client import connect

    connect(20, True)
    try:
        rows = datasets.load_dataset(
            builder, data_files=f"hf://datasets/{path}", split="train", streaming=True, **options
        )
        return [row["text"] for row in rows]
    except Exception as error:
        return type(error).__name__


# Network errors
@pytest.mark.parametrize("form", FEWER_FORMATS)
@pytest.mark.parametrize("kind", ["reset", "cut"])
def test_broken_connection_is_retried_without_losing_rows(
    hub: LocalHub, read: Read, form: str, kind: Any
) -> None:
    """A connection that closes early must not count as a broken or shorter file."""
    hub.add("me/data", {f"data/train-0.{form}": pack(TEXTS, form)})
    hub.plant(kind, DATA, times=3 if kind == "reset" else 1, after=10_000, min_size=20_000)
    reading = read("hub:me/data", on_error="skip")
    assert reading.texts == TEXTS
    assert not reading.counts
    assert not hub.faults[0].times


@pytest.mark.parametrize("form", [pytest.param("parquet", marks=pytest.mark.slow), "jsonl.zst"])
def test_retry_of_long_file_downloads_one_range_again(hub: LocalHub, read: Read, form: str) -> None:
    """Files are downloaded in ranges of five megabytes: a failure repeats one of them."""
    texts = long_texts()
    content = pack(texts, form)
    hub.add("me/data", {f"data/train-0.{form}": content})
    hub.plant("cut", DATA, times=2, after=1_000_000, min_size=4_000_000, spared=1)
    assert read("hub:me/data").texts == texts
    got = sum(last - first + 1 for first, last in hub.ranges("train-0"))
    assert len(content) < got < len(content) + 2 * 7_000_000
    assert not hub.faults[0].times


@pytest.mark.parametrize("form", [pytest.param("parquet", marks=pytest.mark.slow), "jsonl.zst"])
def test_rate_limit_within_long_file_loses_no_rows(hub: LocalHub, read: Read, form: str) -> None:
    texts = long_texts()
    hub.add("me/data", {f"data/train-0.{form}": pack(texts, form)})
    hub.plant(
        "status",
        DATA,
        status=429,
        headers={"Retry-After": "1"},
        times=2,
        min_size=4_000_000,
        spared=1,
    )
    reading = read("hub:me/data")
    assert reading.texts == texts
    assert len(reading.printed.splitlines()) == 2


def test_truncated_response_of_complete_file_is_retried(hub: LocalHub, read: Read) -> None:
    texts = invent_texts(200)
    hub.add("me/data", {"data/0.json": json.dumps([{"text": text} for text in texts])})
    hub.plant("cut", r"resolve/.*0\.json", times=3, after=50_000, min_size=100_000)
    assert read("hub:me/data").texts == texts


def test_timeout_is_retried(hub: LocalHub, read: Read) -> None:
    hub.add("me/data", {"data/train-0.jsonl.gz": pack(TEXTS, "jsonl.gz")})
    hub.plant("stall", "/api/datasets/me/data")
    hub.plant("stall", DATA, after=10_000, min_size=20_000)
    reading = read("hub:me/data", max_wait=4)
    assert reading.texts == TEXTS
    assert [line.split("; ")[0].rpartition(": ")[2] for line in reading.printed.splitlines()] == [
        "timeout after 1 s without data"
    ] * 2


@pytest.mark.parametrize("form", FEWER_FORMATS)
def test_retry_after_header_is_respected(hub: LocalHub, read: Read, form: str) -> None:
    hub.add("me/data", {f"data/train-0.{form}": pack(TEXTS, form)})
    hub.plant("status", DATA, status=429, headers={"Retry-After": "1"}, min_size=20_000)
    reading = read("hub:me/data")
    assert reading.texts == TEXTS
    assert re.search(
        r"^http://\S+/train-0\S+: 429 Too Many Requests; "
        r"retrying in 1\.0 s, giving up after \d+ s\.$",
        reading.printed,
    )
    assert reading.seconds >= 1


def test_retry_after_longer_than_max_wait_fails_at_once(hub: LocalHub, read: Read) -> None:
    hub.add("me/data", {"data/train-0.parquet": pack(TEXTS, "parquet")})
    hub.plant("status", "/api/datasets/me/data", status=429, headers={"Retry-After": "3600"})
    reading = read("hub:me/data")
    assert (
        "429 Too Many Requests. The Hub asks to wait 3600 s, longer than --max-wait 20 allows."
        in reading.error
    )
    assert reading.seconds < 5


@pytest.mark.parametrize(
    ("kind", "path", "method"),
    [
        ("status", r"/api/datasets/me/data$", "GET"),
        ("status", r"/revision/", "GET"),
        ("status", r"/tree/", "GET"),
        ("status", r"resolve/.*README", "HEAD"),
        ("reset", r"resolve/.*README", "HEAD"),
        ("cut", r"resolve/.*README", "GET"),
        ("reset", r"/tree/", "GET"),
    ],
)
def test_every_kind_of_request_is_retried(
    hub: LocalHub, read: Read, kind: Any, path: str, method: str
) -> None:
    """Errors for which the libraries give up, or retry with their own limits."""
    content = {
        "data/train-0.parquet": pack(TEXTS, "parquet"),
        "README.md": f"# {kind} {path} {method}\n",  # a commit that is in no cache
    }
    hub.add("me/data", content)
    hub.plant(kind, path, method=method, status=503, times=2)
    reading = read("hub:me/data")
    assert reading.texts == TEXTS
    assert not hub.faults[0].times
    assert reading.seconds < 10


@pytest.mark.parametrize(("path", "status"), [(r"^/api/", 500), (r"/cdn/.*train-1", 502)])
def test_permanent_errors_fail_after_max_wait_with_url(
    hub: LocalHub, read: Read, path: str, status: int
) -> None:
    hub.add("me/data", {f"data/train-{n}.parquet": pack(TEXTS, "parquet") for n in range(2)})
    hub.plant("status", path, status=status, times=FOREVER)
    reading = read("hub:me/data", max_wait=1.5, on_error="skip", shard_mb=0.001)
    assert 1.5 <= reading.seconds < 6
    assert re.match(
        rf"http://\S+({'train-1' if status == 502 else 'me/data'})\S*: {status} \w+", reading.error
    )
    assert "--max-wait 1.5" in reading.error
    assert "rerun the same command" in reading.error
    assert reading.texts == (TEXTS if status == 502 else [])
    assert not reading.counts


@pytest.mark.parametrize("form", ["jsonl.gz", "parquet"])
def test_missing_file_is_never_skipped(hub: LocalHub, read: Read, form: str) -> None:
    hub.add("me/data", {f"train.{form}": pack(TEXTS, form)})
    hub.plant("status", r"/cdn/", status=404, times=FOREVER)
    reading = read("hub:me/data", on_error="skip")
    assert re.search(rf"train\.{form}: 404 Not Found", reading.error)
    assert "Signature" not in reading.error  # a signed URL gives access to readers of the log
    assert reading.seconds < 5


def test_wrong_range_response_is_retried(hub: LocalHub, read: Read) -> None:
    texts = long_texts()
    hub.add("me/data", {"data/train-0.jsonl.gz": pack(texts, "jsonl.gz")})
    hub.plant("no-range", "/cdn/", times=2, spared=1)
    reading = read("hub:me/data")
    assert reading.texts == texts
    assert re.findall(r"wrong range: received the complete file instead of bytes ", reading.printed)


@pytest.mark.parametrize(
    ("form", "spared"), [("jsonl.gz", 0), pytest.param("parquet", 1, marks=pytest.mark.slow)]
)
def test_range_that_starts_early_is_retried(
    hub: LocalHub, read: Read, form: str, spared: int
) -> None:
    """It has the right length, so rows would repeat some bytes and lose others."""
    texts = long_texts()
    hub.add("me/data", {f"data/train-0.{form}": pack(texts, form)})
    hub.plant("early", "/cdn/", times=2, spared=spared)
    reading = read("hub:me/data", on_error="skip")
    assert reading.texts == texts
    assert not reading.counts
    assert not hub.faults[0].times
    assert "wrong range: received bytes" in reading.printed


def test_expired_download_url_is_asked_for_again(hub: LocalHub, read: Read) -> None:
    hub.add("me/data", {"train.jsonl.gz": pack(TEXTS, "jsonl.gz")})
    expired = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"
    hub.plant("status", "/cdn/", status=403, times=2, body=expired)
    reading = read("hub:me/data")
    assert reading.texts == TEXTS
    asked = [request for request in hub.log if "/resolve/" in request.path and request.range]
    assert len(asked) == 3
    assert "403 Forbidden; retrying" in reading.printed
    assert "xml" not in reading.printed


@pytest.mark.parametrize("status", [520, 524])
def test_status_of_an_unreachable_origin_is_retried(hub: LocalHub, read: Read, status: int) -> None:
    hub.add("me/data", {"train.jsonl": pack(TEXTS, "jsonl"), "README.md": f"# {status}\n"})
    hub.plant("status", "train|/api/", status=status, times=2)
    assert read("hub:me/data").texts == TEXTS


def test_body_that_trickles_is_retried(hub: LocalHub, read: Read) -> None:
    hub.add("me/data", {"train.jsonl": pack(TEXTS, "jsonl")})
    hub.plant("trickle", "resolve/.*train", after=20, min_size=20_000)
    reading = read("hub:me/data", max_wait=4)
    assert reading.texts == TEXTS
    assert re.search(r"received only \d+ bytes in \d s; retrying", reading.printed)


def test_wait_that_the_hub_asks_for_does_not_end_the_run(hub: LocalHub, read: Read) -> None:
    """Its rate limit has windows of 300 seconds, more than the default of --max-wait."""
    hub.add("me/data", {"train.jsonl": pack(TEXTS, "jsonl")})
    hub.plant("status", "train", status=429, headers={"Retry-After": "2"}, min_size=20_000)
    assert read("hub:me/data", max_wait=1).texts == TEXTS


PORTAL = b"<html><title>Welcome to the hotel</title></html>"
LOGIN = b'{"login": "required"}'


@pytest.mark.parametrize(
    ("path", "body", "headers", "problem"),
    [
        ("/api/datasets/me/data", PORTAL, {"Content-Type": "text/html"}, "an HTML page instead of"),
        ("/api/datasets/me/data", PORTAL, {}, f"{len(PORTAL)} bytes that are not JSON"),
        ("/api/datasets/me/data", LOGIN, {}, f"{len(LOGIN)} bytes that are not JSON of the Hub"),
        ("/tree/", LOGIN, {}, f"{len(LOGIN)} bytes that are not JSON of the Hub"),
        ("README.md", PORTAL, {"Content-Type": "text/html; charset=utf-8"}, "an HTML page"),
        ("README.md", b"Please log in.", {}, "14 bytes without an ETag"),
        ("README.md", b"# Shor", {"ETag": f'"{"0" * 40}"'}, "6 bytes that differ from the hash"),
    ],
)
def test_page_of_another_server_is_retried_and_named(
    hub: LocalHub, read: Read, path: str, body: bytes, headers: dict[str, str], problem: str
) -> None:
    readme = f"# {len(body)} {path} {headers}\n"  # a commit that is in no cache
    hub.add("me/data", {"train.jsonl": pack(TEXTS, "jsonl"), "README.md": readme})
    hub.plant("status", path, status=200, body=body, headers=headers)
    assert read("hub:me/data").texts == TEXTS
    assert not hub.faults[0].times
    hub.plant("status", path, status=200, body=body, headers=headers, times=FOREVER)
    hub.add("me/data", {"README.md": readme + "\n"})
    error = read("hub:me/data", max_wait=0.2).error
    assert problem in error
    assert "<" not in error


@pytest.mark.parametrize("refuses", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_unreachable_host_fails_after_max_wait(run: Run, tmp_path: Path, refuses: bool) -> None:
    """A host that refuses connections, and one that accepts them and does not respond."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if not refuses:
            listening.listen()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        start = time.monotonic()
        done = run(
            "corpus",
            "--source",
            "oscar:fa",
            "--out",
            tmp_path / "out",
            "--max-wait",
            "1",
            HF_ENDPOINT=url,
        )
        assert time.monotonic() - start < 20
    assert done.returncode == 1
    assert f"{url}/api/datasets/oscar-corpus/OSCAR-2301: " in done.stderr
    assert ("Connection refused" if refuses else "timeout after 1 s without data") in done.stderr
    assert "Traceback" not in done.stderr


def test_post_that_only_reads_is_retried(hub: LocalHub, reader: ProcessPoolExecutor) -> None:
    """The kind of request for file information depends on the version of `huggingface_hub`."""
    hub.add("me/paths", {"a.txt": b"One."})
    hub.plant("status", "/paths-info/", method="POST", status=503, times=2)
    assert reader.submit(list_paths, "me/paths", "a.txt").result() == ["a.txt"]
    assert not hub.faults[0].times


@pytest.mark.parametrize(
    ("kind", "details"),
    [
        ("reset", {"after": 10_000, "min_size": 20_000, "times": 3}),
        ("cut", {"after": 10_000, "min_size": 20_000}),
        ("status", {"status": 503}),
        ("status", {"status": 429, "headers": {"Retry-After": "1"}}),
    ],
)
@pytest.mark.parametrize(
    "form",
    [
        "parquet",
        "jsonl.gz",
        pytest.param("jsonl.zst", marks=pytest.mark.slow),
    ],
)
def test_load_dataset_streams_through_network_errors(
    hub: LocalHub, reader: ProcessPoolExecutor, form: str, kind: Any, details: dict[str, Any]
) -> None:
    # The libraries cache the list of files, so each case has its own repository.
    repository = f"me/{form.replace('.', '-')}-{kind}-{details.get('status', 0)}"
    hub.add(repository, {f"train.{form}": pack(TEXTS, form)})
    hub.plant(kind, DATA, **details)
    builder = "parquet" if form == "parquet" else "json"
    assert reader.submit(load_plainly, builder, f"{repository}/train.{form}").result() == TEXTS
    assert not hub.faults[0].times


def test_load_dataset_fails_on_invalid_utf8(hub: LocalHub, reader: ProcessPoolExecutor) -> None:
    """If `datasets` is fixed, `lines` in hub_rows.py can be removed."""
    hub.add("me/bytes", {"train.txt": b"caf\xe9\n"})
    read = reader.submit(load_plainly, "text", "me/bytes/train.txt", encoding_errors="replace")
    assert read.result() == "UnicodeDecodeError"


@pytest.mark.parametrize(
    ("form", "workers"),
    [
        ("parquet", 1),
        pytest.param("jsonl.gz", 1, marks=pytest.mark.slow),
        pytest.param("jsonl.gz", 2, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_interrupts_backoff(
    hub: LocalHub, environment: dict[str, str], tmp_path: Path, form: str, workers: int
) -> None:
    hub.add("me/data", {f"data/train-{number}.{form}": pack(TEXTS, form) for number in range(2)})
    # The texts, not the footer of parquet, because Arrow reads them in its own threads.
    hub.plant(
        "status",
        "/cdn/",
        status=503,
        headers={"Retry-After": "50"},
        times=FOREVER,
        min_size=100_000,
    )
    command = [
        "-m",
        "bert_pipeline",
        "corpus",
        "--source",
        "hub:me/data",
        "--workers",
        str(workers),
    ]
    process = subprocess.Popen(
        [sys.executable, *command, "--out", str(tmp_path / "out")],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        assert "retrying in 50.0 s" in process.stderr.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        _, printed = process.communicate(timeout=30)
    finally:
        process.kill()
    assert time.monotonic() - start < 5
    assert process.returncode == 130
    assert "Traceback" not in printed
