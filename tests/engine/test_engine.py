"""Worker processes of the engine: results, errors, kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bert_pipeline.engine.run import keep_processes, run_tasks
from bert_pipeline.errors import BertpipeError

ROOT = Path(__file__).parents[2]


def square(number: int) -> int:
    return number * number


def kill_itself_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse_three(number: int) -> int:
    if number == 3:
        raise BertpipeError("three is refused")
    return number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ZeroDivisionError("a bug")
    return number


def note_and_wait(folder: Path) -> None:
    (folder / f"{os.getpid()}").touch()
    time.sleep(600)


@pytest.mark.parametrize(
    "workers", [1, *(pytest.param(n, marks=pytest.mark.integration) for n in (2, 20))]
)
def test_every_task_runs_once_for_any_number_of_workers(workers: int):
    done = list(run_tasks(square, range(9), workers))
    assert sorted(done) == [(n, n * n) for n in range(9)]


def test_no_tasks():
    assert list(run_tasks(square, [], 4)) == []


@pytest.mark.integration
@pytest.mark.parametrize("workers", [2, 4])
def test_killed_worker_is_one_message(workers: int):
    with pytest.raises(BertpipeError, match="worker process was killed") as caught:
        list(run_tasks(kill_itself_at_three, range(8), workers))
    assert "--workers" in str(caught.value)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.integration)])
def test_error_in_a_task_is_raised_unchanged(workers: int):
    with pytest.raises(BertpipeError, match=r"^three is refused$"):
        list(run_tasks(refuse_three, range(8), workers))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(run_tasks(fail_at_three, range(8), workers))


def get_process_id(number: int) -> int:
    time.sleep(0.3)  # so that every worker gets one
    return os.getpid()


@pytest.mark.integration
def test_keep_processes_shares_workers_between_runs():
    with keep_processes():
        first = {pid for _, pid in run_tasks(get_process_id, range(6), 2)}
        with pytest.raises(BertpipeError, match="three is refused"):
            list(run_tasks(refuse_three, range(8), 3))
        again = {pid for _, pid in run_tasks(get_process_id, range(6), 2)}
        assert first == again
        assert len(first) == 2
        with pytest.raises(BertpipeError, match="worker process was killed"):
            list(run_tasks(kill_itself_at_three, range(8), 2))
        others = {pid for _, pid in run_tasks(get_process_id, range(6), 2)}
        assert not others & first
        assert all(map(is_running, others))
    assert not any(map(is_running, first | others))


def is_loaded(module: str) -> bool:
    return module in sys.modules


@pytest.mark.integration
def test_workers_do_not_import_datatrove_and_ray():
    assert [loaded for _, loaded in run_tasks(is_loaded, ["datatrove", "ray"], 2)] == [False, False]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition: object, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from bert_pipeline.engine.run import run_tasks
from tests.engine.test_engine import note_and_wait
if __name__ == "__main__":
    list(run_tasks(note_and_wait, [Path(sys.argv[2])] * 4, 2))
"""


@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_exit_when_their_parent_is_killed(tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(SCRIPT, encoding="utf-8")
    notes = tmp_path / "notes"
    notes.mkdir()
    with subprocess.Popen([sys.executable, str(script), str(ROOT), str(notes)]) as parent:
        assert wait_until(lambda: len(list(notes.iterdir())) == 2), "the workers did not start"
        workers = [int(note.name) for note in notes.iterdir()]
        assert all(map(is_running, workers))
        parent.kill()
    assert wait_until(lambda: not any(map(is_running, workers)), 20), "the workers did not exit"
