"""Models that take new entries: WordPiece, BPE and Unigram, in the form of tokenizer.json.

A word is split as before unless a new entry is in its split:

- WordPiece takes the longest entry that matches, from left to right. A step that takes an old entry
  is the step that the old vocabulary takes.
- BPE applies merges in their order. New merges come after all old ones and make new entries only,
  so no old merge applies to what they made.
- Unigram takes the split with the highest sum of scores. One of old entries only was the highest
  before, too.
"""

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from bert_pipeline.errors import BertpipeError
from bert_pipeline.tokenizer.load import count_ids
from bert_pipeline.tokenizer.new_entries import NewEntry
from bert_pipeline.tokenizer.unigram import RESERVED_SCORE

Model = dict[str, Any]
"""The model in tokenizer.json."""
JOINERS = "\u200c\u200d"
SAVED_TOKEN_SCORE = 1e-3
"""What a new Unigram entry scores above the tokens that it replaces, for each token that it saves.
So small that an entry wins only where the old split has just these tokens, or one equally good."""


def bare_tokenizer(model: Model) -> Tokenizer:
    """A tokenizer of the model alone: it encodes words as the pre-tokenizer gives them."""
    parts = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    settings = parts | {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    if model.get("dropout"):
        model = model | {"dropout": None}
    return Tokenizer.from_str(json.dumps(settings | {"model": model}))


class ExtensibleModel:
    """The model of a tokenizer, and how new entries are added to it."""

    longest_run = 8
    """Tokens that a new entry can replace at most."""
    can_drop = True
    """Whether an entry can be dropped again, because no other one is made of it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        settings = json.loads(tokenizer.to_str())
        self.model: Model = settings["model"]
        self.vocab: dict[str, int] = tokenizer.get_vocab()
        """All entries and their ids, with added tokens."""
        self.first_id = count_ids(tokenizer)
        """The id of the first new entry."""
        self.names = [""] * self.first_id
        for name, number in self.vocab.items():
            self.names[number] = name
        self.prefix: str = self.model.get("continuing_subword_prefix") or ""
        self._added = {token["content"] for token in settings["added_tokens"]}
        self.tokenizer = bare_tokenizer(self.model)

    def ids_without_text(self) -> set[int]:
        """Ids of tokens that stand for no text of their own: unknown, special, single bytes."""
        names = self._added | {self.model.get("unk_token")}
        ids = {self.vocab[name] for name in names if name in self.vocab}
        if self.model.get("byte_fallback"):
            ids |= {
                self.vocab[name] for byte in range(256) if (name := f"<0x{byte:02X}>") in self.vocab
            }
        return ids

    def join(self, names: Sequence[str]) -> str:
        """The name of an entry that replaces these."""
        return names[0] + "".join(name.removeprefix(self.prefix) for name in names[1:])

    def is_allowed(self, name: str) -> bool:
        """Whether a new entry can have this name."""
        return name not in self.vocab

    def needed(self, tokenizer: Tokenizer) -> list[NewEntry]:
        """Entries that must come first, so that others make no known word unknown."""
        return []

    def extend(self, entries: Sequence[NewEntry]) -> Model:
        """The model with new entries after the last id."""
        new = {entry.name: self.first_id + number for number, entry in enumerate(entries)}
        return self.model | {"vocab": self.vocab | new}


class WordPieceModel(ExtensibleModel):
    """Entries of any length; those within a word begin with `##`."""

    def needed(self, tokenizer: Tokenizer) -> list[NewEntry]:
        """Characters that only longer entries have.

        A new entry may end within the old one that covered the character.
        """
        characters: set[str] = set()
        for name in self.vocab:
            text = name.removeprefix(self.prefix)
            continues = text != name
            # Names such as [MASK] and [unused1] are no words.
            parts = tokenizer.pre_tokenizer.pre_tokenize_str("a" * continues + text)
            if len(parts) == 1:
                characters.update(text if continues else text[1:])
        names = (self.prefix + character for character in sorted(characters))
        return [NewEntry(name, ()) for name in names if name not in self.vocab]


class BpeModel(ExtensibleModel):
    """Each new entry is a merge of two others, and comes with those that it is made of."""

    longest_run = 2
    can_drop = False

    def extend(self, entries: Sequence[NewEntry]) -> Model:
        merges = [list(entry.parts) for entry in entries]
        return super().extend(entries) | {"merges": [*self.model["merges"], *merges]}


class UnigramModel(ExtensibleModel):
    """Each new entry scores what the tokens that it replaces score together, and a little more."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        pieces = self.model["vocab"]
        self._scores: list[float] = [score for _, score in pieces]
        # Unknown characters score less than the lowest score, which matters only where a character
        # has no entry of its own but occurs in longer ones.
        characters = set("".join(name for name, _ in pieces if name not in self._added))
        self._lowest: float = min(self._scores)
        if characters <= self.vocab.keys():
            self._lowest = min(self._lowest, RESERVED_SCORE)
        outside = self.names[len(pieces) :]
        if "" in outside:
            raise BertpipeError(
                f"The tokenizer has no entry with the id {self.names.index('', len(pieces))}, and "
                "a unigram model with gaps between ids cannot be extended."
            )
        self._old = pieces + [[name, self._lowest] for name in outside]

    def ids_without_text(self) -> set[int]:
        unknown = self.model["unk_id"]
        return super().ids_without_text() | (set() if unknown is None else {unknown})

    def is_allowed(self, name: str) -> bool:
        """Whether it is new, and all letters, all digits or all others, as in SentencePiece.

        Only spaces separate words here: `word,` would be an entry.
        """
        groups = {_group(char) for char in name.removeprefix("▁")}
        return super().is_allowed(name) and len(groups) == 1

    def extend(self, entries: Sequence[NewEntry]) -> Model:
        names = [entry.name for entry in entries]
        splits = self.tokenizer.encode_batch_fast(names, add_special_tokens=False)
        scored = [[name, self._score(split.ids)] for name, split in zip(names, splits, strict=True)]
        return self.model | {"vocab": self._old + scored}

    def _score(self, ids: Sequence[int]) -> float:
        score = sum(self._scores[number] for number in ids)
        return max(score + SAVED_TOKEN_SCORE * (len(ids) - 1), self._lowest)


def _group(char: str) -> str:
    category = unicodedata.category(char)[0]
    return "L" if category == "M" or char in JOINERS else category if category in "LN" else ""


MODELS: dict[str, type[ExtensibleModel]] = {
    "WordPiece": WordPieceModel,
    "BPE": BpeModel,
    "Unigram": UnigramModel,
}
"""By the type of the model in tokenizer.json."""


def extensible_model(tokenizer: Tokenizer, where: str) -> ExtensibleModel:
    """The model of the tokenizer. Raises `BertpipeError` where it takes no new entries."""
    model_type = json.loads(tokenizer.to_str())["model"]["type"]
    if model_type not in MODELS:
        raise BertpipeError(
            f"{where}: a {model_type} tokenizer cannot be extended. Use one of type "
            f"{', '.join(MODELS)}."
        )
    pre_tokenizer = tokenizer.pre_tokenizer
    if pre_tokenizer is None or len(pre_tokenizer.pre_tokenize_str("a b")) == 1:
        raise BertpipeError(
            f"{where}: the tokenizer does not split a text into words, so it cannot be extended. "
            "Use one whose pre-tokenizer splits at spaces."
        )
    return MODELS[model_type](tokenizer)
