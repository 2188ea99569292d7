"""The Python API: stages as functions of options or of a config, and what they return."""

from pathlib import Path

import pytest

import bert_pipeline
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.errors import BertpipeError, UsageError
from tests.helpers.text import invent_documents
from tests.helpers.training_runs import options, reset_accelerate


def write_texts(folder: Path) -> str:
    """Text files; returns their `--source` value."""
    folder.mkdir()
    for number, text in enumerate(invent_documents(count=20)):
        (folder / f"{number}.txt").write_text(text)
    return f"text:{folder}/*.txt"


@pytest.mark.integration
def test_stages_return_their_manifests_and_the_model_can_be_used(tmp_path: Path) -> None:
    out = {name: tmp_path / name for name in ("corpus", "tokenizer", "examples", "run")}
    source = write_texts(tmp_path / "texts")
    corpus = bert_pipeline.build_corpus(
        source=source, out=str(out["corpus"]), workers=1, quiet=True
    )
    assert corpus.counts["documents"] == 20
    tokenizer = bert_pipeline.train_tokenizer(
        corpus=out["corpus"], out=out["tokenizer"], vocab_size=400, quiet=True
    )
    assert tokenizer.stage == "tokenize"
    examples = bert_pipeline.build_examples(
        corpus=out["corpus"],
        tokenizer=out["tokenizer"],
        out=out["examples"],
        max_seq_length=64,
        validation_fraction=0.2,
        workers=1,
        quiet=True,
    )
    assert examples.inputs["tokenizer"].fingerprint == tokenizer.fingerprint
    reset_accelerate()
    run = bert_pipeline.pretrain(
        **options(out["examples"], out["tokenizer"], out["run"], max_steps=2)
    )
    assert run.counts["steps"] == 2
    assert not any(found.problems for found in bert_pipeline.verify(tmp_path))
    checkpoint = next((out["run"] / "checkpoints").iterdir())
    (checkpoint / "state.json").write_text("{}")
    assert [found.problems for found in bert_pipeline.verify(out["run"])] == [
        (f"checkpoints/{checkpoint.name} is damaged, and not resumed from",)
    ]
    evaluation = bert_pipeline.evaluate(out["run"], out["examples"])
    assert evaluation.mlm_loss == pytest.approx(run.counts["eval_mlm_loss"], rel=1e-4)
    assert bert_pipeline.fill_mask(out["run"], []) == []
    found = bert_pipeline.fill_mask(out["run"], "a [MASK] b", top_k=3)
    assert [candidate.keys() >= {"score", "token_str"} for candidate in found] == [True] * 3


@pytest.mark.integration
def test_options_change_a_given_config(tmp_path: Path) -> None:
    config = CorpusConfig(
        source=(write_texts(tmp_path / "texts"),), out=tmp_path / "a", workers=1, quiet=True
    )
    assert bert_pipeline.build_corpus(config).counts["documents"] == 20
    limited = bert_pipeline.build_corpus(config, out=tmp_path / "b", max_documents=5)
    assert limited.counts["documents"] == 5


def test_errors_are_raised_not_printed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`sauce` is unknown"):
        bert_pipeline.build_corpus(sauce="text:*.txt", out=tmp_path / "out")
    with pytest.raises(BertpipeError, match="missing"):
        bert_pipeline.train_tokenizer(
            corpus=tmp_path / "missing", out=tmp_path / "out", vocab_size=400
        )
