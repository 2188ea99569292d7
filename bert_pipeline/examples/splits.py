"""Which documents are held out, and which document is "another one".

Documents stand in a random order that takes no memory; the first of it are held out, the rest is for training. So
any number of workers, on any machine, knows of every document which split it is in, and draws from either split, with
nothing but the seed and the number of documents.
"""

from typing import Literal

import numpy as np

from bert_pipeline.examples.counter_rng import Permutation
from bert_pipeline.ragged import Int64Array

Split = Literal["train", "validation"]

PIECES_TO_DRAW_FROM = 64
"""From a corpus of more pieces, each task draws its other documents out of this many, to open few files."""


class Splits:
    """The documents of both splits, numbered through the corpus."""

    def __init__(self, count: int, held_out: int, seed: int) -> None:
        self._order = Permutation(count, seed)
        self._range: dict[Split, tuple[int, int]] = {
            "validation": (0, held_out),
            "train": (held_out, count),
        }

    def size(self, split: Split) -> int:
        """Number of documents of a split."""
        first, end = self._range[split]
        return end - first

    def members(self, split: Split, first: int, end: int) -> Int64Array:
        """The documents of a split among those numbered `first`..`end - 1`, ascending."""
        numbers = np.arange(first, end)
        places = self._order.place(numbers)
        low, high = self._range[split]
        return numbers[(places >= low) & (places < high)]

    def draw(self, split: Split, count: int, random: np.random.Generator) -> Int64Array:
        """`count` documents of a split, each drawn evenly from all of it."""
        return self._order.at(random.integers(*self._range[split], count))

    def draw_others(
        self, split: Split, own: Int64Array, pieces: Int64Array, random: np.random.Generator
    ) -> Int64Array:
        """For each document of `own` another one of its split; `pieces` are the pieces' first documents and the end.

        In a corpus of up to `PIECES_TO_DRAW_FROM` pieces each is drawn evenly from the whole split. In a larger one,
        this call first draws so many pieces (each with the chance of its share of the split's documents), and then each
        other document evenly from one of them: over all calls, every document is still drawn equally often.
        """
        found = self._draw_near(split, len(own), pieces, random)
        while len(same := np.flatnonzero(found == own)):
            again = self._draw_near(split, len(same), pieces, random)
            found[same] = again
        return found

    def _draw_near(
        self, split: Split, count: int, pieces: Int64Array, random: np.random.Generator
    ) -> Int64Array:
        if len(pieces) - 1 <= PIECES_TO_DRAW_FROM:
            return self.draw(split, count, random)
        drawn = (
            np.searchsorted(pieces, self.draw(split, PIECES_TO_DRAW_FROM, random), side="right") - 1
        )
        members = [
            self.members(split, pieces[piece], pieces[piece + 1]) for piece in drawn.tolist()
        ]
        slots = random.integers(0, len(members), count)
        shares = random.random(count)
        found = np.empty(count, dtype=np.int64)
        for slot, among in enumerate(members):
            here = slots == slot
            found[here] = among[(shares[here] * len(among)).astype(np.int64)]
        return found
