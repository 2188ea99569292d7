"""`embed` against the hidden states of stock models, and the files that it writes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
)

import bert_pipeline
from bert_pipeline.errors import BertpipeError
from bert_pipeline.predict.embed import Embedder
from bert_pipeline.ragged import Array
from tests.helpers.cli import run_cli

pytestmark = pytest.mark.integration
LAYERS = 5
LENGTH = 40
TEXTS = ["dabi gose", "", "na de " * 6, "x " * 100, "Bá\x00 de\ud800 ba"]


def make_network(kind: str) -> Any:
    common = {"vocab_size": 400, "max_position_embeddings": LENGTH, "pad_token_id": 0}
    shape = {"hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    if kind == "bert":
        return BertForPreTraining(BertConfig(**common, **shape, intermediate_size=16))
    if kind == "modernbert":
        return ModernBertModel(ModernBertConfig(**common, **shape, intermediate_size=16))
    return DistilBertModel(
        DistilBertConfig(**common, dim=16, n_layers=LAYERS, n_heads=2, hidden_dim=16)
    )


def save(network: Any, folder: Path, tokenizer: Path) -> Path:
    network.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder)
    return folder


@pytest.fixture
def model(tmp_path: Path, wordpiece_folder: Path) -> Path:
    torch.manual_seed(0)
    return save(make_network("bert"), tmp_path / "model", wordpiece_folder)


def compute(folder: Path, text: str, pooling: str) -> Array:
    """One text at a time, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = text.replace("\ud800", "\ufffd")
    inputs = tokenizer(text, truncation=True, max_length=LENGTH, return_tensors="pt")
    if "bert" not in type(AutoModel.from_pretrained(folder)).__name__.lower()[:4]:
        inputs.pop("token_type_ids", None)
    with torch.no_grad():
        output = AutoModel.from_pretrained(folder).eval()(**inputs, output_hidden_states=True)
    last = output.last_hidden_state[0]
    vector = {
        "mean": last.mean(0),
        "cls": last[0],
        "last4-concat": torch.cat(output.hidden_states[-4:], -1)[0].mean(0),
    }[pooling]
    array: Array = vector.numpy()
    return array


@pytest.mark.parametrize("pooling", ["mean", "cls", "last4-concat"])
@pytest.mark.parametrize("kind", ["bert", "modernbert", "distilbert"])
def test_vectors_equal_stock_hidden_states(
    kind: str, pooling: Any, tmp_path: Path, wordpiece_folder: Path
) -> None:
    torch.manual_seed(0)
    folder = save(make_network(kind), tmp_path / "model", wordpiece_folder)
    found = bert_pipeline.embed(folder, TEXTS, pooling=pooling)
    assert found.dtype == np.float32
    expected = np.stack([compute(folder, text, pooling) for text in TEXTS])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    unit = bert_pipeline.embed(folder, TEXTS, pooling=pooling, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    assert bert_pipeline.embed(folder, []).shape == (0, 16)


def test_vectors_of_tokens_average_to_those_of_texts(model: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("dabi gose\n\n" + "na " * 100)
    out = tmp_path / "new" / "tokens.parquet"
    options = ("--level", "token", "--pooling", "last4-concat")
    result = run_cli("embed", model, "--input", lines, "--out", out, *options)
    assert "1 truncated to 40 tokens" in result.stdout
    rows = pq.read_table(out).to_pylist()
    texts = [row["text"] for row in rows]
    means = np.array([np.mean(row["embedding"], axis=0) for row in rows])
    expected = bert_pipeline.embed(model, texts, pooling="last4-concat")
    np.testing.assert_allclose(means, expected, atol=1e-5)
    assert [len(row["tokens"]) for row in rows] == [len(row["starts"]) for row in rows]
    first = rows[0]
    spans = zip(first["starts"], first["ends"], strict=True)
    words = ["dabi gose"[start:end] for start, end in spans]
    assert first["tokens"][0] == "[CLS]"
    assert "".join(words) == "dabigose"


@pytest.mark.parametrize("suffix", ["npy", "npz", "parquet"])
def test_lines_of_a_file_become_rows(suffix: str, model: Path, tmp_path: Path) -> None:
    lines = [f"dabi {number} " * (number % 9) for number in range(1500)]
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(lines) + "\n")
    out = tmp_path / f"out.{suffix}"
    result = run_cli("embed", model, "--input", file, "--out", out)
    assert (result.code, result.stderr) == (0, "")
    assert "1,500 texts" in result.stdout
    if suffix == "npy":
        found = np.load(out, mmap_mode="r")
    elif suffix == "npz":
        found = np.load(out)["embeddings"]
        assert np.load(out)["ids"].tolist() == list(range(1500))
    else:
        table = pq.read_table(out)
        assert table["text"].to_pylist() == lines
        assert table.schema.field("embedding").type == pa.list_(pa.float32(), 16)
        found = np.array(table["embedding"].to_pylist())
    np.testing.assert_allclose(found, bert_pipeline.embed(model, lines), atol=1e-5)
    assert list(tmp_path.glob(".*")) == []


def write_rows(path: Path) -> Path:
    """Two texts, between them a row that is broken or has no text."""
    if path.suffix == ".jsonl":
        path.write_text('{"body": "ba"}\n{"body": nothing}\n{"body": "de"}\n')
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"body": ["ba", None, "de"]}), path)
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        path.write_text(f"body{mark}n\nba{mark}1\nx{mark}2{mark}3\nde{mark}4\n")
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_broken_rows_stop_or_are_counted(suffix: str, model: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / f"rows.{suffix}")
    out = tmp_path / "out.parquet"
    command = ("embed", model, "--input", file, "--out", out, "--text-field", "body")
    result = run_cli(*command)
    assert result.code == 1
    assert f"rows.{suffix}, " in result.stderr
    assert not out.exists()
    result = run_cli(*command, "--on-error", "skip")
    assert "1 row without a text skipped" in result.stdout
    table = pq.read_table(out)
    assert table["text"].to_pylist() == ["ba", "de"]
    assert table["id"].to_pylist() == [0, 2]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--out", "x.txt"], 2, "must end in .parquet, .npy, .npz"),
        (["--out", "x.npy", "--level", "token"], 2, "only .parquet"),
        (["--out", "x.parquet", "--level", "token", "--pooling", "cls"], 2, "--pooling cls"),
        (["--out", "x.npy", "--text-field", "a"], 2, "lines of text, no fields"),
        (["--out", "x.npy", "--encoding", "utf-9"], 2, "--encoding utf-9"),
        (["--out", "folder.npy"], 1, "is a folder"),
    ],
)
def test_wrong_options_are_explained(
    arguments: list[str], code: int, said: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "lines.txt").write_text("ba\n")
    (tmp_path / "folder.npy").mkdir()
    result = run_cli("embed", model, "--input", "lines.txt", *arguments, cwd=tmp_path)
    assert (result.code, result.stderr.count("\n")) == (code, 1)
    assert said in result.stderr


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_transformers_gives_the_same_vectors(
    pooling: Any, model: Path, tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers")
    modules = library.sentence_transformer.modules
    texts = [text for text in TEXTS if "\ud800" not in text]
    if pooling == "mean":
        expected = library.SentenceTransformer(str(model), device="cpu").encode(texts)
        np.testing.assert_allclose(bert_pipeline.embed(model, texts), expected, atol=1e-5)
    transformer = modules.Transformer(str(model), max_seq_length=20)
    pooled = modules.Pooling(16, pooling)
    stock = library.SentenceTransformer(
        modules=[transformer, pooled, modules.Normalize()], device="cpu"
    )
    stock.save(str(tmp_path / "saved"))
    embedder = Embedder(tmp_path / "saved")
    assert (embedder.pooling, embedder.max_length) == (pooling, 20)
    (found,) = embedder.embed(texts)
    np.testing.assert_allclose(found.vectors, stock.encode(texts), atol=1e-5)


def write_modules(folder: Path, pooling: dict[str, object], *others: str) -> None:
    """What versions of sentence-transformers before 5.4 write."""
    kinds = {"Transformer": "", "Pooling": "1_Pooling"} | {name: f"2_{name}" for name in others}
    entries = [{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def test_pooling_of_older_sentence_transformers_is_read(model: Path) -> None:
    fields = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    write_modules(model, {"word_embedding_dimension": 16, "include_prompt": True, **fields})
    assert Embedder(model).pooling == "cls"
    assert Embedder(model, "mean").pooling == "mean"


@pytest.mark.parametrize(
    ("pooling", "others", "said"),
    [
        ({"pooling_mode_max_tokens": True}, [], "its pooling is pooling_mode_max_tokens"),
        ({"pooling_mode": ["mean", "cls"]}, [], "its pooling is mean and cls"),
        ({"pooling_mode": "mean"}, ["Dense"], "Dense is not supported"),
        ({"pooling_mode": "mean"}, ["../Normalize"], "modules in folders beside it"),
    ],
)
def test_sentence_transformers_with_other_modules_are_refused(
    pooling: dict[str, object], others: list[str], said: str, model: Path
) -> None:
    write_modules(model, pooling, *others)
    with pytest.raises(BertpipeError, match=said):
        Embedder(model)


def test_folder_without_an_encoder_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BertpipeError, match="no model found"):
        Embedder(tmp_path / "nowhere")
    (model / "model.safetensors").unlink()
    with pytest.raises(BertpipeError, match="cannot be loaded"):
        Embedder(model)
