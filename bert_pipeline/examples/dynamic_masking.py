"""Dynamic masks: rows that were stored without masks get other ones in every epoch (RoBERTa, Liu et al. 2019, 4.1)."""

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
    """Draws masks of stored rows: a pure function of seed, epoch and the row's number."""

    rule: MaskRule
    special: tuple[int, ...]
    """Ids that are never masked."""
    seed: int

    @property
    def needs_starts(self) -> bool:
        """Whether it has to know where words begin."""
        return self.rule.unit != "token"

    @classmethod
    def of(cls, examples: Manifest, seed: int) -> "DynamicMasks | None":
        """The masks of an examples folder's training rows; None where they are written in the files."""
        config = ExamplesConfig.model_validate(
            examples.config | {"out": Path(), "corpus": Path(), "tokenizer": Path()}
        )
        if config.masks == "static":
            return None
        ids = SpecialIds(**examples.counts["special_ids"])
        rule = MaskRule.of(config, "train", ids.mask, examples.counts["vocab_size"])
        return cls(rule, (ids.pad, ids.cls, ids.sep, ids.mask), seed)

    def draw(
        self,
        tokens: Int32Array,
        starts: BoolArray | None,
        offsets: Int64Array,
        rows: Int64Array,
        epochs: Int64Array,
    ) -> Masks:
        """Mask rows laid end to end (row r is `tokens[offsets[r]:offsets[r + 1]]`), by their numbers and epochs."""
        is_special = np.isin(tokens, self.special)
        segment_ids: npt.NDArray[np.int8] = np.empty(
            0, dtype=np.int8
        )  # masks do not depend on them
        flat = UnpaddedRows(tokens, segment_ids, is_special, starts, offsets)
        keys = random_bits(random_bits(make_key("dynamic masks", self.seed), epochs), rows)
        return draw_masks(flat, keys, self.rule)
