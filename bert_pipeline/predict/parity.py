"""Whether a written model computes the same as the one in memory."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bert_pipeline.errors import BertpipeError
from bert_pipeline.model.architectures import count_positions

SHAPES = ((1, 5), (3, 17), (2, 64))
"""Rows and tokens of the batches that are compared; a model with fewer positions gets fewer."""
SEED = 0


@dataclass(frozen=True, slots=True)
class Parity:
    """How far two models are apart on the same batches."""

    worst: float
    """The largest difference of two outputs."""
    largest: float
    """The largest output."""
    same_best: float
    """The share of rows, or tokens, whose highest output is the same one."""

    def check(self, tolerance: float, what: str) -> None:
        """Raise `BertpipeError` if the difference is more than this share of the largest output."""
        if not self.worst <= tolerance * max(1.0, self.largest):
            raise BertpipeError(
                f"{what}: its outputs differ by up to {self.worst:.2g} from those of the model, "
                "where the largest is "
                f"{self.largest:.2g}. Nothing was written."
            )


def input_names(network: Any) -> list[str]:
    """The inputs of a stock model that tokenizers make."""
    takes = inspect.signature(network.forward).parameters
    has_segments = "token_type_ids" in takes and getattr(network.config, "type_vocab_size", 0) > 1
    segment_names = ["token_type_ids"] if has_segments else []
    return ["input_ids", "attention_mask", *segment_names]


def sample_batches(network: Any) -> list[dict[str, Tensor]]:
    """Batches of random tokens, the last row of each with padding."""
    config = network.config
    generator = torch.Generator().manual_seed(SEED)
    pad = getattr(config, "pad_token_id", None) or 0
    positions = count_positions(config)
    batches = []
    for rows, length in SHAPES:
        shape = (rows, min(length, positions or length))
        tokens = torch.randint(0, config.vocab_size - 1, shape, generator=generator)
        tokens += tokens >= pad  # any but padding
        mask = torch.ones_like(tokens)
        mask[-1, (shape[1] + 1) // 2 :] = int(rows == 1)
        values = (tokens.where(mask > 0, pad), mask, torch.zeros_like(tokens))
        batches.append(dict(zip(input_names(network), values, strict=False)))
    return batches


@torch.no_grad()
def compute_outputs(
    network: Any, batches: Sequence[Mapping[str, Tensor]], names: Sequence[str]
) -> list[dict[str, Tensor]]:
    """The outputs `names` of a stock model in evaluation mode."""
    network.eval()
    found = []
    for batch in batches:
        outputs = network(**batch, return_dict=True)
        found.append({name: outputs[name] for name in names})
    return found


def compare_outputs(
    batches: Sequence[Mapping[str, Tensor]],
    expected: Sequence[Mapping[str, Tensor]],
    found: Sequence[Mapping[str, Tensor]],
) -> Parity:
    """Compare outputs, of tokens without padding. Raises `BertpipeError` for what is not finite."""
    worst = largest = 0.0
    same = []
    for batch, wanted, got in zip(batches, expected, found, strict=True):
        is_text = batch["attention_mask"] > 0
        for name, value in wanted.items():
            pairs = [value.float(), got[name].float()]
            if value.shape[:2] == is_text.shape and value.dim() == 3:
                pairs = [each[is_text] for each in pairs]
            if not all(each.isfinite().all() for each in pairs):
                raise BertpipeError(f"Its {name} are not finite numbers. Nothing was written.")
            worst = max(worst, float((pairs[0] - pairs[1]).abs().amax()))
            largest = max(largest, float(pairs[0].abs().amax()))
            same.append((pairs[0].argmax(-1) == pairs[1].argmax(-1)).float().flatten())
    return Parity(worst, largest, float(torch.cat(same).mean()))
