"""Held-out figures by source, in a run and by `bertpipe evaluate`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertForPreTraining

from bert_pipeline.errors import BertpipeError
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.evaluation import Evaluation, evaluate_folder
from bert_pipeline.pretraining.row_checks import number_sources
from bert_pipeline.stages import STAGES
from bert_pipeline.training.launch import launch
from tests.helpers.cli import run_cli
from tests.helpers.text import invent_documents, make_corpus
from tests.helpers.training_runs import SHAPE, counts, metrics, options, run

MakeExamples = Callable[..., Path]


@pytest.fixture(scope="module")
def mixed(make_examples: MakeExamples, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Examples of a corpus of two sources, and longer ones."""
    folder = tmp_path_factory.mktemp("mixed")
    corpus = make_corpus(folder / "corpus", invent_documents(5), shards=2, several_sources=True)
    given = {"corpus": corpus, "validation_fraction": 0.3, "dupe_factor": 1}
    return {
        "eval_": make_examples("mixed", out=folder / "short", pad=True, **given),
        "eval_long_": make_examples("long", out=folder / "long", max_seq_length=90, **given),
    }


@pytest.fixture(scope="module")
def finished(
    mixed: dict[str, Path], wordpiece_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A run with longer examples that evaluates a sample of rows, and what it printed."""
    out = tmp_path_factory.mktemp("finished") / "pretrain"
    changes = {
        "model": SHAPE | {"max_position_embeddings": 90},
        "long_examples": mixed["eval_long_"],
        "long_share": 0.7,
        "evaluate_rows": 20,
        "tracker": "tensorboard",
        "quiet": False,
    }
    with redirect_stdout(StringIO()) as printed:
        run(mixed["eval_"], wordpiece_folder, out, **changes)
    return out, printed.getvalue()


@torch.no_grad()
def measure_literally(model: Path, examples: Path) -> dict[str, dict[str, float]]:
    """The loss, top-1 accuracy and masked tokens by the name of the source, row by row."""
    stock = BertForPreTraining.from_pretrained(model / "model").eval()
    losses: dict[str, list[float]] = defaultdict(list)
    hits: dict[str, list[bool]] = defaultdict(list)
    for path in sorted(examples.glob("validation-*")):
        for row in pq.read_table(path).to_pylist():
            real = sum(segment >= 0 for segment in row["segment_ids"])
            logits = stock(
                input_ids=torch.tensor([row["tokens"][:real]]),
                token_type_ids=torch.tensor([row["segment_ids"][:real]]),
            ).prediction_logits[0]
            for position, label in zip(row["masked_positions"], row["masked_labels"], strict=True):
                losses[row["source"]].append(-float(logits[position].log_softmax(0)[label]))
                hits[row["source"]].append(int(logits[position].argmax()) == label)
    return {
        name: {
            "mlm_loss": sum(found) / len(found),
            "top1_accuracy": sum(hits[name]) / len(found),
            "masked_tokens": len(found),
        }
        for name, found in losses.items()
    }


def compare(found: Mapping[str, Mapping[str, float]], expected: Mapping[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, figures in expected.items():
        assert {key: found[name][key] for key in figures} == pytest.approx(figures, rel=1e-4)


@pytest.mark.integration
@pytest.mark.parametrize("prefix", ["eval_", "eval_long_"])
def test_figures_by_source_equal_the_stock_model(
    prefix: str, finished: tuple[Path, str], mixed: dict[str, Path]
) -> None:
    out, _ = finished
    expected = measure_literally(out, mixed[prefix])
    assert len(expected) == 2
    compare(metrics(out)[-1][f"{prefix}sources"], expected)
    compare(counts(out)[f"{prefix}sources"], expected)
    printed = run_cli("evaluate", out, "--examples", mixed[prefix], "--json")
    compare(json.loads(printed.stdout)["sources"], expected)


@pytest.mark.integration
@pytest.mark.parametrize("prefix", ["eval_", "eval_long_"])
def test_sample_of_a_run_is_divided_by_source(prefix: str, finished: tuple[Path, str]) -> None:
    """The figures of the sources make up those of all of its rows."""
    line = next(line for line in metrics(finished[0]) if f"{prefix}sources" in line)
    assert line["step"] == 20
    sources = line[f"{prefix}sources"].values()
    masked = [found["masked_tokens"] for found in sources]
    assert (
        sum(masked)
        == line[f"{prefix}masked_tokens"]
        < counts(finished[0])[f"{prefix}masked_tokens"]
    )
    for name in ("mlm_loss", "top1_accuracy", "top5_accuracy", "unigram_loss"):
        mean = sum(n * found[name] for n, found in zip(masked, sources, strict=True)) / sum(masked)
        assert mean == pytest.approx(line[f"{prefix}{name}"], rel=1e-6)


@pytest.mark.integration
def test_figures_by_source_are_printed(finished: tuple[Path, str]) -> None:
    """After each evaluation, also of the longer examples, and in the summary."""
    out, printed = finished
    lines = [line for line in printed.splitlines() if " nats, top-1 " in line]
    assert len(lines) == 2 + 2 + 2
    assert max(map(len, lines)) <= 80
    assert lines[-2].startswith("  by source ")
    for name, found in counts(out)["eval_sources"].items():
        figures = f"{found['mlm_loss']:.3f} nats, top-1 {found['top1_accuracy']:.1%} of "
        assert f"{figures}{found['masked_tokens']}: …{name[-23:]}" in printed


@pytest.mark.integration
def test_trackers_get_one_number_for_each_figure_of_a_source(finished: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished[0] / "trackers" / "bertpipe"))
    events.Reload()
    sources = counts(finished[0])["eval_sources"]
    for name, found in sources.items():
        cleaned = name.replace("/", "_").replace(":", "_")
        points = events.Scalars(f"eval_sources/{cleaned}/mlm_loss")
        assert [point.step for point in points] == [20, 30]
        assert points[-1].value == pytest.approx(found["mlm_loss"])


@pytest.mark.integration
def test_training_examples_have_no_figures_by_source(
    finished: tuple[Path, str], mixed: dict[str, Path]
) -> None:
    evaluation = evaluate_folder(finished[0], mixed["eval_"], "train", quiet=True)
    assert evaluation.sources is None
    assert evaluation.masked_tokens > 1000


@pytest.mark.slow
@pytest.mark.integration
def test_two_processes_have_the_figures_of_one(
    mixed: dict[str, Path], wordpiece_folder: Path, tmp_path: Path
) -> None:
    given = options(mixed["eval_"], wordpiece_folder, tmp_path / "out", max_steps=2)
    launch(STAGES["pretrain"].entry, PretrainConfig(**given, num_processes=2))
    alone = evaluate_folder(tmp_path / "out", mixed["eval_"], "validation", quiet=True)
    assert alone.sources is not None
    compare(counts(tmp_path / "out")["eval_sources"], alone.sources)


def describe(sources: Mapping[str, int]) -> list[str]:
    """The lines of sources with these numbers of masked tokens."""
    figures = {"mlm_loss": 1.5, "top1_accuracy": 0.25, "top5_accuracy": 0.5, "unigram_loss": 2.0}
    given: Any = {name: figures | {"masked_tokens": masked} for name, masked in sources.items()}
    evaluation = Evaluation(
        **figures,
        perplexity=2,
        nsp_accuracy=None,
        masked_tokens=1,
        bits_per_byte=None,
        sources=given,
    )
    return evaluation.describe_sources()


def test_many_sources_are_at_most_six_lines() -> None:
    lines = describe({f"source {number}": number for number in range(1, 9)})
    assert lines[0] == "1.500 nats, top-1 25.0% of 8: source 8"
    assert [line.rsplit(" ", 1)[-1] for line in lines[:5]] == ["8", "7", "6", "5", "4"]
    assert lines[5:] == ["and 3 smaller"]
    assert len(describe({"one": 1, "other": 2})) == 2
    assert describe({"one": 1}) == []


def test_row_of_an_unknown_source_is_named() -> None:
    files: Any = SimpleNamespace(sources=("one", "other"))
    known = pa.chunked_array([["other"], ["one", "other"]])
    path = Path("validation-00000.parquet")
    assert number_sources(path, files, known).tolist() == [1, 0, 1]
    for wrong in ("third", None):
        with pytest.raises(BertpipeError, match=r"00000\.parquet, row 2: its source is none of"):
            number_sources(path, files, pa.chunked_array([["one"], ["other", wrong]]))
