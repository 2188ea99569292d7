"""Encoding sentences: the tokenizer sees each word once, and a table gives its ids from then on.

Most words of a corpus come again and again, and most tokenizers part a text at its spaces before they do anything
else. For those, `SentenceEncoder` splits at the spaces itself, numbers the words through a dictionary, hands only new
words to the tokenizer, and lays the ids of known ones end to end with numpy. The ids are exactly those of
`encode_batch_fast`. Other tokenizers, and sentences with other white space or with a word that is longer than
`LONGEST`, go through the tokenizer as they are.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_pipeline.errors import BertpipeError
from bert_pipeline.ragged import Array, BoolArray, Int32Array, Int64Array, expand, offsets_of
from bert_pipeline.tokenizer.load import LoadedTokenizer

TOGETHER, OVERHEAD = 500_000, 50
"""Characters to hand to the tokenizer at a time, each sentence counting for `OVERHEAD` more: what it returns takes a
hundred times the room of the ids."""
LONGEST = 48
"""Characters of the longest word that is remembered; text without spaces would fill the memory and never come again."""
REMEMBERED = 400_000
"""Words after which the table begins anew, so that a worker's memory stays bounded (about 150 MB)."""
BREAK = "\0"
ODD = -1

NORMALIZERS = frozenset({"BertNormalizer", "Lowercase", "NFC", "NFD", "StripAccents"})
"""Normalizers that do to a word what they do to it in a sentence, and make no white space."""
PRE_TOKENIZERS = frozenset({"BertPreTokenizer", "ByteLevel", "Whitespace", "WhitespaceSplit"})
"""Pre-tokenizers that part a text before every space (`ByteLevel` by its regular expression)."""
KEEP_SPACES = frozenset({"Lowercase", "NFC", "NFD"})
"""Normalizers that leave spaces as they are: one that empties a word or puts spaces around it makes runs of spaces out
of single ones, and `ByteLevel`, which keeps spaces, takes a run as one word."""


@dataclass(frozen=True, slots=True)
class EncodedSentences:
    """Sentences end to end: sentence s is the next `lengths[s]` of `ids`; `starts` marks ids that begin a word.

    Words are the tokenizer's own (what its pre-tokenizer parts), whatever its pieces look like. None when not asked.
    """

    ids: Int32Array
    lengths: Int64Array
    word_starts: BoolArray | None


def parts_at_spaces(tokenizer: Any) -> bool:
    """Whether encoding a sentence is encoding its words, each with the space before it, one by one."""
    settings = json.loads(tokenizer.to_str())
    model = settings["model"]
    if model.get("dropout") or not all(token["special"] for token in settings["added_tokens"]):
        return False
    normalizers = _flatten(settings["normalizer"], "normalizers")
    pre_tokenizers = _flatten(settings["pre_tokenizer"], "pretokenizers")
    harmless = (
        KEEP_SPACES if any(each["type"] == "ByteLevel" for each in pre_tokenizers) else NORMALIZERS
    )
    return (
        bool(pre_tokenizers)
        and all(each["type"] in harmless for each in normalizers)
        and all(
            each["type"] in PRE_TOKENIZERS and each.get("use_regex", True)
            for each in pre_tokenizers
        )
    )


def _flatten(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return (
        [each for item in part[inner] for each in _flatten(item, inner)]
        if part["type"] == "Sequence"
        else [part]
    )


class _WordNumbers(dict[str, int]):
    """Numbers words as they are met; those of `new` still have to be encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        bare = word[1:] if word[:1] == " " else word
        if len(bare) > LONGEST or bare.split() != [bare]:
            return ODD
        self[word] = number = len(self)
        self.new.append(word)
        return number


class SentenceEncoder:
    """Encodes sentences without special tokens; names of special tokens in a text are plain text."""

    def __init__(self, loaded: LoadedTokenizer, with_word_starts: bool) -> None:
        self._tokenizer, self._with_word_starts = loaded.tokenizer, with_word_starts
        special = loaded.special
        self._unknown, self._special = (
            special.unk,
            (special.pad, special.cls, special.sep, special.mask),
        )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._by_words = parts_at_spaces(self._tokenizer)
        parts = self._tokenizer.pre_tokenizer
        self._knows_words = parts is not None and len(parts.pre_tokenize_str("a b")) > 1
        self._forget()

    def encode(self, sentences: Sequence[str]) -> EncodedSentences:
        """Ids of all sentences; int32 `ids` (and bool `starts`) of shape (tokens,), int64 `lengths` (sentences,)."""
        joined = BREAK.join(sentences)
        if not self._by_words or not sentences or joined.count(BREAK) >= len(sentences):
            return self._encode_whole(sentences)
        words = joined.replace(" ", BREAK + " ").split(BREAK)
        numbers = np.fromiter(map(self._words.__getitem__, words), dtype=np.int64, count=len(words))
        self._learn()
        counts = np.fromiter(
            (sentence.count(" ") + 1 for sentence in sentences),
            dtype=np.int64,
            count=len(sentences),
        )
        first_word = offsets_of(counts)[:-1]
        odd = np.flatnonzero(np.logical_or.reduceat(numbers == ODD, first_word))
        if len(odd):
            encoded = self._mix(sentences, odd, numbers, counts)
        else:
            lengths = np.add.reduceat(self._lengths[numbers], first_word)
            encoded = EncodedSentences(
                self._look_up(self._ids, numbers), lengths, self._look_up_starts(numbers)
            )
        if len(self._words) > REMEMBERED:
            self._forget()
        return encoded

    def _forget(self) -> None:
        self._words = _WordNumbers()
        self._ids = np.empty(0, dtype=np.int32)
        self._starts = np.empty(0, dtype=np.bool_)
        self._lengths = np.empty(0, dtype=np.int64)
        self._offsets = np.zeros(1, dtype=np.int64)

    def _learn(self) -> None:
        """Encode the words met for the first time, and add them to the table."""
        if not self._words.new:
            return
        new = self._encode_whole(self._words.new)
        self._words.new = []
        self._ids = np.concatenate([self._ids, new.ids])
        if new.word_starts is not None:
            self._starts = np.concatenate([self._starts, new.word_starts])
        self._lengths = np.concatenate([self._lengths, new.lengths])
        self._offsets = offsets_of(self._lengths)

    def _look_up(self, table: Array, numbers: Int64Array) -> Array:
        found: Array = table[expand(self._offsets[numbers], self._lengths[numbers])]
        return found

    def _look_up_starts(self, numbers: Int64Array) -> BoolArray | None:
        return self._look_up(self._starts, numbers) if self._with_word_starts else None

    def _mix(
        self, sentences: Sequence[str], odd: Int64Array, numbers: Int64Array, counts: Int64Array
    ) -> EncodedSentences:
        """Sentences with an odd word by the tokenizer, all others by the table, in the order given."""
        whole = self._encode_whole([sentences[number] for number in odd.tolist()])
        is_odd = np.zeros(len(sentences), dtype=np.bool_)
        is_odd[odd] = True
        word_is_odd = np.repeat(is_odd, counts)
        known = np.where(word_is_odd, 0, numbers)
        lengths = np.add.reduceat(
            np.where(word_is_odd, 0, self._known_lengths(known)), offsets_of(counts)[:-1]
        )
        lengths[odd] = whole.lengths
        token_is_odd = np.repeat(is_odd, lengths)
        ids = np.empty(len(token_is_odd), dtype=np.int32)
        ids[token_is_odd] = whole.ids
        plain = numbers[~word_is_odd]
        starts = np.empty(len(token_is_odd), dtype=np.bool_) if self._with_word_starts else None
        if len(plain):
            ids[~token_is_odd] = self._look_up(self._ids, plain)
        if starts is not None and whole.word_starts is not None:
            starts[token_is_odd] = whole.word_starts
            if len(plain):
                starts[~token_is_odd] = self._look_up(self._starts, plain)
        return EncodedSentences(ids, lengths, starts)

    def _known_lengths(self, numbers: Int64Array) -> Int64Array:
        return (
            self._lengths[numbers] if len(self._lengths) else np.zeros(len(numbers), dtype=np.int64)
        )

    def _hide_special(self, ids: Int32Array) -> Int32Array:
        """A vocabulary of whole words may hold the special tokens' names: in a text they are unknown words."""
        if self._unknown is not None and (found := np.isin(ids, self._special)).any():
            ids[found] = self._unknown
        return ids

    def _number_words(self, text: str, encoding: Any) -> Sequence[int | None]:
        """The word that each id belongs to."""
        if self._knows_words:
            words: list[int | None] = encoding.word_ids
            return words
        # A tokenizer that takes a text as one word: words then are what lies between white space, by its offsets.
        is_space = np.array([char.isspace() or char == "▁" for char in text], dtype=np.bool_)
        first, stop = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        # Spaces at the beginning of a piece belong to the word after them.
        solid = np.append(np.flatnonzero(~is_space), len(text))
        begins = np.clip(solid[np.searchsorted(solid, first)], first, np.maximum(first, stop - 1))
        numbered: list[int | None] = np.cumsum(is_space)[np.minimum(begins, len(text) - 1)].tolist()
        return numbered

    def _encode_whole(self, sentences: Sequence[str]) -> EncodedSentences:
        encode = (
            self._tokenizer.encode_batch
            if self._with_word_starts
            else self._tokenizer.encode_batch_fast
        )
        sizes = np.cumsum([len(sentence) + OVERHEAD for sentence in sentences])
        batches = np.split(
            np.arange(len(sentences)), np.flatnonzero(np.diff(sizes // TOGETHER)) + 1
        )
        lengths = np.zeros(len(sentences), dtype=np.int64)
        ids, starts = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.bool_)]
        for numbers in batches:
            texts = [sentences[number] for number in numbers.tolist()]
            try:
                encodings = encode(texts, add_special_tokens=False)
            except BertpipeError:  # a signal's
                raise
            except (
                Exception
            ) as error:  # the library's only kind, such as for a word that it has no token for
                raise BertpipeError(
                    f"The tokenizer cannot encode the corpus ({error}). Take another one."
                ) from None
            batch = [encoding.ids for encoding in encodings]
            lengths[numbers] = [len(each) for each in batch]
            ids.append(
                self._hide_special(np.fromiter((i for each in batch for i in each), dtype=np.int32))
            )
            if self._with_word_starts:
                starts.append(
                    _find_starts(
                        [self._number_words(*pair) for pair in zip(texts, encodings, strict=True)]
                    )
                )
        return EncodedSentences(
            np.concatenate(ids), lengths, np.concatenate(starts) if self._with_word_starts else None
        )


def _find_starts(word_ids: Sequence[Sequence[int | None]]) -> BoolArray:
    """An id begins a word when its word is not that of the id before it in the same sentence."""
    flat = np.fromiter((-1 if w is None else w for each in word_ids for w in each), dtype=np.int64)
    starts = np.ones(len(flat), dtype=np.bool_)
    starts[1:] = flat[1:] != flat[:-1]
    first = offsets_of(np.array([len(each) for each in word_ids], dtype=np.int64))[:-1]
    starts[first[first < len(flat)]] = True
    return starts
