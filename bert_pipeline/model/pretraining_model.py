"""The trained module: a stock model behind a forward pass that returns summed losses."""

from typing import Any, cast

from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, BertForPreTraining

from bert_pipeline.errors import UsageError
from bert_pipeline.model.heads import PretrainingHeads
from bert_pipeline.model.padded import PaddedNetwork
from bert_pipeline.model.unpadded import UNPADDED_BODIES, UnpaddedEncoder
from bert_pipeline.model.unpadded_batch import PretrainingBatch


class UnpaddedNetwork(nn.Module):
    """The unpadded encoder with the pretraining heads on top."""

    def __init__(self, network: Any, *, compiled: bool = False, **how: bool) -> None:
        super().__init__()
        self.encoder = UnpaddedEncoder(network.base_model, compiled=compiled, **how)
        self.heads = PretrainingHeads(network, compiled=compiled)

    @property
    def network(self) -> Any:
        """The stock model."""
        return self.heads.network

    @property
    def layers(self) -> nn.ModuleList:
        """The encoder's layers."""
        layers: nn.ModuleList = self.encoder.layers
        return layers

    def forward(self, batch: PretrainingBatch, *, logits: bool) -> tuple[Tensor, Tensor | None]:
        """As `PretrainingHeads.forward`."""
        hidden = self.encoder(batch, batch.head_positions)
        return cast(tuple[Tensor, Tensor | None], self.heads(hidden, batch, logits=logits))


class PretrainingModel(nn.Module):
    """A stock model that reads unpadded batches.

    Its parameters are those of `network`, which has the stock names. To shard, wrap each of
    `layers` and then this module: everything, evaluation too, goes through calls of these.
    """

    def __init__(
        self, network: Any, *, checkpoint_activations: bool = False, compiled: bool = False
    ) -> None:
        """With `compiled`, each layer is compiled when it is first called in training."""
        super().__init__()
        kind = UnpaddedNetwork if isinstance(network.base_model, UNPADDED_BODIES) else PaddedNetwork
        self._wrapped: Any = kind(
            network, checkpoint_activations=checkpoint_activations, compiled=compiled
        )

    @property
    def network(self) -> Any:
        """The stock model."""
        return self._wrapped.network

    @property
    def layers(self) -> list[nn.Module]:
        """The encoder's layers as they are called."""
        return list(self._wrapped.layers)

    def forward(
        self, batch: PretrainingBatch, *, logits: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Summed masked-LM and sentence-pair losses (0 without pairs), or with `logits` scores."""
        first, second = cast(tuple[Tensor, Tensor | None], self._wrapped(batch, logits=logits))
        if batch.is_placeholder:
            return first * 0.0, None if second is None else second * 0.0
        return first, second

    def score(self, batch: PretrainingBatch) -> tuple[Tensor, Tensor | None]:
        """Logits of the masked tokens `[M, vocabulary]` and of the sentence pairs `[B, 2]` or None.

        The classes of pairs are "B follows A" and "B is random".
        """
        return cast(tuple[Tensor, Tensor | None], self(batch, logits=True))


def check_objective(config: Any, objective: str, *, has_pairs: bool) -> None:
    """Raise `UsageError` if the architecture of a config has no heads for an objective."""
    if has_pairs and config.model_type != "bert":
        raise UsageError(
            f"--model: {config.model_type} has no head for the sentence pairs of {objective}; make "
            "examples with --objective mlm."
        )


def make_network(config: Any, *, with_pairs: bool) -> Any:
    """A stock model with random weights, with a head for sentence pairs if `with_pairs`."""
    if with_pairs:
        return BertForPreTraining(config)
    return AutoModelForMaskedLM.from_config(config)
