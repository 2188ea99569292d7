"""Which tokens make an example: the BERT release's sentence pairs, ALBERT's ordered ones, RoBERTa's full sentences.

Examples are only planned here, as ranges of a piece's ids; `rows.py` writes them out. Nothing is drawn from other
documents yet: a pair with a random next says how many tokens it wants.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

from bert_pipeline.ragged import Int64Array

Bounds = Sequence[int]
"""Where sentences begin in the ids, and where the last one ends."""


Pair = tuple[int, int, int, int, bool, int, int]
"""(a_start, a_stop, b_start, b_stop, label, wanted, document): sentence A is ids `a_start:a_stop`, B `b_start:b_stop`.

Where `wanted` is above 0, B is still to be taken from another document than `document`, up to so many tokens.
"""


def plan_next_sentences(
    pairs: list[Pair],
    bounds: Bounds,
    first: int,
    last: int,
    document: int,
    target: int,
    random: Random,
) -> None:
    """Pairs for next-sentence prediction out of the document that is sentences `first`..`last - 1`.

    Devlin et al. 2019, section 3.1 and appendix A.2, as written out in the release's `create_pretraining_data.py`.
    """
    draw = random.random
    while first < last:
        # The chunk: sentences first..end-1, the fewest that reach the target, or all that are left.
        start = bounds[first]
        end = min(last, bisect_left(bounds, start + target, first + 1, last))
        split = first + 1 + (int(draw() * (end - first - 1)) if end - first >= 2 else 0)
        middle = bounds[split]
        if split == end or draw() < 0.5:
            # The sentences that were to follow are used again; one token at least is taken from elsewhere.
            pairs.append((start, middle, 0, 0, True, max(1, target - (middle - start)), document))
            first = split
        else:
            pairs.append((start, middle, middle, bounds[end], False, 0, document))
            first = end


def plan_sentence_order(
    pairs: list[Pair],
    bounds: Bounds,
    first: int,
    last: int,
    document: int,
    target: int,
    random: Random,
) -> None:
    """Pairs for sentence-order prediction: two runs that follow one another, swapped at even odds (label True).

    Lan et al. 2020 (ALBERT), section 3.1. A chunk of a single sentence is parted within the sentence, as both halves
    must come from one document; one of a single token gives no pair.
    """
    draw = random.random
    while first < last:
        start = bounds[first]
        end = min(last, bisect_left(bounds, start + target, first + 1, last))
        stop = bounds[end]
        if end - first >= 2:
            middle = bounds[first + 1 + int(draw() * (end - first - 1))]
        elif stop - start >= 2:
            middle = start + 1 + int(draw() * (stop - start - 1))
        else:
            return
        if draw() < 0.5:
            pairs.append((middle, stop, start, middle, True, 0, document))
        else:
            pairs.append((start, middle, middle, stop, False, 0, document))
        first = end


@dataclass(slots=True)
class Runs:
    """Examples of full sentences planned so far: ids `start:stop` of each run, and the first run of each example."""

    start: list[int] = field(default_factory=list)
    stop: list[int] = field(default_factory=list)
    first_run: list[int] = field(default_factory=list)


def plan_full_sentences(
    runs: Runs, bounds: Bounds, documents: Sequence[tuple[int, int]], room: int, short_seq_prob: float, random: Random,
    across: bool,
) -> None:  # fmt: skip
    """Consecutive whole sentences up to `room` tokens (RoBERTa, Liu et al. 2019, section 4.2).

    `across` documents (FULL-SENTENCES) an example goes on with the next document after a separator; else
    (DOC-SENTENCES) it ends with it. A sentence longer than an example is parted, so that no token is lost. With
    `short_seq_prob` an example gets a random shorter length.
    """
    target = left = 0  # tokens that an example takes, and that the one begun still has room for
    for first, last in documents:
        if not across:
            left = 0
        start, stop = bounds[first], bounds[last]
        while start < stop:
            if left <= 0:
                target = left = draw_target(room, short_seq_prob, random)
                runs.first_run.append(len(runs.start))
            fits = bounds[bisect_right(bounds, start + left, first, last + 1) - 1]
            if fits <= start and left < target:
                left = 0  # no whole sentence fits beside what the example holds
                continue
            fits = fits if fits > start else start + left
            runs.start.append(start)
            runs.stop.append(fits)
            left -= fits - start
            start = fits
            if start < stop:
                left = 0
        left -= 1  # for the separator before the next document


def draw_target(room: int, short_seq_prob: float, random: Random) -> int:
    """Most ordinary tokens: all that there is room for, or with `short_seq_prob` a random number from 2 on."""
    return random.randint(2, room) if random.random() < short_seq_prob else room


def truncate(
    a: Int64Array, b: Int64Array, room: int, random: np.random.Generator
) -> tuple[Int64Array, Int64Array, Int64Array, Int64Array]:
    """What segments of `a` and `b` tokens lose: from the front and back of A, from the front and back of B.

    The release drops tokens one by one from the longer segment (from B where they are equal), each from the front or
    the back at even odds: how many each segment loses is fixed, and how many of those come from the front is binomial.
    """
    excess = np.maximum(0, a + b - room)
    levelled = np.minimum(excess, np.abs(a - b))
    from_a = np.where(a > b, levelled, 0) + (excess - levelled) // 2
    from_b = excess - from_a
    front_a, front_b = random.binomial(from_a, 0.5), random.binomial(from_b, 0.5)
    return front_a, from_a - front_a, front_b, from_b - front_b
