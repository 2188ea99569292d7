"""The split into training and validation documents, and drawing "another document".

A random permutation of the documents, which needs no memory, decides: the first ones in its order
are validation documents, all others are training documents. So every worker on every machine knows
the split of each document, and can draw from either split, from the seed and the number of
documents alone. Of a document that is divided into a head and a tail (see `held_out.py`), the head
is for training and the tail for validation.
"""

from typing import Literal

import numpy as np

from bert_pipeline.examples.counter_rng import Permutation
from bert_pipeline.ragged import Int64Array

Split = Literal["train", "validation"]

NO_HEADS: Int64Array = np.empty(0, dtype=np.int64)

PIECES_TO_DRAW_FROM = 64
"""In a corpus of more pieces, each task draws other documents from this many, to open few files."""


class Splits:
    """The documents of both splits, by their numbers in the corpus.

    Of `count` documents, the numbers in `heads` (ascending) are the first parts of divided
    documents, each followed by its tail. `held_out` of the others are held out.
    """

    def __init__(self, count: int, held_out: int, seed: int, heads: Int64Array = NO_HEADS) -> None:
        whole = count - 2 * len(heads)
        self._heads = heads
        self._whole_before = heads - 2 * np.arange(len(heads))
        self._permutation = Permutation(whole, seed)
        self._range: dict[Split, tuple[int, int]] = {
            "validation": (0, held_out),
            "train": (held_out, whole),
        }

    def size(self, split: Split) -> int:
        """Number of documents in a split."""
        first, end = self._range[split]
        return end - first + len(self._heads)

    def members(self, split: Split, first: int, end: int) -> Int64Array:
        """The documents of a split among those numbered `first`..`end - 1`, ascending."""
        numbers = np.arange(first, end)
        heads = self._heads[slice(*np.searchsorted(self._heads, (first, end)))]
        chosen = np.zeros(len(numbers), dtype=np.bool_)
        chosen[self._part(split, heads) - first] = True
        is_whole = np.ones(len(numbers), dtype=np.bool_)
        is_whole[heads - first] = False
        is_whole[heads + 1 - first] = False
        whole = numbers[is_whole]
        places = self._permutation.place(whole - 2 * np.searchsorted(self._heads, whole))
        low, high = self._range[split]
        chosen[is_whole] = (places >= low) & (places < high)
        return numbers[chosen]

    def draw(self, split: Split, count: int, random: np.random.Generator) -> Int64Array:
        """Draw `count` documents of a split uniformly, with replacement."""
        low, high = self._range[split]
        drawn = random.integers(low, high + len(self._heads), count)
        parts = drawn >= high
        found = np.empty(count, dtype=np.int64)
        found[parts] = self._part(split, self._heads[drawn[parts] - high])
        whole = self._permutation.at(drawn[~parts])
        found[~parts] = whole + 2 * np.searchsorted(self._whole_before, whole, side="right")
        return found

    def _part(self, split: Split, heads: Int64Array) -> Int64Array:
        """The parts of divided documents that belong to a split."""
        return heads if split == "train" else heads + 1

    def draw_others(
        self, split: Split, own: Int64Array, pieces: Int64Array, random: np.random.Generator
    ) -> Int64Array:
        """For each document in `own`, draw a different one of its split.

        `pieces` holds the first document of each piece, and the number of documents. In a corpus of
        up to `PIECES_TO_DRAW_FROM` pieces, documents are drawn uniformly from the split. In a
        larger one, each call first draws that many pieces, with probabilities proportional to the
        number of documents of the split in them, and then documents uniformly from these pieces:
        over all calls, each document still has the same probability.
        """
        found = self._draw_near(split, len(own), pieces, random)
        while len(same := np.flatnonzero(found == own)):
            found[same] = self._draw_near(split, len(same), pieces, random)
        return found

    def _draw_near(
        self, split: Split, count: int, pieces: Int64Array, random: np.random.Generator
    ) -> Int64Array:
        if len(pieces) - 1 <= PIECES_TO_DRAW_FROM:
            return self.draw(split, count, random)
        documents = self.draw(split, PIECES_TO_DRAW_FROM, random)
        drawn = np.searchsorted(pieces, documents, side="right") - 1
        members = [
            self.members(split, pieces[piece], pieces[piece + 1]) for piece in drawn.tolist()
        ]
        slots = random.integers(0, len(members), count)
        shares = random.random(count)
        found = np.empty(count, dtype=np.int64)
        for slot, candidates in enumerate(members):
            here = slots == slot
            found[here] = candidates[(shares[here] * len(candidates)).astype(np.int64)]
        return found
