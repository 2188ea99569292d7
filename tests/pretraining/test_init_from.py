"""`pretrain --init-from`: weights of an existing model, its heads, and a larger vocabulary."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ElectraForPreTraining,
    ModernBertConfig,
    RobertaConfig,
)

from bert_pipeline import evaluate
from bert_pipeline.config import build_config
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.load import load_tokenizer
from bert_pipeline.tokenizer.train import train_tokenizer
from tests.helpers.local_hub import LocalHub
from tests.helpers.training_runs import (
    SHAPE,
    command,
    counts,
    fork_run,
    options,
    run,
    wait_for,
    weights,
)

pytestmark = pytest.mark.integration

TEXTS = ["The boat waits near the harbour.", "nothing at all , and a word"]
STANDARD = {
    "vocab_size": 400,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: BertConfig(**STANDARD),
    "roberta": lambda: RobertaConfig(**STANDARD | IDS),
    "modernbert": lambda: ModernBertConfig(**STANDARD | IDS, cls_token_id=2, sep_token_id=3),
    "distilbert": lambda: DistilBertConfig(vocab_size=400, n_layers=2, dim=32, n_heads=2),
    "electra": lambda: ElectraConfig(**STANDARD, embedding_size=16),
    "deberta-v2": lambda: DebertaV2Config(**STANDARD),
}


def save(network: Any, tokenizer: Path, folder: Path) -> Path:
    """A model folder as transformers writes it."""
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def make_model(kind: str, tokenizer: Path, folder: Path) -> Path:
    torch.manual_seed(7)
    network = AutoModelForMaskedLM.from_config(CONFIGS[kind]())
    with torch.no_grad():
        network.get_output_embeddings().bias.normal_()
    return save(network, tokenizer, folder)


@torch.no_grad()
def logits(folder: Path) -> list[torch.Tensor]:
    network = AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [
        network(torch.tensor([tokenizer(text)["input_ids"]])).logits[0].float() for text in TEXTS
    ]


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_steps_change_no_logits(
    kind: str, mlm_examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    start = make_model(kind, wordpiece_folder, tmp_path / "start")
    out = tmp_path / "out"
    given = {"init_from": str(start), "max_steps": 0}
    run(mlm_examples_folder, wordpiece_folder, out, **given)
    saved = out / "model"
    for before, after in zip(logits(start), logits(saved), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    names = [json.loads((f / "config.json").read_text())["architectures"] for f in (start, saved)]
    assert names[0] == names[1]


def test_weights_saved_in_16_bits_are_trained_in_32(
    mlm_examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    network = AutoModelForMaskedLM.from_config(CONFIGS["modernbert"]()).bfloat16()
    start = save(network, wordpiece_folder, tmp_path / "start")
    run(mlm_examples_folder, wordpiece_folder, tmp_path / "out", init_from=str(start), max_steps=2)
    checkpoint = tmp_path / "out/checkpoints/step-00000002/model.safetensors"
    types = {str(tensor.dtype) for tensor in load_file(checkpoint).values()}
    assert types == {"torch.float32"}


def test_padded_vocabulary_is_kept(
    mlm_examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    network = BertForMaskedLM(BertConfig(**STANDARD | {"vocab_size": 448}))
    start = save(network, wordpiece_folder, tmp_path / "start")
    out = tmp_path / "out"
    run(mlm_examples_folder, wordpiece_folder, out, init_from=str(start), max_steps=2)
    assert BertForMaskedLM.from_pretrained(out / "model").config.vocab_size == 448
    found = evaluate(out, mlm_examples_folder)
    assert found.mlm_loss == pytest.approx(counts(out)["eval_mlm_loss"], rel=1e-4)


def test_missing_heads_are_named_and_random(
    examples_folder: Path,
    wordpiece_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A masked LM has no head for sentence pairs, and an encoder no head at all."""
    torch.manual_seed(0)
    network = BertForMaskedLM(BertConfig(**STANDARD))
    masked = save(network, wordpiece_folder, tmp_path / "masked")
    encoder = save(network.bert, wordpiece_folder, tmp_path / "encoder")
    for start, named in ((masked, "cls.seq_relationship.weight"), (encoder, "cls.predictions")):
        out = tmp_path / f"from-{start.name}"
        given = {"init_from": str(start), "max_steps": 0, "quiet": False}
        run(examples_folder, wordpiece_folder, out, **given)
        printed = " ".join(capsys.readouterr().out.split())
        assert "random weights in new heads" in printed
        assert named in printed
        trained = BertForPreTraining.from_pretrained(out / "model")
        stock = BertModel.from_pretrained(start)
        word = trained.bert.embeddings.word_embeddings.weight
        assert torch.equal(word, stock.embeddings.word_embeddings.weight)
        assert torch.equal(
            trained.bert.encoder.layer[1].output.dense.weight,
            stock.encoder.layer[1].output.dense.weight,
        )
        assert trained.cls.seq_relationship.weight.std() > 0


def test_run_starts_from_the_loss_of_its_model(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    run(examples_folder, wordpiece_folder, first, max_steps=60)
    again = tmp_path / "again"
    run(examples_folder, wordpiece_folder, again, init_from=str(first), max_steps=0)
    assert counts(again)["eval_mlm_loss"] == pytest.approx(counts(first)["eval_mlm_loss"], abs=1e-5)
    longer = tmp_path / "longer"
    run(examples_folder, wordpiece_folder, longer, init_from=str(first), max_steps=60)
    assert counts(longer)["eval_mlm_loss"] < counts(first)["eval_mlm_loss"]
    (values,) = counts(longer)["bits_per_byte"].values()
    assert values["after"] < values["before"]


@pytest.fixture(scope="module")
def larger_tokenizer(
    corpus_folder: Path, wordpiece_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    given = {
        "out": tmp_path_factory.mktemp("larger") / "tokenizer",
        "corpus": corpus_folder,
        "extend": str(wordpiece_folder),
        "add_vocab": 30,
        "workers": 1,
        "quiet": True,
    }
    config = build_config(TokenizeConfig, given)
    train_tokenizer(config)
    return config.out


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "deberta-v2"])
def test_new_entries_start_as_the_mean_of_their_sub_tokens(
    kind: str,
    make_examples: Callable[..., Path],
    larger_tokenizer: Path,
    wordpiece_folder: Path,
    tmp_path: Path,
) -> None:
    examples = make_examples("mlm-larger", objective="mlm", tokenizer=larger_tokenizer)
    start = make_model(kind, wordpiece_folder, tmp_path / "start")
    out = tmp_path / "out"
    run(examples, larger_tokenizer, out, init_from=str(start), max_steps=0)
    old = AutoModelForMaskedLM.from_pretrained(start)
    new = AutoModelForMaskedLM.from_pretrained(out / "model")
    tokenizer = load_tokenizer(larger_tokenizer).tokenizer
    size = tokenizer.get_vocab_size()
    assert size > 400
    assert new.config.vocab_size == size
    before = old.get_input_embeddings().weight
    after = new.get_input_embeddings().weight
    bias = new.get_output_embeddings().bias
    assert torch.equal(after[:400], before)
    assert torch.equal(bias[:400], old.get_output_embeddings().bias)
    # Logits of the old entries are unchanged for text that has no new one.
    smaller = load_tokenizer(wordpiece_folder).tokenizer
    for text, of_old, of_new in zip(TEXTS, logits(start), logits(out / "model"), strict=True):
        if smaller.encode(text).ids == tokenizer.encode(text).ids:
            torch.testing.assert_close(of_new[:, :400], of_old, rtol=0, atol=1e-5)
    # A whole word that is new has the mean of what it was split into.
    words = [number for number in range(400, size) if "#" not in str(tokenizer.id_to_token(number))]
    assert words
    for number in words:
        ids = smaller.encode(tokenizer.id_to_token(number), add_special_tokens=False).ids
        assert len(ids) > 1
        torch.testing.assert_close(after[number], before[ids].mean(0))
        mean = old.get_output_embeddings().bias[ids].mean()
        torch.testing.assert_close(bias[number], mean)


def test_summary_compares_the_models_on_new_and_old_text(
    make_examples: Callable[..., Path],
    larger_tokenizer: Path,
    wordpiece_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    examples = make_examples("mlm-larger", objective="mlm", tokenizer=larger_tokenizer)
    start = make_model("bert", wordpiece_folder, tmp_path / "start")
    old = tmp_path / "old.txt"
    old.write_text("Rivers run to the sea, and the sea is never full.\n" * 20)
    given = {"init_from": str(start), "old_text": str(old), "max_steps": 60, "quiet": False}
    run(examples, larger_tokenizer, tmp_path / "out", **given)
    found = counts(tmp_path / "out")["bits_per_byte"]
    assert set(found) == {"held-out text of this run", str(old)}
    printed = capsys.readouterr().out
    for values in found.values():
        assert np.isfinite(values["before"])
        assert f"{values['after']:.3f}" in printed
    own = found["held-out text of this run"]
    assert own["after"] < own["before"]


def test_killed_run_resumes_to_the_same_weights(
    examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    start = save(BertForPreTraining(BertConfig(**STANDARD)), wordpiece_folder, tmp_path / "start")
    changes = {"init_from": str(start), "max_steps": 60, "checkpoint_every": 3, "dropout": 0.1}
    given = options(examples_folder, wordpiece_folder, tmp_path / "alone", **changes)
    fork_run(given).join()
    out = tmp_path / "killed"
    process = fork_run(given | {"out": out})
    wait_for(lambda: any(out.glob("checkpoints/step-*")))
    process.kill()
    process.join()
    # Another model in the same place is noticed.
    moved = tmp_path / "moved"
    shutil.move(start, moved)
    save(BertForPreTraining(BertConfig(**STANDARD)), wordpiece_folder, start)
    with pytest.raises(BertpipeError, match="init_from: its content changed"):
        run(examples_folder, wordpiece_folder, out, **changes)
    shutil.rmtree(start)
    shutil.move(moved, start)
    fork_run(given | {"out": out}).join()
    assert weights(out) == weights(tmp_path / "alone")


def test_unusable_models_are_refused_in_one_line(
    mlm_examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    def refuse(folder: Path, said: str, **changes: Any) -> None:
        given = {"init_from": str(folder), "max_steps": 1} | changes
        with pytest.raises(BertpipeError, match=said) as error:
            run(mlm_examples_folder, wordpiece_folder, tmp_path / "out", **given)
        assert "\n" not in str(error.value)

    whole = make_model("bert", wordpiece_folder, tmp_path / "whole")
    network = BertForMaskedLM.from_pretrained(whole)
    # A layer is missing.
    cut = save(network, wordpiece_folder, tmp_path / "cut")
    config = json.loads((cut / "config.json").read_text())
    (cut / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    refuse(cut, r"lacks: bert\.encoder\.layer\.2")
    # Weights in another format.
    pickled = save(network, wordpiece_folder, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save(network.state_dict(), pickled / "pytorch_model.bin")
    refuse(pickled, "no model.safetensors found")
    # No tokenizer.
    network.save_pretrained(tmp_path / "without")
    refuse(tmp_path / "without", "no tokenizer")
    # Fewer positions than the examples have tokens.
    short = BertForMaskedLM(BertConfig(**STANDARD | {"max_position_embeddings": 20}))
    refuse(save(short, wordpiece_folder, tmp_path / "short"), "the model has 20 positions")
    refuse(tmp_path / "nowhere", "no model found")
    # Nothing was trained.
    assert not list((tmp_path / "out").glob("checkpoints/*"))
    with pytest.raises(ValueError, match="--init-from excludes --model"):
        PretrainConfig(**options(whole, whole, whole, init_from=str(whole), model=SHAPE))
    with pytest.raises(UsageError):
        build_config(PretrainConfig, options(whole, whole, whole, init_revision="v1"))


def test_discriminator_without_a_vocabulary_head_gets_a_new_one(
    mlm_examples_folder: Path,
    wordpiece_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    network = ElectraForPreTraining(CONFIGS["electra"]())
    start = save(network, wordpiece_folder, tmp_path / "start")
    given = {"init_from": str(start), "max_steps": 2, "quiet": False}
    run(mlm_examples_folder, wordpiece_folder, tmp_path / "out", **given)
    assert "generator_predictions" in capsys.readouterr().out


def test_model_on_the_hub_is_downloaded_without_its_pickle(
    mlm_examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "hub"
    model = make_model("bert", wordpiece_folder, root / "a" / "bert")
    (model / "pytorch_model.bin").write_bytes(b"not to be read")
    changes = {"init_from": "a/bert", "max_steps": 0}
    given = options(mlm_examples_folder, wordpiece_folder, tmp_path / "out", **changes)
    with LocalHub(root) as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
        }
        arguments = command(tmp_path / "run.yaml", given)
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        fetched = {request.path.rpartition("/")[2] for request in hub.log}
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in fetched
    assert "pytorch_model.bin" not in fetched
    for before, after in zip(logits(model), logits(tmp_path / "out/model"), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
