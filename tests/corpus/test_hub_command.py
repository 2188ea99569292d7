"""`bertpipe corpus` with Hub sources, on the command line."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.local_hub import LocalHub

if sys.version_info >= (3, 14):
    pass
else:
    pass
from tests.helpers.hub_reading import (
    FOREVER,
    LINES,
    Read,
    Run,
    add_oscar,
    add_wikitext,
    environment,
    hub,
    invent_texts,
    pack,
    read,
    reader,
    run,
    server,
    shards,
)

__all__ = ["environment", "hub", "read", "reader", "run", "server"]

pytestmark = pytest.mark.integration


@pytest.mark.slow
# The command
def test_command_resumes_to_the_same_bytes_after_hub_errors(
    hub: LocalHub, run: Run, tmp_path: Path
) -> None:
    for number in range(3):
        hub.add(
            "me/data",
            {f"data/train-{number}.parquet": pack(invent_texts(300, seed=number), "parquet")},
        )
    command = ["corpus", "--source", "hub:me/data", "--shard-mb", "0.1", "--max-wait", "3"]
    whole = run(*command, "--workers", "1", "--out", tmp_path / "complete")
    assert (whole.returncode, whole.stderr) == (0, "")
    # No telemetry.
    assert not [request.path for request in hub.log if "me/data" not in request.path]
    hub.plant("status", "train-2", status=500, times=FOREVER, min_size=50_000)
    stopped = run(*command, "--workers", "1", "--out", tmp_path / "again")
    assert stopped.returncode == 1
    assert "500 Internal Server Error" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    hub.clear()
    resumed = run(*command, "--workers", "2", "--out", tmp_path / "again")
    assert resumed.returncode == 0
    assert shards(tmp_path / "again") == shards(tmp_path / "complete")
    assert len(shards(tmp_path / "complete")) > 3
    assert not hub.ranges("train-0.parquet")  # it was finished
    taken = json.loads((tmp_path / "complete" / "manifest.json").read_text())["counts"]["taken"][
        "hub:me/data"
    ]
    assert taken["repository"] == "me/data"
    assert re.fullmatch(r"[0-9a-f]{40}", taken["commit"])


@pytest.mark.slow
def test_unfinished_run_goes_on_when_the_dataset_has_moved(
    hub: LocalHub, run: Run, tmp_path: Path
) -> None:
    old = {f"data/train-{n}.jsonl": pack(invent_texts(50, seed=n), "jsonl") for n in range(2)}
    hub.add("me/data", old)
    command = ["corpus", "--source", "hub:me/data", "--max-wait", "1", "--shard-mb", "0.02"]
    whole = run(*command, "--out", tmp_path / "complete")
    assert whole.returncode == 0, whole.stderr
    hub.plant("status", "resolve/.*train-1", status=500, times=FOREVER)
    stopped = run(*command, "--workers", "1", "--out", tmp_path / "again")
    assert stopped.returncode == 1, stopped.stderr
    hub.clear()
    commit = re.search(r"/resolve/(\w+)/", stopped.stderr)
    assert commit
    # The branch has other files, and the commit of the unfinished run can still be read.
    hub.add("me/data", old, revision=commit[1])
    hub.add("me/data", {"data/train-1.jsonl": pack(["Changed."], "jsonl")})
    resumed = run(*command, "--out", tmp_path / "again")
    assert resumed.returncode == 0, resumed.stderr
    assert f"goes on from commit {commit[1]}" in resumed.stdout
    assert shards(tmp_path / "again") == shards(tmp_path / "complete")


def test_command_does_not_write_or_print_the_token(hub: LocalHub, run: Run, tmp_path: Path) -> None:
    add_wikitext(hub, LINES)
    add_oscar(hub, "OSCAR-2301")
    hub.gated = {"oscar-corpus/OSCAR-2301": {"hf_secret"}}
    hub.tokens = {"hf_secret"}
    command = [
        "--debug",
        "corpus",
        "--source",
        "wikitext-2",
        "--source",
        "oscar:fa",
        "--out",
        tmp_path / "out",
    ]
    hub.plant("reset", "/cdn/")
    done = run(*command, HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    table = pa.concat_tables(
        [pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    )
    assert Counter(
        zip(table["source"].to_pylist(), table["language"].to_pylist(), strict=True)
    ) == {
        ("wikitext-2", "en"): 3,
        ("oscar:fa", "fa"): 4,
    }
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(
        b"hf_secret" in content
        for content in [*written, done.stdout.encode(), done.stderr.encode()]
    )


@pytest.mark.slow
def test_max_documents_stops_all_workers(hub: LocalHub, run: Run, tmp_path: Path) -> None:
    for number in range(4):
        hub.add(
            "me/data",
            {f"data/train-{number}.parquet": pack(invent_texts(300, seed=number), "parquet")},
        )
    # The second file never arrives, and must not be waited for.
    hub.plant("status", "train-1", status=500, times=FOREVER, min_size=50_000)
    command = [
        "corpus",
        "--source",
        "hub:me/data",
        "--workers",
        "3",
        "--max-documents",
        "10",
        "--quiet",
    ]
    start = time.monotonic()
    done = run(*command, "--shard-mb", "0.01", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - start < 40
    assert (
        sum(pq.read_metadata(path).num_rows for path in (tmp_path / "out").glob("*.parquet")) == 10
    )
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_finished_corpus_needs_no_network(hub: LocalHub, run: Run, tmp_path: Path) -> None:
    hub.add("me/data", {"data/train-0.jsonl": pack(["One.", "Two."], "jsonl")})
    command = ["corpus", "--source", "hub:me/data", "--max-wait", "0.5", "--out", tmp_path / "out"]
    assert run(*command).returncode == 0
    before = shards(tmp_path / "out")
    for offline in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        again = run(*command, **offline)
        assert again.returncode == 0, again.stderr
        assert "is complete; its sources do not respond" in again.stdout
        other = run(*command, "--clean", "none", **offline)
        assert other.returncode == 1
        assert "is complete" not in other.stdout
    assert shards(tmp_path / "out") == before


def test_password_of_the_endpoint_is_never_printed(hub: LocalHub, run: Run, tmp_path: Path) -> None:
    hub.add("me/data", {"a.jsonl": '{"text": "One."}\n{\n', "README.md": "# A\n"})
    endpoint = hub.url.replace("http://", "http://user:hidden-word@")
    command = ["corpus", "--max-wait", "1", "--out", tmp_path / "out", "--source"]
    hub.plant("status", "/api/datasets/me/data", status=503)
    broken = run(*command, "hub:me/data", HF_ENDPOINT=endpoint)
    hub.plant("status", "/api/", status=503, times=FOREVER)
    unreachable = run(*command, "hub:me/none", HF_ENDPOINT=endpoint)
    assert "a.jsonl, line 2: not a JSON object" in broken.stderr
    assert "503 Service Unavailable. No success" in unreachable.stderr
    for done in (broken, unreachable):
        assert "http://user:***@127.0.0.1" in done.stderr
        assert "hidden-word" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("token", ["hf_schlüssel", "hf_a\tb"])
def test_token_that_cannot_be_sent_is_one_message(hub: LocalHub, read: Read, token: str) -> None:
    hub.add("me/data", {"a.jsonl": '{"text": "One."}\n'})
    reading = read("hub:me/data", token)
    assert reading.error.startswith("HF_TOKEN (or the token that `hf auth login` saved) has")
    assert token not in reading.error
    assert not hub.log


@pytest.mark.parametrize("path", ["/api/datasets/me/data", "README", "train", "/cdn/"])
@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a"])
def test_redirect_to_another_scheme_is_not_followed(
    hub: LocalHub, read: Read, path: str, target: str
) -> None:
    files = {"train.jsonl.gz": pack(["One."], "jsonl.gz"), "README.md": f"# {path} {target}\n"}
    hub.add("me/data", files)
    hub.plant("status", path, status=302, headers={"Location": target}, times=FOREVER)
    reading = read("hub:me/data", on_error="skip")
    assert f"a redirect to {target.partition(':')[0]}:// is not followed" in reading.error
    assert len(reading.error.splitlines()) == 1
    assert not reading.texts
