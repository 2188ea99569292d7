"""Sentence-order prediction (SOP): are two consecutive segments swapped?

Lan et al. 2020 (ALBERT), section 3.1: https://arxiv.org/abs/1909.11942
"""

from bisect import bisect_left
from functools import partial
from random import Random

from bert_pipeline.examples.objective import Objective, Pair, SentenceBounds, plan_pairs

SWAP_PROBABILITY = 0.5
"""Probability that the two segments of a pair are swapped."""


def plan_sentence_order(
    pairs: list[Pair],
    bounds: SentenceBounds,
    first: int,
    last: int,
    document: int,
    target: int,
    random: Random,
) -> None:
    """Append the pairs of the document that is sentences `first`..`last - 1`.

    A chunk of a single sentence is split within the sentence, because both segments must come from
    one document; a chunk of a single token gives no pair.
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
        if draw() < SWAP_PROBABILITY:
            pairs.append((middle, stop, start, middle, True, 0, document))
        else:
            pairs.append((start, middle, middle, stop, False, 0, document))
        first = end


SENTENCE_ORDER = Objective(
    name="mlm+sop",
    has_pairs=True,
    plan=partial(plan_pairs, plan_sentence_order),
    positive_label="A and B are swapped",
    negative_label="B follows A",
)
