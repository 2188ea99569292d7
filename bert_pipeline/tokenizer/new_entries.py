"""Choosing new entries for a vocabulary: the runs of tokens that occur most often within words."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from bert_pipeline.progress import Bar

Run = tuple[int, ...]
"""Adjacent tokens of a word."""


@dataclass(frozen=True, slots=True)
class NewEntry:
    """An entry to be added to a vocabulary."""

    name: str
    """The string of its token."""
    parts: tuple[str, ...]
    """The tokens that it replaces; some may be new entries themselves. Empty for a character that
    the vocabulary lacks."""


class _Runs:
    """The runs in the words of a text, with the tokens that an entry for each of them saves."""

    def __init__(self, words: Iterable[Run], counts: Iterable[int], longest: int) -> None:
        self._words = list(words)
        self._counts = list(counts)
        self._longest = longest
        self.saved: defaultdict[Run, int] = defaultdict(int)
        self._places: defaultdict[Run, list[int]] = defaultdict(list)
        """The words that each pair of tokens occurs in, or did."""
        for number in range(len(self._words)):
            self._add(number, 1)
        self._complete = Counter[Run]()
        """Occurrences of words as a whole."""
        for word, count in zip(self._words, self._counts, strict=True):
            self._complete[word] += count

    def rank(self, run: Run) -> int:
        """The tokens that an entry saves; those of complete words count twice."""
        return self.saved[run] + self._complete[run] * (len(run) - 1)

    def _add(self, number: int, sign: int) -> None:
        count = sign * self._counts[number]
        for run in self.of(self._words[number]):
            self.saved[run] += count * (len(run) - 1)
            if sign > 0 and len(run) == 2:
                self._places[run].append(number)

    def of(self, word: Run) -> Iterator[Run]:
        """All runs of at least two tokens in a word."""
        for size in range(2, min(len(word), self._longest) + 1):
            for start in range(len(word) - size + 1):
                yield word[start : start + size]

    def replace(self, run: Run, token: int) -> set[Run]:
        """Replace a run by one token in all words; returns the runs that did not exist before."""
        changed: set[Run] = set()
        for number in dict.fromkeys(self._places[run[:2]]):
            word = self._words[number]
            replaced = _replace(word, run, token)
            if replaced != word:
                self._add(number, -1)
                self._words[number] = replaced
                self._add(number, 1)
                self._complete[word] -= self._counts[number]
                self._complete[replaced] += self._counts[number]
                changed.update(found for found in self.of(replaced) if token in found)
        return changed


def _replace(word: Run, run: Run, token: int) -> Run:
    """The word with a token in place of each run, from the left."""
    replaced: list[int] = []
    start = 0
    while start < len(word):
        if word[start : start + len(run)] == run:
            replaced.append(token)
            start += len(run)
        else:
            replaced.append(word[start])
            start += 1
    return tuple(replaced)


def learn_entries(
    words: Iterable[Run],
    counts: Iterable[int],
    names: Sequence[str],
    *,
    join: Callable[[Sequence[str]], str],
    is_allowed: Callable[[str], bool],
    taken: AbstractSet[str],
    limit: int,
    longest: int,
    min_frequency: int,
    progress: Bar,
) -> list[NewEntry]:
    """At most `limit` entries, each the one that saves the most tokens given those before it.

    `words` are the tokens of different words, `counts` how often each occurs, `names` the strings
    of the tokens. An entry replaces a run of at most `longest` tokens; entries chosen before are
    tokens too. What it saves of complete words counts twice: it changes no other word, and it saves
    as many tokens of new text. With a `longest` of 2 these are merges of BPE: Sennrich et al. 2016
    (https://aclanthology.org/P16-1162).
    """
    runs = _Runs(words, counts, longest)
    names = list(names)
    taken = set(taken)
    chosen: list[NewEntry] = []

    def ranked(run: Run) -> tuple[int, str, Run]:
        return -runs.rank(run), join([names[token] for token in run]), run

    def is_frequent(run: Run) -> bool:
        return runs.saved[run] >= min_frequency * (len(run) - 1)

    candidates = [ranked(run) for run in runs.saved if is_frequent(run)]
    heapify(candidates)
    while candidates and len(chosen) < limit:
        negative, name, run = heappop(candidates)
        if name in taken or not is_frequent(run) or not is_allowed(name):
            continue
        if -negative != runs.rank(run):  # entries chosen since then have taken some of its places
            heappush(candidates, ranked(run))
            continue
        chosen.append(NewEntry(name, tuple(names[token] for token in run)))
        taken.add(name)
        names.append(name)
        for changed in runs.replace(run, len(names) - 1):
            if is_frequent(changed):
                heappush(candidates, ranked(changed))
        progress.advance()
    return chosen
