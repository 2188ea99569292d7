"""Bits per byte of plain text: what a model that knows nothing gets, and the stock model's loss."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from bert_pipeline import evaluate_text
from bert_pipeline.pretraining.text_evaluation import (
    MASK_RATE,
    _mask,
    encode_documents,
    evaluate_documents,
)
from bert_pipeline.tokenizer.load import load_tokenizer
from tests.helpers.cli import run_cli

STANDARD = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 60,
}


@pytest.fixture
def model(wordpiece_folder: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "model"
    BertForMaskedLM(BertConfig(vocab_size=400, **STANDARD)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(wordpiece_folder).save_pretrained(folder)
    return folder


@pytest.fixture
def text(documents: list[str], tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(documents[:8]), encoding="utf-8")
    return path


def test_model_that_knows_nothing_gets_the_bits_of_the_vocabulary(
    model: Path, text: Path, wordpiece_folder: Path
) -> None:
    network = BertForMaskedLM.from_pretrained(model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    network.save_pretrained(model)
    found = evaluate_text(model, text)
    tokenizer = AutoTokenizer.from_pretrained(wordpiece_folder)
    paragraphs = [part for part in text.read_text().split("\n\n") if part]
    tokens = sum(len(tokenizer.tokenize(part)) for part in paragraphs)
    size = sum(len(part.encode()) for part in paragraphs)
    assert found.tokens == tokens
    assert found.bytes == pytest.approx(size, abs=len(paragraphs))
    assert found.mlm_loss == pytest.approx(math.log(400), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(math.log2(400) * tokens / found.bytes, rel=1e-5)
    assert found.masked_tokens == pytest.approx(MASK_RATE * tokens, rel=0.1)


def test_loss_is_that_of_the_stock_model(model: Path, documents: list[str]) -> None:
    network = BertForMaskedLM.from_pretrained(model).eval()
    tokenizer = load_tokenizer(model)
    encoded = list(encode_documents(documents[:6], tokenizer))
    found = evaluate_documents(network, encoded, tokenizer.special, max_length=20)
    rows = [ids[start : start + 18] for ids, _ in encoded for start in range(0, len(ids), 18)]
    total = 0.0
    masked = 0
    for number, row in enumerate(rows):
        batch = _mask([row], number, tokenizer.special, 400)
        labels = torch.full_like(batch.tokens, -100)
        labels[batch.masked_index] = batch.masked_labels
        assert (batch.tokens[batch.masked_index] == tokenizer.special.mask).all()
        with torch.no_grad():
            loss = network(batch.tokens[None], labels=labels[None]).loss
        total += float(loss) * len(batch.masked_index)
        masked += len(batch.masked_index)
    assert found.masked_tokens == masked
    assert found.mlm_loss == pytest.approx(total / masked, rel=1e-4)


@pytest.mark.integration
def test_command_prints_the_metrics_of_a_file(model: Path, text: Path) -> None:
    printed = run_cli("evaluate", model, "--text", text, "--json")
    assert printed.code == 0, printed.stderr
    found = evaluate_text(model, text)
    assert json.loads(printed.stdout)["bits_per_byte"] == found.bits_per_byte
    assert f"{found.bits_per_byte:.3f}" in run_cli("evaluate", model, "--text", text).stdout
    empty = text.with_name("empty.txt")
    empty.write_text("")
    refused = run_cli("evaluate", model, "--text", empty)
    assert refused.code == 1
    assert "has no text" in refused.stderr
    nowhere = run_cli("evaluate", model, "--text", "nowhere.txt")
    assert nowhere.code == 2
    assert "nowhere.txt: no such file" in nowhere.stderr
    both = run_cli("evaluate", model, "--text", text, "--examples", model)
    assert both.code == 2
    assert "give one of --examples, --text" in both.stderr
