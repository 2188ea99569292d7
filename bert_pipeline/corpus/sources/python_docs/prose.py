"""Whether a paragraph reads as English prose."""

import re


def word_set(text: str) -> frozenset[str]:
    """The words of a text, separated by spaces."""
    return frozenset(text.split())


_FUNCTION_WORDS = word_set(
    "the a an is are be was were been if this that these those to with when which who can will"
    " would should must may for from by has have had not it its as at into on of and or in used"
    " than then so only each all any no"
)
STRONG_WORDS = _FUNCTION_WORDS - word_set("of and or in any no used only each all not by a")
"""Function words that occur only in sentences: "list of int or str" is a type."""
_LATEX_LEFT = re.compile(r"\\[A-Za-z]{3,}")
_LEGAL = re.compile(
    r"(?i)copyright|all rights reserved|licensed under|warrant(?:y|ies) of|permission is hereby|"
    r"redistribution and use|apache license|mit license|bsd license|spdx-"
)
_WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*")
_SYMBOL = re.compile(r"[^\w\s.,;:!?'\"()-]|_")


def reads_as_prose(text: str) -> bool:
    """Whether a paragraph is English: enough words, function words, few symbols, no licence."""
    words = _WORD.findall(text)
    if len(words) < 4 or not (text[0].isalnum() or text[0] in "\"'("):
        return False
    letters = sum(map(len, words)) + text.count(" ")
    if letters < 0.8 * len(text) or (
        letters < 0.94 * len(text) and len(_SYMBOL.findall(text)) > 2 + 0.05 * len(text)
    ):
        return False
    if _LEGAL.search(text) or ("\\" in text and _LATEX_LEFT.search(text)):
        return False
    ends = text.endswith((".", "!", "?", ".)", '."', ":"))
    functional = [
        word for word in words if word in _FUNCTION_WORDS or word.casefold() in _FUNCTION_WORDS
    ]
    if STRONG_WORDS.isdisjoint(map(str.casefold, functional)):
        # "Return number of items." has no such word, but it starts and ends as a sentence.
        plain = letters > 0.9 * len(text) and sum(map(str.islower, words)) >= 0.6 * len(words)
        return ends and plain and text[0].isupper()
    return len(functional) >= 0.1 * len(words) and (ends or len(words) >= 6)
