"""Next-sentence prediction (NSP): does sentence B follow sentence A?

Devlin et al. 2019, section 3.1 and appendix A.2 (https://aclanthology.org/N19-1423), as implemented
in the BERT release:
https://github.com/google-research/bert/blob/master/create_pretraining_data.py
"""

from bisect import bisect_left
from functools import partial
from random import Random

from bert_pipeline.examples.objective import Objective, Pair, SentenceBounds, plan_pairs

RANDOM_NEXT_PROBABILITY = 0.5
"""Probability that segment B is taken from another document instead of following A."""


def plan_next_sentences(
    pairs: list[Pair],
    bounds: SentenceBounds,
    first: int,
    last: int,
    document: int,
    target: int,
    random: Random,
) -> None:
    """Append the pairs of the document that is sentences `first`..`last - 1`."""
    draw = random.random
    while first < last:
        # The chunk: sentences first..end-1, the fewest that reach the target, or all that are left.
        start = bounds[first]
        end = min(last, bisect_left(bounds, start + target, first + 1, last))
        split = first + 1 + (int(draw() * (end - first - 1)) if end - first >= 2 else 0)
        middle = bounds[split]
        if split == end or draw() < RANDOM_NEXT_PROBABILITY:
            # The sentences that would have followed are used again, as the next chunk's beginning.
            # B has one token at least, even if A alone reaches the target.
            pairs.append((start, middle, 0, 0, True, max(1, target - (middle - start)), document))
            first = split
        else:
            pairs.append((start, middle, middle, bounds[end], False, 0, document))
            first = end


NEXT_SENTENCE = Objective(
    name="mlm+nsp",
    has_pairs=True,
    plan=partial(plan_pairs, plan_next_sentences),
    min_documents=2,  # a random next sentence comes from another document of the split
    positive_label="B is a random sentence from another document",
    negative_label="B follows A",
)
