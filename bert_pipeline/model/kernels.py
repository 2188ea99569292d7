"""Operations for which torch has only slower, more general backward passes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CPU_LOGIT_ROWS = 512
"""Most rows of logits per block on a CPU: enough for fast products, few enough for the cache."""
CPU_LOGIT_MULTIPLE = 64
GPU_LOGITS = 2**27
"""Logits per block on a GPU: 256 MiB in bf16."""
GPU_VOCABULARY_MULTIPLE = 64
IGNORED = -100
"""The label of a row without a loss, as in torch."""


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


@dataclass(frozen=True)
class _Blocks:
    """How `_MaskedCrossEntropy` works: `rows` per block, in `dtype`, with a padded vocabulary."""

    rows: int
    dtype: torch.dtype
    padding: int  # entries added to the vocabulary
    needs_grad: tuple[bool, ...]  # hidden, weight, bias
    with_ignored: bool  # whether some labels are IGNORED

    def prepare(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The matrix and bias of the product; added vocabulary entries have no probability."""
        weight = weight.to(self.dtype)
        bias = bias.to(self.dtype)
        if not self.padding:
            return weight, bias
        lowest = torch.finfo(self.dtype).min
        return F.pad(weight, (0, 0, 0, self.padding)), F.pad(bias, (0, self.padding), value=lowest)

    def add_gradients(
        self,
        grads: Sequence[Tensor | None],
        rows: slice,
        grad_logits: Tensor,
        logits: Tensor,
        block: Tensor,
        matrix: Tensor,
        counted: Tensor | None,
    ) -> None:
        """Add the gradients of a block, from the gradient of the loss by its logits.

        The memory of `logits` is used for its copy in `dtype`. `counted` is 0 for ignored rows,
        whose hidden states in `block` are 0, and 1 for others.
        """
        grad_hidden, grad_weight, grad_bias = grads
        entries = slice(grad_logits.shape[1] - self.padding)
        if grad_bias is not None and counted is None:
            grad_bias += grad_logits[:, entries].sum(0)
        elif grad_bias is not None and counted is not None:
            grad_bias += counted @ grad_logits[:, entries]
        narrow = grad_logits if logits is grad_logits else logits.copy_(grad_logits)
        if grad_hidden is not None:
            grad_hidden[rows] = narrow @ matrix
            if counted is not None:
                grad_hidden[rows] *= counted.unsqueeze(1)
        if grad_weight is not None and narrow is grad_logits:
            grad_weight.addmm_(grad_logits[:, entries].t(), block)
        elif grad_weight is not None:
            grad_weight += narrow[:, entries].t() @ block


class _MaskedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T + bias`, one block of rows at a time.

    The gradient of a sum of cross-entropies follows from the softmax, so it is computed in the
    forward pass while the block of logits is in memory; the backward pass only scales it.

    Shapes: hidden [M, H], weight [V, H], bias [V], labels [M].
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, blocks: _Blocks
    ) -> Tensor:
        inputs = (hidden, weight, bias)
        device = hidden.device
        exact = torch.promote_types(blocks.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=device)
        grads = [
            torch.zeros_like(x, dtype=exact) if needed else None
            for x, needed in zip(inputs, blocks.needs_grad, strict=True)
        ]
        matrix, offset = blocks.prepare(weight, bias)
        # All blocks share the buffers, which stay in the cache. In fp32 the softmax overwrites the
        # logits.
        shape = (min(blocks.rows, len(hidden)), len(matrix))
        buffer = torch.empty(shape, dtype=blocks.dtype, device=device)
        exact_buffer = None if blocks.dtype == exact else torch.empty_like(buffer, dtype=exact)
        for start in range(0, len(hidden), blocks.rows):
            # Logits of the block.
            rows = slice(start, start + blocks.rows)
            block = hidden[rows].to(blocks.dtype)
            picked = labels[rows].clamp(min=0).unsqueeze(1)
            counted = (labels[rows] != IGNORED).to(exact) if blocks.with_ignored else None
            if counted is not None:
                block = block * counted.unsqueeze(1).to(blocks.dtype)
            logits = torch.addmm(offset, block, matrix.t(), out=buffer[: len(block)])
            grad_logits = logits
            if exact_buffer is not None:
                grad_logits = exact_buffer[: len(block)].copy_(logits)
            peak = grad_logits.amax(1)
            right = grad_logits.gather(1, picked)
            torch.softmax(grad_logits, 1, out=grad_logits)
            # Loss. The largest probability is 1 / sum(exp(logits - peak)): log-sum-exp without a
            # second pass of exponentials, exact because it is never below 1 / V.
            losses = peak - grad_logits.amax(1).log() - right.squeeze(1)
            total += losses.sum() if counted is None else losses @ counted
            # Gradients.
            if any(blocks.needs_grad):
                grad_logits.scatter_add_(1, picked, grad_logits.new_full(picked.shape, -1.0))
                blocks.add_gradients(grads, rows, grad_logits, logits, block, matrix, counted)
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


def masked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    *,
    rows: int | None = None,
    multiple: int | None = None,
    with_ignored: bool = False,
) -> Tensor:
    """Summed cross-entropy of `hidden @ weight.T + bias`, without the logits of all rows in memory.

    Products are in the dtype of the current autocast; softmax, loss and gradient sums in float32 or
    better. Logits are computed for `rows` rows at a time, by default as fits the device's caches or
    memory. Internally the vocabulary is padded to a multiple of `multiple`, by default one that
    suits a GPU's matrix units, and not at all on a CPU. With `with_ignored`, rows with the label
    `IGNORED` do not count.

    Shapes: hidden [M, H], weight [V, H], bias [V], labels [M].
    """
    device = hidden.device.type
    on_gpu = device == "cuda"
    vocabulary = len(weight)
    padding = -vocabulary % (multiple or (GPU_VOCABULARY_MULTIPLE if on_gpu else 1))
    if on_gpu:
        fitting = max(1, GPU_LOGITS // (vocabulary + padding))
    else:
        # Blocks of equal size: a small last one would be slow.
        blocks_needed = -(-len(hidden) // CPU_LOGIT_ROWS)
        each = -(-len(hidden) // max(1, blocks_needed))
        fitting = max(1, -(-each // CPU_LOGIT_MULTIPLE)) * CPU_LOGIT_MULTIPLE
    inputs = (hidden, weight, bias)
    blocks = _Blocks(
        rows=rows or fitting,
        dtype=product_dtype(hidden),
        padding=padding,
        needs_grad=tuple(torch.is_grad_enabled() and x.requires_grad for x in inputs),
        with_ignored=with_ignored,
    )
    with torch.autocast(device, enabled=False):
        loss: Tensor = _MaskedCrossEntropy.apply(hidden, weight, bias, labels, blocks)  # type: ignore[no-untyped-call]
    return loss
