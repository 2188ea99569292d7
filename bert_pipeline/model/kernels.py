"""Operations for which torch has only slower, more general backward passes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _ScatterRows(torch.autograd.Function):
    """Row i of `x` at row `index[i]` of a zero matrix; `index` has no repeats.

    Without repeats each direction is a plain copy: the backward pass of the stock `index_select`
    has to accumulate row by row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(index)
        zeros = x.new_zeros(rows, *x.shape[1:])
        if torch.compiler.is_compiling():
            # torch 2.11 compiles the in-place copy to one without a gradient.
            return zeros.index_copy(0, index, x)
        return zeros.index_copy_(0, index, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return grads[0].index_select(0, index), None, None


class _TakeRows(torch.autograd.Function):
    """Rows `index` of `x`, without repeats: the transpose of `scatter_rows`."""

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


class _Dropout(torch.autograd.Function):
    """Dropout with 16 random bits per decision, four decisions from each 64-bit draw."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        draws.random_(-(2**63), None)
        kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
        ctx.save_for_backward(kept)
        ctx.scale = 2**16 / (2**16 - dropped)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (grads[0] * kept).mul_(ctx.scale), None


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`F.dropout`, on a CPU with a quarter of the random numbers.

    There `p` is rounded to a multiple of 1/65536, and the scale follows the rounded value.
    """
    if not training or not p:
        return x
    # The compiler has a fast random number generator.
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    dropped = min(round(p * 2**16), 2**16 - 1)
    return _Dropout.apply(x, dropped)  # type: ignore[no-any-return, no-untyped-call]


def rotate(x: Tensor, table: Tensor | None, count: int) -> Tensor:
    """Apply rotary positions to the first `count` states of each token.

    `x` is `[T, states, heads, size]`; `table` holds cosines and sines `[2, T, size / 2]`, or is
    None without rotary positions. Pairs of dimensions are size / 2 apart.
    """
    if table is None:
        return x
    cosine, sine = table[:, :, None, None]
    first, second = x[:, :count].to(table.dtype).chunk(2, dim=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat([torch.cat(turned, -1).to(x.dtype), x[:, count:]], 1)


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a matrix product with `x` under the current autocast, if any."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def scatter_rows(x: Tensor, index: Tensor, rows: int) -> Tensor:
    """Row i of `x` at row `index[i]` of a zero matrix of `rows` rows; `index` has no repeats."""
    return _ScatterRows.apply(x, index, rows)  # type: ignore[no-any-return, no-untyped-call]


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` of `x`, without repeats: the transpose of `scatter_rows`."""
    return _TakeRows.apply(x, index)  # type: ignore[no-any-return, no-untyped-call]
