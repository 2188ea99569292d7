"""`bertpipe corpus` after a kill or an error resumes, and writes the same bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bert_pipeline.corpus.build import build_corpus
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.errors import BertpipeError
from bert_pipeline.storage.manifest import read_manifest
from tests.helpers.corpora import (
    big_rows,
    build,
    shard_bytes,
    texts_of,
)
from tests.helpers.text import invent_documents, write_jsonl


def corpus_command(tmp_path: Path, out: Path) -> list[str]:
    return [
        *(
            sys.executable,
            "-m",
            "bert_pipeline",
            "corpus",
            "--source",
            f"jsonl:{tmp_path}/raw/*.jsonl",
        ),
        *("--out", str(out), "--workers", "2", "--shard-mb", "0.1", "--quiet"),
    ]


@pytest.mark.integration
@pytest.mark.parametrize(
    "stop", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_killed_run_resumes_to_the_same_bytes(tmp_path: Path, stop: signal.Signals):
    texts = invent_documents(8, 100)
    for number in range(12):
        write_jsonl(tmp_path / "raw" / f"{number:02}.jsonl", texts * 10)
    out = tmp_path / "corpus"
    uninterrupted = tmp_path / "uninterrupted"
    with subprocess.Popen(
        corpus_command(tmp_path, out), stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + 60
        while (
            len(list(out.glob("*.parquet"))) < 2
            and time.monotonic() < end
            and process.poll() is None
        ):
            time.sleep(0.002)
        process.send_signal(stop)
        _, printed = process.communicate()
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("[0-9]*.parquet")}
    assert finished
    assert not (out / "manifest.json").exists(), "the run finished before it could be stopped"
    assert process.returncode == (-stop if stop == signal.SIGKILL else 128 + stop)
    assert "Traceback" not in printed
    for folder in (out, uninterrupted):
        build_corpus(
            CorpusConfig(
                out=folder, source=(f"jsonl:{tmp_path}/raw/*.jsonl",), shard_mb=0.1, workers=1
            )
        )
    assert shard_bytes(out) == shard_bytes(uninterrupted)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert read_manifest(out, "corpus").counts["documents"] == 12 * 1000


@pytest.mark.slow
@pytest.mark.parametrize("steps", ["basic", "basic,exact,near"])
@pytest.mark.parametrize("options", [{}, {"shuffle_buffer": 50}, {"max_documents": 2500}])
def test_kill_within_a_large_file_loses_and_repeats_no_row(
    tmp_path: Path, steps: str, options: dict[str, Any]
):
    texts = [
        f"Row {n} of a file: it{''.join(f' w{n}x{k}' for k in range(n % 40))} ends."
        for n in range(4000)
    ]
    (tmp_path / "raw.jsonl").write_text(
        "bad\n" + "\nbad\n".join(json.dumps({"text": t}) for t in texts)
    )
    shared = {
        "clean": (steps,),
        "on_error": "skip",
        "shard_mb": 0.05,
        "workers": 1,
        "quiet": True,
    } | options
    values = json.dumps(
        {"out": str(tmp_path / "out"), "source": [f"jsonl:{tmp_path}/raw.jsonl"]} | shared
    )
    code = (
        "import json, sys; from bert_pipeline.corpus.build import build_corpus; "
        "from bert_pipeline.corpus.config import CorpusConfig; "
        "build_corpus(CorpusConfig(**json.loads(sys.argv[1])))"
    )
    kills = 0
    for wanted in (2, 7, 11):
        written = 0
        with subprocess.Popen(
            [sys.executable, "-c", code, values], stderr=subprocess.DEVNULL
        ) as process:
            end = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < end:
                with suppress(FileNotFoundError):  # the run may remove the folder meanwhile
                    written = len(list((tmp_path / "out").glob(".parts/*.parquet")))
                if written >= wanted:
                    process.kill()
                    kills += 1
                    break
                time.sleep(0.001)
    assert kills, "the run finished before it could be killed"
    for out in (tmp_path / "out", tmp_path / "complete"):
        build_corpus(CorpusConfig(out=out, source=(f"jsonl:{tmp_path}/raw.jsonl",), **shared))
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "complete")
    expected = texts[: options.get("max_documents")]
    found = texts_of(tmp_path / "out")
    if "shuffle_buffer" in options:
        found = sorted(found)
        expected = sorted(expected)
    assert found == expected
    assert len(shard_bytes(tmp_path / "out")) > 5
    if not options:
        assert read_manifest(tmp_path / "out", "corpus").counts["skipped_not_json"] == 4000


def test_failed_run_resumes_with_on_error_skip(tmp_path: Path):
    source, texts = big_rows(tmp_path, files=3)
    with (tmp_path / "raw" / "2.jsonl").open("a") as file:
        file.write("broken\n")
    with pytest.raises(BertpipeError, match=r"2\.jsonl, line 41: not a JSON object"):
        build(tmp_path / "out", source)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert len(before) > 1
    found, counts = build(tmp_path / "out", source, on_error="skip")
    assert found == texts
    assert counts["skipped_not_json"] == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(BertpipeError, match=r"made with --on-error skip \(skipped not json: 1\)"):
        build(tmp_path / "out", source)


@pytest.mark.parametrize("steps", ["basic", "exact"])
def test_changed_settings_of_unfinished_run_are_rejected(tmp_path: Path, steps: str):
    source, _ = big_rows(tmp_path, files=1)
    with (tmp_path / "raw" / "0.jsonl").open("a") as file:
        file.write("broken\n")
    with pytest.raises(BertpipeError, match="not a JSON object"):
        build(tmp_path / "out", source, clean=(steps,))
    with pytest.raises(BertpipeError, match=r"made with other settings:\n +clean: "):
        build(tmp_path / "out", source, clean=("control",))


def test_lost_shard_of_unfinished_run_is_rewritten(tmp_path: Path):
    source, texts = big_rows(tmp_path, files=3)
    with (tmp_path / "raw" / "2.jsonl").open("a") as file:
        file.write("broken\n")
    with pytest.raises(BertpipeError, match="not a JSON object"):
        build(tmp_path / "out", source)
    (tmp_path / "out" / "00001.parquet").unlink()
    found, _ = build(tmp_path / "out", source, on_error="skip")
    assert found == texts


def build_in_steps(out: Path, source: str, target: str, **options: Any) -> int:
    """Build in processes, each killed at a later call of the function `target`.

    Returns the number of killed processes.
    """
    values = json.dumps(
        {"out": str(out), "source": [source], "workers": 1, "quiet": True} | options
    )
    code = (
        "import json, os, sys; from importlib import import_module\n"
        "from bert_pipeline.corpus.build import build_corpus\n"
        "from bert_pipeline.corpus.config import CorpusConfig\n"
        "name, _, function = sys.argv[2].rpartition('.')\n"
        "module = import_module(name); real = getattr(module, function)\n"
        "left = [int(sys.argv[3])]\n"
        "def once_more(*a, **k):\n"
        "    left[0] -= 1\n"
        "    return os._exit(9) if left[0] < 0 else real(*a, **k)\n"
        "setattr(module, function, once_more)\n"
        "build_corpus(CorpusConfig(**json.loads(sys.argv[1])))"
    )
    for calls in range(100):
        done = subprocess.run([sys.executable, "-c", code, values, target, str(calls)], check=False)
        if done.returncode == 0:
            return calls
    raise AssertionError("the build did not finish")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "options"),
    [
        (
            "bert_pipeline.corpus.finalize.write_checked_json",
            {"max_bytes": 1000, "shard_mb": 0.0005},
        ),
        (
            "bert_pipeline.corpus.parts.write_shard",
            {"max_documents": 4, "clean": "exact", "shard_mb": 0.0004},
        ),
        (
            "bert_pipeline.corpus.selection.write_shard",
            {"max_documents": 4, "clean": "exact", "shard_mb": 0.0004},
        ),
        ("os.replace", {"shard_mb": 0.0005}),
        ("os.unlink", {"clean": "near"}),
    ],
)
def test_kill_at_every_write_resumes_to_the_same_bytes(
    tmp_path: Path, target: str, options: dict[str, Any]
):
    texts = [
        f"{n} {letter * size}"
        for n, (letter, size) in enumerate(zip("abcdeafgg", (400, 400, 900) * 3, strict=True))
    ]
    write_jsonl(tmp_path / "a.jsonl", texts[:4] * 2 + texts)
    source = f"jsonl:{tmp_path}/a.jsonl"
    assert build_in_steps(tmp_path / "killed", source, target, **options) > 0
    build(tmp_path / "complete", source, **({"shard_mb": 16.0} | options))
    assert shard_bytes(tmp_path / "killed") == shard_bytes(tmp_path / "complete")


def stop_before_writing(out: Path, source: str, **options: Any) -> Path:
    """A run that is stopped when all parts are compared; returns the folder of the parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bert_pipeline.corpus.build.write_kept", None)
        with pytest.raises(TypeError):
            build(out, source, **options)
    return out / ".parts"


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(b""), Path.unlink])
@pytest.mark.parametrize("kind", ["parquet", "npy", "pairs", "sha256", "json"])
def test_damaged_working_files_are_written_again(
    tmp_path: Path, kind: str, damage: Callable[[Path], None]
):
    source, texts = big_rows(tmp_path, files=1)
    options = {"clean": "near", "shard_mb": 16.0}
    parts = stop_before_writing(tmp_path / "out", source, **options)
    damaged = [path for path in parts.iterdir() if path.name.endswith(f".{kind}")]
    assert damaged
    for path in damaged:
        damage(path)
    assert build(tmp_path / "out", source, **options)[0] == texts
