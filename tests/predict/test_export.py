"""`export`: ONNX and fp16 compute what the model does, for each kind of head; folders are kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertForMaskedLM,
    ModernBertForMaskedLM,
)

from bert_pipeline import export
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.predict.export import FORMATS
from bert_pipeline.predict.parity import compare_outputs, compute_outputs, sample_batches
from tests.helpers.cli import run_cli
from tests.helpers.random_models import save_random_model

CLASSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "pretraining": (BertForPreTraining, {}),
    "sequence classification": (BertForSequenceClassification, {"num_labels": 3}),
    "token classification": (BertForTokenClassification, {"num_labels": 5}),
    "question answering": (BertForQuestionAnswering, {"num_labels": 2}),
    "encoder": (BertModel, {}),
    "no segments": (DistilBertForMaskedLM, {}),
    "modernbert": (ModernBertForMaskedLM, {"local_attention": 8}),
}


@pytest.fixture
def model(wordpiece_folder: Path, tmp_path: Path) -> Path:
    return save_random_model(tmp_path / "model", wordpiece_folder)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("pretraining", marks=pytest.mark.integration),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in list(CLASSES)[1:]),
    ],
)
def test_onnx_computes_the_outputs_for_real_text(
    kind: str, wordpiece_folder: Path, documents: list[str], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    network_class, fields = CLASSES[kind]
    model = save_random_model(tmp_path / "model", wordpiece_folder, network_class, **fields)
    export(model, "onnx", tmp_path / "out")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    network = network_class.from_pretrained(model).eval()
    names = [each.name for each in session.get_inputs()]
    assert ("token_type_ids" in names) == hasattr(network.config, "type_vocab_size")
    for texts in (documents[:1], [*documents[:3], "short"]):
        batch = tokenizer(
            [text[:80] for text in texts],
            return_tensors="pt",
            **{"padding": True, "truncation": True, "max_length": 40},
        )
        found = session.run(None, {name: batch[name].numpy() for name in names})
        with torch.no_grad():
            expected = network(**{name: batch[name] for name in names})
        is_text = batch["attention_mask"].bool()
        for each in session.get_outputs():
            value = torch.from_numpy(found.pop(0))
            same = expected["prediction_logits" if kind == "pretraining" else each.name]
            if value.shape[:2] == is_text.shape:
                value, same = value[is_text], same[is_text]
            torch.testing.assert_close(value, same, atol=1e-4, rtol=1e-4)


def test_fp16_fills_masks_alike_and_takes_half_the_space(
    model: Path, documents: list[str], tmp_path: Path
) -> None:
    exported = export(model, "safetensors-fp16", tmp_path / "out")
    assert 0 < exported.parity.worst < 0.02 * exported.parity.largest
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer(
        [f"[MASK] {text[:60]}" for text in documents[:8]],
        return_tensors="pt",
        **{"padding": True, "truncation": True, "max_length": 40},
    )
    best = []
    for folder in (model, tmp_path / "out"):
        network = AutoModelForMaskedLM.from_pretrained(folder).eval()
        with torch.no_grad():
            scores = network(**batch).logits
        best.append(scores[batch["input_ids"] == tokenizer.mask_token_id].argmax(-1))
    assert torch.equal(*best)


def test_weights_beyond_fp16_are_refused(model: Path, tmp_path: Path) -> None:
    network = BertForMaskedLM.from_pretrained(model)
    with torch.no_grad():
        network.bert.encoder.layer[0].output.dense.weight[0, 0] = 1e6
    network.save_pretrained(model)
    with pytest.raises(
        BertpipeError, match=r"layer\.0\.output\.dense\.weight has weights that are too"
    ):
        export(model, "safetensors-fp16", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_encoder_without_pooler_keeps_its_hidden_states(
    wordpiece_folder: Path, tmp_path: Path
) -> None:
    whole = BertForMaskedLM.from_pretrained(save_random_model(tmp_path / "mlm", wordpiece_folder))
    model = save_random_model(tmp_path / "model", wordpiece_folder, BertModel)
    whole.bert.save_pretrained(model)
    export(model, "safetensors-fp16", tmp_path / "out")
    assert not any("pooler" in name for name in load_file(tmp_path / "out" / "model.safetensors"))
    networks = (whole.bert, AutoModel.from_pretrained(tmp_path / "out").float())
    batches = sample_batches(whole)
    outputs = [compute_outputs(each, batches, ["last_hidden_state"]) for each in networks]
    compare_outputs(batches, *outputs).check(0.02, "encoder")


def test_difference_of_any_output_is_found(model: Path) -> None:
    network = BertForMaskedLM.from_pretrained(model)
    batches = sample_batches(network)
    before = compute_outputs(network, batches, ["logits"])
    with torch.no_grad():
        network.cls.predictions.bias[7] += 0.5
    parity = compare_outputs(batches, before, compute_outputs(network, batches, ["logits"]))
    assert parity.worst == pytest.approx(0.5, rel=1e-3)
    with pytest.raises(BertpipeError, match=r"its outputs differ by up to 0\.5"):
        parity.check(0.01, "it")


def test_command_keeps_what_is_in_the_folder(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("export", model, "--to", "safetensors-fp16", "--out", out)
    printed = run_cli(*arguments)
    assert printed.code == 0, printed.stderr
    assert "exported: BertForMaskedLM" in printed.stdout
    (tmp_path / "new").touch()
    assert {path.stat().st_mode for path in out.iterdir()} == {(tmp_path / "new").stat().st_mode}
    refused = run_cli(*arguments)
    assert refused.code == 2
    assert "is not empty" in refused.stderr
    assert run_cli(*arguments, "--overwrite").code == 0
    # A model is no export, even where it has no other files.
    refused = run_cli(*arguments[:-1], model, "--overwrite")
    assert refused.code == 2
    assert "is no export" in refused.stderr
    BertForMaskedLM.from_pretrained(model)
    (out / "notes.txt").write_text("mine")
    refused = run_cli(*arguments, "--overwrite")
    assert refused.code == 2
    assert "has notes.txt" in refused.stderr
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="is a file"):
        export(model, "safetensors-fp16", out / "notes.txt")


def test_command_and_registry_have_the_same_formats() -> None:
    printed = run_cli("export", "--help").stdout
    assert all(name in printed for name in FORMATS)
