"""A stock model with a head for a task, such as a classifier, on unpadded batches.

The encoder is the unpadded one, and the head is the stock model's own: its `forward` runs with an
encoder that returns the hidden states which were computed already. So dropout, pooling and whatever
else an architecture does above its encoder are exactly those of transformers.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_MULTIPLE_CHOICE_MAPPING
from transformers.modeling_outputs import BaseModelOutputWithPooling

from bert_pipeline.errors import UsageError
from bert_pipeline.model.attention import PaddedLayout
from bert_pipeline.model.compile import wrap_layer
from bert_pipeline.model.kernels import take_rows
from bert_pipeline.model.padded import encoder_layers
from bert_pipeline.model.unpadded import UNPADDED_BODIES, UnpaddedEncoder
from bert_pipeline.model.unpadded_batch import HeadPositions, UnpaddedBatch

CHOICE_NETWORKS = tuple(MODEL_FOR_MULTIPLE_CHOICE_MAPPING.values())


@dataclass(frozen=True)
class TaskBatch(UnpaddedBatch):
    """A batch with the labels of a task."""

    head_positions: HeadPositions
    """What the head reads: first tokens, and where `reads_tokens`, other tokens."""
    reads_tokens: bool
    """Whether the head scores the tokens of `head_positions.index`, else each example."""
    labels: Tensor
    """Of each example, or of each token of `head_positions.others`; the loss reads them."""
    choices: Tensor
    """[examples + 1] int64: the first text of each example, which may have several."""
    is_placeholder: bool = False
    """For a rank without examples: the loss is multiplied by 0, so that it joins the all-reduce."""
    padding_examples: int = 0
    """Examples of padding at the end, which no head reads."""
    padding_tokens: int = 0
    """Their tokens."""


class TaskModel(nn.Module):
    """A stock model that scores unpadded batches.

    Its parameters are those of `network`, which has the stock names.
    """

    network: Any

    def __init__(
        self, network: Any, *, checkpoint_activations: bool = False, compiled: bool = False
    ) -> None:
        super().__init__()
        how = {"checkpoint_activations": checkpoint_activations, "compiled": compiled}
        body = network.base_model
        self.encoder: UnpaddedEncoder | None = None
        if isinstance(body, UNPADDED_BODIES) and body is not network:
            # The stock model is not registered as a submodule: its parts are, each once, so that
            # sharding finds every parameter inside the module whose call it hooks.
            object.__setattr__(self, "network", network)
            self.encoder = UnpaddedEncoder(body, **how)
            heads = [child for child in network.children() if child is not body]
            pooler = getattr(body, "pooler", None)
            self.heads = nn.ModuleList([*heads, *([] if pooler is None else [pooler])])
            self._pools_all = getattr(network.config, "classifier_pooling", "cls") == "mean"
            # The attribute of the instance, so that the stock code finds it.
            body.forward = self._return_hidden
        else:
            self.network = network
            self._layers = encoder_layers(network)
            for layer in self._layers:
                layer.forward = wrap_layer(layer.forward, **how)
            self._inputs = inspect.signature(network.forward).parameters
            if "attention_mask" not in self._inputs:
                raise UsageError(
                    f"{type(network).__name__} takes no attention mask, so it would attend to "
                    "padding."
                )
        self._hidden: Tensor | None = None

    @property
    def layers(self) -> list[nn.Module]:
        """The encoder's layers as they are called."""
        return list(self._layers if self.encoder is None else self.encoder.layers)

    def forward(self, batch: TaskBatch) -> Tensor:
        """The head's scores: `[B, labels]`, or where the batch `reads_tokens` `[R, labels]`."""
        if self.encoder is None:
            scores = self._score_padded(batch)
        else:
            scores = self._score_unpadded(self.encoder, batch)
        return scores.float()

    def _score_unpadded(self, encoder: UnpaddedEncoder, batch: TaskBatch) -> Tensor:
        positions = batch.head_positions
        if batch.reads_tokens:
            hidden = encoder(batch, positions)[None]
        elif self._pools_all:
            *_, states = encoder.hidden_states(batch)
            bounds = batch.cu_seqlens[: batch.cu_seqlens.numel() - batch.padding_examples]
            states = states[: states.shape[0] - batch.padding_tokens]
            hidden = _mean_of_examples(states, bounds)[:, None]
        else:
            hidden = encoder(batch, positions)[:, None]
        # [1, R, hidden] or [B, 1, hidden]: for the stock head, one text of R tokens or B texts of
        # one.
        self._hidden = hidden
        ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        try:
            output = self.network(input_ids=ids, attention_mask=torch.ones_like(ids))
        finally:
            self._hidden = None
        scores = _find_scores(output)
        return scores[0] if batch.reads_tokens else scores

    def _return_hidden(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """What the stock code gets when it calls its encoder."""
        pooler = getattr(self.network.base_model, "pooler", None)
        pooled = None if pooler is None else pooler(self._hidden)
        return BaseModelOutputWithPooling(last_hidden_state=self._hidden, pooler_output=pooled)

    def _score_padded(self, batch: TaskBatch) -> Tensor:
        positions = batch.head_positions
        layout = PaddedLayout.from_batch(batch, positions)
        pad = self.network.config.pad_token_id or 0
        inputs = {
            "input_ids": layout.pad(batch.tokens, pad),
            "attention_mask": layout.pad(torch.ones_like(batch.tokens)),
        }
        if (
            "token_type_ids" in self._inputs
            and getattr(self.network.config, "type_vocab_size", 0) > 1
        ):
            inputs["token_type_ids"] = layout.pad(batch.segment_ids)
        if isinstance(self.network, CHOICE_NETWORKS):
            # These take several texts per example.
            inputs = {name: values[:, None] for name, values in inputs.items()}
        scores = _find_scores(self.network(**inputs))
        if not batch.reads_tokens:
            return scores
        index = positions.index if layout.slots is None else layout.slots[positions.index]
        return take_rows(scores.flatten(0, 1), index)


def _find_scores(output: Any) -> Tensor:
    """The logits of any head, with those of starts and ends of spans side by side."""
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], -1)
    scores: Tensor = output.logits
    return scores


def _mean_of_examples(states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The mean state of the tokens of each example, `[B, hidden]` of `[T, hidden]`."""
    lengths = cu_seqlens.diff()
    example = torch.repeat_interleave(lengths, output_size=len(states))
    sums = states.new_zeros(len(lengths), states.shape[1]).index_add(0, example, states)
    return sums / lengths[:, None].to(states.dtype)
