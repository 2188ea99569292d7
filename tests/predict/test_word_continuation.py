"""A text with a mask within a word has the ids that the examples have there."""

from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bert_pipeline.predict.word_continuation import WordContinuation
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.train import train_tokenizer
from tests.helpers.text import make_corpus

TEXTS = [
    "ปู่กับย่าไปตลาด ป้าซื้อปลา ป่าใหญ่มาก ปาลูกบอลให้น้อง",
    "Unable to reach the unreachable, they replayed (and re-read) it.",
    "東京は大きい。ガラスの窓が割れた。",
    "मैं हिन्दी सीख रही हूँ। मेरा कुल बड़ा है।",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("continuation") / "t"
    corpus = make_corpus(out.with_name("corpus"), TEXTS)
    train_tokenizer(
        TokenizeConfig(
            out=out, corpus=corpus, vocab_size=160, min_frequency=1, lowercase=True, quiet=True
        )
    )
    return out


def test_masked_token_of_a_text_leaves_all_other_ids_as_they_are(folder: Path) -> None:
    auto = AutoTokenizer.from_pretrained(folder)
    continuation = WordContinuation.for_tokenizer(auto.backend_tokenizer, auto.mask_token_id)
    assert continuation is not None

    @settings(max_examples=150)
    @given(st.sampled_from(TEXTS), st.integers(0, 1000))
    def check(text: str, number: int) -> None:
        whole = auto.backend_tokenizer.encode(text)
        position = 1 + number % (len(whole.ids) - 2)
        start, end = whole.offsets[position]
        normalized = auto.backend_tokenizer.normalizer.normalize_str(f"a{text[start:end]}a")
        # After punctuation or a Chinese character, the next token starts a word.
        assume(len(auto.backend_tokenizer.pre_tokenizer.pre_tokenize_str(normalized)) == 1)
        expected = list(whole.ids)
        expected[position] = auto.mask_token_id
        masked = text[:start] + "[MASK]" + text[end:]
        found = continuation.correct(masked, auto.backend_tokenizer.encode(masked))
        assert found == expected

    check()


def test_mask_beside_a_word_changes_nothing(folder: Path) -> None:
    auto = AutoTokenizer.from_pretrained(folder)
    continuation = WordContinuation.for_tokenizer(auto.backend_tokenizer, auto.mask_token_id)
    assert continuation is not None
    for text in ("to [MASK] the", "[MASK].", "[MASK] able", "(the [MASK])", "東[MASK]京", "[MASK]"):
        encoding = auto.backend_tokenizer.encode(text)
        assert continuation.correct(text, encoding) == encoding.ids
