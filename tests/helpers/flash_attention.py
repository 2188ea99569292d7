"""torch's variable-length flash attention on a CPU, for which torch has no kernel.

Everything above the kernel is torch's own: `varlen_attn`, its backward pass and its tracing.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def flash_attention_on_cpu() -> Iterator[list[str]]:
    """Within the block the kernels run on CPUs; yields the names of those that were called."""
    called: list[str] = []

    def forward(*args: Any, **options: Any) -> tuple[Tensor, ...]:
        called.append("forward")
        query, key, value, *others = args
        _check_limits(*args[:7])
        assert others[4:6] == [0.0, False]  # dropout and causal attention
        mixed = []
        sums = []
        for q, k, v in _examples(query, key, value, others):
            scores = _score(q, k, options)
            mixed.append((torch.softmax(scores, -1) @ v).transpose(0, 1))
            sums.append(scores.logsumexp(-1))
        nothing = torch.empty(0)
        return torch.cat(mixed).to(query.dtype), torch.cat(sums, 1), nothing, nothing, nothing

    def backward(*args: Any, **options: Any) -> tuple[Tensor, ...]:
        called.append("backward")
        gradient, query, key, value, _, _, *others = args
        _check_limits(query, key, value, *others[:4])
        found = []
        grads = gradient.float().split(others[0].diff().tolist())
        for (q, k, v), grad in zip(_examples(query, key, value, others), grads, strict=True):
            change = grad.transpose(0, 1)
            weights = torch.softmax(_score(q, k, options), -1)
            by_weights = change @ v.mT
            by_scores = weights * (by_weights - (by_weights * weights).sum(-1, keepdim=True))
            by_scores = by_scores * _scale(q, options)
            found.append((by_scores @ k, by_scores.mT @ q, weights.mT @ change))
        joined = (torch.cat(parts, 1).transpose(0, 1) for parts in zip(*found, strict=True))
        return tuple(it.to(query.dtype).contiguous() for it in joined)

    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("_flash_attention_forward", forward, "CPU")
    kernels.impl("_flash_attention_backward", backward, "CPU")
    try:
        yield called
    finally:
        kernels._destroy()


def _check_limits(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    key_bounds: Tensor,
    longest: int,
    longest_key: int,
) -> None:
    """What the kernel requires of its arguments."""
    assert query.dtype == key.dtype == value.dtype
    assert {it.stride(-1) for it in (query, key, value)} == {1}
    assert query.shape[-1] % 8 == 0
    assert bounds.dtype == key_bounds.dtype == torch.int32
    assert len(bounds) == len(key_bounds)
    assert int(bounds[-1]) == len(query)
    assert int(key_bounds[-1]) == len(key)
    assert int(bounds.diff().max()) <= longest
    assert int(key_bounds.diff().max()) <= longest_key


def _examples(query: Tensor, key: Tensor, value: Tensor, others: list[Any]) -> Iterator[Any]:
    """Queries, keys and values of each example in fp32, `[heads, tokens, size]`."""
    splits = [(query, others[0]), (key, others[1]), (value, others[1])]
    for parts in zip(*(it.split(ends.diff().tolist()) for it, ends in splits), strict=True):
        yield tuple(part.float().transpose(0, 1) for part in parts)


def _score(query: Tensor, key: Tensor, options: dict[str, Any]) -> Tensor:
    """Scores of an example, `[heads, queries, keys]`, with -inf outside the window."""
    scores = query @ key.mT * _scale(query, options)
    queries, keys = scores.shape[1:]
    # The kernel aligns the last query with the last key.
    ahead = torch.arange(keys) - torch.arange(queries)[:, None] - (keys - queries)
    before = options.get("window_size_left", -1)
    after = options.get("window_size_right", -1)
    if before >= 0:
        scores = scores.masked_fill(ahead < -before, -torch.inf)
    return scores.masked_fill(ahead > after, -torch.inf) if after >= 0 else scores


def _scale(query: Tensor, options: dict[str, Any]) -> float:
    return options.get("scale") or 1 / math.sqrt(query.shape[-1])
