"""Damaged, linked and foreign files: what is noticed, rebuilt, refused and kept."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from bert_pipeline.errors import BertpipeError
from bert_pipeline.storage.atomic import atomic_folder, checked, hash_file, hash_json
from bert_pipeline.storage.manifest import read_manifest
from bert_pipeline.storage.workspace import Working, workspace
from tests.helpers.cli import run_cli
from tests.helpers.text import invent_documents, write_jsonl
from tests.storage.test_workspace import GIVEN, HOLD, BoatConfig, build, contents


def flip(path: Path) -> None:
    """Change one bit in the middle of a file, at equal size."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def make_run(folder: Path) -> dict[str, list[object]]:
    """The folders of two stages by the command line; returns the commands."""
    source = write_jsonl(folder / "texts.jsonl", invent_documents(4, 30))
    made = ["--quiet", "--workers", 1]
    commands: dict[str, list[object]] = {
        "corpus": ["corpus", "--source", f"jsonl:{source}", "--out", folder / "corpus", *made],
        "tokenizer": [
            *("tokenize", "--corpus", folder / "corpus", "--out", folder / "tokenizer"),
            *("--vocab-size", 200, *made),
        ],
    }
    for command in commands.values():
        assert run_cli(*command).code == 0
    return commands


@pytest.mark.parametrize(
    "damaged", ["corpus/00000.parquet", "tokenizer/tokenizer.json", "corpus/manifest.json"]
)
def test_flipped_bit_is_verified_and_rebuilt_with_overwrite(tmp_path: Path, damaged: str):
    commands = make_run(tmp_path)
    before = contents(tmp_path)
    verified = run_cli("verify", tmp_path)
    assert (verified.code, verified.stdout.count(": intact (")) == (0, 2)
    flip(tmp_path / damaged)
    stage, name = damaged.split("/")
    verified = run_cli("verify", tmp_path)
    assert verified.code == 1
    assert f"{tmp_path / stage}: damaged: " in verified.stdout
    assert name in verified.stdout
    assert verified.stdout.count("\n") == 2
    assert verified.stderr.startswith("bertpipe: 1 of 2 folders damaged")
    assert run_cli(*commands[stage], "--overwrite").code == 0
    assert contents(tmp_path) == before


def test_verify_compares_the_inputs(tmp_path: Path):
    commands = make_run(tmp_path)
    write_jsonl(tmp_path / "texts.jsonl", invent_documents(5, 30))
    assert run_cli(*commands["corpus"], "--overwrite").code == 0
    verified = run_cli("verify", tmp_path / "tokenizer")
    assert verified.code == 1
    assert "tokenizer: damaged: corpus changed since" in verified.stdout
    (tmp_path / "corpus").rename(tmp_path / "elsewhere")
    verified = run_cli("verify", tmp_path / "tokenizer")
    assert (verified.code, "corpus not found, not compared" in verified.stdout) == (0, True)
    verified = run_cli("verify", tmp_path / "nothing")
    assert (verified.code, verified.stderr.count("\n")) == (1, 1)


def forge(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change a manifest, with a hash that matches."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    change(manifest)
    content = manifest | {"sha256": hash_json(manifest)}
    (folder / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name", ["../precious.txt", "/etc/hostname", "a/../../precious.txt", "", "a\0"]
)
def test_manifest_with_a_file_outside_of_its_folder_is_refused(tmp_path: Path, name: str):
    config = BoatConfig(out=tmp_path / "boat")
    precious = tmp_path / "precious.txt"
    precious.write_text("afloat")
    build(config)
    entry = {"bytes": 6, "sha256": hash_file(precious)}
    forge(config.out, lambda manifest: manifest.update(files={name: entry}))
    for use in (lambda: read_manifest(config.out, "boat"), lambda: build(config)):
        with pytest.raises(BertpipeError, match=r"manifest\.json: lists .* not in its folder"):
            use()
    assert build(config.model_copy(update={"overwrite": True}))
    assert precious.read_text() == "afloat"


def test_changed_figure_in_a_manifest_is_noticed(tmp_path: Path):
    config = BoatConfig(out=tmp_path / "boat")
    build(config)
    path = config.out / "manifest.json"
    path.write_text(path.read_text().replace('"letters": 6', '"letters": 7'))
    with pytest.raises(BertpipeError, match=r"manifest\.json: damaged"):
        read_manifest(config.out, "boat")
    (config.out / "notes.txt").write_text("mine")
    assert build(config.model_copy(update={"overwrite": True}))
    assert sorted(contents(config.out)) == ["hull.txt", "manifest.json", "notes.txt"]


def begin(config: BoatConfig, files: Iterable[str] = ("hull.txt",)) -> None:
    """A run that is stopped after writing some files."""
    with workspace("boat", config, GIVEN, Working((".parts",))) as work:
        for name in files:
            with checked(work.folder / name) as temporary:
                temporary.write_text("afloat")
        (work.folder / ".parts").mkdir(exist_ok=True)
        raise KeyboardInterrupt


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"stage": "boat"}', "\x00" * 40])
def test_damaged_marker_is_refused_and_overwritten(tmp_path: Path, content: str):
    config = BoatConfig(out=tmp_path / "boat")
    with pytest.raises(KeyboardInterrupt):
        begin(config)
    (config.out / ".unfinished.json").write_text(content)
    with pytest.raises(BertpipeError, match=r"unfinished\.json: damaged.*--overwrite"):
        build(config)
    assert build(config.model_copy(update={"overwrite": True}))
    assert sorted(contents(config.out)) == ["hull.txt", "manifest.json"]


def test_file_that_changed_after_it_was_written_does_not_enter_the_manifest(tmp_path: Path):
    config = BoatConfig(out=tmp_path / "boat")
    with pytest.raises(KeyboardInterrupt):
        begin(config)
    flip(config.out / "hull.txt")
    with (
        workspace("boat", config, GIVEN) as work,
        pytest.raises(BertpipeError, match=r"hull\.txt: changed since it was written, and removed"),
    ):
        work.finish({}, [work.folder / "hull.txt"])
    assert not (config.out / "hull.txt").exists()
    assert build(config)


OWN = {"notes.txt": b"mine", "photos/sea.jpg": b"sea", ".keep": b"", "photos/.sea.tmp": b"half"}


def add_own_files(folder: Path) -> None:
    """Files that bertpipe did not write, and a link."""
    for name, content in OWN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "photos/link").symlink_to("../notes.txt")


def own_files(folder: Path) -> dict[str, bytes]:
    """What is left of them."""
    assert (folder / "photos/link").is_symlink()
    return {name: content for name, content in contents(folder).items() if name in OWN}


def test_overwrite_keeps_the_users_files(tmp_path: Path):
    out = tmp_path / "boat"
    build(BoatConfig(out=out))
    add_own_files(out)
    assert build(BoatConfig(out=out, sails=5, overwrite=True), text="sails")
    assert own_files(out) == OWN
    assert (out / "hull.txt").read_text() == "sails"
    with pytest.raises(KeyboardInterrupt):
        begin(BoatConfig(out=tmp_path / "raft"), ["mast.txt", "hull.txt"])
    add_own_files(tmp_path / "raft")
    assert build(BoatConfig(out=tmp_path / "raft", sails=5, overwrite=True))
    assert own_files(tmp_path / "raft") == OWN
    assert not (tmp_path / "raft" / "mast.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boat", "raft"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", ["{}", '{"stage": "boat", "config": {}, "inputs": {}}', ""])
def test_forged_marker_removes_nothing(tmp_path: Path, overwrite: bool, content: str):
    add_own_files(tmp_path / "home")
    (tmp_path / "home" / ".unfinished.json").write_text(content)
    config = BoatConfig(out=tmp_path / "home", overwrite=overwrite)
    if overwrite:
        assert build(config)
    else:
        with pytest.raises(BertpipeError, match="--overwrite"):
            build(config)
    assert own_files(tmp_path / "home") == OWN


def test_own_file_with_the_name_of_a_new_one_is_kept(tmp_path: Path):
    out = tmp_path / "boat"
    build(BoatConfig(out=out))
    (out / "sail.txt").write_text("mine")
    config = BoatConfig(out=out, sails=5, overwrite=True)
    with workspace("boat", config, GIVEN) as work:
        (work.folder / "sail.txt").write_text("new")
        with pytest.raises(BertpipeError, match=r"sail\.txt: not from bertpipe.*Move it elsewhere"):
            work.finish({}, [work.folder / "sail.txt"])
    kept = tmp_path / ".boat.old" / "sail.txt"
    assert kept.read_text() == "mine"
    kept.rename(tmp_path / "sail.txt")
    assert not build(config), "the swap is finished"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boat", "sail.txt"]


def test_overwrite_through_a_link_replaces_the_folder_and_keeps_the_link(tmp_path: Path):
    link = tmp_path / "link"
    (tmp_path / "disk").mkdir()
    link.symlink_to("disk/boat")  # which does not exist yet
    for sails in (2, 3, 4):
        assert build(BoatConfig(out=link, sails=sails, overwrite=sails > 2))
    assert link.is_symlink()
    assert read_manifest(tmp_path / "disk" / "boat", "boat").config["sails"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["boat"]


@pytest.mark.integration
def test_lock_holds_under_every_name_of_a_folder(tmp_path: Path):
    (tmp_path / "boat").mkdir()
    (tmp_path / "link").symlink_to("boat")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "link")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BertpipeError, match="another bertpipe process writes this folder"):
            build(BoatConfig(out=tmp_path / "boat"))
        holder.kill()


@pytest.mark.integration
def test_out_where_no_file_can_be_made_is_one_line():
    """In another process: an error while an object is removed is no exception here."""
    command = [sys.executable, "-m", "bert_pipeline", "corpus", "--source", f"text:{__file__}"]
    done = subprocess.run(
        [*command, "--out", "/proc/none"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith("bertpipe: /proc")


def test_out_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "out").touch()
    done = run_cli("corpus", "--source", f"text:{__file__}", "--out", tmp_path / "out")
    assert (done.code, "out: is a file, not a folder" in done.stderr) == (1, True)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    def refuse(file: object, operation: int) -> None:  # as such a file system does; none is here
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(BertpipeError, match="file system has no file locks") as caught:
        build(BoatConfig(out=tmp_path / "boat"))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_of_a_folder_have_ordinary_modes(tmp_path: Path):
    with atomic_folder(tmp_path / "model") as temporary:
        private = temporary / "weights"
        private.touch(mode=0o600)
        (temporary / "nested").mkdir()
    (tmp_path / "plain").touch()
    expected = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert stat.S_IMODE((tmp_path / "model" / "weights").stat().st_mode) == expected
