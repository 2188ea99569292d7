"""A faster pretraining forward pass over the modules of a stock Hugging Face BERT or RoBERTa.

`FlatPath` computes what an unmodified `BertForPreTraining`, `BertForMaskedLM` or `RobertaForMaskedLM` does, from its
own modules and parameters, so gradients land where they always do and the checkpoint stays a stock one.  It differs
from calling the model in what it leaves out:

* examples are concatenated, so no linear layer, norm or activation works on padding; only attention is told where each
  example ends (`attention`);
* Q, K and V come from one product;
* the last layer is finished only at the positions the heads read (masked tokens and `[CLS]`), and the vocabulary is
  scored only at masked positions;
* the vocabulary's loss and its gradient are worked out together, a block of rows at a time, so that logits are never
  all there at once (`kernels.masked_cross_entropy`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    BertForMaskedLM,
    BertForPreTraining,
    CamembertForMaskedLM,
    RobertaForMaskedLM,
    XLMRobertaForMaskedLM,
)

from bert_pipeline.model.attention import Rows, arrange
from bert_pipeline.model.compile import wrap_call
from bert_pipeline.model.kernels import dropout, masked_cross_entropy, product_dtype, take_rows
from bert_pipeline.model.unpadded_batch import UnpaddedBatch

# All with BERT's encoder layers; a RoBERTa has another head and counts positions from its padding's on.
_ROBERTAS = (RobertaForMaskedLM, XLMRobertaForMaskedLM, CamembertForMaskedLM)
UNPADDED_NETWORKS = (BertForPreTraining, BertForMaskedLM, *_ROBERTAS)


def supports_unpadded(config: Any) -> bool:
    """Whether the masked LM of a config is one of `UNPADDED_NETWORKS`."""
    return MODEL_FOR_MASKED_LM_MAPPING[type(config)] in UNPADDED_NETWORKS


class UnpaddedLayer(nn.Module):
    """A stock encoder layer, on flat rows."""

    def __init__(self, stock: nn.Module, **how: bool) -> None:
        """`how` is as in `wrap_call`; evaluation calls the layer as it is."""
        super().__init__()
        self.stock: Any = stock
        self._train = wrap_call(self._work, **how)

    def forward(self, hidden: Tensor, rows: Rows, *, last: bool = False) -> Tensor:
        """The layer's output `[T, hidden]`; of the `last` layer only where heads read it, `[R, hidden]`."""
        result: Tensor = (self._train if self.training else self._work)(hidden, rows, last)
        return result

    def _work(self, hidden: Tensor, rows: Rows, last: bool) -> Tensor:
        attention, stock = self.stock.attention.self, self.stock
        shape = (attention.num_attention_heads, attention.attention_head_size)
        rate = attention.dropout.p if attention.training else 0.0
        if last:
            key_value = _project(hidden, attention.key, attention.value).view(-1, 2, *shape)
            hidden = take_rows(hidden, rows.reads.index)
            query = attention.query(hidden).view(-1, *shape)
            mixed = rows.attend_reads(query, key_value, attention.scaling, rate)
        else:
            qkv = _project(hidden, attention.query, attention.key, attention.value).view(
                -1, 3, *shape
            )
            mixed = rows.attend(qkv, attention.scaling, rate)
        hidden = _add_and_normalize(stock.attention.output, mixed, hidden)
        return _add_and_normalize(stock.output, stock.intermediate(hidden), hidden)


def _project(hidden: Tensor, *parts: Any) -> Tensor:
    """Several linear layers in one product."""
    return F.linear(
        hidden, torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
    )


def _add_and_normalize(own: Any, change: Tensor, hidden: Tensor) -> Tensor:
    """What a stock layer's `output` does."""
    return _normalize(
        own.LayerNorm, dropout(own.dense(change), own.dropout.p, own.training) + hidden
    )


def _normalize(norm: Any, hidden: Tensor) -> Tensor:
    """A norm worked out in fp32, and handed on in the type of the products.

    Autocast alone would hand on fp32: what residual connections carry would take twice the memory traffic.
    """
    exact = torch.promote_types(hidden.dtype, torch.float32)
    weight, bias = norm.weight.to(exact), norm.bias.to(exact)
    return F.layer_norm(hidden.to(exact), norm.normalized_shape, weight, bias, norm.eps).to(
        product_dtype(hidden)
    )


class FlatPath(nn.Module):
    """The forward pass of one of `UNPADDED_NETWORKS`."""

    network: Any

    def __init__(self, network: Any, **how: bool) -> None:
        """`how` layers are called is as in `wrap_call`."""
        super().__init__()
        # The stock model is no submodule: its parts are, each once, so that sharding finds every layer inside the
        # module whose call it hooks.
        object.__setattr__(self, "network", network)
        body, attention = network.base_model, network.base_model.encoder.layer[0].attention.self
        self.embeddings: Any = body.embeddings
        self.layers = nn.ModuleList(UnpaddedLayer(layer, **how) for layer in body.encoder.layer)
        self.pooler: Any = body.pooler
        is_roberta = isinstance(network, _ROBERTAS)
        self.heads: Any = network.lm_head if is_roberta else network.cls
        self._first_position = body.embeddings.padding_idx + 1 if is_roberta else 0
        self._head_size, self._attention_dropout = (
            attention.attention_head_size,
            attention.dropout.p,
        )

    def forward(self, batch: UnpaddedBatch, *, logits: bool) -> tuple[Tensor, Tensor | None]:
        """Summed masked-LM and sentence-pair losses, or the `logits` of both: `[M, vocabulary]` and `[B, 2]`.

        Without a pair task in the batch or a head for it, that loss is 0 and its logits are None.
        """
        hidden, first = self._encode(batch)
        hidden, decoder = self._transform(hidden), self.network.get_output_embeddings()
        pairs = (
            None
            if first is None
            else self.heads.seq_relationship(self.pooler.activation(self.pooler.dense(first)))
        )
        if logits:
            return F.linear(hidden, decoder.weight, decoder.bias), pairs
        mlm = masked_cross_entropy(hidden, decoder.weight, decoder.bias, batch.masked_labels)
        if pairs is None or batch.is_random_next is None:
            return mlm, mlm.new_zeros(())
        return mlm, F.cross_entropy(pairs.float(), batch.is_random_next, reduction="sum")

    def _encode(self, batch: UnpaddedBatch) -> tuple[Tensor, Tensor | None]:
        """Last hidden states where the heads read: masked positions `[M, hidden]`, and `[CLS]` `[B, hidden]`."""
        hidden = self._embed(batch)
        rows = arrange(
            batch, hidden, self._head_size, self._attention_dropout if self.training else 0.0
        )
        for layer in self.layers[:-1]:
            hidden = layer(hidden, rows)
        hidden = self.layers[-1](hidden, rows, last=True)
        masked = take_rows(hidden, rows.reads.masked)
        if batch.is_random_next is None or self.pooler is None:
            return masked, None
        return masked, take_rows(hidden, rows.reads.cu_seqlens[:-1])

    def _transform(self, hidden: Tensor) -> Tensor:
        """What the vocabulary's matrix is multiplied with."""
        head = self.heads
        result: Tensor = (
            head.predictions.transform(hidden)
            if hasattr(head, "predictions")
            else head.layer_norm(F.gelu(head.dense(hidden)))
        )
        return result

    def _embed(self, batch: UnpaddedBatch) -> Tensor:
        own = self.embeddings
        total = own.word_embeddings(batch.tokens)
        # Models without segments have one type for all tokens.
        types = own.token_type_embeddings
        total = total + (types(batch.segment_ids) if types.num_embeddings > 1 else types.weight[0])
        total = total + own.position_embeddings(batch.positions + self._first_position)
        return dropout(_normalize(own.LayerNorm, total), own.dropout.p, own.training)
