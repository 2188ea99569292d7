"""What is trained: a stock model behind a forward pass that returns summed losses."""

from typing import Any, cast

from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, BertForPreTraining

from bert_pipeline.errors import UsageError
from bert_pipeline.model.padded import PaddedPath
from bert_pipeline.model.unpadded import UNPADDED_NETWORKS, FlatPath
from bert_pipeline.model.unpadded_batch import UnpaddedBatch


class PretrainingModel(nn.Module):
    """A stock model that reads flat batches.

    Parameters are those of `network`, which has their stock names. To shard, wrap each of `layers` and then this
    module: everything, evaluation too, goes through calls of these.
    """

    def __init__(
        self, network: Any, *, checkpoint_activations: bool = False, compiled: bool = False
    ) -> None:
        """With `checkpoint_activations`, layers keep their inputs alone and compute the rest again for gradients; with
        `compiled`, each is compiled when it is first called in training."""
        super().__init__()
        path = FlatPath if isinstance(network, UNPADDED_NETWORKS) else PaddedPath
        self._path: Any = path(
            network, checkpoint_activations=checkpoint_activations, compiled=compiled
        )

    @property
    def network(self) -> Any:
        """The stock model."""
        return self._path.network

    @property
    def layers(self) -> list[nn.Module]:
        """The encoder's layers as they are called."""
        return list(self._path.layers)

    def forward(
        self, batch: UnpaddedBatch, *, logits: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Summed masked-LM and sentence-pair losses (0 without that task), or with `logits` what `score` returns."""
        result = cast(tuple[Tensor, Tensor | None], self._path(batch, logits=logits))
        if batch.void:
            result = result[0] * 0.0, None if result[1] is None else result[1] * 0.0
        return result

    def score(self, batch: UnpaddedBatch) -> tuple[Tensor, Tensor | None]:
        """Logits of the masked tokens `[M, vocabulary]`, and of "B follows" and "B is random" `[B, 2]` or None."""
        return cast(tuple[Tensor, Tensor | None], self(batch, logits=True))


def check_objective(config: Any, objective: str) -> None:
    """Raise `UsageError` where the architecture of a config has no heads for an objective."""
    if objective != "mlm" and config.model_type != "bert":
        raise UsageError(
            f"--model: {config.model_type} has no head for the sentence pairs of {objective}; make examples with "
            "--objective mlm."
        )


def make_network(config: Any, *, with_pairs: bool) -> Any:
    """A stock model with random weights, with a head for sentence pairs if it will have any."""
    return BertForPreTraining(config) if with_pairs else AutoModelForMaskedLM.from_config(config)
