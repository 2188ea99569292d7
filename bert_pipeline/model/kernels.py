"""Operations whose backward passes torch has only in a slower general form."""

from typing import Any

import torch
from torch import Tensor

# Rows of logits worked on at a time: enough for full-speed products, few enough to stay in the cache.
LOGIT_ROWS = 256


class _SpreadRows(torch.autograd.Function):
    """Put row `i` of `x` at row `index[i]` of a zero matrix; `index` has no repeats.

    Knowing that there are no repeats lets each direction be a plain copy: the stock
    `index_select` backward has to accumulate, row by row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(index)
        return x.new_zeros(rows, *x.shape[1:]).index_copy_(0, index, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return grads[0].index_select(0, index), None, None


class _TakeRows(torch.autograd.Function):
    """Rows `index` of `x`, without repeats: the transpose of `spread_rows`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        grad = grads[0]
        return grad.new_zeros(ctx.rows, *grad.shape[1:]).index_copy_(0, index, grad), None


class _MaskedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T + bias`, keeping no logits.

    The gradient of a sum of cross-entropies is known as soon as the softmax is, so it is
    formed in the forward pass while the block of logits is still in cache; the backward pass
    only scales it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        want_grad = any(ctx.needs_input_grad)
        total = hidden.new_zeros(())
        grad_hidden = torch.empty_like(hidden) if want_grad else None
        grad_weight = torch.zeros_like(weight) if want_grad else None
        grad_bias = torch.zeros_like(bias) if want_grad else None
        for start in range(0, hidden.shape[0], LOGIT_ROWS):
            rows = slice(start, start + LOGIT_ROWS)
            logits = torch.addmm(bias, hidden[rows], weight.t())
            picked = labels[rows].unsqueeze(1)
            slope = torch.softmax(logits, 1)
            # The largest probability is 1 / sum(exp(logits - peak)): log-sum-exp without a
            # second pass of exponentials, exact because it is never below 1 / vocabulary.
            total += (logits.amax(1) - slope.amax(1).log()).sum() - logits.gather(1, picked).sum()
            if grad_hidden is None or grad_weight is None or grad_bias is None:
                continue
            slope.scatter_add_(1, picked, slope.new_full(picked.shape, -1.0))
            torch.mm(slope, weight, out=grad_hidden[rows])
            grad_weight.addmm_(slope.t(), hidden[rows])
            grad_bias += slope.sum(0)
        if want_grad:
            ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        hidden, weight, bias = (saved * grads[0] for saved in ctx.saved_tensors)
        return hidden, weight, bias, None


def spread_rows(x: Tensor, index: Tensor, rows: int) -> Tensor:
    """Row `i` of `x` at row `index[i]` of a zero matrix of `rows` rows; `index` has no repeats."""
    return _SpreadRows.apply(x, index, rows)  # type: ignore[no-any-return, no-untyped-call]


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` of `x`, without repeats: the transpose of `spread_rows`."""
    return _TakeRows.apply(x, index)  # type: ignore[no-any-return, no-untyped-call]


def masked_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy of `hidden @ weight.T + bias` against `labels`, keeping no logits."""
    return _MaskedCrossEntropy.apply(hidden, weight, bias, labels)  # type: ignore[no-any-return, no-untyped-call]
