"""Masking for masked language modelling: which tokens to predict, and what replaces them.

Every random choice is a pure function of the row's key and the position. So masks written into
shards (static masking) and masks drawn in each epoch of training (dynamic masking) come from the
same code, and do not depend on the order or the number of rows.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.examples.counter_rng import as_choice, as_share, random_bits
from bert_pipeline.examples.mask_units import choose_spans, choose_tokens, choose_words, find_words
from bert_pipeline.examples.rows import UnpaddedRows
from bert_pipeline.examples.splits import Split
from bert_pipeline.ragged import Int32Array, Int64Array, UInt64Array, offsets_of

# Streams of counters under a row's key, far above any position, so that no two draws share one.
_REPLACEMENT_STREAM = np.uint64(1 << 40)
_RANDOM_TOKEN_STREAM = np.uint64(2 << 40)


@dataclass(frozen=True, slots=True)
class MaskRule:
    """How to mask: the settings of `bertpipe examples`, and the ids that they need."""

    unit: str
    """`token`, `whole-word` or `span`."""
    rate: float
    """Share of a row's tokens to predict (`masked_lm_prob` of the BERT release)."""
    max_predictions: int
    """Most tokens to predict in one row (`max_predictions_per_seq` of the BERT release)."""
    mask_share: float
    """Share of the predicted tokens that become the mask token."""
    random_share: float
    """Share of the predicted tokens that become a random token."""
    mask_id: int
    vocab_size: int

    @classmethod
    def from_config(
        cls, config: ExamplesConfig, split: Split, mask_id: int, vocab_size: int
    ) -> "MaskRule":
        """The rule for the examples of a split."""
        rate = config.mask_rate if split == "train" else config.validation_mask_rate
        return cls(
            unit=config.mask_unit,
            rate=rate,
            max_predictions=config.max_predictions or math.ceil(rate * config.max_seq_length),
            mask_share=config.mask_share,
            random_share=config.random_share,
            mask_id=mask_id,
            vocab_size=vocab_size,
        )


@dataclass(frozen=True, slots=True)
class Masks:
    """The tokens to predict: row r has `positions[offsets[r]:offsets[r + 1]]`, ascending.

    `labels` are the original ids at these positions, and `tokens` the tokens of all rows with the
    masks applied, int32 of shape (tokens,).
    """

    tokens: Int32Array
    positions: Int32Array
    labels: Int32Array
    offsets: Int64Array


def draw_masks(rows: UnpaddedRows, keys: UInt64Array, rule: MaskRule) -> Masks:
    """Mask the rows; `keys` is uint64 of shape (rows,).

    A row of n tokens gets min(max_predictions, max(1, round(rate * n))) tokens to predict, but not
    more than it has ordinary tokens. With whole words it gets fewer where no further word fits; the
    last span is cut where the number is reached.
    """
    lengths = np.diff(rows.offsets)
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    where, unit_start = _choose(rows, keys, row_of, _count_wanted(rows, rule), rule)
    row = row_of[where]
    labels = rows.tokens[where]
    position = where - rows.offsets[row]
    unit_position = unit_start - rows.offsets[row]
    # The tokens of a span are all masked, all replaced or all kept (SpanBERT, section 3.1); other
    # tokens each independently (Devlin et al. 2019, section 3.1).
    draw = as_share(random_bits(keys[row], unit_position.astype(np.uint64) + _REPLACEMENT_STREAM))
    random_token = as_choice(
        random_bits(keys[row], position.astype(np.uint64) + _RANDOM_TOKEN_STREAM), rule.vocab_size
    )
    replaced = np.where(draw < rule.mask_share + rule.random_share, random_token, labels)
    tokens = rows.tokens.copy()
    tokens[where] = np.where(draw < rule.mask_share, rule.mask_id, replaced)
    offsets = offsets_of(np.bincount(row, minlength=len(lengths)))
    return Masks(tokens, position.astype(np.int32), labels, offsets)


def _count_wanted(rows: UnpaddedRows, rule: MaskRule) -> Int64Array:
    """Tokens to predict in each row; int64 of shape (rows,)."""
    rounded = np.rint(rule.rate * np.diff(rows.offsets)).astype(np.int64)
    ordinary = _sum_rows(~rows.is_special, rows.offsets)
    wanted: Int64Array = np.minimum(
        np.minimum(np.maximum(1, rounded), rule.max_predictions), ordinary
    )
    return wanted


def _sum_rows(values: npt.NDArray[np.generic], offsets: Int64Array) -> Int64Array:
    return np.diff(offsets_of(values)[offsets])


def _choose(
    rows: UnpaddedRows, keys: UInt64Array, row_of: Int64Array, wanted: Int64Array, rule: MaskRule
) -> tuple[Int64Array, Int64Array]:
    """The chosen tokens, ascending, and the first token of the unit that is replaced as one."""
    if rule.unit == "token":
        chosen = np.flatnonzero(choose_tokens(rows, keys, row_of, wanted))
        return chosen, chosen
    words = find_words(rows, keys, row_of)
    if rule.unit == "whole-word":
        word_of = choose_words(rows, words, wanted, rule.max_predictions)
        chosen = np.flatnonzero(word_of >= 0)
        return chosen, chosen
    span_of = choose_spans(rows, keys, words, wanted)
    chosen = np.flatnonzero(span_of >= 0)
    return chosen, span_of[chosen]
