"""`bertpipe fill-mask`: predict the word behind each mask."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.model.architectures import count_positions_of
from bert_pipeline.model.pretraining_model import PretrainingModel
from bert_pipeline.predict.batches import (
    BATCH_TOKENS,
    TokenRow,
    group_texts,
    make_masked_batch,
    plan_batches,
)
from bert_pipeline.predict.load import check_vocabulary, find_model, load_auto_tokenizer, load_model
from bert_pipeline.predict.masked_texts import MaskEncoder
from bert_pipeline.predict.targets import find_target_ids

BATCH_SCORES = 2**25
"""The most scores of the vocabulary in a batch, but for a row that alone has more."""

Candidate = dict[str, Any]
"""`score`, `token`, `token_str`, `sequence`."""


class MaskFiller:
    """A model folder ready to fill masks; `[MASK]` is replaced by the model's own mask token."""

    def __init__(self, model: str | Path) -> None:
        folder = find_model(Path(model))
        self._tokenizer = load_auto_tokenizer(folder)
        if self._tokenizer.mask_token is None:
            raise BertpipeError(
                f"{folder}: the tokenizer has no mask token. Use a masked language model."
            )
        network = load_model(folder, AutoModelForMaskedLM, dtype=torch.float32)
        self._vocab_size = network.config.vocab_size
        check_vocabulary(folder, self._tokenizer, network)
        self._encoder = MaskEncoder(self._tokenizer, count_positions_of(network))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = network.to(self._device).eval()
        # FNet has no attention, so padding would change its scores.
        self._can_pad = "attention_mask" in inspect.signature(network.forward).parameters
        self._score: Callable[[Sequence[TokenRow]], Tensor]
        if self._can_pad:
            model_of_rows = PretrainingModel(network)
            self._score = lambda rows: model_of_rows.score(
                make_masked_batch(rows).to(self._device)
            )[0]
        else:
            self._score = lambda rows: _score_alike(network, rows)
        self._words: dict[int, str] = {}

    def fill(self, texts: Sequence[str], top_k: int, targets: Sequence[str] = ()) -> Any:
        """Predict the `top_k` tokens for each mask, as `transformers.pipeline("fill-mask")` does.

        After a mask within a word, a WordPiece model gets the entries with `##` that it saw there
        in training, where the pipeline gives it the start of another word.

        Returns, for a text with one mask, a list of `score`, `token`, `token_str` and `sequence`;
        for a text with several masks, a list of such lists; for several texts, a list of either.
        See `fill_each` for the rest.
        """
        results = [join_masks(masks) for masks in self.fill_each(texts, top_k, targets)]
        return results[0] if len(results) == 1 else results

    def fill_each(
        self,
        texts: Iterable[str],
        top_k: int,
        targets: Sequence[str] = (),
        name: str = "Text",
    ) -> Iterator[list[list[Candidate]]]:
        """For each text a list of masks, and for each mask a list of candidates (see `fill`).

        Only `targets` are candidates, if there are any; their scores are those among all tokens.
        A blank text has no masks. In a text longer than the model takes, each mask is predicted
        from the tokens around it, which are also its `sequence`. Texts are read as they are
        needed. Raises `BertpipeError` for a text without a mask: `name` and its number.
        """
        if not 1 <= top_k <= self._vocab_size:
            raise UsageError(
                f"--top-k {top_k}: must be between 1 and the vocabulary size, {self._vocab_size}."
            )
        target_ids = find_target_ids(self._tokenizer, targets) if targets else None
        return self._fill_groups(texts, top_k, target_ids, name)

    def _fill_groups(
        self, texts: Iterable[str], top_k: int, target_ids: list[int] | None, name: str
    ) -> Iterator[list[list[Candidate]]]:
        first = 1
        for group in group_texts(texts):
            names = [f"{name} {first + number}" for number in range(len(group))]
            windows = self._encoder.encode(group, names)
            rows = [row for rows_of_text in windows for row in rows_of_text]
            best = iter(self._find_best(rows, top_k, target_ids))
            for rows_of_text in windows:
                is_single = sum(len(row.masks) for row in rows_of_text) == 1
                yield [
                    self._describe(row, position, *found, is_single=is_single)
                    for row in rows_of_text
                    for position, found in zip(row.masks, next(best), strict=True)
                ]
            first += len(group)

    @torch.inference_mode()
    def _find_best(
        self, rows: list[TokenRow], top_k: int, target_ids: list[int] | None
    ) -> list[list[tuple[list[float], list[int]]]]:
        """For each row and each of its masks the best scores and their tokens."""
        found: list[list[tuple[list[float], list[int]]]] = [[] for _ in rows]
        for numbers in self._plan(rows):
            scores = self._score([rows[number] for number in numbers])
            if scores.isnan().any():
                raise BertpipeError("The model predicts NaN. Check its config.json.")
            probabilities = scores.float().softmax(-1)
            if target_ids is not None:
                probabilities = probabilities[:, target_ids]
            values, tokens = probabilities.topk(min(top_k, probabilities.shape[1]))
            if target_ids is not None:
                tokens = tokens.new_tensor(target_ids)[tokens]
            pairs = zip(values.tolist(), tokens.tolist(), strict=True)
            for number in numbers:
                found[number] = [next(pairs) for _ in rows[number].masks]
        return found

    def _plan(self, rows: list[TokenRow]) -> list[list[int]]:
        """Batches of bounded size, also where every token is a mask."""
        most_masks = max((len(row.masks) / len(row.ids) for row in rows), default=1)
        tokens = min(BATCH_TOKENS, int(BATCH_SCORES / self._vocab_size / most_masks))
        return plan_batches(rows, tokens, equal_lengths=not self._can_pad)

    def _describe(
        self,
        row: TokenRow,
        position: int,
        scores: list[float],
        tokens: list[int],
        *,
        is_single: bool,
    ) -> list[Candidate]:
        """The candidates of a mask as the pipeline describes them."""
        before, after = row.ids[:position], row.ids[position + 1 :]
        pad = self._tokenizer.pad_token_id
        sequences = [
            [token for token in (*before, filled, *after) if token != pad] for filled in tokens
        ]
        # With several masks the special tokens stay, so that the other masks are seen.
        texts = self._tokenizer.batch_decode(sequences, skip_special_tokens=is_single)
        return [
            {"score": score, "token": token, "token_str": self._decode(token), "sequence": text}
            for score, token, text in zip(scores, tokens, texts, strict=True)
        ]

    def _decode(self, token: int) -> str:
        if token not in self._words:
            self._words[token] = self._tokenizer.decode([token])
        return self._words[token]


def _score_alike(network: Any, rows: Sequence[TokenRow]) -> Tensor:
    """Logits of the masked tokens in rows of one length."""
    device = next(network.parameters()).device
    ids = torch.tensor([row.ids for row in rows], device=device)
    segments = torch.tensor([row.segment_ids for row in rows], device=device)
    logits = network(input_ids=ids, token_type_ids=segments).logits
    return torch.cat([logits[number, row.masks] for number, row in enumerate(rows)])


def join_masks(masks: list[list[Candidate]]) -> list[Any]:
    """The candidates of a text as the pipeline nests them: of one mask without a list around."""
    return masks[0] if len(masks) == 1 else masks


def format_candidates(masks: Sequence[Sequence[Candidate]]) -> list[str]:
    """The candidates as lines of a table: probability, a bar, the word."""
    lines = []
    for number, candidates in enumerate(masks, start=1):
        if len(masks) > 1:
            lines.append(f"  mask {number}")
        for candidate in candidates:
            probability = candidate["score"]
            word = candidate["token_str"].strip()
            if not word.isprintable() or not word:
                word = repr(candidate["token_str"])  # a space, or a zero-width non-joiner
            lines.append(f"  {probability:6.1%} {'█' * round(20 * probability):<20} {word}")
    return lines
