"""Attention over flat rows: each row attends to the rows of its own example."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bert_pipeline.model.flat_batch import FlatBatch
from bert_pipeline.model.kernels import spread_rows, take_rows


@dataclass(frozen=True)
class Grid:
    """Attention on a padded `[examples, width]` grid; without padding where all lengths are equal."""

    examples: int
    width: int
    slots: Tensor | None  # [T] grid slot of each flat row; None when there is no padding
    mask: Tensor | None  # [B, 1, 1, width] True at real tokens

    @classmethod
    def of(cls, batch: FlatBatch) -> "Grid":
        """The grid that the batch's longest example needs."""
        examples, width = batch.cu_seqlens.numel() - 1, batch.max_seqlen
        if examples * width == batch.tokens.numel():
            return cls(examples, width, None, None)
        lengths = batch.cu_seqlens.diff()
        example = torch.repeat_interleave(lengths, output_size=batch.tokens.numel())
        columns = torch.arange(width, device=lengths.device)
        mask = (columns < lengths[:, None])[:, None, None, :]
        return cls(examples, width, example * width + batch.positions, mask)

    def attend(self, qkv: Tensor, scale: float, dropout: float) -> Tensor:
        """Mixed values `[T, heads × size]` of queries, keys and values `[T, 3, heads, size]`."""
        grid = qkv if self.slots is None else spread_rows(qkv, self.slots, self.examples * self.width)
        query, key, value = grid.view(self.examples, self.width, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask, dropout_p=dropout, scale=scale)
        mixed = mixed.transpose(1, 2).reshape(self.examples * self.width, -1)
        return mixed if self.slots is None else take_rows(mixed, self.slots)
