"""Sentences of a document, in any language that sentencex has rules for."""

import re

from sentencex import segment

_DIGIT_POINT = re.compile(r"\d\.$")


def split_sentences(text: str, language: str) -> list[str]:
    """The sentences of a document whose paragraphs stand one a line; stripped, never empty.

    A decimal point between digits does not end a sentence, whatever the script of the digits (sentencex parts "۳.۵").
    """
    sentences: list[str] = []
    for paragraph in text.split("\n"):
        pending = ""
        for piece in segment(language, paragraph):
            if pending and piece[:1].isdigit() and _DIGIT_POINT.search(pending):
                pending += piece
                continue
            sentences.append(pending)
            pending = piece
        sentences.append(pending)
    return [stripped for sentence in sentences if (stripped := sentence.strip())]
