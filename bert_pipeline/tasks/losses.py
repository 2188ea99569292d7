"""Losses that no function of torch computes."""

import torch
from torch import Tensor


def grouped_log_softmax(scores: Tensor, offsets: Tensor) -> Tensor:
    """Log-softmax of `[n, k]` within groups of rows; group i is `offsets[i]:offsets[i + 1]`."""
    lengths = offsets.diff()
    group = torch.repeat_interleave(lengths, output_size=len(scores))
    index = group[:, None].expand_as(scores)
    shape = (len(lengths), scores.shape[1])
    most = scores.new_full(shape, -torch.inf).scatter_reduce(0, index, scores.detach(), "amax")
    shifted = scores - most.gather(0, index)
    sums = scores.new_zeros(shape).scatter_add(0, index, shifted.exp())
    return shifted - sums.log().gather(0, index)
