"""The entries of one tokenizer in terms of another: for embeddings of a new vocabulary.

`shared_entries` finds the entries that both tokenizers have. `sub_tokens_of_new_entries` splits the
others by the old tokenizer, so that a new row of an embedding can begin as the mean of old rows.
"""

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, decoders

from bert_pipeline.tokenizer.extensible import bare_tokenizer
from bert_pipeline.tokenizer.load import MISSING_ID, ROLES, LoadedTokenizer
from bert_pipeline.tokenizer.prefix_space import flatten, set_prefix_space

METASPACE = "▁"
UNDECODABLE = "\ufffd"


def shared_entries(old: LoadedTokenizer, new: LoadedTokenizer) -> dict[int, int]:
    """The entries that both tokenizers have: from the new id to the old one.

    Special tokens are equal by their role, whatever their names. Other entries are equal if they
    have the same string, and both tokenizers mark the beginning of a word in the same way: `the` is
    a word in WordPiece, and the end of `bathe` in byte-level BPE.
    """
    ours, theirs = _Vocabulary(new), _Vocabulary(old)
    if (ours.marks, ours.prefix) == (theirs.marks, theirs.prefix):
        names = ours.ids.keys() & theirs.ids.keys()
    else:
        names = ours.added & theirs.added
    same = {ours.ids[name]: theirs.ids[name] for name in names}
    same |= {ours.roles[role]: theirs.roles[role] for role in ours.roles.keys() & theirs.roles}
    return dict(sorted(same.items()))


def sub_tokens_of_new_entries(old: LoadedTokenizer, new: LoadedTokenizer) -> dict[int, list[int]]:
    """The tokens of `old` for the text of each entry that only `new` has, by the new id.

    Left out are the entries that both have (see `shared_entries`), special tokens, and entries of
    which `old` knows no part.
    """
    ours, theirs = _Vocabulary(new), _Vocabulary(old)
    shared = shared_entries(old, new)
    names = sorted(ours.ids.keys() - ours.added, key=ours.ids.__getitem__)
    without_text = {theirs.roles.get("unk")} | {theirs.ids[name] for name in theirs.added}
    splitter = _Splitter(old, theirs)
    splits = {
        ours.ids[name]: splitter.split(_read_entry(name, ours))
        for name in names
        if ours.ids[name] not in shared
    }
    known = {
        number: [each for each in ids if each not in without_text] for number, ids in splits.items()
    }
    return {number: ids for number, ids in known.items() if ids}


class _Vocabulary:
    """The entries of a tokenizer, and how they show where a word begins."""

    def __init__(self, loaded: LoadedTokenizer) -> None:
        settings = json.loads(loaded.tokenizer.to_str())
        self.model: dict[str, Any] = settings["model"]
        self.ids: dict[str, int] = loaded.tokenizer.get_vocab()
        self.added = {token["content"] for token in settings["added_tokens"]}
        self.roles: dict[str, int] = {
            role: number
            for role in ROLES
            if (number := getattr(loaded.special, role)) not in (None, MISSING_ID)
        }
        self.prefix: str = self.model.get("continuing_subword_prefix") or ""
        self.suffix: str = self.model.get("end_of_word_suffix") or ""
        parts = flatten(settings["pre_tokenizer"], "pretokenizers")
        parts += flatten(settings["decoder"], "decoders")
        types = [part["type"] for part in parts if part.get("replacement") != " "]
        spaces = [name for name in ("ByteLevel", "Metaspace") if name in types]
        self.marks = "" if self.prefix or not spaces else spaces[0]
        """What marks a word that follows a space: `ByteLevel` `Ġ`, `Metaspace` `▁`; or nothing."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """What an entry stands for in a text."""

    name: str
    text: str
    """With the space before it, if it has one. Empty for some of the bytes of a character."""
    begins_word: bool


def _read_entry(name: str, vocabulary: _Vocabulary) -> _Entry:
    text = name.removesuffix(vocabulary.suffix)
    if vocabulary.marks == "":
        bare = text.removeprefix(vocabulary.prefix)
        begins_word = not vocabulary.prefix or bare == text
        # Punctuation mostly follows a word without a space.
        has_space = begins_word and bare[:1].isalnum()
        return _Entry(name, " " * has_space + bare, begins_word)
    text = text.replace(METASPACE, " ") if vocabulary.marks == "Metaspace" else _decode_bytes(text)
    return _Entry(name, text, text.startswith(" "))


def _decode_bytes(name: str) -> str:
    text: str = decoders.ByteLevel().decode([name])
    return "" if UNDECODABLE in text else text


class _Splitter:
    """Splits the entries of any tokenizer by another one."""

    def __init__(self, loaded: LoadedTokenizer, vocabulary: _Vocabulary) -> None:
        self._marks = vocabulary.marks
        self._unknown = loaded.special.unk
        self._tokenizer, _ = set_prefix_space(loaded.tokenizer, "never")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._model = bare_tokenizer(vocabulary.model)
        self._within_words = _tokenizer_within_words(vocabulary)

    def split(self, entry: _Entry) -> list[int]:
        """The ids that the text of the entry is split into."""
        if not entry.text.strip():
            return _encode(self._model, entry.name) if self._marks == "ByteLevel" else []
        if self._marks:
            return _encode(self._tokenizer, entry.text)
        text = entry.text.strip()
        if self._within_words is not None and not entry.begins_word and self._continues(text):
            ids = _encode(self._within_words, self._normalize(text))
            if self._unknown not in ids:
                return ids
        return _encode(self._tokenizer, text)

    def _normalize(self, text: str) -> str:
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else normalizer.normalize_str(text).strip()

    def _continues(self, text: str) -> bool:
        """Whether the text after a letter belongs to the same word."""
        pre_tokenizer = self._tokenizer.pre_tokenizer
        word = self._normalize("a" + text)
        return pre_tokenizer is None or len(pre_tokenizer.pre_tokenize_str(word)) == 1


def _tokenizer_within_words(vocabulary: _Vocabulary) -> Tokenizer | None:
    """A tokenizer that splits a text as the end of a word: into entries that begin with `##`."""
    if vocabulary.model["type"] != "WordPiece":
        return None
    prefix = vocabulary.prefix
    within = {name: number for name, number in vocabulary.ids.items() if name.startswith(prefix)}
    begins = {name.removeprefix(prefix): number for name, number in within.items()}
    unknown = vocabulary.model["unk_token"]
    entries = within | begins | {unknown: vocabulary.ids[unknown]}
    return bare_tokenizer(vocabulary.model | {"vocab": entries})


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
