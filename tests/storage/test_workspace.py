"""Manifests, workspaces, locks, atomic writing and full disks."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from bert_pipeline.config import StageConfig
from bert_pipeline.corpus.build import build_corpus
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.errors import BertpipeError
from bert_pipeline.storage.atomic import atomic, checked, hash_file, hash_json
from bert_pipeline.storage.manifest import Input, read_manifest
from bert_pipeline.storage.shards import read_columns
from bert_pipeline.storage.workspace import workspace
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.train import train_tokenizer
from tests.helpers.text import invent_documents, make_corpus, write_jsonl


class BoatConfig(StageConfig):
    """A stage for tests."""

    sails: int = 2
    name: str = "Anna"


GIVEN: Mapping[str, Input] = {"wood": Input("../wood", "f" * 64)}


def build(
    config: StageConfig,
    text: str = "afloat",
    inputs: Mapping[str, Input] = GIVEN,
    stage: str = "boat",
) -> bool:
    """Build a boat of one file; returns False when it was complete already."""
    with workspace(stage, config, inputs) as work:
        if work.finished:
            return False
        file = work.folder / "hull.txt"
        file.write_text(text, encoding="utf-8")
        work.finish({"letters": len(text)}, [file])
    return True


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()
    }


def test_manifest_records_config_inputs_counts_and_files(tmp_path: Path):
    out = tmp_path / "deep" / "boat"
    assert build(BoatConfig(out=out, sails=3))
    assert sorted(contents(out)) == ["hull.txt", "manifest.json"]
    written = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert written["stage"] == "boat"
    assert written["config"] == {"sails": 3, "name": "Anna"}
    assert written["inputs"] == {"wood": {"path": "../wood", "fingerprint": "f" * 64}}
    assert written["counts"] == {"letters": 6}
    assert written["files"]["hull.txt"] == {"bytes": 6, "sha256": hash_file(out / "hull.txt")}
    assert written["versions"]["pyarrow"]
    assert [path.name for path in out.parent.iterdir()] == ["boat"]
    assert read_manifest(out, "boat").counts == {"letters": 6}


def test_same_settings_are_skipped(tmp_path: Path):
    config = BoatConfig(out=tmp_path / "boat")
    build(config)
    before = {path: path.stat().st_mtime_ns for path in config.out.iterdir()}
    assert not build(config)
    assert not build(config.model_copy(update={"quiet": True, "overwrite": True}))
    assert not build(config, inputs={"wood": Input("/elsewhere/wood", "f" * 64)}), (
        "a moved input is the same input"
    )
    assert {path: path.stat().st_mtime_ns for path in config.out.iterdir()} == before


def test_changed_settings_are_rejected_with_a_diff(tmp_path: Path):
    out = tmp_path / "boat"
    build(BoatConfig(out=out))
    before = contents(out)
    with pytest.raises(BertpipeError, match="--overwrite") as caught:
        build(BoatConfig(out=out, sails=5), inputs={"wood": Input("../wood", "0" * 64)})
    message = str(caught.value)
    assert "sails: 2 → 5" in message
    assert "wood: its content changed" in message
    assert "name" not in message
    assert caught.value.exit_code == 1
    assert contents(out) == before


def test_overwrite_keeps_old_folder_until_new_is_complete(tmp_path: Path):
    out = tmp_path / "boat"
    build(BoatConfig(out=out))
    before = contents(out)

    def replace(*, fails: bool) -> None:
        with workspace("boat", BoatConfig(out=out, sails=5, overwrite=True), GIVEN) as work:
            file = work.folder / "sail.txt"
            file.write_text("new", encoding="utf-8")
            assert contents(out) == before
            if fails:
                raise RuntimeError("a storm")
            work.finish({}, [file])

    with pytest.raises(RuntimeError, match="a storm"):
        replace(fails=True)
    assert contents(out) == before
    assert read_manifest(out, "boat").config["sails"] == 2
    assert not build(BoatConfig(out=out)), "the old one is still complete"

    replace(fails=False)
    assert read_manifest(out, "boat").config["sails"] == 5
    assert sorted(contents(out)) == ["manifest.json", "sail.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["boat"], "no hidden folder remains"


def begin(config: StageConfig, name: str) -> None:
    with workspace("boat", config, GIVEN) as work:
        assert work.finished is None
        with checked(work.folder / name) as temporary:
            temporary.write_text(name, encoding="utf-8")
        (work.folder / ".mast.txt.0123456789ab.tmp").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt


def test_interrupted_run_resumes_with_finished_files(tmp_path: Path):
    config = BoatConfig(out=tmp_path / "boat")
    with pytest.raises(KeyboardInterrupt):
        begin(config, "hull.txt")
    with pytest.raises(BertpipeError, match="unfinished"):
        read_manifest(config.out, "boat")
    with pytest.raises(BertpipeError, match="sails: 2 → 3"):
        build(config.model_copy(update={"sails": 3}))
    with workspace("boat", config, GIVEN) as work:
        assert sorted(path.name for path in work.folder.iterdir()) == [
            ".hull.txt.sha256",
            ".unfinished.json",
            "hull.txt",
        ]
        work.finish({}, [work.folder / "hull.txt"])
    assert sorted(contents(config.out)) == ["hull.txt", "manifest.json"]


def test_overwrite_discards_unfinished_run_with_other_settings(tmp_path: Path):
    config = BoatConfig(out=tmp_path / "boat")
    with pytest.raises(KeyboardInterrupt):
        begin(config, "rudder.txt")
    assert build(config.model_copy(update={"sails": 3, "overwrite": True}))
    assert sorted(contents(config.out)) == ["hull.txt", "manifest.json"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_with_other_files_is_rejected(tmp_path: Path, overwrite: bool):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "sea.jpg").write_bytes(b"sea")
    with pytest.raises(BertpipeError, match=r"photos.*not from bertpipe"):
        build(BoatConfig(out=photos, overwrite=overwrite))
    assert contents(photos) == {"sea.jpg": b"sea"}
    with pytest.raises(BertpipeError, match=r"sea\.jpg"):
        build(BoatConfig(out=photos / "sea.jpg", overwrite=overwrite))
    assert contents(photos) == {"sea.jpg": b"sea"}


def test_empty_folder_is_accepted(tmp_path: Path):
    assert build(BoatConfig(out=tmp_path))
    assert read_manifest(tmp_path, "boat").counts == {"letters": 6}


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_of_another_stage_is_rejected(tmp_path: Path, overwrite: bool):
    out = tmp_path / "boat"
    build(BoatConfig(out=out))
    before = contents(out)
    with pytest.raises(BertpipeError, match="boat"):
        build(BoatConfig(out=out, overwrite=overwrite), stage="raft")
    assert contents(out) == before
    with pytest.raises(
        BertpipeError, match=r"made by `bertpipe boat`.*expected a folder made by `bertpipe raft`"
    ):
        read_manifest(out, "raft")


def test_stage_does_not_overwrite_its_input(tmp_path: Path):
    corpus = make_corpus(tmp_path / "corpus", invent_documents(3, 10))
    before = contents(corpus)
    with pytest.raises(BertpipeError, match="corpus"):
        train_tokenizer(
            TokenizeConfig(
                out=corpus, corpus=corpus, vocab_size=200, workers=1, quiet=True, overwrite=True
            )
        )
    assert contents(corpus) == before


def test_missing_folder_and_missing_manifest_are_errors(tmp_path: Path):
    with pytest.raises(BertpipeError, match=r"absent: no such folder.*`bertpipe boat`"):
        read_manifest(tmp_path / "absent", "boat")
    with pytest.raises(BertpipeError, match="no manifest"):
        read_manifest(tmp_path, "boat")


def test_damaged_file_is_reported_and_rebuilt_with_overwrite(tmp_path: Path):
    config = BoatConfig(out=tmp_path / "boat")
    hull = config.out / "hull.txt"
    for damage in (lambda: hull.write_text("aflo", encoding="utf-8"), hull.unlink):
        shutil.rmtree(config.out, ignore_errors=True)
        build(config)
        damage()
        with pytest.raises(BertpipeError, match=r"hull\.txt: missing or damaged.*--overwrite"):
            read_manifest(config.out, "boat")
        with pytest.raises(BertpipeError, match=r"hull\.txt: missing or damaged.*--overwrite"):
            build(config)
        assert build(config.model_copy(update={"overwrite": True}))
        assert contents(config.out)["hull.txt"] == b"afloat"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"stage": "boat"}', "null", "\x00" * 40])
def test_invalid_manifest_is_an_error(tmp_path: Path, content: str):
    config = BoatConfig(out=tmp_path / "boat")
    build(config)
    (config.out / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(BertpipeError, match=r"manifest\.json"):
        read_manifest(config.out, "boat")
    with pytest.raises(BertpipeError, match=r"manifest\.json"):
        build(config)


def test_shard_checksums_detect_flipped_bits(tmp_path: Path):
    corpus = make_corpus(tmp_path / "corpus", invent_documents(4, 30))
    shard = corpus / "00000.parquet"
    content = shard.read_bytes()
    texts = read_columns(shard, ["text"])
    caught = 0
    for position in range(8, len(content) - 8, len(content) // 60):
        flipped = bytes([content[position] ^ 4])
        shard.write_bytes(content[:position] + flipped + content[position + 1 :])
        try:
            read = read_columns(shard, ["text"])
        except BertpipeError as error:
            message = str(error)
        else:
            assert read == texts
            continue
        assert str(shard) in message
        caught += 1
    assert caught > 20


HOLD = """
import sys, time
from pathlib import Path
from bert_pipeline.storage.workspace import workspace
from bert_pipeline.config import StageConfig
with workspace("boat", StageConfig(out=Path(sys.argv[1])), {}):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.integration
def test_lock_prevents_two_writers(tmp_path: Path):
    config = StageConfig(out=tmp_path / "boat")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(config.out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BertpipeError, match="another bertpipe process writes this folder"):
            build(config, inputs={})
        holder.kill()
    assert build(config, inputs={}), "a killed owner leaves no lock"
    assert [path.name for path in tmp_path.iterdir()] == ["boat"]


def test_atomic_removes_temporary_file_after_an_error(tmp_path: Path):
    path = tmp_path / "file"

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not list(tmp_path.iterdir())
    with atomic(path) as temporary:
        temporary.write_bytes(b"whole")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert contents(tmp_path) == {"file": b"whole"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "x"),
        OSError(errno.EDQUOT, "x"),
        Exception("No space left on device (os error 28)"),
    ],
)
def test_disk_full_errors_of_all_libraries_give_one_message(tmp_path: Path, error: Exception):
    with pytest.raises(BertpipeError, match=r"file: the disk is full"), atomic(tmp_path / "file"):
        raise error
    assert not list(tmp_path.iterdir())


def run_on_a_small_disk(
    place: Path, commands: str, kilobytes: int = 200
) -> subprocess.CompletedProcess[str]:
    """Run shell commands with a disk of some kB mounted at `place`; skip when not permitted."""
    place.mkdir()
    mount = f"mount -t tmpfs -o size={kilobytes}k tmpfs '{place}'"
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            ["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("mounting a disk is not permitted")
    shortcut = f"bertpipe() {{ '{sys.executable}' -m bert_pipeline \"$@\"; }}"
    script = f"{mount} || exit 99\n{shortcut}\n{commands}"
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_disk_full_keeps_the_old_corpus(tmp_path: Path, workers: int):
    small = write_jsonl(tmp_path / "small.jsonl", invent_documents(5, 10))
    for number in range(3):
        write_jsonl(tmp_path / f"large-{number}.jsonl", [os.urandom(200_000).hex()])
    disk = tmp_path / "disk"
    made = f"--out {disk}/corpus --quiet --workers {workers} --shard-mb 0.1"
    done = run_on_a_small_disk(
        disk,
        f"""bertpipe corpus --source jsonl:{small} {made} || exit 98
        sha256sum {disk}/corpus/*
        bertpipe corpus --source 'jsonl:{tmp_path}/large-*.jsonl' {made} --overwrite
        echo "exit code $?"
        sha256sum {disk}/corpus/*
        ls -A {disk}/corpus; find {disk} -name '*.tmp'""",
    )
    before, code, after = re.split(r"exit code (\d+)\n", done.stdout)
    assert code == "1", done.stderr
    assert done.stderr.count("\n") == 1
    assert "the disk is full" in done.stderr
    assert before
    assert after == before + "00000.parquet\nmanifest.json\n"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_disk_full_examples_resume_on_another_disk(
    tmp_path: Path,
    workers: int,
    corpus_folder: Path,
    wordpiece_folder: Path,
    make_examples: Callable[..., Path],
):
    disk = tmp_path / "disk"
    given = (
        f"--corpus {corpus_folder} --tokenizer {wordpiece_folder} --max-seq-length 64 --quiet "
        f"--workers {workers}"
    )
    done = run_on_a_small_disk(
        disk,
        f"""bertpipe examples {given} --out {disk}/examples --dupe-factor 1 || exit 98
        sha256sum {disk}/examples/*
        bertpipe examples {given} --out {disk}/examples --dupe-factor 25 --overwrite
        echo "exit code $?"
        sha256sum {disk}/examples/*
        find {disk} -name '*.tmp'
        cp -r {disk}/.examples.new {tmp_path}/copied""",
    )
    before, code, after = re.split(r"exit code (\d+)\n", done.stdout)
    assert code == "1", done.stderr
    assert done.stderr.count("\n") == 1
    assert "the disk is full" in done.stderr
    assert before == after
    # On a larger disk the finished files are kept and the others written.
    finished = list((tmp_path / "copied").glob("train-*.parquet"))
    assert 0 < len(finished) < 100
    subprocess.run(
        [
            *(sys.executable, "-m", "bert_pipeline", "examples"),
            *given.split(),
            "--dupe-factor",
            "25",
            "--out",
            str(tmp_path / "copied"),
        ],
        check=True,
    )
    expected = make_examples(f"on-a-large-disk-{workers}", dupe_factor=25, validation_fraction=0.02)
    for file in finished:
        assert file.read_bytes() == (expected / file.name).read_bytes()
    assert len(list((tmp_path / "copied").glob("train-*.parquet"))) == 100


@pytest.mark.integration
def test_unwritable_path_is_one_message(tmp_path: Path):
    file = write_jsonl(tmp_path / "a.jsonl", ["A text."])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "bert_pipeline",
            "corpus",
            "--source",
            f"jsonl:{file}",
            "--out",
            str(file / "corpus"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(file) in done.stderr


def test_moved_run_folder_is_still_complete(tmp_path: Path):
    run = tmp_path / "run"
    corpus = make_corpus(run / "corpus", invent_documents(6, 20))
    train_tokenizer(
        TokenizeConfig(out=run / "tokenizer", corpus=corpus, vocab_size=200, workers=1, quiet=True)
    )
    before = contents(run / "tokenizer")
    moved = run.rename(tmp_path / "moved")
    train_tokenizer(
        TokenizeConfig(
            out=moved / "tokenizer", corpus=moved / "corpus", vocab_size=200, workers=1, quiet=True
        )
    )
    assert contents(moved / "tokenizer") == before


def test_changed_source_file_is_rejected(tmp_path: Path):
    file = write_jsonl(tmp_path / "a.jsonl", ["One text."])
    config = CorpusConfig(out=tmp_path / "corpus", source=(f"jsonl:{file}",), workers=1, quiet=True)
    build_corpus(config)
    stat = file.stat()
    write_jsonl(file, ["Two text."])
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size and time, other text
    with pytest.raises(BertpipeError, match="its content changed"):
        build_corpus(config)


def test_hash_json_ignores_key_order():
    assert (
        hash_json({"a": 1, "b": [2]})
        == hash_json({"b": [2], "a": 1})
        != hash_json({"a": 1, "b": [3]})
    )
