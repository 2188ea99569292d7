"""Kills, signals and resume: no step is lost or repeated, and the weights are bit-identical."""

import random
import re
import shlex
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bert_pipeline.errors import BertpipeError, Stopped
from bert_pipeline.training.checkpoint import load_newest, save_checkpoint
from bert_pipeline.training.position import Position
from bert_pipeline.training.trainer import Trainer
from bert_pipeline.verification import verify_folders
from tests.helpers.training_runs import (
    SHAPE,
    command,
    counts,
    finish,
    fork_run,
    has_begun,
    long_run,
    metrics,
    options,
    run,
    start,
    wait_for,
    weights,
)
from tests.storage.test_workspace import run_on_a_small_disk


@pytest.mark.slow
def test_run_killed_20_times_ends_with_the_same_weights(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    """A checkpoint every two steps, so that many kills interrupt one."""
    small = {"model": SHAPE, "max_steps": 60, "checkpoint_every": 2}
    given = long_run(examples_folder, wordpiece_folder, tmp_path / "alone", **small)
    fork_run(given).join()
    expected = weights(tmp_path / "alone")
    moments = random.Random(0)
    kills = 0
    for number in range(5):
        out = tmp_path / f"killed-{number}"
        while kills < 4 * (number + 1):
            process = fork_run(given | {"out": out})
            process.join(moments.uniform(0.1, 0.7))
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL
            if process.exitcode == 0:
                break  # it finished before the kill: kill the next run more often
        else:
            process = fork_run(given | {"out": out})
            process.join()
        assert process.exitcode == 0
        assert weights(out) == expected
        steps = [line["step"] for line in metrics(out) if "loss" in line]
        assert steps == [10, 20, 30, 40, 50, 60]
        assert not list(out.rglob("*.tmp"))
    assert kills >= 15


@pytest.mark.integration
@pytest.mark.parametrize(
    "changes",
    [
        {"max_steps": None, "max_tokens": 25_000, "batch_size_start": 4, "batch_size_warmup": 0.5},
        pytest.param(
            {"max_steps": 40, "precision": "bf16", "tokens_per_batch": 300},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"optimizer": "lamb", "schedule": "wsd", "precision": "bf16", "max_steps": 24},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"precision": "fp16", "max_steps": 24},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_run_resumes_to_the_same_weights(
    changes: dict[str, Any], examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    given = long_run(examples_folder, wordpiece_folder, tmp_path / "alone", model=SHAPE, **changes)
    fork_run(given).join()
    out = tmp_path / "killed"
    for _ in range(2):
        process = fork_run(given | {"out": out})
        wait_for(lambda: len(list(out.glob("checkpoints/step-*"))) > 1)
        process.kill()
        process.join()
    process = fork_run(given | {"out": out})
    process.join()
    assert process.exitcode == 0
    assert weights(out) == weights(tmp_path / "alone")
    assert [line["tokens"] for line in metrics(out) if "loss" in line] == [
        line["tokens"] for line in metrics(tmp_path / "alone") if "loss" in line
    ]


@pytest.mark.slow
def test_run_by_minutes_resumes_its_clock(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    changes = {"max_steps": None, "max_minutes": 0.1, "log_every": 5, "checkpoint_every": 5}
    given = long_run(examples_folder, wordpiece_folder, out, **changes)
    process = fork_run(given)
    wait_for(lambda: has_begun(out))
    process.terminate()
    process.join()
    time.sleep(3)  # not training time
    before = metrics(out)[-1]["elapsed_s"]
    process = fork_run(given)
    process.join()
    assert process.exitcode == 0
    times = [line["elapsed_s"] for line in metrics(out) if "loss" in line]
    assert times == sorted(times)
    assert before < 5.5 < times[-1] < 8
    following = next(time for time in times if time > before)
    assert following - before < 3
    assert counts(out)["steps"] == metrics(out)[-1]["step"]
    assert 6 <= counts(out)["elapsed_s"] < 8


@pytest.mark.integration
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_signal_saves_a_checkpoint_and_the_run_resumes(
    number: int, code: int, examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = long_run(
        examples_folder, wordpiece_folder, out, checkpoint_every=100_000, max_steps=100_000
    )
    process = start(tmp_path / "run.yaml", given)
    wait_for(lambda: has_begun(out))
    process.send_signal(number)
    errors = finish(process, code)
    (checkpoint,) = (out / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert f"step {step} is saved" in errors
    assert "Traceback" not in errors
    again = fork_run(given)
    wait_for(lambda: any(line["step"] > step + 10 for line in metrics(out)))
    again.kill()
    again.join()
    assert [line["step"] for line in metrics(out) if "loss" in line][:3] == [10, 20, 30]


@pytest.mark.integration
@pytest.mark.parametrize("moment", ["last step", "export"])
def test_stop_in_the_last_step_or_the_export_repeats_no_line_of_metrics(
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
    examples_folder: Path,
    wordpiece_folder: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    train_step = Trainer.train_step

    def stop_in_last_step(self: Trainer, *args: Any) -> Any:
        if self.position.step == 11:
            signal.raise_signal(signal.SIGTERM)
        return train_step(self, *args)

    def stop_in_export(*args: Any) -> None:
        raise Stopped("", signal.SIGTERM)

    with monkeypatch.context() as patch:
        if moment == "last step":
            patch.setattr(Trainer, "train_step", stop_in_last_step)
        else:
            patch.setattr("bert_pipeline.pretraining.pretrain.finish", stop_in_export)
        with pytest.raises(Stopped):
            run(examples_folder, wordpiece_folder, out, max_steps=12)
    run(examples_folder, wordpiece_folder, out, max_steps=12)
    assert [(line["step"], "loss" in line) for line in metrics(out)] == [
        (10, True),
        (12, True),
        (12, False),
    ]


def test_damaged_checkpoint_is_skipped(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(
            tmp_path,
            Position(step, step * 10, elapsed_s=1.0),
            {"w": torch.ones(3) * step},
            {},
            keep=5,
        )
    newest = tmp_path / "step-00000002" / "model.safetensors"
    raw = bytearray(newest.read_bytes())
    raw[-1] ^= 1
    newest.write_bytes(raw)
    found = load_newest(tmp_path)
    assert found is not None
    assert found.position == Position(1, 10, elapsed_s=1.0)
    assert found.model["w"].tolist() == [1, 1, 1]
    assert found.damaged == ("step-00000002",)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"step": 2', '"step": 3'),
        ('"tokens": 20', '"tokens": null'),
        ('"sha256": {', '"sha256": [], "x": {'),
    ],
)
def test_damaged_state_file_is_skipped(old: str, new: str, tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(
            tmp_path,
            Position(step, step * 10, elapsed_s=1.0),
            {"w": torch.ones(3) * step},
            {},
            keep=5,
        )
    state = tmp_path / "step-00000002" / "state.json"
    assert old in state.read_text()
    state.write_text(state.read_text().replace(old, new))
    found = load_newest(tmp_path)
    assert found is not None
    assert found.position.step == 1


def test_damaged_checkpoints_and_other_folders_do_not_count_as_kept(tmp_path: Path) -> None:
    def save(step: int) -> None:
        save_checkpoint(tmp_path, Position(step), {"w": torch.ones(3) * step}, {}, keep=1)

    (tmp_path / "step-x").mkdir()
    save(2)
    (tmp_path / "step-00000002" / "state.json").write_text("{")  # so the run starts from step 0
    save(1)
    found = load_newest(tmp_path)
    assert found is not None
    assert found.position.step == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-x"]


def test_only_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Position(1), {"w": torch.ones(3)}, {}, keep=5)
    (tmp_path / "step-00000001" / "model.safetensors").write_bytes(b"")
    with pytest.raises(BertpipeError, match=r"step-00000001 damaged or .* there is no other"):
        load_newest(tmp_path)


@pytest.mark.integration
def test_overwrite_removes_damaged_checkpoints(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also all of an unfinished run, which has nothing else to resume from."""
    given = (examples_folder, wordpiece_folder, tmp_path / "out")
    short = {"max_steps": 4, "checkpoint_every": 2, "keep_checkpoints": 2}

    def damage() -> None:
        for path in tmp_path.glob("out/checkpoints/step-*/state.json"):
            path.write_text("{")

    with monkeypatch.context() as patch:
        patch.setattr("bert_pipeline.pretraining.pretrain.export_model", None)
        with pytest.raises(TypeError):
            run(*given, **short)
    damage()
    with pytest.raises(BertpipeError, match="--overwrite starts again from step 0"):
        run(*given, **short)
    run(*given, **short, overwrite=True)
    damage()
    assert verify_folders(tmp_path / "out", quiet=True)[0].problems
    run(*given, **short, overwrite=True)
    assert not verify_folders(tmp_path / "out", quiet=True)[0].problems


def test_newest_regular_checkpoint_is_kept_beside_those_of_stops(tmp_path: Path) -> None:
    for step, regular in ((10, True), (20, True), (23, False), (27, False), (29, False)):
        save_checkpoint(
            tmp_path, Position(step, regular=regular), {"w": torch.ones(3) * step}, {}, keep=2
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000020",
        "step-00000027",
        "step-00000029",
    ]
    found = load_newest(tmp_path, regular=True)
    assert found is not None
    assert found.position.step == 20


@pytest.mark.slow
def test_full_disk_while_saving_ends_the_run_on_all_ranks(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    """Checkpoints are written while both processes train; the run itself would take hours."""
    disk = tmp_path / "disk"
    how = {"num_processes": 2, "max_steps": 1_000_000, "checkpoint_every": 100}
    words = command(
        tmp_path / "run.yaml", options(examples_folder, wordpiece_folder, disk / "out", **how)
    )
    run_it = shlex.join([sys.executable, *words])
    script = f'{run_it}; echo "exit code $?"; ls {disk}/out/checkpoints'
    done = run_on_a_small_disk(disk, script, kilobytes=1200)
    code, *kept = done.stdout.splitlines()
    assert (code, kept[:1]) == ("exit code 1", ["step-00000100"]), done.stderr
    full, ranks = done.stderr.splitlines()
    assert re.fullmatch(r"bertpipe: .*/step-00000\d00: the disk is full\..*", full)
    assert ranks.startswith("bertpipe: A training process failed")


@pytest.mark.integration
def test_changed_settings_or_examples_are_rejected_at_resume(
    make_examples: Any, examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    """Options of execution, such as --log-every, may change."""
    out = tmp_path / "out"
    process = fork_run(options(examples_folder, wordpiece_folder, out, max_steps=100_000))
    wait_for(lambda: any(out.glob("checkpoints/step-*")))
    process.terminate()
    process.join()
    with pytest.raises(BertpipeError, match=r"learning_rate: 0.003 → 0.001"):
        run(examples_folder, wordpiece_folder, out, max_steps=100_000, learning_rate=1e-3)
    others = make_examples("other-examples", seed=7)
    with pytest.raises(BertpipeError, match="examples: its content changed"):
        run(others, wordpiece_folder, out, max_steps=100_000)
    again = fork_run(
        options(
            examples_folder,
            wordpiece_folder,
            out,
            max_steps=100_000,
            checkpoint_every=7,
            log_every=9,
        )
    )
    before = len(metrics(out))
    wait_for(lambda: len(metrics(out)) > before)
    again.kill()
    again.join()


@pytest.mark.integration
def test_run_is_not_resumed_in_another_precision(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    """`--precision auto` is bf16 on one machine and fp32 on this one."""
    out = tmp_path / "out"
    process = fork_run(options(examples_folder, wordpiece_folder, out, max_steps=100_000))
    wait_for(lambda: any(out.glob("checkpoints/step-*")))
    process.terminate()
    process.join()
    found = load_newest(out / "checkpoints")
    assert found is not None
    assert found.position.precision == "fp32"
    elsewhere = replace(found.position, step=found.position.step + 1, precision="bf16")
    save_checkpoint(out / "checkpoints", elsewhere, found.model, found.optimizer, keep=9)
    with pytest.raises(BertpipeError, match=r"trained in bf16 up to step .* fp32 is fp32"):
        run(examples_folder, wordpiece_folder, out, max_steps=100_000)
