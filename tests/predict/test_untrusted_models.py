"""Model folders that are incomplete, damaged or hostile: one clear line, and no code is run."""

import io
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel

from bert_pipeline.errors import BertpipeError
from bert_pipeline.predict.fill_mask import MaskFiller
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.evaluation import evaluate_folder
from bert_pipeline.pretraining.pretrain import pretrain
from tests.helpers.cli import run_cli

pytestmark = pytest.mark.integration
SHAPE = {
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
}


@pytest.fixture
def model(tmp_path: Path, wordpiece_folder: Path) -> Path:
    """A small masked LM beside a tokenizer, as anybody may have saved it."""
    folder = tmp_path / "model"
    BertForMaskedLM(BertConfig(vocab_size=400, **SHAPE)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(wordpiece_folder / name, folder)
    return folder


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, metadata={"format": "pt"})


def edit_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


QUERY = "bert.encoder.layer.0.attention.self.query.weight"


def drop_layer(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop(QUERY))


def put_nan(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights[QUERY].fill_(float("nan")))


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def widen(folder: Path) -> None:
    edit_config(folder, hidden_size=32)


def write_list(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")


def nest_deeply(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 20_000)


def name_wrong_types(folder: Path) -> None:
    edit_config(folder, hidden_size="many", num_hidden_layers=[1])


def stack_layers(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=10_000_000)


def remove_layers(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=0)


def point_index(folder: Path, target: str) -> None:
    """Weights in several files, all of which are `target`."""
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "other.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, target)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shift_ids(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] |= {"the": 5000}
    path.write_text(json.dumps(content))


def keep_encoder_only(folder: Path) -> None:
    BertModel(BertConfig(vocab_size=400, **SHAPE)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop_layer, f"as BertForMaskedLM it lacks: {QUERY}"),
        (put_nan, f"not finite: {QUERY}"),
        (keep_encoder_only, "as BertForMaskedLM it lacks: cls.predictions"),
        (widen, "another shape|cannot be loaded"),
        (cut_weights, "damaged or incomplete"),
        (write_list, "config.json|cannot be loaded"),
        (nest_deeply, "config.json|cannot be loaded"),
        (name_wrong_types, "cannot be loaded"),
        (stack_layers, "asks for 10,000,000 layers"),
        (remove_layers, "layers that are not in config.json: bert.encoder.layer.0"),
        (partial(point_index, target="/dev/zero"), "index.json: must name existing safetensors"),
        (partial(point_index, target="other.bin"), "index.json: must name existing safetensors"),
        (partial(point_index, target="../x.safetensors"), "index.json: must name existing"),
        (shift_ids, "its tokenizer has ids up to 5000"),
    ],
)
def test_unusable_model_is_refused_by_fill_mask(
    model: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(model)
    with pytest.raises(BertpipeError, match=said) as caught:
        MaskFiller(model)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_incomplete_model_is_refused_by_evaluate(model: Path, examples_folder: Path) -> None:
    drop_layer(model)
    with pytest.raises(BertpipeError, match=f"it lacks: {QUERY}"):
        evaluate_folder(model, examples_folder, "validation", quiet=True)
    write_list(model)
    with pytest.raises(BertpipeError, match=r"config\.json: not the config"):
        evaluate_folder(model, examples_folder, "validation", quiet=True)


def test_model_that_predicts_nan_is_an_error(model: Path, examples_folder: Path) -> None:
    edit_config(model, layer_norm_eps=float("nan"))
    with pytest.raises(BertpipeError, match="predicts NaN"):
        MaskFiller(model).fill(["a [MASK]"], 1)
    with pytest.raises(BertpipeError, match="its loss is not a finite number"):
        evaluate_folder(model, examples_folder, "validation", quiet=True)


@pytest.mark.parametrize("content", [b"\xff", b"[]", b"{", b"{}"])
def test_damaged_tokenizer_is_named_by_evaluate(
    model: Path, examples_folder: Path, content: bytes
) -> None:
    (model / "tokenizer.json").write_bytes(content)
    with pytest.raises(BertpipeError, match="its tokenizer cannot be loaded"):
        evaluate_folder(model, examples_folder, "validation", quiet=True)


def test_pairs_are_said_to_be_not_measured_without_a_head(
    model: Path, examples_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = evaluate_folder(model, examples_folder, "validation")
    assert evaluation.nsp_accuracy is None
    assert "Sentence pairs are not measured" in capsys.readouterr().err


def test_equal_scores_do_not_count_as_right(model: Path, examples_folder: Path) -> None:
    edit_weights(model, lambda weights: [weight.zero_() for weight in weights.values()])
    evaluation = evaluate_folder(model, examples_folder, "validation", quiet=True)
    assert (evaluation.top1_accuracy, evaluation.top5_accuracy) == (0.0, 0.0)


def test_changed_byte_in_the_model_of_a_run_is_named(
    tmp_path: Path, examples_folder: Path, wordpiece_folder: Path
) -> None:
    run = tmp_path / "run"
    pretrain(
        PretrainConfig(
            examples=examples_folder,
            tokenizer=wordpiece_folder,
            out=run,
            model=SHAPE,
            max_steps=1,
            batch_size=4,
            threads=1,
            quiet=True,
        )
    )
    file = run / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(BertpipeError, match=r"model\.safetensors: missing, or changed since"):
        MaskFiller(run)
    shutil.copytree(run / "model", tmp_path / "copy")
    MaskFiller(tmp_path / "copy")  # a copy is somebody's own model
    content[-5] ^= 1
    file.write_bytes(content)
    (run / "model" / "tokenizer.json").unlink()  # vocab.txt beside it is not the same
    with pytest.raises(BertpipeError, match=r"tokenizer\.json: missing, or changed since"):
        MaskFiller(run)


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_in_a_model_folder_is_never_run(
    model: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = model / "trace"
    (model / "theirs.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    path = model / where
    fields = {
        "model_type": "theirs",
        "tokenizer_class": "Theirs",
        "auto_map": {
            "AutoConfig": "theirs.Config",
            "AutoModelForMaskedLM": "theirs.Model",
            "AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"],
        },
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 50))
    done = run_cli("fill-mask", model, "a [MASK]")
    assert not trace.exists()
    assert done.code in (0, 1)
