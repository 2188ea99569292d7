"""Rows of text with masked tokens as a batch."""

import numpy as np
import torch

from bert_pipeline.model.unpadded_batch import PretrainingBatch
from bert_pipeline.ragged import Array, Int32Array, Int64Array


def make_text_batch(
    tokens: Int32Array, offsets: Int64Array, masked_index: Array, labels: Int32Array | None
) -> PretrainingBatch:
    """A batch of rows of one segment each, without sentence pairs.

    Row i is `tokens[offsets[i]:offsets[i + 1]]`, with `[CLS]` and `[SEP]`. `masked_index` are the
    places in `tokens` that the model is to score, ascending; `labels` are for the loss.
    """
    if labels is None:
        labels = np.zeros(len(masked_index), dtype=np.int32)
    lengths = np.diff(offsets)
    positions = np.arange(len(tokens)) - np.repeat(offsets[:-1], lengths)
    return PretrainingBatch(
        tokens=torch.from_numpy(tokens.astype(np.int64)),
        segment_ids=torch.zeros(len(tokens), dtype=torch.long),
        positions=torch.from_numpy(positions),
        cu_seqlens=torch.from_numpy(offsets),
        max_seqlen=int(lengths.max()),
        masked_index=torch.from_numpy(masked_index.astype(np.int64)),
        masked_labels=torch.from_numpy(labels.astype(np.int64)),
    )
