"""Which tokens make an example: the BERT release's sentence pairs, and full sentences of one document.

Devlin et al. 2019, section 3.1 and appendix A.2, as written out in the release's `create_pretraining_data.py`.
Examples are only named here, as ranges of a shard's ids; `masking.py` writes them out.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Segment:
    """Ids `start:stop` of a shard of the token store."""

    shard: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Example:
    """`[CLS] first [SEP]`, or `[CLS] first [SEP] second [SEP]` where there is a second."""

    first: Segment
    second: Segment | None = None
    is_random_next: bool | None = None
    truncated: bool = False


class Documents(Protocol):
    """Where documents' sentences lie."""

    def sentence_bounds(self, document: int) -> tuple[int, list[int]]:
        """The shard, and the n + 1 bounds of n sentences in the shard's ids."""


def make_pairs(
    documents: Documents,
    chosen: Sequence[int],
    position: int,
    max_seq_length: int,
    short_seq_prob: float,
    random: Random,
) -> Iterator[Example]:
    """Sentence pairs for next-sentence prediction out of document `chosen[position]`.

    The other document of a random pair is drawn evenly from the rest of `chosen`, which must hold two or more.
    """
    room = max_seq_length - 3
    target = _target_length(room, short_seq_prob, random)
    shard, bounds = documents.sentence_bounds(chosen[position])
    sentences = len(bounds) - 1
    first = 0
    while first < sentences:
        # The chunk: sentences first..end-1, the fewest that reach the target, or all that are left.
        end = min(sentences, bisect.bisect_left(bounds, bounds[first] + target, lo=first + 1))
        split = first + (random.randint(1, end - first - 1) if end - first >= 2 else 1)
        a = Segment(shard, bounds[first], bounds[split])
        is_random = split == end or random.random() < 0.5
        if is_random:
            other = random.randrange(len(chosen) - 1)
            b = _random_start(documents, chosen[other + (other >= position)], target - len(a), random)
            first = split  # the sentences that were to follow are used again
        else:
            b = Segment(shard, bounds[split], bounds[end])
            first = end
        yield _truncate(a, b, is_random, room, random)


def make_full_sentences(
    documents: Documents, document: int, max_seq_length: int, short_seq_prob: float, random: Random
) -> Iterator[Example]:
    """Consecutive whole sentences of one document up to the length (RoBERTa's DOC-SENTENCES, Liu et al. 2019, 4.2).

    A sentence longer than an example is parted into several, so that no token is lost.
    """
    target = _target_length(max_seq_length - 2, short_seq_prob, random)
    shard, bounds = documents.sentence_bounds(document)
    start, last = bounds[0], bounds[-1]
    while start < last:
        fits = bisect.bisect_right(bounds, start + target) - 1
        stop = bounds[fits] if bounds[fits] > start else start + target
        yield Example(Segment(shard, start, stop))
        start = stop


def _target_length(room: int, short_seq_prob: float, random: Random) -> int:
    return random.randint(2, room) if random.random() < short_seq_prob else room


def _random_start(documents: Documents, document: int, wanted: int, random: Random) -> Segment:
    """Sentences from a random one on until `wanted` tokens are reached or the document ends; at least one sentence."""
    shard, bounds = documents.sentence_bounds(document)
    begin = random.randrange(len(bounds) - 1)
    end = bisect.bisect_left(bounds, bounds[begin] + wanted, lo=begin + 1)
    return Segment(shard, bounds[begin], bounds[min(end, len(bounds) - 1)])


def _truncate(a: Segment, b: Segment, is_random: bool, room: int, random: Random) -> Example:
    """Drop tokens from the longer segment (from b where they are equal), each from the front or the back at even odds.

    The release drops them one by one; how many each segment loses is fixed, and how many of those come from the front
    is a binomial draw.
    """
    excess = len(a) + len(b) - room
    if excess <= 0:
        return Example(a, b, is_random)
    levelled = min(excess, abs(len(a) - len(b)))
    from_a = levelled if len(a) > len(b) else 0
    from_a += (excess - levelled) // 2
    return Example(_cut(a, from_a, random), _cut(b, excess - from_a, random), is_random, truncated=True)


def _cut(segment: Segment, count: int, random: Random) -> Segment:
    front = random.getrandbits(count).bit_count() if count else 0
    return Segment(segment.shard, segment.start + front, segment.stop - (count - front))
