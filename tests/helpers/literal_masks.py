"""Reference implementation of masking in plain Python, for `test_masking.py`.

After `create_masked_lm_predictions` of the BERT release (with `do_whole_word_mask`,
https://github.com/google-research/bert/blob/master/create_pretraining_data.py) and SpanBERT (Joshi
et al. 2020, section 3.1, https://arxiv.org/abs/1907.10529). It shares no code with the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

SPAN_LENGTH_WEIGHTS = [0.2 * 0.8**length for length in range(10)]
"""Weights of spans of 1 to 10 words: geometric with p = 0.2."""


@dataclass
class Row:
    """Tokens, which of them are special, and which begin a word."""

    tokens: list[int]
    special: list[bool]
    word_starts: list[bool]

    def words(self) -> list[list[int]]:
        """Positions of each word's tokens."""
        words: list[list[int]] = []
        for position, special in enumerate(self.special):
            if special:
                continue
            if self.word_starts[position] or self.special[position - 1]:
                words.append([])
            words[-1].append(position)
        return words


@dataclass
class Rule:
    unit: str
    rate: float = 0.15
    max_predictions: int = 1000
    mask_share: float = 0.8
    random_share: float = 0.1

    def wanted(self, row: Row) -> int:
        ordinary = row.special.count(False)
        return min(self.max_predictions, max(1, round(len(row.tokens) * self.rate)), ordinary)


def choose(row: Row, rule: Rule, random: Random) -> list[list[int]]:
    """Positions to predict, in lists that are replaced together."""
    if rule.unit == "token":
        candidates = [position for position, special in enumerate(row.special) if not special]
        random.shuffle(candidates)
        return [[position] for position in candidates[: rule.wanted(row)]]
    if rule.unit == "whole-word":
        return choose_words(row, rule, random)
    return choose_spans(row, rule, random)


def choose_words(row: Row, rule: Rule, random: Random) -> list[list[int]]:
    words = row.words()
    random.shuffle(words)
    to_predict = rule.wanted(row)
    chosen: list[int] = []
    for word in words:
        if len(chosen) >= to_predict:
            break
        if len(chosen) + len(word) > to_predict:
            continue
        chosen += word
    if not chosen and words:
        # The release does not mask such a row.
        shortest = [word for word in words if len(word) == min(map(len, words))]
        word = random.choice(shortest)
        chosen = word if len(word) <= rule.max_predictions else []
    return [[position] for position in chosen]


def choose_spans(row: Row, rule: Rule, random: Random) -> list[list[int]]:
    words = row.words()
    budget = rule.wanted(row)
    masked: set[int] = set()
    spans: list[list[int]] = []
    while len(masked) < budget:
        begin = random.randrange(len(words))
        if words[begin][0] in masked:
            continue
        length = random.choices(range(1, 11), SPAN_LENGTH_WEIGHTS)[0]
        span: list[int] = []
        for number in range(begin, min(begin + length, len(words))):
            if number > begin and words[number][0] != words[number - 1][-1] + 1:
                break  # there is a separator between
            for position in words[number]:
                if position not in masked and len(masked) < budget:
                    masked.add(position)
                    span.append(position)
        spans.append(span)
    return spans


def draw_outcome(row: Row, rule: Rule, random: Random) -> str:
    """One letter per token: `.` not chosen, `m` mask, `r` random token, `k` kept."""
    outcome = ["."] * len(row.tokens)
    for together in choose(row, rule, random):
        drawn = random.random()
        kind = "k"
        if drawn < rule.mask_share:
            kind = "m"
        elif drawn < rule.mask_share + rule.random_share:
            kind = "r"
        for position in together:
            outcome[position] = kind
    return "".join(outcome)
