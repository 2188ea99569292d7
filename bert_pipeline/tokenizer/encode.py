"""Fast encoding of sentences: each word is tokenized once, then looked up in a table.

The sentences of a document, each with the space that the text has before it, get the ids of the
running text: no space is added, and none is lost.

Most words of a corpus repeat often, and most tokenizers split a text at its spaces first. For
those, `SentenceEncoder` splits at the spaces itself, numbers the words with a dictionary, passes
only new words to the tokenizer, and concatenates the ids of known words with numpy. The ids are
exactly those of `encode_batch_fast`. Other tokenizers, and sentences with other white space or a
word longer than `MAX_WORD_CHARACTERS`, go through the tokenizer unchanged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_pipeline.errors import BertpipeError
from bert_pipeline.ragged import Array, BoolArray, Int32Array, Int64Array, expand, offsets_of
from bert_pipeline.tokenizer.load import LoadedTokenizer
from bert_pipeline.tokenizer.prefix_space import set_prefix_space
from bert_pipeline.tokenizer.words import is_wordwise

BATCH_CHARACTERS = 500_000
"""Characters passed to the tokenizer at a time: its result takes a hundred times the ids' memory"""
SENTENCE_OVERHEAD = 50
"""Characters that each sentence counts in addition."""
MAX_WORD_CHARACTERS = 48
"""Longer words are not stored in the table: they hardly ever repeat, as in text without spaces."""
MAX_TABLE_WORDS = 400_000
"""Words after which the table is cleared, to bound a worker's memory (about 150 MB)."""
WORD_BREAK = "\0"
UNKNOWN_WORD_NUMBER = -1
"""The number of a word that cannot be looked up."""


@dataclass(frozen=True, slots=True)
class EncodedSentences:
    """Sentences end to end: sentence s is the next `lengths[s]` of `ids`."""

    ids: Int32Array
    lengths: Int64Array
    word_starts: BoolArray | None
    """Which ids begin a word, as the tokenizer's pre-tokenizer splits words; None if not asked."""


class _WordNumbers(dict[str, int]):
    """Numbers words as they occur; the words in `new` are still to be encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        bare = word[1:] if word[:1] == " " else word
        # Only a sentence that begins with a space has an empty word, before it.
        if word and (len(bare) > MAX_WORD_CHARACTERS or bare.split() != [bare]):
            return UNKNOWN_WORD_NUMBER
        self[word] = number = len(self)
        self.new.append(word)
        return number


class _WordTable:
    """The ids of all numbered words, end to end."""

    def __init__(self) -> None:
        self.ids = np.empty(0, dtype=np.int32)
        self.word_starts = np.empty(0, dtype=np.bool_)
        self.lengths = np.empty(0, dtype=np.int64)
        self._offsets = np.zeros(1, dtype=np.int64)

    def append(self, words: EncodedSentences) -> None:
        """Add the next words."""
        self.ids = np.concatenate([self.ids, words.ids])
        if words.word_starts is not None:
            self.word_starts = np.concatenate([self.word_starts, words.word_starts])
        self.lengths = np.concatenate([self.lengths, words.lengths])
        self._offsets = offsets_of(self.lengths)

    def look_up(self, values: Array, numbers: Int64Array) -> Array:
        """The `values` (`ids` or `word_starts`) of some words, end to end."""
        found: Array = values[expand(self._offsets[numbers], self.lengths[numbers])]
        return found


class SentenceEncoder:
    """Encodes sentences without special tokens; `[MASK]` and the like in a text are plain text."""

    def __init__(self, loaded: LoadedTokenizer, with_word_starts: bool) -> None:
        self._tokenizer, adds_space = set_prefix_space(loaded.tokenizer, "never")
        self.text_prefix = " " if adds_space else ""
        """What the tokenizer adds before a text. `encode` does not add it."""
        self._with_word_starts = with_word_starts
        special = loaded.special
        self._unknown = special.unk
        self._special = (special.pad, special.cls, special.sep, special.mask)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._is_wordwise = is_wordwise(self._tokenizer)
        pre_tokenizer = self._tokenizer.pre_tokenizer
        self._splits_words = (
            pre_tokenizer is not None and len(pre_tokenizer.pre_tokenize_str("a b")) > 1
        )
        self._clear_table()

    def encode(self, sentences: Sequence[str]) -> EncodedSentences:
        """Encode the sentences, each with the space before it, if it has one.

        `ids` is int32 of shape (tokens,), `word_starts` bool of the same shape, `lengths` int64 of
        shape (sentences,).
        """
        joined = WORD_BREAK.join(sentences)
        if not self._is_wordwise or not sentences or joined.count(WORD_BREAK) >= len(sentences):
            return self._tokenize(sentences)
        words = joined.replace(" ", WORD_BREAK + " ").split(WORD_BREAK)
        numbers = np.fromiter(
            map(self._numbers.__getitem__, words), dtype=np.int64, count=len(words)
        )
        self._tokenize_new_words()
        word_counts = np.fromiter(
            (sentence.count(" ") + 1 for sentence in sentences),
            dtype=np.int64,
            count=len(sentences),
        )
        first_word = offsets_of(word_counts)[:-1]
        is_unknown = np.logical_or.reduceat(numbers == UNKNOWN_WORD_NUMBER, first_word)
        if is_unknown.any():
            encoded = self._encode_partly(sentences, is_unknown, numbers, word_counts)
        else:
            table = self._table
            encoded = EncodedSentences(
                ids=table.look_up(table.ids, numbers),
                lengths=np.add.reduceat(table.lengths[numbers], first_word),
                word_starts=table.look_up(table.word_starts, numbers)
                if self._with_word_starts
                else None,
            )
        if len(self._numbers) > MAX_TABLE_WORDS:
            self._clear_table()
        return encoded

    def _clear_table(self) -> None:
        self._numbers = _WordNumbers()
        self._table = _WordTable()

    def _tokenize_new_words(self) -> None:
        if self._numbers.new:
            self._table.append(self._tokenize(self._numbers.new))
            self._numbers.new = []

    def _encode_partly(
        self,
        sentences: Sequence[str],
        is_unknown: BoolArray,
        numbers: Int64Array,
        word_counts: Int64Array,
    ) -> EncodedSentences:
        """Sentences with a word that has no number by the tokenizer, all others by the table."""
        unknown = np.flatnonzero(is_unknown)
        tokenized = self._tokenize([sentences[number] for number in unknown.tolist()])
        known_words = numbers[~np.repeat(is_unknown, word_counts)]
        word_lengths = np.zeros(len(numbers), dtype=np.int64)
        word_lengths[~np.repeat(is_unknown, word_counts)] = self._table.lengths[known_words]
        lengths = np.add.reduceat(word_lengths, offsets_of(word_counts)[:-1])
        lengths[unknown] = tokenized.lengths
        is_tokenized = np.repeat(is_unknown, lengths)
        ids = np.empty(len(is_tokenized), dtype=np.int32)
        ids[is_tokenized] = tokenized.ids
        ids[~is_tokenized] = self._table.look_up(self._table.ids, known_words)
        if tokenized.word_starts is None:
            return EncodedSentences(ids, lengths, None)
        word_starts = np.empty(len(is_tokenized), dtype=np.bool_)
        word_starts[is_tokenized] = tokenized.word_starts
        word_starts[~is_tokenized] = self._table.look_up(self._table.word_starts, known_words)
        return EncodedSentences(ids, lengths, word_starts)

    def _tokenize(self, sentences: Sequence[str]) -> EncodedSentences:
        """Encode with the tokenizer itself, in batches of bounded size."""
        sizes = np.cumsum([len(sentence) + SENTENCE_OVERHEAD for sentence in sentences])
        batch_ends = np.flatnonzero(np.diff(sizes // BATCH_CHARACTERS)) + 1
        lengths = np.zeros(len(sentences), dtype=np.int64)
        ids = [np.empty(0, dtype=np.int32)]
        word_starts = [np.empty(0, dtype=np.bool_)]
        for numbers in np.split(np.arange(len(sentences)), batch_ends):
            texts = [sentences[number] for number in numbers.tolist()]
            encodings = self._call_tokenizer(texts)
            batch = [encoding.ids for encoding in encodings]
            lengths[numbers] = [len(each) for each in batch]
            flat = np.fromiter((i for each in batch for i in each), dtype=np.int32)
            ids.append(self._hide_special(flat))
            if self._with_word_starts:
                pairs = zip(texts, encodings, strict=True)
                word_starts.append(find_word_starts([self._word_ids(*pair) for pair in pairs]))
        return EncodedSentences(
            np.concatenate(ids),
            lengths,
            np.concatenate(word_starts) if self._with_word_starts else None,
        )

    def _call_tokenizer(self, texts: list[str]) -> Any:
        tokenizer = self._tokenizer
        encode = tokenizer.encode_batch if self._with_word_starts else tokenizer.encode_batch_fast
        try:
            return encode(texts, add_special_tokens=False)
        except BertpipeError:  # raised by a signal handler
            raise
        except Exception as error:  # the library's only class, as for a word without any token
            raise BertpipeError(
                f"The tokenizer cannot encode the corpus ({error}). Use another tokenizer."
            ) from None

    def _hide_special(self, ids: Int32Array) -> Int32Array:
        """A vocabulary of complete words may have the names of special tokens as words.

        In a text they are unknown words.
        """
        if self._unknown is not None and (found := np.isin(ids, self._special)).any():
            ids[found] = self._unknown
        return ids

    def _word_ids(self, text: str, encoding: Any) -> Sequence[int | None]:
        """The number of the word that each id belongs to."""
        if self._splits_words:
            words: list[int | None] = encoding.word_ids
            return words
        # The tokenizer takes a text as one word: use white space and the offsets of the tokens.
        is_space = np.array([char.isspace() or char == "▁" for char in text], dtype=np.bool_)
        first, stop = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        # Spaces at the beginning of a token belong to the word after them.
        not_space = np.append(np.flatnonzero(~is_space), len(text))
        begins = not_space[np.searchsorted(not_space, first)]
        begins = np.clip(begins, first, np.maximum(first, stop - 1))
        numbered: list[int | None] = np.cumsum(is_space)[np.minimum(begins, len(text) - 1)].tolist()
        return numbered


def find_word_starts(word_ids: Sequence[Sequence[int | None]]) -> BoolArray:
    """Which tokens belong to another word than the token before them in the same sentence.

    Returns bool of shape (tokens,).
    """
    flat = np.fromiter((-1 if w is None else w for each in word_ids for w in each), dtype=np.int64)
    word_starts = np.ones(len(flat), dtype=np.bool_)
    word_starts[1:] = flat[1:] != flat[:-1]
    first = offsets_of(np.array([len(each) for each in word_ids], dtype=np.int64))[:-1]
    word_starts[first[first < len(flat)]] = True
    return word_starts
