"""The first sub-token of each word, for every kind of tokenizer."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.tasks.words import encode_words
from tests.helpers.task_models import byte_level, wordpiece, wrap

TOKENIZERS = {
    "wordpiece": wordpiece,
    "bytes": lambda: byte_level(add_prefix_space=False),
    "bytes, prefix space": lambda: byte_level(add_prefix_space=True),
    "bytes, untrimmed": lambda: byte_level(add_prefix_space=True, trim_offsets=False),
}
WRAPPED = {name: wrap(make()) for name, make in TOKENIZERS.items()}
SENTENCE = ["the", "Rome", "othere", "x.y", "é", "می\u200cروم", "end"]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("max_length", [64, 12])
def test_every_word_is_read_once_at_its_first_token(name: str, max_length: int) -> None:
    """Also where a text takes several rows."""
    tokenizer = WRAPPED[name]
    examples = encode_words(tokenizer, [SENTENCE, ["the"]], max_length, ["a", "b"])
    assert [extra.read_words for extra in examples.extra] == [tuple(range(len(SENTENCE))), (0,)]
    assert examples.tokens.lengths(np.arange(len(examples.tokens))).max() <= max_length
    # The tokens from each first one to the next spell the word.
    spelled = []
    for row in range(int(examples.first_rows[1])):
        ids = examples.tokens[row].tolist()
        # A word that began in the row before ends here.
        first = [1, *(examples.read[row].tolist() if examples.read else []), len(ids) - 1]
        spelled.append([ids[a:b] for a, b in pairwise(first) if a < b])
    joined: list[list[int]] = []
    for number, parts in enumerate(spelled):
        begins = examples.read is not None and 1 in examples.read[number].tolist()
        if number and not begins:
            joined[-1] += parts[0]
            parts = parts[1:]
        joined += parts
    texts = [tokenizer.decode(ids).strip().replace(" ", "") for ids in joined]
    if name == "wordpiece":
        assert texts[:3] == ["the", "rome", "othere"]
    else:
        assert texts == SENTENCE


@given(st.lists(st.text("abter\u0301é😀", min_size=1, max_size=6), min_size=1, max_size=12))
def test_words_and_positions_ascend(words: list[str]) -> None:
    for tokenizer in WRAPPED.values():
        examples = encode_words(tokenizer, [words], 16, ["a"])
        numbers = examples.extra[0].read_words
        assert list(numbers) == sorted(set(numbers))
        assert examples.read is not None
        assert len(examples.read.values) == len(numbers)
        assert (examples.read.values > 0).all()


def test_word_that_the_tokenizer_removes_is_not_read() -> None:
    examples = encode_words(WRAPPED["wordpiece"], [["the", "\u200b", "room"]], 16, ["a"])
    assert examples.extra[0].read_words == (0, 2)
