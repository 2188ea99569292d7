"""WordPiece after a mask within a word: the entries that training saw there.

A tokenizer takes the text after `[MASK]` as the start of a word, so `un[MASK]able` ends in `able`.
In the examples, where a token within the word is masked, it ends in `##able`. Scripts without
spaces between words have masks within words nearly everywhere.
"""

import json
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer, models


class _Tokens(NamedTuple):
    """Fields of an `Encoding`."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]


class WordContinuation:
    """Corrects how a WordPiece tokenizer encoded a text with masks."""

    def __init__(self, tokenizer: Tokenizer, mask_id: int) -> None:
        settings = json.loads(tokenizer.to_str())["model"]
        prefix = settings["continuing_subword_prefix"]
        within = {
            piece: number for piece, number in settings["vocab"].items() if piece.startswith(prefix)
        }
        unknown = settings["unk_token"]
        # Within a word, also the first piece is one with the prefix.
        first = {piece.removeprefix(prefix): number for piece, number in within.items()}
        self._model = models.WordPiece(
            {unknown: settings["vocab"][unknown]} | first | within,
            unk_token=unknown,
            continuing_subword_prefix=prefix,
            max_input_chars_per_word=settings["max_input_chars_per_word"],
        )
        self._tokenizer = tokenizer
        self._mask_id = mask_id

    @classmethod
    def for_tokenizer(cls, tokenizer: Tokenizer, mask_id: int) -> "WordContinuation | None":
        """None for a tokenizer whose entries do not tell whether they start a word."""
        if json.loads(tokenizer.to_str())["model"]["type"] != "WordPiece":
            return None
        return cls(tokenizer, mask_id)

    def correct(self, text: str, encoding: Encoding) -> list[int]:
        """The ids of the text; as many as before, or more or less where a word is corrected."""
        # Each access to a field of an encoding copies it.
        tokens = _Tokens(encoding.ids, encoding.offsets, encoding.word_ids)
        ids: list[int] = []
        position = 0
        for mask in [at for at, token in enumerate(tokens.ids) if token == self._mask_id]:
            after_mask = mask + 1
            ids += tokens.ids[position:after_mask]
            position = self._find_word_end(text, tokens, after_mask)
            if position > after_mask:
                start_character = tokens.offsets[after_mask][0]
                word = self._normalize(text[start_character : tokens.offsets[position - 1][1]])
                ids += [token.id for token in self._model.tokenize(word)]
        return ids + tokens.ids[position:]

    def _find_word_end(self, text: str, tokens: "_Tokens", position: int) -> int:
        """The end of the word that starts at a token directly after a mask.

        It is `position` itself where the mask and the word are apart.
        """
        if position == len(tokens.ids):
            return position
        start = tokens.offsets[position][0]
        word = tokens.word_ids[position]
        if word is None or start != tokens.offsets[position - 1][1]:
            return position
        end = position
        while end < len(tokens.ids) and (
            tokens.word_ids[end] == word and tokens.ids[end] != self._mask_id
        ):
            end += 1
        # A letter and punctuation, or a Chinese character, are two words.
        joined = self._normalize("a" + text[start : tokens.offsets[end - 1][1]])
        is_one_word = len(self._tokenizer.pre_tokenizer.pre_tokenize_str(joined)) == 1
        return end if is_one_word else position

    def _normalize(self, text: str) -> str:
        normalizer = self._tokenizer.normalizer
        return str(normalizer.normalize_str(text)) if normalizer else text
