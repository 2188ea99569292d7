"""The calls of torch's kernel for examples of any lengths, against the padded grid."""

import math

import pytest
import torch

from bert_pipeline.model import attention
from bert_pipeline.model.pretraining_model import PretrainingModel
from tests.helpers.model_rows import flatten, losses_and_gradients, make_rows
from tests.helpers.networks import LAYERS, NETWORKS, for_ours


def attend_one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest: int,
    longest_key: int,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """torch's varlen_attn, example by example: queries, keys and values `[T, heads, size]`."""
    assert bounds.dtype == key_bounds.dtype == torch.int32
    assert int(bounds.diff().max()) <= longest
    assert int(key_bounds.diff().max()) <= longest_key
    splits = [(query, bounds), (key, key_bounds), (value, key_bounds)]
    parts = []
    for q, k, v in zip(*(it.split(ends.diff().tolist()) for it, ends in splits), strict=True):
        scores = q.transpose(0, 1) @ k.permute(1, 2, 0) / math.sqrt(q.shape[-1])
        if window_size != (-1, -1):
            before, after = window_size
            # The kernel aligns the last query with the last key.
            ahead = torch.arange(len(k)) - torch.arange(len(q))[:, None] - (len(k) - len(q))
            scores = scores.masked_fill((ahead < -before) | (ahead > after), -torch.inf)
        parts.append((torch.softmax(scores, -1) @ v.transpose(0, 1)).transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("name", ["bert, pairs", "modernbert", "modernbert, global last"])
def test_varlen_kernel_gets_the_bounds_and_windows_of_examples(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel needs a GPU; the code around it does not."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    model = PretrainingModel(network)
    batch = for_ours(network, make_rows([12, 25, 7], 1))
    losses, expected = losses_and_gradients(model, batch)
    calls = []
    monkeypatch.setattr(
        attention, "has_varlen_kernel", lambda hidden, size: (hidden.shape[0], size) == (44, 8)
    )
    monkeypatch.setattr(
        attention,
        "varlen_attn",
        lambda *args, **windows: calls.append(1) or attend_one_by_one(*args, **windows),
    )
    again, found = losses_and_gradients(model, batch)
    assert len(calls) == LAYERS
    torch.testing.assert_close(again, losses)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-5, msg=parameter)


def test_varlen_kernel_is_not_used_with_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has none."""
    calls = []
    monkeypatch.setattr(attention, "has_varlen_kernel", lambda hidden, size: True)
    monkeypatch.setattr(
        attention,
        "varlen_attn",
        lambda *args, **windows: calls.append(1) or attend_one_by_one(*args, **windows),
    )
    batch = flatten(make_rows([12, 25, 7], 1), True)
    model = PretrainingModel(NETWORKS["bert, dropout"]())
    model(batch)
    assert not calls
    model.eval()(batch)
    assert len(calls) == LAYERS
