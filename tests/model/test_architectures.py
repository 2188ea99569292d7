"""Architectures other than BERT against stock transformers: losses, gradients, sizes, runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    pipeline,
)

from bert_pipeline.errors import UsageError
from bert_pipeline.model.architectures import count_positions, make_config
from bert_pipeline.model.parameters import ParameterKind, parameter_kinds
from bert_pipeline.model.pretraining_model import PretrainingModel, UnpaddedNetwork, make_network
from bert_pipeline.predict.fill_mask import MaskFiller
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.evaluation import evaluate_folder
from bert_pipeline.pretraining.pretrain import pretrain
from bert_pipeline.tokenizer.load import SpecialIds
from tests.helpers.model_rows import flatten, losses_and_gradients, make_rows, pad

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "roberta": SIZES | {"max_position_embeddings": 41, "type_vocab_size": 1},
    "xlm-roberta": SIZES | {"max_position_embeddings": 41, "type_vocab_size": 2},
    "camembert": SIZES | {"max_position_embeddings": 41, "type_vocab_size": 1},
    "modernbert": SIZES | {"local_attention": 16},
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48},
    "electra": SIZES | {"embedding_size": 16},
    "albert": SIZES | {"embedding_size": 16},
    "deberta-v2": SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "mpnet": SIZES,
    "funnel": {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "block_sizes": [1, 1]},
}
UNPADDED = ("roberta", "xlm-roberta", "camembert", "modernbert")


def build(kind: str, dropout: float = 0.0) -> Any:
    """A small network with weights large enough for every layer to affect the output."""
    network = make_network(
        make_config(ARCHITECTURES[kind] | {"model_type": kind}, 97, SPECIAL, dropout),
        with_pairs=False,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


@pytest.mark.integration
@pytest.mark.parametrize("kind", ARCHITECTURES)
@given(lengths=st.lists(st.integers(3, 40), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_loss_and_gradients_equal_the_stock_model(kind: str, lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    rows = make_rows(lengths, seed)
    network = build(kind)
    stock = pad(rows, False)
    if getattr(network.config, "type_vocab_size", 0) < 2:
        del stock["token_type_ids"]
    loss = network(**stock).loss * sum(len(row["labels"]) for row in rows)
    loss.backward()
    expected = {
        name: parameter.grad
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }
    model = PretrainingModel(network)
    assert isinstance(model._wrapped, UnpaddedNetwork) == (kind in UNPADDED)
    network.zero_grad()
    ours = sum(model(flatten(rows, False)))
    ours.backward()
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    scale = max(gradient.norm() for gradient in expected.values())
    for name, parameter in network.named_parameters():
        if name in expected:
            assert (parameter.grad - expected[name]).norm() <= 2e-5 * max(
                expected[name].norm(), 1e-2 * scale
            ), name


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_vocabulary_is_scored_only_at_masked_positions(kind: str) -> None:
    network = build(kind)
    seen = []
    if kind not in UNPADDED:
        network.get_output_embeddings().register_forward_hook(
            lambda module, args, result: seen.append(result.shape)
        )
    batch = flatten(make_rows([30, 17, 8], 0), False)
    scores, pairs = PretrainingModel(network).score(batch)
    assert scores.shape == (len(batch.masked_labels), 97)
    assert pairs is None
    assert seen == ([] if kind in UNPADDED else [scores.shape])


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["roberta", "modernbert", "distilbert", "funnel"])
def test_activation_checkpointing_with_dropout_gives_the_same_gradients(kind: str) -> None:
    torch.manual_seed(0)
    network = build(kind, dropout=0.3)
    batch = flatten(make_rows([30, 17, 8], 0), False)
    assert len(PretrainingModel(network).layers) == (
        4 if kind == "funnel" else 3
    )  # two decoder layers
    losses, expected = losses_and_gradients(PretrainingModel(network), batch)
    assert not torch.allclose(losses, torch.stack(PretrainingModel(network).eval()(batch)))
    again, found = losses_and_gradients(
        PretrainingModel(network, checkpoint_activations=True).train(), batch
    )
    torch.testing.assert_close(again, losses)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize(
    ("model", "positions"),
    [
        ("bert-tiny", 512),
        ("roberta-base", 512),
        ("modernbert-base", 8192),
        ({"model_type": "funnel"}, None),
    ],
)
def test_maximum_number_of_positions(model: Any, positions: int | None) -> None:
    # RoBERTa's first position is its padding index + 1.
    special = SpecialIds(pad=1, unk=3, cls=0, sep=2, mask=4)
    assert count_positions(make_config(model, 300, special, None)) == positions


def test_special_ids_come_from_the_tokenizer_and_dropout_sets_all_fields(
    tmp_path: Path,
) -> None:
    for kind in ARCHITECTURES:
        network = build(kind, dropout=0.25)
        assert network.config.pad_token_id == 0
        rates = {it.p for name, it in network.named_modules() if isinstance(it, torch.nn.Dropout)}
        assert rates <= {0.25} | ({0.0} if kind in ("deberta-v2", "funnel") else set()), kind
    config = make_config("modernbert-base", 300, SPECIAL, None)
    assert (config.cls_token_id, config.sep_token_id) == (2, 3)
    assert (config.bos_token_id, config.eos_token_id) == (2, 3)
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(make_config("roberta-base", 50265, SpecialIds(1, 3, 0, 2, 4), None).to_dict())
    )
    assert (
        make_config(str(path), 300, SPECIAL, None).to_dict()
        == make_config("roberta-base", 300, SPECIAL, None).to_dict()
    )


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": "bart"}, "decoder"),
        ({"model_type": ["bert"]}, "model_type"),
        (
            {"model_type": "roberta", "type_vocab_sise": 1},
            "RobertaConfig has no field 'type_vocab_sise'",
        ),
        ({"model_type": "modernbert", "pad_token_id": 1}, "pad_token_id"),
        ({"model_type": "modernbert", "auto_map": {"AutoModel": "x--y.Z"}}, "auto_map"),
        ({"model_type": "distilbert", "dim": 30, "n_heads": 4}, "multiple"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0 must be at least 1"),
        ({"hidden_act": "gelu_of_old"}, "gelu_of_old"),
    ],
)
def test_unknown_architectures_and_fields_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        make_config(fields, 100, SPECIAL, None)


def test_model_without_attention_mask_is_rejected() -> None:
    config = make_config(
        {"model_type": "fnet", "hidden_size": 32, "num_hidden_layers": 1}, 97, SPECIAL, None
    )
    with pytest.raises(UsageError, match="attention mask"):
        PretrainingModel(make_network(config, with_pairs=False))


@pytest.mark.parametrize("model_class", [BertForPreTraining, BertForMaskedLM])
def test_hidden_matrices_and_weight_decay_of_bert(model_class: type) -> None:
    network = model_class(BertConfig(vocab_size=97, **SIZES))
    kinds = parameter_kinds(network)
    assert list(kinds) == [name for name, _ in network.named_parameters()]
    for name, parameter in network.named_parameters():
        in_layers = ".encoder." in name or ".transform." in name
        decays = not name.endswith("bias") and "LayerNorm" not in name
        assert kinds[name] == ParameterKind(in_layers and parameter.dim() == 2, decays), name


def test_hidden_matrices_and_weight_decay_of_other_architectures() -> None:
    def hidden(kind: str) -> set[str]:
        return {name for name, it in parameter_kinds(build(kind)).items() if it.is_hidden_matrix}

    layer = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    )
    layer += ("intermediate.dense", "output.dense")
    in_layers = {
        f"roberta.encoder.layer.{number}.{name}.weight" for number in range(3) for name in layer
    }
    assert hidden("roberta") == in_layers | {"lm_head.dense.weight"}
    layer = ("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo")
    in_layers = {f"model.layers.{number}.{name}.weight" for number in range(3) for name in layer}
    assert hidden("modernbert") == in_layers | {"head.dense.weight"}
    for kind in ARCHITECTURES:
        for name, it in parameter_kinds(build(kind)).items():
            is_small = name.endswith("bias") or "norm" in name.lower()
            assert it.decays != is_small or "_bias" in name or "seg_embed" in name, (kind, name)


@pytest.mark.parametrize(
    ("auto_class", "output_layer"),
    [
        (AutoModelForSequenceClassification, "classifier"),
        (AutoModelForTokenClassification, "classifier"),
        (AutoModelForQuestionAnswering, "qa_outputs"),
    ],
)
def test_heads_for_other_tasks_are_no_hidden_matrices(auto_class: Any, output_layer: str) -> None:
    """Muon is not for output layers of any size."""
    config = BertConfig(vocab_size=97, num_labels=SIZES["hidden_size"], **SIZES)
    kinds = parameter_kinds(auto_class.from_config(config))
    assert not kinds[f"{output_layer}.weight"].is_hidden_matrix
    hidden = {name for name, kind in kinds.items() if kind.is_hidden_matrix}
    assert len(hidden) == 6 * config.num_hidden_layers
    assert all(".encoder.layer." in name for name in hidden)


SHAPE = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def test_attention_dropout_is_set_apart_from_other_dropout() -> None:
    bert = make_config("bert-tiny", 300, SPECIAL, 0.1, 0.0)
    assert (bert.hidden_dropout_prob, bert.attention_probs_dropout_prob) == (0.1, 0.0)
    modern = make_config("modernbert-tiny", 300, SPECIAL, None, 0.2)
    assert (modern.attention_dropout, modern.mlp_dropout) == (0.2, 0.0)
    with pytest.raises(UsageError, match="has no dropout in attention"):
        make_config({"model_type": "fnet"}, 300, SPECIAL, None, 0.1)


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["roberta", "modernbert"])
def test_run_of_another_architecture_ends_with_a_model_that_fills_masks(
    kind: str, mlm_examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    positions = 65 if kind == "roberta" else 64
    config = PretrainConfig(
        examples=mlm_examples_folder,
        tokenizer=wordpiece_folder,
        out=tmp_path / "out",
        model=SHAPE | {"model_type": kind, "max_position_embeddings": positions},
        initialization="informed" if kind == "roberta" else "bert",
        max_steps=20,
        batch_size=16,
        learning_rate=5e-3,
        precision="fp32",
        threads=1,
        quiet=True,
    )
    pretrain(config)
    folder = tmp_path / "out/model"
    evaluation = evaluate_folder(tmp_path / "out", mlm_examples_folder, "validation", quiet=True)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert evaluation.mlm_loss == pytest.approx(manifest["counts"]["eval_mlm_loss"], rel=1e-5)
    assert evaluation.mlm_loss < evaluation.unigram_loss + 0.5
    filled = MaskFiller(tmp_path / "out").fill(["the [MASK] of"], 3)
    stock = pipeline(
        "fill-mask",
        model=AutoModelForMaskedLM.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    assert [it["token"] for it in filled] == [it["token"] for it in stock("the [MASK] of", top_k=3)]
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 64


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"model_type": "roberta"}, "make examples with --objective mlm"),
        ({"model_type": "modernbert"}, "make examples with --objective mlm"),
    ],
)
def test_sentence_pairs_are_rejected_for_other_architectures(
    model: dict[str, Any],
    message: str,
    examples_folder: Path,
    wordpiece_folder: Path,
    tmp_path: Path,
) -> None:
    config = PretrainConfig(
        examples=examples_folder,
        tokenizer=wordpiece_folder,
        out=tmp_path,
        model=model,
        max_steps=1,
        quiet=True,
    )
    with pytest.raises(UsageError, match=message):
        pretrain(config)


def test_informed_initialization_is_rejected_for_other_architectures(
    mlm_examples_folder: Path, wordpiece_folder: Path, tmp_path: Path
) -> None:
    config = PretrainConfig(
        examples=mlm_examples_folder,
        tokenizer=wordpiece_folder,
        out=tmp_path,
        model="modernbert-base",
        max_steps=1,
        initialization="informed",
        quiet=True,
    )
    with pytest.raises(UsageError, match="not modernbert"):
        pretrain(config)
