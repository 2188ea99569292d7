"""Dynamic masking: rows stored without masks get new masks in every epoch.

Liu et al. 2019 (RoBERTa), section 4.1: https://arxiv.org/abs/1907.11692
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.examples.counter_rng import make_key, random_bits
from bert_pipeline.examples.masking import MaskRule, Masks, draw_masks
from bert_pipeline.examples.rows import UnpaddedRows
from bert_pipeline.ragged import BoolArray, Int32Array, Int64Array
from bert_pipeline.storage.manifest import Manifest
from bert_pipeline.tokenizer.load import SpecialIds


@dataclass(frozen=True, slots=True)
class DynamicMasks:
    """Draws masks of stored rows: a pure function of the seed, the epoch and the row's number."""

    rule: MaskRule
    special: tuple[int, ...]
    """Ids that are never masked."""
    seed: int

    @property
    def needs_word_starts(self) -> bool:
        """Whether `draw` needs to know which tokens begin a word."""
        return self.rule.unit != "token"

    @classmethod
    def from_manifest(cls, examples: Manifest, seed: int) -> "DynamicMasks | None":
        """The masks for the training rows of an examples folder; None if its masks are static."""
        config = ExamplesConfig.model_validate(
            examples.config | {"out": Path(), "corpus": Path(), "tokenizer": Path()}
        )
        if config.masks == "static":
            return None
        ids = SpecialIds(**examples.counts["special_ids"])
        rule = MaskRule.from_config(config, "train", ids.mask, examples.counts["vocab_size"])
        return cls(rule, (ids.pad, ids.cls, ids.sep, ids.mask), seed)

    def draw(
        self,
        tokens: Int32Array,
        word_starts: BoolArray | None,
        offsets: Int64Array,
        rows: Int64Array,
        epochs: Int64Array,
    ) -> Masks:
        """Mask rows laid end to end; row r is `tokens[offsets[r]:offsets[r + 1]]`.

        `rows` and `epochs`, int64 of shape (rows,), are the rows' numbers and their epochs.
        """
        is_special = np.isin(tokens, self.special)
        # Masks do not depend on segments.
        segment_ids: npt.NDArray[np.int8] = np.empty(0, dtype=np.int8)
        unpadded = UnpaddedRows(tokens, segment_ids, is_special, word_starts, offsets)
        keys = random_bits(random_bits(make_key("dynamic masks", self.seed), epochs), rows)
        return draw_masks(unpadded, keys, self.rule)
