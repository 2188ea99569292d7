"""Reference implementation of the BERT release's examples in plain Python.

After the description of `create_pretraining_data.py` (Devlin et al. 2019, section 3.1 and appendix
A.2, https://aclanthology.org/N19-1423). It shares no code with the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

Sentence = list[int]
EncodedDocument = list[Sentence]


@dataclass
class Instance:
    """One training instance, and how many tokens its segments lost at both ends."""

    tokens: list[int]
    segment_ids: list[int]
    is_random_next: bool
    masked_positions: list[int]
    masked_labels: list[int]
    front_cut: tuple[int, int]
    back_cut: tuple[int, int]

    @property
    def lengths(self) -> tuple[int, int]:
        second = sum(self.segment_ids) - 1
        return len(self.tokens) - second - 3, second


@dataclass
class Settings:
    max_seq_length: int
    cls: int
    sep: int
    mask: int
    vocab_size: int
    short_seq_prob: float = 0.1
    mask_rate: float = 0.15
    max_predictions: int = 20


def make_instances(
    documents: list[EncodedDocument], passes: int, settings: Settings, random: Random
) -> list[Instance]:
    instances = []
    for _ in range(passes):
        for number in range(len(documents)):
            instances += from_document(documents, number, settings, random)
    return instances


def from_document(
    documents: list[EncodedDocument], number: int, settings: Settings, random: Random
) -> list[Instance]:
    document = documents[number]
    longest = settings.max_seq_length - 3
    target = longest
    if random.random() < settings.short_seq_prob:
        target = random.randint(2, longest)
    instances = []
    chunk: list[Sentence] = []
    chunk_length = 0
    i = 0
    while i < len(document):
        chunk.append(document[i])
        chunk_length += len(document[i])
        if i == len(document) - 1 or chunk_length >= target:
            split = 1
            if len(chunk) >= 2:
                split = random.randint(1, len(chunk) - 1)
            a = [token for sentence in chunk[:split] for token in sentence]
            b: list[int] = []
            is_random_next = False
            if len(chunk) == 1 or random.random() < 0.5:
                is_random_next = True
                other = number
                while other == number:
                    other = random.randint(0, len(documents) - 1)
                start = random.randint(0, len(documents[other]) - 1)
                for sentence in documents[other][start:]:
                    b += sentence
                    if len(b) >= target - len(a):
                        break
                i -= len(chunk) - split
            else:
                b = [token for sentence in chunk[split:] for token in sentence]
            front, back = truncate(a, b, longest, random)
            tokens = [settings.cls, *a, settings.sep, *b, settings.sep]
            segment_ids = [0] * (len(a) + 2) + [1] * (len(b) + 1)
            tokens, positions, labels = mask(tokens, settings, random)
            instances.append(
                Instance(tokens, segment_ids, is_random_next, positions, labels, front, back)
            )
            chunk = []
            chunk_length = 0
        i += 1
    return instances


def truncate(
    a: list[int], b: list[int], longest: int, random: Random
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Drop tokens from the longer list until both fit; returns how many at fronts and backs."""
    front = [0, 0]
    back = [0, 0]
    while len(a) + len(b) > longest:
        longer = a if len(a) > len(b) else b
        which = 0 if longer is a else 1
        if random.random() < 0.5:
            del longer[0]
            front[which] += 1
        else:
            longer.pop()
            back[which] += 1
    return (front[0], front[1]), (back[0], back[1])


def mask(
    tokens: list[int], settings: Settings, random: Random
) -> tuple[list[int], list[int], list[int]]:
    # Before masking, only special tokens have the ids of special tokens.
    candidates = [i for i, token in enumerate(tokens) if token not in (settings.cls, settings.sep)]
    random.shuffle(candidates)
    count = min(settings.max_predictions, max(1, round(len(tokens) * settings.mask_rate)))
    output = list(tokens)
    positions = sorted(candidates[:count])
    for position in positions:
        if random.random() < 0.8:
            output[position] = settings.mask
        elif random.random() < 0.5:
            output[position] = tokens[position]
        else:
            output[position] = random.randint(0, settings.vocab_size - 1)
    return output, positions, [tokens[position] for position in positions]
