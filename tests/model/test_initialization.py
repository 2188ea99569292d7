"""Informed initialization: statistics of the examples in the weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForPreTraining

from bert_pipeline.model.initialization import (
    NEIGHBOURS,
    _sinusoids,
    embed_contexts,
    initialize_informed,
)
from bert_pipeline.tokenizer.load import SpecialIds
from tests.helpers.stored_rows import load_examples

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
CLASSES = {"boats": range(10, 20), "birds": range(20, 30)}
CONTEXTS = {"boats": range(30, 35), "birds": range(35, 40)}
NEVER_SEEN = 45


def make_rows(count: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Rows `[CLS] context member context [SEP]`: members of a class share their contexts."""
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        name = draw.choice(list(CLASSES))
        before, after = draw.choice(list(CONTEXTS[name]), 2)
        rows.append([2, before, draw.choice(list(CLASSES[name])), after, 3])
    return np.array(rows, dtype=np.int32).ravel(), np.arange(0, 5 * count + 1, 5)


@pytest.mark.parametrize("size", [16, 64])
def test_tokens_with_similar_contexts_have_similar_embeddings(size: int) -> None:
    torch.manual_seed(0)
    tokens, offsets = make_rows()
    vectors = embed_contexts(tokens, offsets, 50, size, SPECIAL)
    assert vectors.shape == (50, size)
    assert torch.isfinite(vectors).all()
    unit = torch.nn.functional.normalize(vectors, dim=1)
    boats, birds = (unit[list(members)] for members in CLASSES.values())
    within = torch.cat(
        [(group @ group.T)[~torch.eye(10, dtype=torch.bool)] for group in (boats, birds)]
    )
    assert within.min() > 0.3 > 0.0 > (boats @ birds.T).max()
    assert vectors[NEVER_SEEN].norm() > 0


def test_same_seed_gives_the_same_embeddings() -> None:
    tokens, offsets = make_rows(200)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(embed_contexts(tokens, offsets, 50, 16, SPECIAL))
    assert torch.equal(*results)


def test_heads_attend_to_neighbours_and_the_bias_is_the_log_frequency() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        attn_implementation="eager",
    )
    model = BertForPreTraining(config).eval()
    unigram = torch.randn(50).log_softmax(0)
    initialize_informed(model, *make_rows(), unigram, SPECIAL)
    torch.testing.assert_close(model.cls.predictions.decoder.bias.detach(), unigram)
    positions = model.bert.embeddings.position_embeddings.weight
    torch.testing.assert_close(
        torch.nn.functional.cosine_similarity(positions, _sinusoids(32, 128)), torch.ones(32)
    )
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.zero_()  # positions alone
        maps = model.bert(torch.full((1, 32), 10), output_attentions=True).attentions[0][0]
    for head, shift in enumerate(NEIGHBOURS):
        found = maps[head, 8:24].argmax(1)
        assert found.tolist() == [place + shift for place in range(8, 24)]


def test_unmasked_tokens_are_counted(examples_folder: Path) -> None:
    examples = load_examples(examples_folder)
    for limit, rows in ((1 << 40, len(examples)), (1, 1)):
        tokens, offsets = examples.sample_unmasked(limit)
        counts = np.bincount(tokens, minlength=400)
        assert counts[SPECIAL.mask] == 0
        assert counts[SPECIAL.cls] == len(offsets) - 1 == rows
        assert len(tokens) == offsets[-1]
