"""Texts with masks as rows of token ids: mask tokens are checked, long texts cut into windows."""

import re
from collections.abc import Sequence
from typing import Any

from bert_pipeline.errors import BertpipeError
from bert_pipeline.predict.batches import TokenRow
from bert_pipeline.predict.encode import EncodedText, TextEncoder
from bert_pipeline.predict.load import MASK
from bert_pipeline.predict.word_continuation import WordContinuation

SHOWN_CHARS = 60
"""Of a text in an error message."""
_FOREIGN = re.compile(r"[\[<{(]\s*mask\s*[\]>})]", re.IGNORECASE)
"""Mask tokens of other models, and misspelt ones."""
_BLANK_TO_FILL = re.compile(r"_{3,}")


class MaskEncoder:
    """Encodes texts in which `[MASK]`, or the model's own mask token, stands for words."""

    def __init__(self, tokenizer: Any, max_length: int | None) -> None:
        self._encoder = TextEncoder(tokenizer, max_length)
        self._mask = tokenizer.mask_token
        self._mask_id = tokenizer.mask_token_id
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._continuation = backend and WordContinuation.for_tokenizer(backend, self._mask_id)

    def encode(self, texts: Sequence[str], names: Sequence[str]) -> list[list[TokenRow]]:
        """The windows of each text, which together have all its masks in order; none if blank.

        A text that the model takes is one window. Raises `BertpipeError`, with the name of the
        text, for one without a mask, or with a mask token that is not the model's.
        """
        for text, name in zip(texts, names, strict=True):
            self._check(text, name)
        marked = [text.replace(MASK, self._mask) for text in texts]
        return [
            self._cut(*self._correct(encoded)) if text.strip() else []
            for text, encoded in zip(texts, self._encoder.encode(marked), strict=True)
        ]

    def _check(self, text: str, name: str) -> None:
        own = text.count(self._mask) + text.count(MASK)
        rest = text.replace(self._mask, "").replace(MASK, "")
        foreign = _FOREIGN.search(rest) or (not own and _BLANK_TO_FILL.search(rest))
        write = " or ".join(dict.fromkeys([self._mask, MASK]))
        if foreign:
            raise BertpipeError(
                f"{name}: {foreign[0][:SHOWN_CHARS]} is not a mask token of this model. Write "
                f"{write} for each word to predict."
            )
        if not own and text.strip():
            raise BertpipeError(
                f"{name} has no {MASK}: {text[:SHOWN_CHARS]!r}. Write {write} for the word to "
                "predict."
            )

    def _correct(self, encoded: EncodedText) -> tuple[list[int], list[int]]:
        """The ids with words continued after masks, and the segment ids."""
        ids, segments = encoded.ids, encoded.segment_ids
        if self._continuation is None or encoded.encoding is None:
            return ids, segments
        corrected = self._continuation.correct(encoded.text, encoded.encoding)
        # The text itself has one segment.
        head = self._encoder.head
        longer = len(corrected) - len(ids)
        within = segments[head : head + 1] * (longer + len(ids) - head - self._encoder.tail)
        end = len(ids) - self._encoder.tail
        return corrected, [*segments[:head], *within, *segments[end:]]

    def _cut(self, ids: list[int], segments: list[int]) -> list[TokenRow]:
        """Windows of the maximum length: each mask has a quarter of it as context on both sides."""
        masks = [position for position, token in enumerate(ids) if token == self._mask_id]
        if not self._encoder.is_too_long(ids):
            return [TokenRow(ids, segments, masks)]
        head, room = self._encoder.head, self._encoder.room
        size = max(1, room // 2)
        blocks: dict[int, list[int]] = {}
        for position in masks:
            blocks.setdefault((position - head) // size, []).append(position)
        last = len(ids) - head - self._encoder.tail - room
        rows = []
        for block, positions in blocks.items():
            start = min(max(0, block * size - (room - size) // 2), last)
            cut_ids, cut_segments = (self._encoder.cut(part, start) for part in (ids, segments))
            rows.append(TokenRow(cut_ids, cut_segments, [at - start for at in positions]))
        return rows
