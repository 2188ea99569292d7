"""Choosing the new entries of a tokenizer: learn them, encode again, drop what does not save."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer

from bert_pipeline.progress import Bar
from bert_pipeline.ragged import FloatArray, Int64Array, offsets_of
from bert_pipeline.tokenizer.extensible import ExtensibleModel, bare_tokenizer
from bert_pipeline.tokenizer.new_entries import NewEntry, Run, learn_entries

MAX_RUNS = 5_000_000
"""Runs of tokens in the words to learn from, the most frequent words first: at most about 2 GB."""


@dataclass(frozen=True, slots=True)
class SplitWords:
    """Different words that the old vocabulary splits, most frequent first."""

    words: list[str]
    counts: Int64Array
    lengths: Int64Array
    """Tokens of each word by the old vocabulary."""


@dataclass(frozen=True, slots=True)
class _Encoded:
    """The tokens of words, end to end."""

    ids: Int64Array
    lengths: Int64Array

    @property
    def word_of(self) -> Int64Array:
        """The word of each token."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def runs(self) -> list[Run]:
        """The tokens of each word."""
        ids = self.ids.tolist()
        offsets = offsets_of(self.lengths).tolist()
        return [tuple(ids[start:stop]) for start, stop in pairwise(offsets)]


def find_split_words(model: ExtensibleModel, counts: Counter[str]) -> SplitWords:
    """The words of several tokens, without those that have an unknown one."""
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    encoded = _encode(model.tokenizer, ranked)
    no_text = np.isin(encoded.ids, sorted(model.ids_without_text()))
    is_known = np.bincount(encoded.word_of, weights=no_text, minlength=len(ranked)) == 0
    is_split = is_known & (encoded.lengths > 1)
    is_split &= np.cumsum(_count_runs(encoded.lengths, model.longest_run) * is_split) <= MAX_RUNS
    chosen = np.flatnonzero(is_split)
    words = [ranked[number] for number in chosen.tolist()]
    occurrences = np.array([counts[word] for word in words], dtype=np.int64)
    return SplitWords(words, occurrences, encoded.lengths[chosen])


def _count_runs(lengths: Int64Array, longest: int) -> Int64Array:
    """Runs of 2 to `longest` tokens in words of these lengths."""
    sizes = np.arange(2, longest + 1)
    runs: Int64Array = np.maximum(lengths[:, None] - sizes + 1, 0).sum(axis=1)
    return runs


def choose_entries(
    model: ExtensibleModel,
    words: SplitWords,
    needed: Sequence[NewEntry],
    limit: int,
    min_frequency: int,
    progress: Bar,
) -> list[NewEntry]:
    """The entries that save the most tokens, at most `limit`; those `needed` come first.

    An entry that was learnt from some words may also match in others and make those longer, and
    longer entries may leave it without a use. So all words are encoded again, and entries that
    save too little are replaced.
    """
    entries = list(needed)
    dropped: set[str] = set()
    while True:
        encoded = _encode(bare_tokenizer(model.extend(entries)), words.words)
        if useless := _find_useless(model, words, encoded, entries, min_frequency):
            dropped |= useless
            entries = [entry for entry in entries if entry.name not in useless]
            continue
        progress.move_to(len(entries))
        if len(entries) >= limit:
            return entries
        learnt = learn_entries(
            encoded.runs(),
            words.counts.tolist(),
            [*model.names, *(entry.name for entry in entries)],
            join=model.join,
            is_allowed=model.is_allowed,
            taken=dropped | {entry.name for entry in entries},
            limit=limit - len(entries),
            longest=model.longest_run,
            min_frequency=min_frequency,
            progress=progress,
        )
        if not learnt:
            return entries
        entries += learnt


def _find_useless(
    model: ExtensibleModel,
    words: SplitWords,
    encoded: _Encoded,
    entries: Sequence[NewEntry],
    min_frequency: int,
) -> set[str]:
    """The names of entries that can be dropped, as they save too few tokens."""
    if not model.can_drop:
        return set()
    saved = _count_saved(words, encoded, model.first_id, len(entries)).tolist()
    pairs = zip(entries, saved, strict=True)
    return {each.name for each, tokens in pairs if tokens < min_frequency and each.parts}


def _count_saved(words: SplitWords, encoded: _Encoded, first_id: int, entries: int) -> FloatArray:
    """The tokens that each new entry saves, float64 of shape (entries,).

    The entries of a word share what it saves, or loses where they make it longer.
    """
    is_new = encoded.ids >= first_id
    word_of = encoded.word_of[is_new]
    saved = words.counts * (words.lengths - encoded.lengths)
    shares = saved / np.maximum(1, np.bincount(word_of, minlength=len(words.words)))
    total = np.bincount(encoded.ids[is_new] - first_id, weights=shares[word_of], minlength=entries)
    return total.astype(np.float64)


def _encode(tokenizer: Tokenizer, words: Sequence[str]) -> _Encoded:
    ids = [
        encoding.ids for encoding in tokenizer.encode_batch_fast(words, add_special_tokens=False)
    ]
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    return _Encoded(np.fromiter((i for each in ids for i in each), dtype=np.int64), lengths)
