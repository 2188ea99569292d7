"""The hidden states of any encoder on batches without padding."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bert_pipeline.errors import BertpipeError
from bert_pipeline.model.attention import PaddedLayout
from bert_pipeline.model.unpadded import UNPADDED_BODIES, UnpaddedEncoder
from bert_pipeline.model.unpadded_batch import HeadPositions, UnpaddedBatch


class StockEncoder:
    """A stock encoder on padded rows, called like `UnpaddedEncoder`."""

    def __init__(self, network: Any) -> None:
        self._network = network
        takes = inspect.signature(network.forward).parameters
        self.can_pad = "attention_mask" in takes
        """Whether the rows of a batch may have different lengths."""
        has_segments = getattr(network.config, "type_vocab_size", 0) > 1
        self._with_segments = "token_type_ids" in takes and has_segments

    def hidden_states(self, batch: UnpaddedBatch) -> Iterator[Tensor]:
        """The embeddings and the output of each layer, `[T, hidden]`."""
        nothing = HeadPositions.select(batch.cu_seqlens.cpu(), batch.tokens.new_empty(0).cpu())
        positions = nothing.map(lambda tensor: tensor.to(batch.tokens.device))
        layout = PaddedLayout.from_batch(batch, positions)
        pad = getattr(self._network.config, "pad_token_id", None) or 0
        inputs = {"input_ids": layout.pad(batch.tokens, pad)}
        if self.can_pad:
            inputs["attention_mask"] = layout.pad(torch.ones_like(batch.tokens))
        if self._with_segments:
            inputs["token_type_ids"] = layout.pad(batch.segment_ids)
        output = self._network(**inputs, output_hidden_states=True, return_dict=True)
        states = (output.get("hidden_states") or ())[:-1]
        for state in (*states, output.last_hidden_state):
            if state.shape[:2] != inputs["input_ids"].shape:
                raise BertpipeError(
                    f"{type(self._network).__name__} has no hidden state for each token. Use "
                    "another encoder."
                )
            flat = state.flatten(0, 1)
            yield flat if layout.slots is None else flat[layout.slots]


def make_encoder(network: Any) -> Any:
    """The fastest encoder for a stock base model: what has `hidden_states(batch)`."""
    if isinstance(network, UNPADDED_BODIES):
        return UnpaddedEncoder(network, checkpoint_activations=False, compiled=False).eval()
    return StockEncoder(network)


def can_pad(encoder: Any) -> bool:
    """Whether batches of an encoder may have rows of different lengths."""
    return not isinstance(encoder, StockEncoder) or encoder.can_pad
