"""Which examples each step takes: pure functions of the seed and of a few numbers, so that nothing is replayed."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bert_pipeline.examples.counter_rng import Permutation
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.ragged import Int64Array

BLOCK = 1 << 14
"""Places of the order to work out at a time: one by one they cost many times as much."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the order of the examples stands before a step."""

    step: int = 0
    """Steps behind."""
    phase: int = 0
    """0 with `--examples`, 1 with the longer ones."""
    rows: int = 0
    """Examples of this phase taken so far."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a step takes: `size` examples of a phase, from the place `first_row` of its order on."""

    step: int
    """Steps behind."""
    done: float
    """Share of the run behind, from 0 to 1."""
    phase: int
    first_row: int
    size: int

    @property
    def next(self) -> Cursor:
        """Where the order stands afterwards."""
        return Cursor(self.step + 1, self.phase, self.first_row + self.size)


@dataclass(frozen=True, slots=True)
class Order:
    """The size of each step and the examples that it is taken from.

    Batches grow in multiples of `start`, each size for an equal share of `warmup` (Warner et al. 2024, "ModernBERT",
    batch size schedule; Smith et al. 2018). The last `long_share` of the run takes `long_size` longer examples a step
    (Devlin et al. 2019, A.2: the last tenth).
    """

    size: int
    start: int
    warmup: float
    long_share: float
    """0 without longer examples."""
    long_size: int

    @classmethod
    def of(cls, config: PretrainConfig) -> "Order":
        """The order that the options ask for."""
        return cls(
            size=config.batch_size,
            start=config.batch_size_start or config.batch_size,
            warmup=config.batch_size_warmup,
            long_share=config.long_share if config.long_examples else 0.0,
            long_size=config.long_batch_size or config.batch_size,
        )

    def plan(self, cursor: Cursor, done: float) -> Plan:
        """The step at `cursor`, when the share `done` of the run lies behind."""
        phase = max(cursor.phase, int(self.long_share > 0 and done >= 1 - self.long_share))
        first_row = cursor.rows if phase == cursor.phase else 0
        return Plan(
            cursor.step, done, phase, first_row, self.long_size if phase else self._grown(done)
        )

    def _grown(self, done: float) -> int:
        if done >= self.warmup:
            return self.size
        return self.start * (1 + int(done / self.warmup * (self.size // self.start)))


def draw_rows(
    count: int, first: int, size: int, seed: int, phase: int = 0
) -> tuple[Int64Array, Int64Array]:
    """The examples at the places `first`..`first + size - 1` of an endless order of `count` examples.

    Each epoch is its own permutation of them all and the epochs follow one another without a gap, so that no batch is
    short. Returns the examples and the epoch (from 0) of each; rank r of w takes `[r::w]` of them.
    """
    at, end = first, first + size
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
