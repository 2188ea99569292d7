"""The pretraining forward pass of any masked-LM architecture: its own, on padded rows."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert_pipeline.errors import UsageError
from bert_pipeline.model.attention import Grid
from bert_pipeline.model.compile import wrap_call
from bert_pipeline.model.kernels import take_rows
from bert_pipeline.model.unpadded_batch import UnpaddedBatch


class PaddedPath(nn.Module):
    """The forward pass of a stock masked LM, with its vocabulary scored at masked positions alone where it can be."""

    def __init__(self, network: Any, **how: bool) -> None:
        """`how` layers are called is as in `wrap_call`.

        Raises `UsageError` where the architecture cannot tell padding from text.
        """
        super().__init__()
        takes = inspect.signature(network.forward).parameters
        if "attention_mask" not in takes:
            raise UsageError(
                f"--model: {type(network).__name__} takes no attention mask, so it would read padding as text."
            )
        self.network = network
        for layer in self.layers:
            layer.forward = wrap_call(layer.forward, **how)
        self._with_segments = (
            "token_type_ids" in takes and getattr(network.config, "type_vocab_size", 0) > 1
        )

    @property
    def layers(self) -> list[nn.Module]:
        """The encoder's layers: of the modules that stand in lists, the kind with the most parameters."""
        kinds: dict[type, list[nn.Module]] = {}
        for module in _listed(self.network):
            kinds.setdefault(type(module), []).append(module)
        return max(
            kinds.values(),
            key=lambda them: sum(p.numel() for it in them for p in it.parameters()),
            default=[],
        )

    def forward(self, batch: UnpaddedBatch, *, logits: bool) -> tuple[Tensor, Tensor | None]:
        """As `FlatPath.forward`, without a pair task."""
        scores = self._score(batch)
        if logits:
            return scores, None
        mlm = F.cross_entropy(scores.float(), batch.masked_labels, reduction="sum")
        return mlm, mlm.new_zeros(())

    def _score(self, batch: UnpaddedBatch) -> Tensor:
        """Logits `[M, vocabulary]` of the masked tokens."""
        grid = Grid.of(batch)
        pad = self.network.config.pad_token_id or 0
        inputs = {
            "input_ids": grid.spread(batch.tokens, pad),
            "attention_mask": grid.spread(torch.ones_like(batch.tokens)),
        }
        if self._with_segments:
            inputs["token_type_ids"] = grid.spread(batch.segment_ids)
        masked = batch.masked_index if grid.slots is None else grid.slots[batch.masked_index]
        with _scored_at(self.network.get_output_embeddings(), masked, (grid.examples, grid.width)):
            scores: Tensor = self.network(**inputs, return_dict=True).logits
        return scores if scores.dim() == 2 else take_rows(scores.flatten(0, 1), masked)


def _listed(module: nn.Module) -> Iterator[nn.Module]:
    """The members of module lists, but nothing inside of them."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _listed(child)


@contextmanager
def _scored_at(decoder: nn.Module | None, rows: Tensor, shape: tuple[int, int]) -> Iterator[None]:
    """While entered, `decoder` sees only the given rows of hidden states `[*shape, hidden]`."""

    def gather(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = args
        return (
            (take_rows(hidden.flatten(0, 1), rows), *rest) if hidden.shape[:-1] == shape else args
        )

    hook = decoder.register_forward_pre_hook(gather) if decoder is not None else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
