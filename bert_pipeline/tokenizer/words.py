"""Whether a tokenizer encodes a sentence word by word, so that a table of words can be used."""

import json
from typing import Any

from bert_pipeline.tokenizer.byte_bpe import WORD_PATTERN
from bert_pipeline.tokenizer.prefix_space import Component, flatten

WORDWISE_NORMALIZERS = frozenset({"BertNormalizer", "Lowercase", "NFC", "NFD", "StripAccents"})
"""Normalizers that give the same result for a word alone as within a sentence, and add no white
space."""
WORDWISE_PRE_TOKENIZERS = frozenset(
    {"BertPreTokenizer", "ByteLevel", "Metaspace", "Whitespace", "WhitespaceSplit"}
)
"""Pre-tokenizers that split a text before every space, or do not split (see `_splits_words`)."""
SPACE_PRESERVING_NORMALIZERS = frozenset({"Lowercase", "NFC", "NFD"})
"""Normalizers that neither add nor remove spaces. Others turn single spaces into runs of spaces,
when they remove all of a word or put spaces around it, and `ByteLevel` and `Metaspace` take each
space into the word after it."""


def is_wordwise(tokenizer: Any) -> bool:
    """Whether encoding a sentence equals encoding each word with the space before it."""
    settings = json.loads(tokenizer.to_str())
    has_dropout = bool(settings["model"].get("dropout"))
    if has_dropout or not all(token["special"] for token in settings["added_tokens"]):
        return False
    normalizers = flatten(settings["normalizer"], "normalizers")
    pre_tokenizers = flatten(settings["pre_tokenizer"], "pretokenizers")
    keeps_spaces = any(each["type"] in ("ByteLevel", "Metaspace") for each in pre_tokenizers)
    allowed = SPACE_PRESERVING_NORMALIZERS if keeps_spaces else WORDWISE_NORMALIZERS
    return (
        any(map(_splits_words, pre_tokenizers))
        and all(each["type"] in allowed for each in normalizers)
        and all(_is_wordwise(each) for each in pre_tokenizers)
    )


def _is_wordwise(pre_tokenizer: Component) -> bool:
    """Whether it splits before spaces or not at all, and gives the same for a word alone."""
    has_prefix = pre_tokenizer.get("prepend_scheme", "never") != "never"
    return not has_prefix and (
        pre_tokenizer["type"] in WORDWISE_PRE_TOKENIZERS or _splits_words(pre_tokenizer)
    )


def _splits_words(pre_tokenizer: Component) -> bool:
    """Whether it splits before every space."""
    if pre_tokenizer["type"] == "Split":
        return bool(pre_tokenizer["pattern"] == {"Regex": WORD_PATTERN})
    has_expression = bool(pre_tokenizer.get("use_regex", True) and pre_tokenizer.get("split", True))
    return has_expression and pre_tokenizer["type"] in WORDWISE_PRE_TOKENIZERS
