"""Pseudo-perplexity of a text: the bits of a model that knows nothing, the sample, the command."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from bert_pipeline import evaluate_pseudo_perplexity
from bert_pipeline.corpus.read_texts import read_texts
from bert_pipeline.pretraining.zero_shot.masked_lm import MaskedLM
from bert_pipeline.pretraining.zero_shot.pseudo_likelihood import (
    Sentence,
    encode_sentences,
    score_sentences,
)
from bert_pipeline.pretraining.zero_shot.pseudo_perplexity import TokenSample
from bert_pipeline.tokenizer.encode import SentenceEncoder
from tests.helpers.cli import run_cli
from tests.helpers.random_models import save_random_model


@pytest.fixture
def model(wordpiece_folder: Path, tmp_path: Path) -> Path:
    return save_random_model(tmp_path / "model", wordpiece_folder)


@pytest.fixture
def text(documents: list[str], tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(documents[:3]), encoding="utf-8")
    return path


def test_model_that_knows_nothing_gets_the_bits_of_the_vocabulary(model: Path, text: Path) -> None:
    network = BertForMaskedLM.from_pretrained(model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    network.save_pretrained(model)
    found = evaluate_pseudo_perplexity(model, text)
    entries = network.config.vocab_size
    assert found.scored_tokens == found.tokens
    assert found.words == len(text.read_text().split())
    assert found.pseudo_perplexity.value == pytest.approx(entries, rel=1e-5)
    bits = math.log2(entries) * found.tokens
    assert found.bits_per_byte.value == pytest.approx(bits / found.bytes, rel=1e-5)
    assert math.log2(found.word_perplexity.value) == pytest.approx(bits / found.words, rel=1e-5)


def test_mean_is_that_of_the_documents_scored_whole(model: Path, text: Path) -> None:
    found = evaluate_pseudo_perplexity(model, text, pll="original")
    lm = MaskedLM.load(model)
    encoder = SentenceEncoder(lm.tokenizer, with_word_starts=True)
    sentences = encode_sentences(encoder, list(read_texts(str(text))))
    total = score_sentences(lm, sentences, "original").sum()
    assert found.tokens == sum(len(sentence.ids) for sentence in sentences)
    expected = math.exp(-total / found.tokens)
    assert found.pseudo_perplexity.value == pytest.approx(expected, rel=1e-4)


def test_sample_is_fixed_and_its_interval_has_the_value_of_all_tokens(
    model: Path, text: Path
) -> None:
    whole = evaluate_pseudo_perplexity(model, text)
    assert whole.bits_per_byte.low == whole.bits_per_byte.high
    part = evaluate_pseudo_perplexity(model, text, max_tokens=60)
    assert part == evaluate_pseudo_perplexity(model, text, max_tokens=60)
    assert (part.scored_tokens, part.tokens, part.words) == (60, whole.tokens, whole.words)
    assert part.bits_per_byte.low < whole.bits_per_byte.value < part.bits_per_byte.high


def test_sample_is_a_choice_of_all_tokens_whatever_their_rows() -> None:
    ids = np.arange(1000, dtype=np.int32)
    text = Sentence(ids, np.ones(1000, dtype=np.bool_))
    chosen = []
    for size in (7, 10, 400):
        sample = TokenSample(100)
        for part in text.cut(size):
            sample.add(part)
        rows, row_of, places = sample.take()
        pairs = zip(row_of.tolist(), places.tolist(), strict=True)
        chosen.append([int(rows[row].ids[place]) for row, place in pairs])
    assert chosen[0] == chosen[1] == chosen[2]
    assert len(set(chosen[0])) == 100
    # In ten parts of the text about ten tokens each.
    assert all(2 <= count <= 22 for count in np.bincount(np.array(chosen[0]) // 100))


def test_command_needs_a_text(model: Path, text: Path) -> None:
    printed = run_cli("evaluate", model, "--text", text, "--pseudo-perplexity", "--json")
    assert printed.code == 0, printed.stderr
    found = evaluate_pseudo_perplexity(model, text)
    assert json.loads(printed.stdout)["bits_per_byte"]["value"] == found.bits_per_byte.value
    few = run_cli("evaluate", model, "--text", text, "--pseudo-perplexity", "--max-tokens", 50)
    assert f"50 of {found.tokens:,} tokens" in few.stdout
    refused = run_cli("evaluate", model, "--examples", text, "--pseudo-perplexity")
    assert refused.code == 2
    assert "--pseudo-perplexity requires --text" in refused.stderr
    refused = run_cli("evaluate", model, "--text", text, "--max-tokens", 50)
    assert (refused.code, "requires --pseudo-perplexity" in refused.stderr) == (2, True)
    refused = run_cli("evaluate", model, "--text", text, "--pll", "word-l2r")
    assert (refused.code, "--pll requires" in refused.stderr) == (2, True)
