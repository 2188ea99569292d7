"""Which files of a Hub repository are read, and errors when there are none."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from bert_pipeline.errors import UsageError
from tests.helpers.local_hub import LocalHub

if sys.version_info >= (3, 14):
    pass
else:
    pass
from tests.helpers.hub_reading import (
    CARD,
    FOREVER,
    LINES,
    RAW,
    TEXTS,
    Read,
    add_oscar,
    add_wikitext,
    environment,
    hub,
    pack,
    read,
    reader,
    run,
    server,
    to_jsonl,
)

__all__ = ["environment", "hub", "read", "reader", "run", "server"]

pytestmark = pytest.mark.integration


# Which files
def test_gated_repository_without_token_wrong_token_and_no_access(
    hub: LocalHub, read: Read
) -> None:
    add_oscar(hub, "OSCAR-2301")
    hub.gated = {"oscar-corpus/OSCAR-2301": {"hf_good"}}
    hub.tokens = {"hf_good", "hf_other"}
    page = f"{hub.url}/datasets/oscar-corpus/OSCAR-2301"
    assert read("oscar:fa").error == (
        f"{page} is gated: request access on that page, then give a token with access: set "
        "HF_TOKEN, or run `hf auth login` once."
    )
    assert f"{page}: the Hub rejects your token (401)" in read("oscar:fa", "hf_wrong").error
    assert f"{page} is gated, and your token has no access (403): request access on that page" in (
        read("oscar:fa", "hf_other").error
    )
    hub.clear()
    good = read("oscar:fa", "hf_good")
    assert len(good.texts) == 4
    assert "hf_good" not in good.printed
    assert {request.authorization for request in hub.log if request.host in hub.url} == {
        "Bearer hf_good"
    }
    assert {request.authorization for request in hub.log if request.host not in hub.url} == {""}


def test_access_lost_during_download_is_reported(hub: LocalHub, read: Read) -> None:
    hub.add("me/data", {"train.jsonl.gz": pack(TEXTS, "jsonl.gz")})
    hub.plant(
        "status",
        "resolve/.*train",
        status=403,
        times=FOREVER,
        headers={"X-Error-Code": "GatedRepo"},
    )
    assert "your token has no access (403)" in read("hub:me/data", on_error="skip").error


def test_missing_repository_is_reported(hub: LocalHub, read: Read) -> None:
    error = read("hub:me/none").error
    assert error.startswith(
        f"{hub.url}/datasets/me/none: no such dataset. If it is private, give a token"
    )


def test_repository_with_loading_script_suggests_alternative(hub: LocalHub, read: Read) -> None:
    add_oscar(hub, "OSCAR-2301")
    hub.add(
        "me/books",
        {
            "books.py": "",
            "README.md": "",
            "dataset_infos.json": "{}",
            "txt/a.jsonl.gz": pack(["a"], "jsonl.gz"),
        },
    )
    hub.add("me/nothing", {"nothing.py": "", "README.md": ""})
    error = read("hub:oscar-corpus/OSCAR-2301").error
    assert (
        "needs a loading script, which is not supported. "
        "Read it by language with: --source oscar:LANG" in error
    )
    error = read("hub:me/books").error
    assert error.endswith("Read its files with: --source hub:me/books --files 'txt/*.jsonl.gz'")
    assert read("hub:me/books", files="txt/*.jsonl.gz").texts == ["a"]
    assert "It has no files in a supported format" in read("hub:me/nothing").error


def test_invalid_dataset_card_suggests_files(hub: LocalHub, read: Read) -> None:
    card = "---\nconfigs:\n- config_name: default\n  data_files: {}\n---\n"
    jsonl = to_jsonl([{"text": "a"}])
    hub.add("me/missing", {"README.md": card.format("data/x-*.parquet"), "data/y.jsonl": jsonl})
    hub.add(
        "me/away",
        {"README.md": card.format("https://example.com/x.parquet"), "data/y.jsonl": jsonl},
    )
    hub.add("me/broken", {"README.md": "---\nconfigs: [\n---\n", "data/y.jsonl": jsonl})
    for name in ("missing", "away", "broken"):
        error = read(f"hub:me/{name}").error
        assert error.startswith(f"{hub.url}/datasets/me/{name}: the data files were not found (")
        assert error.endswith(f"Read its files with: --source hub:me/{name} --files 'data/*.jsonl'")
        assert read(f"hub:me/{name}", files="data/*.jsonl").texts == ["a"]
    hub.add("me/nothing", {"README.md": ""})
    assert "It has no files in a supported format (parquet, jsonl," in read("hub:me/nothing").error


def test_unknown_config_split_and_revision_list_choices(hub: LocalHub, read: Read) -> None:
    add_wikitext(hub, LINES)
    hub.add("Salesforce/wikitext", {"README.md": CARD}, revision="v2")
    page = f"{hub.url}/datasets/Salesforce/wikitext"
    choose = (
        f"Choose one with --source hub:Salesforce/wikitext:CONFIG from: {RAW}, wikitext-103-raw-v1."
    )
    assert read("hub:Salesforce/wikitext:raw").error == f"{page}: no config raw. {choose}"
    assert (
        read("hub:Salesforce/wikitext").error
        == f"{page}: the dataset has several configs. {choose}"
    )
    assert (
        read("wikitext-2", split="dev").error
        == f"{page}: no split dev. Choose one with --split from: test, train."
    )
    assert (
        read("wikitext-2", revision="v9").error
        == f"{page}: no revision v9. Branches and tags: main, v2; or give a commit hash."
    )


@pytest.mark.parametrize(
    "spec", ["hub:", "hub:nothing", "hub:a/b/c", "oscar:", "oscar:Persian", "hub:oscar"]
)
def test_malformed_hub_source_is_a_usage_error(read: Read, spec: str) -> None:
    reading = read(spec)
    assert reading.exit_code == UsageError.exit_code
    assert reading.error.startswith(f"--source {spec}: ")
    assert ("oscar:fa" if "oscar" in spec else "hub:OWNER/NAME[:CONFIG]") in reading.error


def test_revision_is_read_by_commit_hash(hub: LocalHub, read: Read, tmp_path: Path) -> None:
    hub.add("me/data", {"train.jsonl": to_jsonl([{"text": "new"}])})
    hub.add("me/data", {"train.jsonl": to_jsonl([{"text": "old"}])}, revision="v1")
    assert read("hub:me/data").texts == ["new"]
    assert read("hub:me/data", revision="v1").texts == ["old"]
    asked = [
        request.path
        for request in hub.log
        if "/resolve/" in request.path and "train" in request.path
    ]
    assert all(re.search(r"/resolve/[0-9a-f]{40}/", path) for path in asked)


def test_fingerprint_depends_on_selected_files_only(hub: LocalHub, read: Read) -> None:
    hub.add(
        "me/data",
        {
            "README.md": "# Data\n",
            "train.jsonl": pack(["a"], "jsonl"),
            "test.jsonl": pack(["t"], "jsonl"),
        },
    )
    before = read("hub:me/data")
    hub.add(
        "me/data", {"README.md": "# Data, described better\n", "test.jsonl": pack(["u"], "jsonl")}
    )
    described = read("hub:me/data")
    assert described.fingerprint == before.fingerprint
    assert described.described["commit"] != before.described["commit"]
    hub.add("me/data", {"train.jsonl": pack(["b"], "jsonl")})
    assert read("hub:me/data").fingerprint != before.fingerprint
