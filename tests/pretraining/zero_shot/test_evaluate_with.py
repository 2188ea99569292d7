"""`pretrain --evaluate-with`: metrics at each evaluation, and the same weights as without."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from bert_pipeline import evaluate_cloze, evaluate_minimal_pairs
from bert_pipeline.errors import UsageError
from bert_pipeline.pretraining.zero_shot.during_training import SAMPLE, read_zero_shot_files
from tests.helpers.text import write_rows
from tests.helpers.training_runs import counts, finish, metrics, options, run, start, weights


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> tuple[Path, Path]:
    """More pairs and probes than are used during training, the first ones of one phenomenon."""
    folder = tmp_path_factory.mktemp("files")
    lines = [line.split(".")[0][:60] for text in documents for line in text.splitlines()]
    swapped = [" ".join(reversed(line.split())) for line in lines]
    pairs = [
        {"sen": good, "wrong_sen": bad, "phenomenon": "order" if number < 100 else "late"}
        for number, (good, bad) in enumerate(zip(lines, swapped, strict=True))
    ]
    probes = [{"text": f"[MASK] {line}", "expect": line.split()[0]} for line in lines]
    assert len(pairs) > 150
    write_rows(folder / "order.jsonl", pairs * 2)
    write_rows(folder / "first.jsonl", probes * 2)
    return folder / "order.jsonl", folder / "first.jsonl"


def evaluations(out: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(out) if "eval_mlm_loss" in line]


@pytest.mark.integration
def test_run_is_evaluated_and_trains_as_without(
    examples_folder: Path, wordpiece_folder: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    usual = (examples_folder, wordpiece_folder)
    run(*usual, tmp_path / "plain", dropout=0.1)
    given = [str(path) for path in files]
    run(*usual, tmp_path / "out", dropout=0.1, evaluate_with=given)
    assert weights(tmp_path / "out") == weights(tmp_path / "plain")
    during, final = evaluations(tmp_path / "out")
    assert during.keys() == final.keys()
    pairs = evaluate_minimal_pairs(tmp_path / "out", files[0])
    assert pairs.pairs > SAMPLE
    assert final["eval_minimal_pairs"] == pairs.accuracy.value
    assert pairs.mean_over_phenomena is not None
    assert final["eval_minimal_pairs_phenomena"] == pairs.mean_over_phenomena.value
    assert during["eval_minimal_pairs"] * SAMPLE == int(during["eval_minimal_pairs"] * SAMPLE)
    cloze = evaluate_cloze(tmp_path / "out", files[1])
    assert final["eval_cloze_top1"] == cloze.top1_accuracy.value
    assert final["eval_cloze_top5"] == cloze.top5_accuracy.value
    assert counts(tmp_path / "out")["eval_cloze_top5"] == final["eval_cloze_top5"]
    # The files are no part of the run: with others it is the same one, and complete.
    run(*usual, tmp_path / "out", dropout=0.1, evaluate_with=given[:1])


@pytest.mark.slow
@pytest.mark.parametrize("distribute", ["ddp", "fsdp"])
def test_processes_together_measure_what_one_does(
    distribute: str,
    examples_folder: Path,
    wordpiece_folder: Path,
    files: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    given = options(
        *(examples_folder, wordpiece_folder, tmp_path / "out"),
        num_processes=2,
        threads=2,
        distribute=distribute,
        evaluate_with=[str(path) for path in files],
    )
    finish(start(tmp_path / "config.yaml", given))
    _, final = evaluations(tmp_path / "out")
    found = evaluate_minimal_pairs(tmp_path / "out", files[0])
    assert final["eval_minimal_pairs"] == pytest.approx(found.accuracy.value, abs=0.01)
    cloze = evaluate_cloze(tmp_path / "out", files[1])
    assert final["eval_cloze_top5"] == pytest.approx(cloze.top5_accuracy.value, abs=0.01)


@pytest.mark.integration
def test_broken_file_is_refused_before_the_first_step(
    examples_folder: Path, wordpiece_folder: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(files[1].read_text() + '{"text": "no mask", "expect": "a"}\n')
    usual = (examples_folder, wordpiece_folder, tmp_path / "out")
    with pytest.raises(UsageError, match=r"broken.jsonl, line \d+: 'no mask' must be a text"):
        run(*usual, evaluate_with=[str(broken)])
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_metrics_of_several_files_have_their_names(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    pairs, probes = files
    other = Path(shutil.copy(pairs, tmp_path / "agreement.test.jsonl"))
    found = read_zero_shot_files([str(path) for path in (pairs, probes, other)])
    names = [file.name for file in found]
    assert names == ["minimal_pairs_order", "cloze", "minimal_pairs_agreement"]
    same = Path(shutil.copy(pairs, tmp_path / "order.copy.jsonl"))
    with pytest.raises(UsageError, match="another file has that name"):
        read_zero_shot_files([str(pairs), str(same)])


def test_file_of_neither_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    write_rows(path, [{"text": "a", "label": "b"}])
    with pytest.raises(UsageError, match=r"line 1: minimal pairs .* found the fields text, label"):
        read_zero_shot_files([str(path)])
    path.write_text("")
    with pytest.raises(UsageError, match="has no rows"):
        read_zero_shot_files([str(path)])
