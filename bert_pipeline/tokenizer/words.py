"""Whether a tokenizer encodes a sentence word by word, so that a table of words can be used."""

import json
from typing import Any

WORDWISE_NORMALIZERS = frozenset({"BertNormalizer", "Lowercase", "NFC", "NFD", "StripAccents"})
"""Normalizers that give the same result for a word alone as within a sentence, and add no white
space."""
WORDWISE_PRE_TOKENIZERS = frozenset(
    {"BertPreTokenizer", "ByteLevel", "Whitespace", "WhitespaceSplit"}
)
"""Pre-tokenizers that split a text before every space (`ByteLevel` by its regular expression)."""
SPACE_PRESERVING_NORMALIZERS = frozenset({"Lowercase", "NFC", "NFD"})
"""Normalizers that neither add nor remove spaces. Others turn single spaces into runs of spaces,
when they remove all of a word or put spaces around it, and `ByteLevel` takes a run as one word."""


def is_wordwise(tokenizer: Any) -> bool:
    """Whether encoding a sentence equals encoding each word with the space before it."""
    settings = json.loads(tokenizer.to_str())
    has_dropout = bool(settings["model"].get("dropout"))
    if has_dropout or not all(token["special"] for token in settings["added_tokens"]):
        return False
    normalizers = _flatten(settings["normalizer"], "normalizers")
    pre_tokenizers = _flatten(settings["pre_tokenizer"], "pretokenizers")
    keeps_spaces = any(each["type"] == "ByteLevel" for each in pre_tokenizers)
    allowed = SPACE_PRESERVING_NORMALIZERS if keeps_spaces else WORDWISE_NORMALIZERS
    return (
        bool(pre_tokenizers)
        and all(each["type"] in allowed for each in normalizers)
        and all(
            each["type"] in WORDWISE_PRE_TOKENIZERS and each.get("use_regex", True)
            for each in pre_tokenizers
        )
    )


def _flatten(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The components in a (nested) sequence; `key` names its list in tokenizer.json."""
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    return [each for item in component[key] for each in _flatten(item, key)]
