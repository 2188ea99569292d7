"""Clusters: a real Ray cluster of two nodes on this machine, and a fake Slurm.

The fake Slurm runs submitted jobs as local processes. It tests what is submitted and how output is
handled, not Slurm itself.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from bert_pipeline.config import ShardedConfig, StageConfig, build_config
from bert_pipeline.corpus.build import build_corpus
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.engine import timeouts
from bert_pipeline.engine.clusters import cancel_earlier_run
from bert_pipeline.engine.run import run_stage
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.storage.manifest import Input, read_manifest
from bert_pipeline.storage.workspace import Working, Workspace, workspace
from tests.engine.test_engine import (
    fail_at_three,
    is_running,
    kill_itself_at_three,
    refuse_three,
    square,
    wait_until,
)
from tests.helpers.fake_slurm import read_directives
from tests.helpers.text import invent_documents, write_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


def name_node(delay: float) -> str:
    import ray

    time.sleep(delay)
    return str(ray.get_runtime_context().get_node_id())


def note_and_wait(folder: str) -> None:
    (Path(folder) / f"{os.getpid()}").touch()
    time.sleep(600)


def cancel_own_job(number: int) -> None:
    subprocess.run(["scancel", f"--name={os.environ['SLURM_JOB_NAME']}"], check=True)
    time.sleep(600)


def list_relative(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def return_what_json_cannot_hold(number: int) -> object:
    return object()


def config_for(engine: str, folder: Path, *options: str) -> ShardedConfig:
    return build_config(
        ShardedConfig, {"out": folder, "engine": engine, "workers": 2, "engine_option": options}
    )


def data_files(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"
    }


def start_examples(corpus: Path, tokenizer: Path, out: Path) -> subprocess.Popen[str]:
    given = {
        "--corpus": corpus,
        "--tokenizer": tokenizer,
        "--out": out,
        "--max-seq-length": 64,
        "--dupe-factor": 1,
    }
    options = [str(word) for pair in given.items() for word in pair]
    command = [
        sys.executable,
        "-m",
        "bert_pipeline",
        "examples",
        *options,
        "--engine",
        "ray",
        "--workers",
        "2",
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


STAGE_SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from bert_pipeline.engine.run import run_stage
from tests.engine.test_clusters import config_for, note_and_wait
if __name__ == "__main__":
    folder = Path(sys.argv[2])
    engine = sys.argv[3]
    list(run_stage(note_and_wait, [str(folder / "notes")] * 3, config_for(engine, folder), folder))
"""


def start_waiting(folder: Path, engine: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A process with two running tasks that do not end, and the process ids of the tasks."""
    notes = folder / "notes"
    notes.mkdir()
    script = folder / "script.py"
    script.write_text(STAGE_SCRIPT, encoding="utf-8")
    parent = subprocess.Popen(
        [sys.executable, str(script), str(ROOT), str(folder), engine], stderr=subprocess.DEVNULL
    )
    assert wait_until(lambda: len(list(notes.iterdir())) == 2), "the tasks did not start"
    return parent, [int(note.name) for note in notes.iterdir()]


def have_ended(workers: list[int]) -> bool:
    return wait_until(lambda: not any(map(is_running, workers)), 30)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[str]:
    """The address of a real cluster of two nodes with a core each."""
    pytest.importorskip("ray")
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder,
    ):
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Otherwise Ray writes a token to the home folder.
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_TMPDIR", folder)
        temporary = Path(folder) / "ray"
        # Ray writes the address of the cluster here, and creates only the default folder.
        temporary.mkdir()
        from ray.cluster_utils import Cluster

        size = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        # The folder has sockets, whose paths must be short.
        cluster = Cluster(
            initialize_head=True,
            head_node_args=size | {"include_dashboard": False, "temp_dir": str(temporary)},
        )
        try:
            cluster.add_node(**size)
            patch.setenv("RAY_ADDRESS", cluster.address)
            yield cluster.address
        finally:
            cluster.shutdown()


@pytest.mark.usefixtures("ray_cluster")
def test_ray_uses_all_nodes_and_removes_its_files(tmp_path: Path):
    done = dict(run_stage(name_node, [1.0] * 4, config_for("ray", tmp_path), tmp_path))
    assert sorted(done) == [0, 1, 2, 3]
    assert len(set(done.values())) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("ray_cluster")
def test_ray_killed_command_resumes_to_the_same_bytes(
    make_examples: Callable[..., Path], corpus_folder: Path, wordpiece_folder: Path, tmp_path: Path
):
    expected = data_files(make_examples("for-ray", dupe_factor=1, validation_fraction=0.02))
    with start_examples(corpus_folder, wordpiece_folder, tmp_path / "examples") as command:
        shards = tmp_path / "examples"

        def has_shard_or_ended() -> bool:
            return any(shards.glob("train-*.parquet")) or command.poll() is not None

        # Two stages connect to Ray and start workers first, which takes minutes on a busy machine.
        has_waited = wait_until(has_shard_or_ended, 240)
        ended = command.poll()
        command.kill()
        _, errors = command.communicate()
    assert has_waited, "no shard was written"
    assert ended is None, f"the command ended before the kill with exit code {ended}: {errors}"
    assert not (shards / "manifest.json").exists()
    with start_examples(corpus_folder, wordpiece_folder, tmp_path / "examples") as command:
        out, err = command.communicate()
    assert (command.returncode, err) == (0, "")
    assert out.startswith("examples: ")
    assert out.count("examples: ") == 1
    assert data_files(tmp_path / "examples") == expected


def write_repeated(folder: Path) -> None:
    """Files of documents, a third of which are also in an earlier file."""
    for number in range(3):
        write_jsonl(
            folder / f"{number}.jsonl",
            [*invent_documents(number + 1, 60), *invent_documents(number, 30)],
        )


def compare_with_local(engine: str, folder: Path, **options: object) -> None:
    write_repeated(folder / "raw")
    given = {"source": (f"jsonl:{folder}/raw/*.jsonl",), "quiet": True, "shard_mb": 0.1} | options
    for which in ("local", engine):
        build_corpus(
            build_config(
                CorpusConfig, given | {"out": folder / which, "engine": which, "workers": 2}
            )
        )
    assert data_files(folder / engine) == data_files(folder / "local")
    removed = read_manifest(folder / engine, "corpus").counts["removed"]
    assert removed["exact duplicate"]["documents"] == 2 * 30


@pytest.mark.usefixtures("ray_cluster")
def test_ray_corpus_has_the_same_bytes_as_local(tmp_path: Path):
    compare_with_local("ray", tmp_path, clean="basic,exact")


@pytest.mark.usefixtures("ray_cluster")
def test_ray_tasks_end_when_the_command_is_killed(tmp_path: Path):
    parent, workers = start_waiting(tmp_path, "ray")
    parent.kill()
    parent.wait()
    assert have_ended(workers)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (refuse_three, "^three is refused$"),
        (kill_itself_at_three, "worker process was killed.*--workers"),
    ],
)
def test_ray_error_in_a_task_ends_the_run(
    function: Callable[[int], int], message: str, tmp_path: Path
):
    with pytest.raises(BertpipeError, match=message):
        list(run_stage(function, range(4), config_for("ray", tmp_path), tmp_path))


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands on the PATH; the folder where the fake Slurm keeps its jobs."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    text = (ROOT / "tests/helpers/fake_slurm.py").read_text(encoding="utf-8")
    for name in ("sbatch", "squeue", "scancel", "scontrol"):
        (folder / name).write_text(f"#!{sys.executable} -S\n{text}", encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(timeouts, "SQUEUE_POLL_S", 0.2)
    monkeypatch.setattr(timeouts, "SHARED_FILES_S", 2.0)
    return folder / "state"


def submitted(state: Path) -> list[dict[str, str]]:
    return [
        read_directives(path.read_text(encoding="utf-8")) for path in sorted(state.glob("*/script"))
    ]


def test_slurm_examples_have_the_same_bytes_and_sbatch_options(
    make_examples: Callable[..., Path], slurm: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")  # as in another job
    options = ("partition=cpu", "time=04:00:00", "mem_per_cpu=4G", "comment=two words")
    made = make_examples(
        "by-slurm", dupe_factor=1, engine="slurm", engine_option=options, workers=2
    )
    assert data_files(made) == data_files(make_examples("not-by-slurm", dupe_factor=1))
    first, second = submitted(slurm)
    assert (first["array"], second["array"]) == ("0-3%2", "0-4%2")
    wanted = {
        "partition": "cpu",
        "time": "04:00:00",
        "mem-per-cpu": "4G",
        "cpus-per-task": "1",
        "comment": "two words",
    }
    assert wanted.items() <= first.items()
    assert "qos" not in first
    assert first["job-name"] == second["job-name"]
    assert first["job-name"].startswith("bertpipe-")
    assert f"\n{sys.executable} -m datatrove" in (slurm / "1" / "script").read_text(
        encoding="utf-8"
    )


@pytest.mark.usefixtures("slurm")
def test_slurm_corpus_has_the_same_bytes_as_local(tmp_path: Path):
    compare_with_local("slurm", tmp_path, clean="basic,exact,near", near_threshold=0.98)


@pytest.mark.usefixtures("slurm")
def test_slurm_closed_iterator_removes_its_files(tmp_path: Path):
    results = run_stage(square, range(30), config_for("slurm", tmp_path), tmp_path)
    index, result = next(results)
    results.close()  # type: ignore[attr-defined]
    assert result == square(index)
    assert not list(tmp_path.iterdir())


def test_slurm_unset_options_are_not_submitted(slurm: Path, tmp_path: Path):
    list(run_stage(square, range(2), config_for("slurm", tmp_path), tmp_path))
    assert not {"partition", "time", "mem-per-cpu", "qos"} & submitted(slurm)[0].keys()


def test_slurm_more_tasks_than_max_array_size_are_several_jobs(slurm: Path, tmp_path: Path):
    config = config_for("slurm", tmp_path, "max_array_size=2", "tasks-per-job=2")
    assert dict(run_stage(square, range(7), config, tmp_path)) == {n: n * n for n in range(7)}
    assert [directives["array"] for directives in submitted(slurm)] == ["0-1%2", "0-1%2"]
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("slurm")
def test_slurm_relative_paths_work_in_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "here").touch()
    work = Path("work")
    work.mkdir()
    assert list(run_stage(list_relative, ["given"], config_for("slurm", work), work)) == [
        (0, ["here"])
    ]


@pytest.mark.parametrize(
    ("function", "message", "code"),
    [
        (refuse_three, "^three is refused$", 1),
        (fail_at_three, "Task 3 failed on .*: ZeroDivisionError: a bug\nTraceback: ", 1),
        (return_what_json_cannot_hold, "object is not JSON serializable", 1),
        (
            kill_itself_at_three,
            "Slurm ended without the results of 1 of 4 .* the first is task 3",
            1,
        ),
        (cancel_own_job, "Slurm ended without the results of . of 4 .* cancelled", 1),
    ],
)
def test_slurm_failed_task_is_reported_and_others_cancelled(
    function: Callable[[int], int], message: str, code: int, slurm: Path, tmp_path: Path
):
    with pytest.raises(BertpipeError, match=message) as caught:
        list(run_stage(function, range(4), config_for("slurm", tmp_path), tmp_path))
    assert caught.value.exit_code == code
    assert (slurm / "1" / "ended").exists()
    if "Traceback" in message:
        record = json.loads(Path(str(caught.value).rpartition(": ")[2]).read_text(encoding="utf-8"))
        assert "fail_at_three" in "\n".join(record["traceback"])
    assert list(run_stage(square, [5], config_for("slurm", tmp_path), tmp_path)) == [(0, 25)]
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("slurm")
def test_slurm_rejected_job_reports_the_message_of_sbatch(tmp_path: Path):
    with pytest.raises(BertpipeError, match="invalid partition specified: nowhere"):
        list(
            run_stage(
                square, range(2), config_for("slurm", tmp_path, "partition=nowhere"), tmp_path
            )
        )


def test_slurm_ctrl_c_cancels_the_job(slurm: Path, tmp_path: Path):
    parent, workers = start_waiting(tmp_path, "slurm")
    parent.send_signal(signal.SIGINT)
    parent.wait()
    assert (slurm / "1" / "cancelled").exists()
    assert have_ended(workers)


@pytest.mark.parametrize("engine", ["slurm", "local"])
def test_slurm_job_of_killed_command_is_cancelled_by_the_next(
    engine: str, slurm: Path, tmp_path: Path
):
    parent, workers = start_waiting(tmp_path, "slurm")
    parent.kill()
    parent.wait()
    assert all(map(is_running, workers)), "the tasks must outlive the command"
    assert dict(run_stage(square, range(3), config_for(engine, tmp_path), tmp_path)) == {
        0: 0,
        1: 1,
        2: 4,
    }
    assert (slurm / "1" / "cancelled").exists()
    assert have_ended(workers)


HUB = {"HF_TOKEN": "hf_thesecretoftheport", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": "/h"}


def see_hub(number: int) -> dict[str, str]:
    from huggingface_hub import constants, get_token

    return {
        "HF_TOKEN": str(get_token()),
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_HOME": constants.HF_HOME,
    }


@pytest.mark.usefixtures("ray_cluster")
def test_ray_tasks_get_the_settings_of_the_hub_and_no_file_has_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in HUB.items():
        monkeypatch.setenv(name, value)
    found = []
    for _, seen in run_stage(see_hub, range(2), config_for("ray", tmp_path), tmp_path):
        found.append(seen)
        written = [
            path
            for folder in (tmp_path, Path(os.environ["RAY_TMPDIR"]))  # a run's own files, Ray's
            for path in folder.rglob("*.*")
            if path.is_file() and path.parent.name != "results"
        ]
        contents = [path.read_bytes() for path in written]
        assert any(b"HF_HOME" in content for content in contents)
        assert not any(HUB["HF_TOKEN"].encode() in content for content in contents)
    assert found == [HUB] * 2


def test_ray_does_not_log_the_password_of_an_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("ray")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:secret@hub.example")
    with pytest.raises(UsageError, match="HF_ENDPOINT has a user name or password") as caught:
        list(run_stage(square, [1], config_for("ray", tmp_path), tmp_path))
    assert "secret" not in str(caught.value)


def open_boat(out: Path, wood: str, **options: Any) -> AbstractContextManager[Workspace]:
    """A stage for tests, made of one input."""
    config = StageConfig(out=out, **options)
    return workspace("boat", config, {"wood": Input("", wood)}, Working((), cancel_earlier_run))


@pytest.mark.parametrize("engine", ["slurm", "ray"])
def test_jobs_of_a_killed_command_end_before_overwrite_removes_their_folder(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path
):
    request.getfixturevalue("slurm" if engine == "slurm" else "ray_cluster")
    out = tmp_path / "boat"
    with pytest.raises(KeyboardInterrupt), open_boat(out, "oak"):
        raise KeyboardInterrupt
    parent, workers = start_waiting(out, engine)
    parent.kill()
    parent.wait()
    with open_boat(out, "elm", overwrite=True) as work:
        assert not any(map(is_running, workers))
        assert not (work.folder / ".engine").exists()
