"""The sampler: which examples each step takes, and which an evaluation takes.

Pure functions of the seed and of a few numbers, so a resumed run needs no replay, on any number of
processes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np

from bert_pipeline.examples.counter_rng import Permutation
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.ragged import Int64Array

BLOCK = 1 << 14
"""Places of the permutation that are computed together: one by one they cost many times more."""
SAMPLE_SEED = 0
"""Seed of samples that are the same in all runs."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The position in the examples before a step."""

    phase: int = 0
    """0 with `--examples`, 1 with `--long-examples`."""
    rows: int = 0
    """Examples of this phase taken so far, over all epochs."""

    def to_json(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"phase": self.phase, "rows": self.rows}

    @classmethod
    def from_json(cls, values: Mapping[str, int]) -> Self:
        """From a checkpoint; the start of the data without values."""
        return cls(**values)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a step takes: `size` examples of a phase, from the place `first_row` of its order on."""

    phase: int
    first_row: int
    size: int

    @property
    def next(self) -> Cursor:
        """The position in the examples after the step."""
        return Cursor(self.phase, self.first_row + self.size)


@dataclass(frozen=True, slots=True)
class Sampler:
    """The batch size of each step and the examples that it is taken from.

    The batch size grows in multiples of `start`, each size for an equal part of `warmup` (Warner et
    al. 2024, batch size schedule, https://arxiv.org/abs/2412.13663; Smith et al. 2018,
    https://arxiv.org/abs/1711.00489). The last `long_share` of the run takes `long_size` longer
    examples per step (Devlin et al. 2019, A.2, https://arxiv.org/abs/1810.04805: the last tenth).
    """

    size: int
    start: int
    warmup: float
    long_share: float
    """0 without longer examples."""
    long_size: int

    @classmethod
    def from_config(cls, config: PretrainConfig) -> Self:
        """The sampler that the options ask for."""
        return cls(
            size=config.batch_size,
            start=config.batch_size_start or config.batch_size,
            warmup=config.batch_size_warmup,
            long_share=config.long_share if config.long_examples else 0.0,
            long_size=config.long_batch_size or config.batch_size,
        )

    def largest_size(self, phase: int) -> int:
        """The largest batch size of a phase."""
        return self.long_size if phase else self.size

    def plan(self, cursor: Cursor, progress: float) -> StepPlan:
        """The step at `cursor`, after the share `progress` of the run."""
        is_long = self.long_share > 0 and progress >= 1 - self.long_share
        phase = max(cursor.phase, int(is_long))
        first_row = cursor.rows if phase == cursor.phase else 0
        return StepPlan(phase, first_row, self.long_size if phase else self._batch_size(progress))

    def _batch_size(self, progress: float) -> int:
        if progress >= self.warmup:
            return self.size
        return self.start * (1 + int(progress / self.warmup * (self.size // self.start)))


def draw_rows(
    count: int, first: int, size: int, seed: int, phase: int = 0
) -> tuple[Int64Array, Int64Array]:
    """The examples at the places `first`..`first + size - 1` of an endless order.

    Each epoch is its own permutation of all `count` examples, and epochs follow without a gap, so
    that no batch is short. Returns the examples and the epoch (from 0) of each; rank r of w takes
    `[r::w]` of them.
    """
    at = first
    end = first + size
    rows = []
    while at < end:
        epoch, place = divmod(at, count)
        block = _draw_block(count, place // BLOCK, seed, phase, epoch)
        rows.append(block[place % BLOCK :][: end - at])
        at += len(rows[-1])
    return np.concatenate(rows), np.arange(first, end) // count


@lru_cache(maxsize=2)
def _draw_block(count: int, number: int, seed: int, phase: int, epoch: int) -> Int64Array:
    places = np.arange(number * BLOCK, min(count, (number + 1) * BLOCK))
    return Permutation(count, "training", seed, phase, epoch).at(places)


def choose_rows(count: int, limit: int) -> Int64Array:
    """At most `limit` of `count` rows, a fixed random sample, ascending.

    The first rows would be those of the first source alone.
    """
    if count <= limit:
        return np.arange(count)
    random = np.random.default_rng(SAMPLE_SEED)
    return np.sort(random.choice(count, limit, replace=False, shuffle=False))
