"""Pseudo-log-likelihoods equal those of a plain loop over stock models, and of minicons."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM, DistilBertForMaskedLM

from bert_pipeline.pretraining.zero_shot.masked_lm import MaskedLM
from bert_pipeline.pretraining.zero_shot.pseudo_likelihood import (
    Pll,
    encode_sentences,
    score_sentences,
)
from bert_pipeline.tokenizer.encode import SentenceEncoder
from tests.helpers.random_models import POSITIONS, save_random_model

KINDS = ("wordpiece", "byte_bpe", "unigram")
PLLS: tuple[Pll, ...] = ("original", "word-l2r")


@pytest.fixture(scope="module")
def sentences(documents: list[str]) -> list[str]:
    lines = [line.split(".")[0].strip() + "." for text in documents for line in text.splitlines()]
    few = [line for line in lines if 20 < len(line) < 70][:12]
    return [*few, "Unheard-of xyzzyquux words!"]


def score_in_turn(folder: Path, sentence: str, pll: Pll) -> float:
    """One forward pass for each token."""
    network = AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(sentence)
    ids = encoded["input_ids"]
    words = encoded.word_ids()
    total = 0.0
    for place in range(1, len(ids) - 1):
        masked = list(ids)
        for other in range(1, len(ids) - 1):
            is_later = pll == "word-l2r" and other > place and words[other] == words[place]
            if other == place or is_later:
                masked[other] = tokenizer.mask_token_id
        with torch.no_grad():
            scores = network(input_ids=torch.tensor([masked])).logits[0, place]
        total += float(scores.log_softmax(0)[ids[place]])
    return total


def score(folder: Path, texts: list[str], pll: Pll) -> Any:
    lm = MaskedLM.load(folder)
    encoder = SentenceEncoder(lm.tokenizer, with_word_starts=True)
    return score_sentences(lm, encode_sentences(encoder, texts), pll)


@pytest.mark.parametrize("pll", PLLS)
@pytest.mark.parametrize("kind", KINDS)
def test_score_is_the_sum_over_tokens_masked_in_turn(
    kind: str,
    pll: Pll,
    sentences: list[str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    folder = save_random_model(tmp_path / "model", request.getfixturevalue(f"{kind}_folder"))
    few = [*sentences[:3], sentences[-1]]
    expected = [score_in_turn(folder, sentence, pll) for sentence in few]
    assert score(folder, few, pll) == pytest.approx(expected, rel=1e-5)


def test_variants_differ_for_words_of_several_tokens(
    wordpiece_folder: Path, sentences: list[str], tmp_path: Path
) -> None:
    folder = save_random_model(tmp_path / "model", wordpiece_folder)
    original, left_to_right = (score(folder, sentences, pll) for pll in PLLS)
    assert (np.abs(original - left_to_right) > 1e-3).sum() > 3


def test_architecture_without_an_unpadded_encoder_gets_the_same(
    wordpiece_folder: Path, sentences: list[str], tmp_path: Path
) -> None:
    folder = save_random_model(tmp_path / "model", wordpiece_folder, DistilBertForMaskedLM)
    expected = [score_in_turn(folder, sentence, "word-l2r") for sentence in sentences[:3]]
    assert score(folder, sentences[:3], "word-l2r") == pytest.approx(expected, rel=1e-5)


def test_score_does_not_depend_on_the_other_sentences(
    wordpiece_folder: Path, sentences: list[str], documents: list[str], tmp_path: Path
) -> None:
    folder = save_random_model(tmp_path / "model", wordpiece_folder)
    lines = [line[:120] for text in documents for line in text.splitlines()]
    together = score(folder, [*lines, *sentences], "original")
    alone = [score(folder, [sentence], "original")[0] for sentence in sentences[:4]]
    assert together[len(lines) : len(lines) + 4] == pytest.approx(alone, rel=1e-5)


def test_equal_sentences_get_equal_scores(wordpiece_folder: Path, tmp_path: Path) -> None:
    folder = save_random_model(tmp_path / "model", wordpiece_folder)
    texts = ["Same words.", "Other words, more of them.", "same  words."]
    first, _, last = score(folder, texts, "word-l2r")
    assert first == last


def test_sentence_longer_than_the_model_is_scored_in_parts(
    wordpiece_folder: Path, documents: list[str], tmp_path: Path
) -> None:
    folder = save_random_model(tmp_path / "model", wordpiece_folder)
    lm = MaskedLM.load(folder)
    encoder = SentenceEncoder(lm.tokenizer, with_word_starts=True)
    [long] = encode_sentences(encoder, [" ".join(documents[0].split())])
    assert len(long.ids) > 2 * POSITIONS
    parts = list(long.cut(POSITIONS - 2))
    assert sum(len(part.ids) for part in parts) == len(long.ids)
    whole = score_sentences(lm, [long], "original")
    assert whole[0] == pytest.approx(score_sentences(lm, parts, "original").sum(), rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_scores_equal_those_of_minicons(
    wordpiece_folder: Path, sentences: list[str], tmp_path: Path
) -> None:
    scorer = pytest.importorskip("minicons.scorer")
    folder = save_random_model(tmp_path / "model", wordpiece_folder)
    network = BertForMaskedLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(sentences, padding=True)
    judge = scorer.MaskedLMScorer(network, "cpu", tokenizer=tokenizer)
    for pll, metric in zip(PLLS, ("original", "within_word_l2r"), strict=True):
        expected = judge.sequence_score(
            encoded, reduction=lambda each: float(each.sum()), PLL_metric=metric
        )
        assert score(folder, sentences, pll) == pytest.approx(expected, rel=1e-4)
