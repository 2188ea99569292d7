"""Operations whose backward passes torch has only in a slower general form."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CPU_LOGIT_ROWS = 256
"""Rows of logits worked on at a time: enough for full-speed products, few enough to stay in the cache."""
GPU_LOGITS = 2**27
"""Logits worked on at a time: a quarter of a gigabyte in bf16."""
GPU_VOCABULARY_MULTIPLE = 64


class _SpreadRows(torch.autograd.Function):
    """Put row `i` of `x` at row `index[i]` of a zero matrix; `index` has no repeats.

    Knowing that there are no repeats lets each direction be a plain copy: the stock
    `index_select` backward has to accumulate, row by row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(index)
        zeros = x.new_zeros(rows, *x.shape[1:])
        if torch.compiler.is_compiling():
            return zeros.index_copy(
                0, index, x
            )  # torch 2.11 compiles the copy in place to one without gradient
        return zeros.index_copy_(0, index, x)

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


@dataclass(frozen=True)
class _Blocks:
    """How `_MaskedCrossEntropy` works: `rows` at a time, in `dtype`, on a vocabulary with `fill` more entries."""

    rows: int
    dtype: torch.dtype
    fill: int
    wanted: tuple[bool, ...]  # gradients of hidden, weight and bias

    def prepare(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias to multiply with; what fills the vocabulary has no probability."""
        weight, bias = weight.to(self.dtype), bias.to(self.dtype)
        if not self.fill:
            return weight, bias
        lowest = torch.finfo(self.dtype).min
        return F.pad(weight, (0, 0, 0, self.fill)), F.pad(bias, (0, self.fill), value=lowest)

    def add_gradients(
        self,
        grads: Sequence[Tensor | None],
        rows: slice,
        slope: Tensor,
        block: Tensor,
        matrix: Tensor,
    ) -> None:
        """Add what the slope of the loss by a block's logits gives."""
        grad_hidden, grad_weight, grad_bias = grads
        entries = slice(slope.shape[1] - self.fill)
        if grad_bias is not None:
            grad_bias += slope[:, entries].sum(0)
        narrow = slope.to(self.dtype)
        if grad_hidden is not None:
            grad_hidden[rows] = narrow @ matrix
        if grad_weight is not None and narrow is slope:
            grad_weight.addmm_(slope[:, entries].t(), block)
        elif grad_weight is not None:
            grad_weight += narrow[:, entries].t() @ block


class _MaskedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T + bias`, a block of rows at a time.

    The gradient of a sum of cross-entropies is known as soon as the softmax is, so it is formed in the forward pass
    while the block of logits is at hand; the backward pass only scales it.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, how: _Blocks
    ) -> Tensor:
        inputs, exact = (hidden, weight, bias), torch.promote_types(how.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        grads = [
            torch.zeros_like(x, dtype=exact) if want else None
            for x, want in zip(inputs, how.wanted, strict=True)
        ]
        matrix, offset = how.prepare(weight, bias)
        # One block's memory for all of them: it stays in the cache, and the softmax takes the place of its logits.
        space = torch.empty(
            min(how.rows, len(hidden)), len(matrix), dtype=how.dtype, device=hidden.device
        )
        for rows in (slice(start, start + how.rows) for start in range(0, len(hidden), how.rows)):
            block, picked = hidden[rows].to(how.dtype), labels[rows].unsqueeze(1)
            logits = torch.addmm(offset, block, matrix.t(), out=space[: len(block)])
            peak, right = logits.amax(1), logits.gather(1, picked).to(exact)
            slope = torch.softmax(
                logits, 1, dtype=exact, out=logits if how.dtype == exact else None
            )
            # The largest probability is 1 / sum(exp(logits - peak)): log-sum-exp without a second pass of
            # exponentials, exact because it is never below 1 / vocabulary.
            total += (peak - slope.amax(1).log()).sum() - right.sum()
            if any(how.wanted):
                slope.scatter_add_(1, picked, slope.new_full(picked.shape, -1.0))
                how.add_gradients(grads, rows, slope, block, matrix)
        ctx.save_for_backward(*grads)
        ctx.dtypes = [x.dtype for x in inputs]
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (
            None if saved is None else (saved * grads[0]).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *scaled, None, None


class _Dropout(torch.autograd.Function):
    """Dropout with 16 random bits for each decision, four decisions out of each 64-bit draw."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(
            -(2**63), None
        )
        kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
        ctx.save_for_backward(kept)
        ctx.scale = 2**16 / (2**16 - dropped)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (grads[0] * kept).mul_(ctx.scale), None


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`F.dropout`, on a CPU with a generator that asks for a quarter of the random numbers.

    There `p` is rounded to a multiple of 1/65536, and what is kept is scaled by that.
    """
    if not training or not p:
        return x
    if (
        x.device.type != "cpu" or torch.compiler.is_compiling()
    ):  # the compiler has a fast generator of its own
        return F.dropout(x, p)
    return _Dropout.apply(x, min(round(p * 2**16), 2**16 - 1))  # type: ignore[no-any-return, no-untyped-call]


def product_dtype(x: Tensor) -> torch.dtype:
    """The type that a product with `x` has under the surrounding autocast, if any."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def spread_rows(x: Tensor, index: Tensor, rows: int) -> Tensor:
    """Row `i` of `x` at row `index[i]` of a zero matrix of `rows` rows; `index` has no repeats."""
    return _SpreadRows.apply(x, index, rows)  # type: ignore[no-any-return, no-untyped-call]


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` of `x`, without repeats: the transpose of `spread_rows`."""
    return _TakeRows.apply(x, index)  # type: ignore[no-any-return, no-untyped-call]


def masked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    *,
    rows: int | None = None,
    multiple: int | None = None,
) -> Tensor:
    """Summed cross-entropy of `hidden @ weight.T + bias` against `labels`, never holding the logits of all rows.

    Products are in the type of the surrounding autocast; softmax, loss and sums of gradients in float32 at least.
    Logits are made for `rows` rows at a time, by default as suits the device's caches or memory. Inside, the vocabulary
    is filled up to a multiple of `multiple`, by default one that a GPU's matrix units like and none elsewhere.
    """
    device = hidden.device.type
    vocabulary, on_gpu = len(weight), device == "cuda"
    fill = -vocabulary % (multiple or (GPU_VOCABULARY_MULTIPLE if on_gpu else 1))
    blocks = _Blocks(
        rows=rows or (max(1, GPU_LOGITS // (vocabulary + fill)) if on_gpu else CPU_LOGIT_ROWS),
        dtype=product_dtype(hidden),
        fill=fill,
        wanted=tuple(torch.is_grad_enabled() and x.requires_grad for x in (hidden, weight, bias)),
    )
    with torch.autocast(device, enabled=False):
        return _MaskedCrossEntropy.apply(hidden, weight, bias, labels, blocks)  # type: ignore[no-any-return, no-untyped-call]
