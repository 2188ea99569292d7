"""What is trained: a stock model behind a forward pass that returns summed losses."""

from typing import Any, cast

from torch import Tensor, nn
from transformers import BertForMaskedLM, BertForPreTraining

from bert_pipeline.model.flat import FlatPath
from bert_pipeline.model.flat_batch import FlatBatch


class PretrainingModel(nn.Module):
    """A stock model that reads flat batches.

    Parameters are those of `network`, which has their stock names. To shard, wrap each of `layers` and then this
    module: everything, evaluation too, goes through calls of these.
    """

    def __init__(self, network: BertForPreTraining | BertForMaskedLM, *, checkpoint_activations: bool = False) -> None:
        """With `checkpoint_activations`, layers keep their inputs alone and compute the rest again for gradients."""
        super().__init__()
        self._path = FlatPath(network, checkpoint_activations=checkpoint_activations)

    @property
    def network(self) -> Any:
        """The stock model."""
        return self._path.network

    @property
    def layers(self) -> list[nn.Module]:
        """The encoder's layers as they are called."""
        return list(self._path.layers)

    def forward(self, batch: FlatBatch, *, logits: bool = False) -> tuple[Tensor, Tensor | None]:
        """Summed masked-LM and sentence-pair losses (0 without that task), or with `logits` what `score` returns."""
        result = cast(tuple[Tensor, Tensor | None], self._path(batch, logits=logits))
        if batch.void:
            result = result[0] * 0.0, None if result[1] is None else result[1] * 0.0
        return result

    def score(self, batch: FlatBatch) -> tuple[Tensor, Tensor | None]:
        """Logits of the masked tokens `[M, vocabulary]`, and of "B follows" and "B is random" `[B, 2]` or None."""
        return cast(tuple[Tensor, Tensor | None], self(batch, logits=True))
