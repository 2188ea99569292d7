"""Heads that read the hidden states of the unpadded encoder."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ModernBertForMaskedLM

from bert_pipeline.model.kernels import take_rows
from bert_pipeline.model.masked_cross_entropy import masked_cross_entropy
from bert_pipeline.model.unpadded import ROBERTA_BODIES
from bert_pipeline.model.unpadded_batch import PretrainingBatch


class PretrainingHeads(nn.Module):
    """The masked-LM head, and the head for sentence pairs where the network has one.

    The vocabulary is scored only at masked tokens; its loss and gradient are computed together, a
    block of rows at a time, so that not all logits are in memory at once
    (`masked_cross_entropy`).
    """

    network: Any

    def __init__(self, network: Any, *, compiled: bool = False) -> None:
        """With `compiled`, the loss is compiled on a GPU."""
        super().__init__()
        self._compiled = compiled
        # The stock model is not registered as a submodule: its parts are, each once, so that
        # sharding finds every parameter inside the module whose call it hooks.
        object.__setattr__(self, "network", network)
        self.pooler: Any = getattr(network.base_model, "pooler", None)
        self.heads: Any = _find_heads(network)

    def forward(
        self, hidden: Tensor, batch: PretrainingBatch, *, logits: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Summed masked-LM and sentence-pair losses, or with `logits` the scores of both.

        `hidden` is `[R, hidden]`, read at the batch's `head_positions`. Scores are
        `[M, vocabulary]` and `[B, 2]`. Without sentence pairs in the batch or a head for them, that
        loss is 0 and its scores are None.
        """
        positions = batch.head_positions
        masked = self._transform(take_rows(hidden, positions.others))
        weight, bias = self._decoder()
        pairs = None
        if batch.is_random_next is not None and self.pooler is not None:
            first = take_rows(hidden, positions.first)
            pooled = self.pooler.activation(self.pooler.dense(first))
            pairs = self.heads.seq_relationship(pooled)
        if logits:
            return F.linear(masked, weight, bias), pairs
        labels = batch.masked_labels
        mlm = masked_cross_entropy(
            masked,
            weight,
            bias,
            labels,
            with_ignored=batch.is_filled,
            compiled=self._compiled and masked.is_cuda,
        )
        if pairs is None or batch.is_random_next is None:
            return mlm, mlm.new_zeros(())
        return mlm, F.cross_entropy(pairs.float(), batch.is_random_next, reduction="sum")

    def _decoder(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the layer that scores the vocabulary."""
        decoder = self.network.get_output_embeddings()
        weight: Tensor = decoder.weight
        return weight, weight.new_zeros(len(weight)) if decoder.bias is None else decoder.bias

    def _transform(self, hidden: Tensor) -> Tensor:
        """The input of the decoder, `[M, hidden]`."""
        heads = self.heads
        if isinstance(self.network, ModernBertForMaskedLM):
            transformed: Tensor = heads["head"](hidden)
        elif isinstance(self.network.base_model, ROBERTA_BODIES):
            transformed = heads.layer_norm(F.gelu(heads.dense(hidden)))
        else:
            transformed = heads.predictions.transform(hidden)
        return transformed


def _find_heads(network: Any) -> nn.Module:
    """The module that holds all parameters above the base model."""
    if isinstance(network, ModernBertForMaskedLM):
        return nn.ModuleDict({"head": network.head, "decoder": network.decoder})
    has_lm_head = isinstance(network.base_model, ROBERTA_BODIES)
    heads: nn.Module = network.lm_head if has_lm_head else network.cls
    return heads
