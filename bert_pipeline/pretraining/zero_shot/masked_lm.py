"""A masked LM that scores masked tokens in batches: of a model folder, or one that is trained."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from bert_pipeline.errors import BertpipeError
from bert_pipeline.model.architectures import count_positions
from bert_pipeline.model.pretraining_model import PretrainingModel
from bert_pipeline.model.unpadded_batch import PretrainingBatch
from bert_pipeline.predict.load import find_model, load_auto_tokenizer
from bert_pipeline.pretraining.evaluation import load_pretrained
from bert_pipeline.pretraining.text_evaluation import MAX_LENGTH
from bert_pipeline.progress import Bar
from bert_pipeline.ragged import FloatArray, Int64Array
from bert_pipeline.tokenizer.load import LoadedTokenizer, load_tokenizer
from bert_pipeline.tokenizer.save import use_examples_layout
from bert_pipeline.training.distributed import Ranks

TOKENS_PER_BATCH = 8192
"""At most, unless one row alone has more: bounds the memory of the scores of short rows."""


@dataclass(frozen=True, slots=True)
class MaskedLM:
    """A model with its tokenizer, alone or as one of the processes of a run."""

    model: PretrainingModel
    tokenizer: LoadedTokenizer
    """For sentences without masks."""
    mask_tokenizer: Any
    """A `tokenizers.Tokenizer` for texts with masks, which adds the special tokens."""
    max_length: int
    """Tokens per row, with the special ones."""
    ranks: Ranks | None = None

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The model in a folder, or in the folder of a run; on the GPU if there is one."""
        found = find_model(folder)
        network = load_pretrained(found)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = PretrainingModel(network).to(device)
        mask_tokenizer = load_auto_tokenizer(found).backend_tokenizer
        mask_tokenizer.no_truncation()
        mask_tokenizer.no_padding()
        return cls(model, load_tokenizer(found), mask_tokenizer, find_length(network.config))

    @classmethod
    def of_run(cls, model: PretrainingModel, tokenizer: LoadedTokenizer, ranks: Ranks) -> Self:
        """The model of a run as it is trained; all processes use it together."""
        mask_tokenizer, _ = use_examples_layout(tokenizer)
        return cls(model, tokenizer, mask_tokenizer, find_length(model.network.config), ranks)

    @torch.no_grad()
    def measure(
        self,
        parts: Sequence[Int64Array],
        make_batch: Callable[[Int64Array], PretrainingBatch],
        figures: Callable[[Tensor, Int64Array], Tensor],
        progress: Bar | None = None,
    ) -> FloatArray:
        """The figures of masked tokens, float64 `[tokens, figures]`, the same in all processes.

        Each of the `parts` has the numbers of the tokens of one batch. `figures` computes from
        scores `[M, vocabulary]` and the numbers of their tokens `[M]` what is kept, `[M, figures]`.
        All processes run the same number of forward passes: a sharded model is gathered for each.
        """
        device = next(self.model.parameters()).device
        first, step = (self.ranks.rank, self.ranks.world_size) if self.ranks else (0, 1)
        was_training = self.model.training
        self.model.eval()
        numbers: list[Int64Array] = []
        measured: list[Tensor] = []
        for start in range(0, len(parts), step):
            is_own = start + first < len(parts)
            part = parts[start + first if is_own else start]
            batch = make_batch(part).to(device)
            with self._autocast(device):
                scores = self.model.score(batch)[0].float()
            own = figures(scores, part).double()
            numbers.append(part)
            measured.append(own if is_own else torch.zeros_like(own))
            if progress:
                progress.advance(len(part) * step)
        self.model.train(was_training)
        return self._collect(parts, numbers, measured)

    def _collect(
        self, parts: Sequence[Int64Array], numbers: list[Int64Array], measured: list[Tensor]
    ) -> FloatArray:
        """The figures of all processes, in the order of the tokens.

        Raises `BertpipeError` if those of a finished model are not finite.
        """
        own = torch.cat(measured)
        found = own.new_zeros(sum(map(len, parts)), own.shape[1])
        # A process without a batch adds zeros to those of another.
        found.index_add_(0, torch.from_numpy(np.concatenate(numbers)).to(own.device), own)
        total: FloatArray = (self.ranks.sum(found) if self.ranks else found).cpu().numpy()
        # A run goes on: it has its own ways to deal with such scores.
        if self.ranks is None and not np.isfinite(total).all():
            raise BertpipeError("The model's scores are not finite numbers; check its config.json.")
        return total

    def _autocast(self, device: torch.device) -> AbstractContextManager[None]:
        return self.ranks.precision.autocast(device) if self.ranks else nullcontext()


def find_length(config: Any) -> int:
    """The most tokens per row that a model is given."""
    return min(MAX_LENGTH, count_positions(config) or MAX_LENGTH)


def split_by_tokens(lengths: Int64Array) -> list[Int64Array]:
    """The numbers of rows of these lengths in parts of about `TOKENS_PER_BATCH`, shortest first."""
    order = np.argsort(lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    bounds = np.flatnonzero(np.diff(ends // TOKENS_PER_BATCH)) + 1
    return [part for part in np.split(order, bounds) if len(part)]
