"""Weights for another vocabulary: where each row comes from."""

import torch
from transformers import BertConfig, BertForMaskedLM

from bert_pipeline.model.vocabulary import copy_weights


def make(vocab_size: int) -> BertForMaskedLM:
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertForMaskedLM(BertConfig(vocab_size=vocab_size, hidden_size=4, **sizes))


def test_rows_of_another_vocabulary() -> None:
    """An entry without sources gets the mean of all rows, not that of another entry."""
    old = make(6)
    new = make(9)
    copy_weights(old, new, [[5], [0, 1], [], [3]])
    before = old.get_input_embeddings().weight
    after = new.get_input_embeddings().weight
    mean = before.mean(0)
    expected = [before[5], before[:2].mean(0), mean, before[3], before[4], before[5]]
    torch.testing.assert_close(after, torch.stack([*expected, mean, mean, mean]))
