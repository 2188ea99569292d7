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
from bert_pipeline.model.flat_batch import FlatBatch
from bert_pipeline.model.kernels import take_rows
from bert_pipeline.model.layer_calls import wrap_call


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
        self._with_segments = "token_type_ids" in takes and getattr(network.config, "type_vocab_size", 0) > 1

    @property
    def layers(self) -> list[nn.Module]:
        """The encoder's layers: the longest list of modules of one kind."""
        lists = [list(it) for it in self.network.modules() if isinstance(it, nn.ModuleList)]
        return max((it for it in lists if len({type(module) for module in it}) == 1), key=len, default=[])

    def forward(self, batch: FlatBatch, *, logits: bool) -> tuple[Tensor, Tensor | None]:
        """As `FlatPath.forward`, without a pair task."""
        scores = self._score(batch)
        if logits:
            return scores, None
        mlm = F.cross_entropy(scores.float(), batch.masked_labels, reduction="sum")
        return mlm, mlm.new_zeros(())

    def _score(self, batch: FlatBatch) -> Tensor:
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
            scores: Tensor = self.network(**inputs).logits
        return scores if scores.dim() == 2 else take_rows(scores.flatten(0, 1), masked)


@contextmanager
def _scored_at(decoder: nn.Module | None, rows: Tensor, shape: tuple[int, int]) -> Iterator[None]:
    """While entered, `decoder` sees only the given rows of hidden states `[*shape, hidden]`."""

    def gather(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = args
        return (take_rows(hidden.flatten(0, 1), rows), *rest) if hidden.shape[:-1] == shape else args

    hook = decoder.register_forward_pre_hook(gather) if decoder is not None else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
