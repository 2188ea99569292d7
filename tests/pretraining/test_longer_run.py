"""A finished run made longer: it goes on from before the decay of `wsd`, or is refused."""

from pathlib import Path
from typing import Any

import pytest

from bert_pipeline.errors import BertpipeError
from tests.helpers.training_runs import counts, fork_run, metrics, options, run, wait_for, weights

pytestmark = pytest.mark.integration

WSD = {"schedule": "wsd", "decay": 0.5, "warmup": 0.0, "checkpoint_every": 3, "max_steps": 20}


@pytest.fixture(scope="module")
def long_weights(
    examples_folder: Path, wordpiece_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """The weights of a run of 40 steps from the start."""
    out = tmp_path_factory.mktemp("long") / "out"
    run(examples_folder, wordpiece_folder, out, **WSD | {"max_steps": 40})
    return weights(out)


@pytest.mark.parametrize("keep", [1, 5])
def test_longer_run_equals_one_that_was_so_long_from_the_start(
    keep: int, examples_folder: Path, wordpiece_folder: Path, tmp_path: Path, long_weights: bytes
) -> None:
    out = tmp_path / "out"
    given = WSD | {"keep_checkpoints": keep}
    run(examples_folder, wordpiece_folder, out, **given)
    assert (out / "checkpoints/step-00000011").is_dir()
    assert weights(out) != long_weights
    run(examples_folder, wordpiece_folder, out, **given | {"max_steps": 40})
    assert weights(out) == long_weights
    assert [line["step"] for line in metrics(out) if "loss" in line] == [10, 20, 30, 40]
    assert counts(out)["steps"] == 40
    # And longer again.
    run(examples_folder, wordpiece_folder, out, **given | {"max_steps": 60})
    assert counts(out)["steps"] == 60


def test_killed_longer_run_resumes(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path, long_weights: bytes
) -> None:
    out = tmp_path / "out"
    run(examples_folder, wordpiece_folder, out, **WSD)
    longer = options(examples_folder, wordpiece_folder, out, **WSD | {"max_steps": 40})
    process = fork_run(longer)
    wait_for(lambda: (out / "checkpoints/step-00000027").is_dir())
    process.kill()
    process.join()
    assert not (out / "manifest.json").exists()
    run(examples_folder, wordpiece_folder, out, **WSD | {"max_steps": 40})
    assert weights(out) == long_weights


@pytest.mark.parametrize(
    ("finished", "changes", "reason"),
    [
        ({"schedule": "linear"}, {"max_steps": 9}, "has decayed over the whole run"),
        (WSD | {"max_steps": 8}, {"max_steps": 7}, "that is shorter"),
        (WSD | {"max_steps": 8, "mask_rate_end": 0.1}, {"max_steps": 9}, "--mask-rate-end"),
        (WSD | {"max_steps": 8, "warmup": 0.4}, {"max_steps": 900}, "warm-up would end after"),
        # The default warm-up is 1% of the run.
        (WSD | {"max_steps": 8, "warmup": None}, {"max_steps": 900}, "warm-up would end after"),
        (WSD | {"max_steps": 8}, {"max_steps": 9, "seed": 1}, "made with other settings"),
    ],
)
def test_run_that_cannot_be_longer_is_refused_with_the_reason(
    finished: dict[str, Any],
    changes: dict[str, Any],
    reason: str,
    examples_folder: Path,
    wordpiece_folder: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    given = {"max_steps": 8} | finished
    run(examples_folder, wordpiece_folder, out, **given)
    before = weights(out)
    with pytest.raises(BertpipeError, match=reason):
        run(examples_folder, wordpiece_folder, out, **given | changes)
    assert weights(out) == before
    assert counts(out)["steps"] == 8


def test_missing_checkpoint_from_before_the_decay_is_named(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(examples_folder, wordpiece_folder, out, **WSD)
    weights_file = out / "checkpoints/step-00000011/model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1])
    with pytest.raises(BertpipeError, match="checkpoint from before the decay is missing"):
        run(examples_folder, wordpiece_folder, out, **WSD | {"max_steps": 40})
