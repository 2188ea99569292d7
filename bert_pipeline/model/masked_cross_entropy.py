"""The loss of masked tokens, without the logits of all of them in memory at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bert_pipeline.model.kernels import product_dtype

CPU_LOGIT_ROWS = 512
"""Most rows of logits per block on a CPU: enough for fast products, few enough for the cache."""
LOGIT_ROWS_MULTIPLE = 64
GPU_LOGITS = 2**27
"""Logits per block on a GPU: 256 MiB in bf16."""
GPU_VOCABULARY_MULTIPLE = 64
IGNORED = -100
"""The label of a row without a loss, as in torch."""


@dataclass(frozen=True)
class _Blocks:
    """How `_MaskedCrossEntropy` works: `rows` per block, in `dtype`, with a padded vocabulary."""

    rows: int
    dtype: torch.dtype
    padding: int  # entries added to the vocabulary
    needs_grad: tuple[bool, ...]  # hidden, weight, bias
    with_ignored: bool  # whether some labels are IGNORED
    is_compiled: bool  # whether softmax, loss and gradient are one compiled function

    def prepare(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The matrix and bias of the product; added vocabulary entries have no probability."""
        weight = weight.to(self.dtype)
        bias = bias.to(self.dtype)
        if not self.padding:
            return weight, bias
        lowest = torch.finfo(self.dtype).min
        return F.pad(weight, (0, 0, 0, self.padding)), F.pad(bias, (0, self.padding), value=lowest)

    def add_products(
        self,
        grads: Sequence[Tensor | None],
        rows: slice,
        grad_logits: Tensor,
        block: Tensor,
        matrix: Tensor,
        counted: Tensor | None,
    ) -> None:
        """Add the gradients of hidden states and weight, from those of a block's logits.

        `counted` is 0 for ignored rows, whose hidden states in `block` are 0, and 1 for others.
        """
        grad_hidden, grad_weight, _ = grads
        entries = slice(grad_logits.shape[1] - self.padding)
        if grad_hidden is not None:
            grad_hidden[rows] = grad_logits @ matrix
            if counted is not None:
                grad_hidden[rows] *= counted.unsqueeze(1)
        if grad_weight is not None and grad_logits.dtype == grad_weight.dtype:
            grad_weight.addmm_(grad_logits[:, entries].t(), block)
        elif grad_weight is not None:
            grad_weight += grad_logits[:, entries].t() @ block


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
        compute = _compile() if blocks.is_compiled else _Softmax(blocks, matrix, len(hidden))
        for start in range(0, len(hidden), blocks.rows):
            # Softmax, loss, and the gradient by the logits.
            rows = slice(start, start + blocks.rows)
            block = hidden[rows].to(blocks.dtype)
            picked = labels[rows].clamp(min=0)
            counted = (labels[rows] != IGNORED).to(exact) if blocks.with_ignored else None
            if counted is not None:
                block = block * counted.unsqueeze(1).to(blocks.dtype)
            loss, by_bias, grad_logits = compute(block, matrix, offset, picked, counted)
            total += loss
            # Gradients.
            if grads[2] is not None and by_bias is not None:
                grads[2] += by_bias[: len(bias)]
            blocks.add_products(grads, rows, grad_logits, block, matrix, counted)
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


class _Softmax:
    """Softmax, loss and gradient of blocks, operation by operation.

    All blocks share the buffers, which stay in the cache. In fp32 the softmax overwrites the
    logits.
    """

    def __init__(self, blocks: _Blocks, matrix: Tensor, rows: int) -> None:
        shape = (min(blocks.rows, rows), len(matrix))
        self._logits = torch.empty(shape, dtype=blocks.dtype, device=matrix.device)
        exact = torch.promote_types(blocks.dtype, torch.float32)
        is_exact = blocks.dtype == exact
        self._exact = None if is_exact else torch.empty_like(self._logits, dtype=exact)
        self._needs_grad = blocks.needs_grad

    def __call__(
        self, block: Tensor, matrix: Tensor, offset: Tensor, picked: Tensor, counted: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """As `_softmax_gradient`, but only the gradients that are needed."""
        logits = torch.addmm(offset, block, matrix.t(), out=self._logits[: len(block)])
        grad = logits if self._exact is None else self._exact[: len(block)].copy_(logits)
        peak = grad.amax(1)
        labels = picked.unsqueeze(1)
        right = grad.gather(1, labels)
        torch.softmax(grad, 1, out=grad)
        # The largest probability is 1 / sum(exp(logits - peak)): log-sum-exp without a second pass
        # of exponentials, exact because it is never below 1 / V.
        losses = peak - grad.amax(1).log() - right.squeeze(1)
        loss = losses.sum() if counted is None else losses @ counted
        if not any(self._needs_grad):
            return loss, None, grad
        grad.scatter_add_(1, labels, grad.new_full(labels.shape, -1.0))
        by_bias = None
        if self._needs_grad[2]:
            by_bias = grad.sum(0) if counted is None else counted @ grad
        return loss, by_bias, grad if grad is logits else logits.copy_(grad)


def _softmax_gradient(
    block: Tensor, matrix: Tensor, offset: Tensor, picked: Tensor, counted: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Summed loss of a block, and its gradients by the bias and by the logits.

    Compiled, it reads and writes the logits a few times instead of about ten. Shapes: block [R, H],
    matrix [V, H], offset [V], picked and counted [R]; gradients [V] and [R, V].
    """
    logits = torch.addmm(offset, block, matrix.t())
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_sums = exact.logsumexp(1)
    right = exact.gather(1, picked.unsqueeze(1)).squeeze(1)
    losses = log_sums - right
    entries = torch.arange(exact.shape[1], device=exact.device)
    probabilities = (exact - log_sums.unsqueeze(1)).exp()
    grad = probabilities - (entries == picked.unsqueeze(1)).to(exact.dtype)
    if counted is not None:
        losses = losses * counted
        grad = grad * counted.unsqueeze(1)
    return losses.sum(), grad.sum(0), grad.to(logits.dtype)


@cache
def _compile() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    return torch.compile(_softmax_gradient, dynamic=True)


def masked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    *,
    rows: int | None = None,
    multiple: int | None = None,
    with_ignored: bool = False,
    compiled: bool = False,
) -> Tensor:
    """Summed cross-entropy of `hidden @ weight.T + bias`, without the logits of all rows in memory.

    Products are in the dtype of the current autocast; softmax, loss and gradient sums in float32 or
    better. Logits are computed for `rows` rows at a time, by default as fits the device's caches or
    memory. Internally the vocabulary is padded to a multiple of `multiple`, by default one that
    suits a GPU's matrix units, and not at all on a CPU. With `with_ignored`, rows with the label
    `IGNORED` do not count. `compiled` is for GPUs; on CPUs it is slower.

    Shapes: hidden [M, H], weight [V, H], bias [V], labels [M].
    """
    device = hidden.device.type
    on_gpu = device == "cuda"
    vocabulary = len(weight)
    padding = -vocabulary % (multiple or (GPU_VOCABULARY_MULTIPLE if on_gpu else 1))
    most = max(1, GPU_LOGITS // (vocabulary + padding)) if on_gpu else CPU_LOGIT_ROWS
    # Blocks of equal size: a small last one would be slow.
    blocks_needed = max(1, -(-len(hidden) // most))
    each = -(-len(hidden) // blocks_needed)
    fitting = max(1, -(-each // LOGIT_ROWS_MULTIPLE)) * LOGIT_ROWS_MULTIPLE
    inputs = (hidden, weight, bias)
    blocks = _Blocks(
        rows=rows or fitting,
        dtype=product_dtype(hidden),
        padding=padding,
        needs_grad=tuple(torch.is_grad_enabled() and x.requires_grad for x in inputs),
        with_ignored=with_ignored,
        is_compiled=compiled,
    )
    with torch.autocast(device, enabled=False):
        loss: Tensor = _MaskedCrossEntropy.apply(hidden, weight, bias, labels, blocks)  # type: ignore[no-untyped-call]
    return loss
