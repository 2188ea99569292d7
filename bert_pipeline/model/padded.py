"""The pretraining forward pass of any other masked-LM architecture: its own, on padded rows."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert_pipeline.errors import UsageError
from bert_pipeline.model.attention import PaddedLayout
from bert_pipeline.model.compile import wrap_layer
from bert_pipeline.model.kernels import take_rows
from bert_pipeline.model.unpadded_batch import PretrainingBatch


class PaddedNetwork(nn.Module):
    """A stock masked LM on padded rows; scores only masked tokens where the architecture allows."""

    def __init__(self, network: Any, **how: bool) -> None:
        """`how` (activation checkpointing, compilation) is passed to `wrap_layer`.

        Raises `UsageError` for architectures without an attention mask.
        """
        super().__init__()
        takes = inspect.signature(network.forward).parameters
        if "attention_mask" not in takes:
            raise UsageError(
                f"--model: {type(network).__name__} takes no attention mask, so it would attend to "
                "padding."
            )
        self.network = network
        for layer in self.layers:
            layer.forward = wrap_layer(layer.forward, **how)
        has_segments = getattr(network.config, "type_vocab_size", 0) > 1
        self._with_segments = "token_type_ids" in takes and has_segments

    @property
    def layers(self) -> list[nn.Module]:
        """The encoder's layers."""
        return encoder_layers(self.network)

    def forward(self, batch: PretrainingBatch, *, logits: bool) -> tuple[Tensor, Tensor | None]:
        """As `PretrainingHeads.forward`, without sentence pairs."""
        scores = self._score(batch)
        if logits:
            return scores, None
        mlm = F.cross_entropy(scores.float(), batch.masked_labels, reduction="sum")
        return mlm, mlm.new_zeros(())

    def _score(self, batch: PretrainingBatch) -> Tensor:
        """Logits `[M, vocabulary]` of the masked tokens."""
        layout = PaddedLayout.from_batch(batch, batch.head_positions)
        pad = self.network.config.pad_token_id or 0
        inputs = {
            "input_ids": layout.pad(batch.tokens, pad),
            "attention_mask": layout.pad(torch.ones_like(batch.tokens)),
        }
        if self._with_segments:
            inputs["token_type_ids"] = layout.pad(batch.segment_ids)
        masked = batch.masked_index if layout.slots is None else layout.slots[batch.masked_index]
        decoder = self.network.get_output_embeddings()
        with _scoring_only(decoder, masked, (layout.examples, layout.width)):
            scores: Tensor = self.network(**inputs, return_dict=True).logits
        return scores if scores.dim() == 2 else take_rows(scores.flatten(0, 1), masked)


def encoder_layers(network: nn.Module) -> list[nn.Module]:
    """The layers of any encoder: of the modules in module lists, the type with most parameters."""
    by_type: dict[type, list[nn.Module]] = {}
    for module in _list_members(network):
        by_type.setdefault(type(module), []).append(module)
    return max(by_type.values(), key=_count_parameters, default=[])


def _list_members(module: nn.Module) -> Iterator[nn.Module]:
    """The members of module lists, without descending into them."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _list_members(child)


def _count_parameters(modules: list[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@contextmanager
def _scoring_only(
    decoder: nn.Module | None, rows: Tensor, shape: tuple[int, int]
) -> Iterator[None]:
    """Within the block, `decoder` receives only `rows` of hidden states `[*shape, hidden]`."""

    def gather(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = args
        if hidden.shape[:-1] != shape:
            return args
        return take_rows(hidden.flatten(0, 1), rows), *rest

    hook = decoder.register_forward_pre_hook(gather) if decoder is not None else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
