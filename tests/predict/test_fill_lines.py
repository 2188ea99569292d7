"""`bertpipe fill-mask` on files and pipes: one result per line, and clear errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertConfig, BertForMaskedLM, FNetConfig, FNetForMaskedLM, pipeline

from bert_pipeline.predict.fill_mask import MaskFiller
from tests.helpers.cli import run_cli

pytestmark = pytest.mark.integration
SHAPE = {
    "vocab_size": 400,
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
}


@pytest.fixture
def model(tmp_path: Path, wordpiece_folder: Path) -> Path:
    folder = tmp_path / "model"
    BertForMaskedLM(BertConfig(num_attention_heads=2, **SHAPE)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(wordpiece_folder / name, folder)
    return folder


def test_each_line_has_its_result_as_json(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes("ba [MASK] na\r\n\n[MASK] de [MASK]\nlá [MASK]".encode())
    result = run_cli("fill-mask", model, "--input", file, "--json", "--top-k", 2)
    assert (result.code, result.stderr) == (0, "")
    one, blank, two, last = map(json.loads, result.stdout.splitlines())
    assert blank == []
    assert [len(one), len(two), len(two[0]), len(last)] == [2, 2, 2, 2]
    for found, expected in zip(one, MaskFiller(model).fill(["ba [MASK] na"], 2), strict=True):
        assert found == expected | {"score": pytest.approx(expected["score"], abs=1e-6)}


def test_piped_lines_are_read_without_an_argument(model: Path) -> None:
    command = [sys.executable, "-m", "bert_pipeline", "fill-mask", str(model), "--top-k", "1"]
    found = subprocess.run(command, input=b"ba [MASK]\n\n", capture_output=True, check=True)
    assert len(found.stdout.decode().splitlines()) == 2
    assert found.stderr.decode() == "1 blank text without masks.\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"ba [MASK]\nba\n", "texts.txt, line 2 has no [MASK]: 'ba'"),
        (b"ba [MASK] \xff\xfe\xfd\n", "texts.txt: not UTF-8"),
        (bytes(range(256)) * 4, "texts.txt: not text"),
        (None, "texts.txt: no such file"),
    ],
)
def test_unusable_input_is_one_clear_line(
    model: Path, tmp_path: Path, content: bytes | None, said: str
) -> None:
    file = tmp_path / "texts.txt"
    if content is not None:
        file.write_bytes(content)
    result = run_cli("fill-mask", model, "--input", file)
    assert result.code == 1
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_texts_and_input_exclude_each_other(model: Path) -> None:
    assert run_cli("fill-mask", model, "[MASK]", "--input", "-").code == 2
    assert run_cli("fill-mask", model, "[MASK]", "--targets", ",").code == 2


def test_encoder_without_attention_mask_is_not_padded(
    tmp_path: Path, wordpiece_folder: Path
) -> None:
    """FNet mixes all tokens of a row, so padding would change its scores."""
    folder = tmp_path / "fnet"
    config = FNetConfig(**SHAPE, tpu_short_seq_length=64)
    FNetForMaskedLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(wordpiece_folder / name, folder)
    texts = ["ba [MASK] na", "[MASK]", "de [MASK] de de de"]
    expected = pipeline("fill-mask", model=str(folder))(texts, top_k=3)
    for ours, stock in zip(MaskFiller(folder).fill(texts, 3), expected, strict=True):
        assert [it["token"] for it in ours] == [it["token"] for it in stock]
