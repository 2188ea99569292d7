"""The space that some tokenizers add before a text: at its start only, or not at all.

`ByteLevel(add_prefix_space=True)` and `Metaspace(prepend_scheme="always")` add a space before every
part of a text, also after a special token: `[MASK].` becomes ` .`, which no training example
contains. With the scheme `first`, only the start of a text gets a space. With `never`, sentences
can be encoded one by one: the caller gives each the space that the text has before it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Component = dict[str, Any]
Scheme = Literal["first", "never"]

FIRST_SPACE: Component = {
    "type": "Metaspace",
    "replacement": " ",
    "prepend_scheme": "first",
    "split": False,
}
"""A pre-tokenizer that adds a space at the start of a text and changes nothing else."""
SINGLE_SPACES: tuple[Component, ...] = (
    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
    {"type": "Strip", "strip_left": False, "strip_right": True},
)
"""Normalizers that do what the pre-tokenizer `WhitespaceSplit` does before `Metaspace`."""


def set_prefix_space(tokenizer: Tokenizer, scheme: Scheme) -> tuple[Tokenizer, bool]:
    """A copy that adds the prefix space by this scheme, if `tokenizer` adds one.

    Returns the copy, and whether `tokenizer` adds a space at the start of a text. With `never` a
    text must have single spaces, as `split_running` gives them.
    """
    from tokenizers import Tokenizer

    settings = json.loads(tokenizer.to_str())
    normalizers = flatten(settings["normalizer"], "normalizers")
    pre_tokenizers = flatten(settings["pre_tokenizer"], "pretokenizers")
    if _adds_space_to_each_word(pre_tokenizers):
        pre_tokenizers = pre_tokenizers[1:]
        if scheme == "first":
            normalizers = [*normalizers, *SINGLE_SPACES]
    adds_space = any(map(_adds_space, pre_tokenizers))
    changed = [each for each in map(_without_space, pre_tokenizers) if each is not None]
    if adds_space and scheme == "first":
        changed = _add_first_space(changed)
    settings["normalizer"] = _sequence(normalizers, "normalizers")
    settings["pre_tokenizer"] = _sequence(changed, "pretokenizers")
    copy = Tokenizer.from_str(json.dumps(settings))
    copy.encode_special_tokens = tokenizer.encode_special_tokens
    return copy, adds_space


def flatten(component: Component | None, key: str) -> list[Component]:
    """The components in a (nested) sequence; `key` names its list in tokenizer.json."""
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    return [each for item in component[key] for each in flatten(item, key)]


def _sequence(components: list[Component], key: str) -> Component | None:
    if len(components) <= 1:
        return components[0] if components else None
    return {"type": "Sequence", key: components}


def _adds_space_to_each_word(components: list[Component]) -> bool:
    """As in XLM-RoBERTa, which splits at white space first, and adds a space to each word."""
    return (
        len(components) > 1
        and components[0]["type"] == "WhitespaceSplit"
        and _adds_space(components[1])
    )


def _adds_space(component: Component) -> bool:
    return component.get("prepend_scheme", "never") != "never" or bool(
        component.get("add_prefix_space")
    )


def _without_space(component: Component) -> Component | None:
    if component == FIRST_SPACE:
        return None
    if component["type"] == "Metaspace":
        return component | {"prepend_scheme": "never"}
    if component["type"] == "ByteLevel":
        return component | {"add_prefix_space": False}
    return component


def _add_first_space(components: list[Component]) -> list[Component]:
    if any(each["type"] == "Metaspace" for each in components):
        return [
            each | {"prepend_scheme": "first"} if each["type"] == "Metaspace" else each
            for each in components
        ]
    return [FIRST_SPACE, *components]
