"""Cloze evaluation: the rank and probability of the expected word at a mask."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bert_pipeline.errors import BertpipeError
from bert_pipeline.model.unpadded_batch import PretrainingBatch
from bert_pipeline.predict.load import MASK
from bert_pipeline.predict.word_continuation import WordContinuation
from bert_pipeline.pretraining.text_batch import make_text_batch
from bert_pipeline.pretraining.zero_shot.intervals import Estimate
from bert_pipeline.pretraining.zero_shot.masked_lm import MaskedLM, split_by_tokens
from bert_pipeline.pretraining.zero_shot.probes import Probe
from bert_pipeline.progress import print_line
from bert_pipeline.ragged import Int32Array, Int64Array, offsets_of
from bert_pipeline.tokenizer.load import count_ids

TOP_K = 5
SHOWN_PROBES = 20
"""Probes that are printed one by one."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model predicts for a probe."""

    text: str
    expect: tuple[str, ...]
    rank: int | None
    """Of the first token that is an expected word, from 1; None if none is in the vocabulary."""
    probability: float
    """Of all tokens that are an expected word."""
    log_probability: float | None
    predictions: tuple[str, ...]
    """The `TOP_K` first tokens as words."""

    def is_in_top(self, k: int) -> bool:
        """Whether an expected word is among the first `k`."""
        return self.rank is not None and self.rank <= k


@dataclass(frozen=True, slots=True)
class Cloze:
    """Means over probes; a word that is no single token is a wrong answer of probability 0."""

    top1_accuracy: Estimate
    top5_accuracy: Estimate
    mean_reciprocal_rank: Estimate
    probability: Estimate
    log_probability: Estimate | None
    """Over the probes whose word is in the vocabulary; None without any."""
    probes: int
    not_in_vocabulary: int
    """Probes without an expected word in the vocabulary."""
    answers: tuple[Answer, ...]

    @classmethod
    def summarize(cls, answers: Sequence[Answer]) -> "Cloze":
        """The means of some answers."""
        count = len(answers)
        ranks = [answer.rank for answer in answers]
        reciprocal_ranks = [1 / rank if rank else 0.0 for rank in ranks]
        logs = [each.log_probability for each in answers if each.log_probability is not None]
        return cls(
            top1_accuracy=Estimate.of_share(sum(each.is_in_top(1) for each in answers), count),
            top5_accuracy=Estimate.of_share(sum(each.is_in_top(TOP_K) for each in answers), count),
            mean_reciprocal_rank=Estimate.of_mean(reciprocal_ranks, 0.0, 1.0),
            probability=Estimate.of_mean([each.probability for each in answers], 0.0, 1.0),
            log_probability=Estimate.of_mean(logs) if logs else None,
            probes=count,
            not_in_vocabulary=ranks.count(None),
            answers=tuple(answers),
        )

    def describe(self) -> list[tuple[str, str]]:
        """The metrics as lines for people."""
        unknown = self.not_in_vocabulary
        outside = f", {unknown:,} without a word in the vocabulary: wrong" if unknown else ""
        lines = [
            ("top-1 accuracy", self.top1_accuracy.describe()),
            ("top-5 accuracy", self.top5_accuracy.describe()),
            ("mean reciprocal rank", self.mean_reciprocal_rank.describe(".3f")),
            ("probability", self.probability.describe()),
        ]
        if self.log_probability is not None:
            lines.append(("log-probability", f"{self.log_probability.describe('.2f')} nats"))
        return [*lines, ("measured on", f"{self.probes:,} probes{outside}")]

    def describe_answers(self) -> list[str]:
        """Two lines for each probe: whether its word is found, and the predictions."""
        lines = []
        for answer in self.answers:
            found = "yes" if answer.is_in_top(TOP_K) else "no"
            lines.append(f"  {found:<3}  {answer.text.replace(MASK, f'[{answer.expect[0]}]')}")
            lines.append(f"       {', '.join(answer.predictions)}")
        return lines

    def print_answers(self, *, quiet: bool = False) -> None:
        """Print the first probes with their predictions."""
        print_line("\n".join(self.describe_answers()[: 2 * SHOWN_PROBES]), quiet=quiet)
        if (others := self.probes - SHOWN_PROBES) > 0:
            print_line(f"  and {others:,} more: --json has all", quiet=quiet)


def evaluate_cloze(model: Path, probes: Sequence[Probe]) -> Cloze:
    """Evaluate a model folder on probes."""
    return measure_cloze(MaskedLM.load(model), probes)


def measure_cloze(lm: MaskedLM, probes: Sequence[Probe]) -> Cloze:
    """The answers of a model to probes."""
    words = Words(lm.mask_tokenizer)
    rows = _encode(lm, probes)
    expected = [words.find(probe.expect) for probe in probes]
    parts = split_by_tokens(np.array([len(row) for row in rows], dtype=np.int64))

    def make_batch(part: Int64Array) -> PretrainingBatch:
        return _make_batch([rows[number] for number in part.tolist()], lm.tokenizer.special.mask)

    def figures(scores: Tensor, part: Int64Array) -> Tensor:
        return _measure(scores, [expected[number] for number in part.tolist()])

    found = lm.measure(parts, make_batch, figures)
    answers = []
    for probe, (rank, log_probability, *top) in zip(probes, found.tolist(), strict=True):
        is_known = rank > 0
        answers.append(
            Answer(
                text=probe.text,
                expect=probe.expect,
                rank=int(rank) if is_known else None,
                probability=math.exp(log_probability) if is_known else 0.0,
                log_probability=log_probability if is_known else None,
                predictions=tuple(words.names[int(number)] for number in top),
            )
        )
    return Cloze.summarize(answers)


class Words:
    """The entries of a vocabulary as words: without spaces around them, in any case."""

    def __init__(self, tokenizer: Any) -> None:
        count = count_ids(tokenizer)
        decoded = tokenizer.decode_batch([[number] for number in range(count)], False)
        self.names = [name.strip() for name in decoded]
        self._ids: dict[str, list[int]] = {}
        for number, name in enumerate(self.names):
            self._ids.setdefault(name.casefold(), []).append(number)

    def find(self, words: Sequence[str]) -> list[int]:
        """The ids of the entries that are one of the words."""
        return sorted({number for word in words for number in self._ids.get(word.casefold(), [])})


def _encode(lm: MaskedLM, probes: Sequence[Probe]) -> list[Int32Array]:
    """The ids of the texts, with special tokens, encoded as `fill-mask` does."""
    tokenizer = lm.mask_tokenizer
    mask_id = lm.tokenizer.special.mask
    mask_token = tokenizer.id_to_token(mask_id)
    continuation = WordContinuation.for_tokenizer(tokenizer, mask_id)
    rows = []
    for probe in probes:
        text = probe.text.replace(MASK, mask_token)
        encoding = tokenizer.encode(text)
        ids = continuation.correct(text, encoding) if continuation else encoding.ids
        if len(ids) > lm.max_length:
            raise BertpipeError(
                f"{probe.where}: {len(ids)} tokens, more than the model's {lm.max_length}."
            )
        if ids.count(mask_id) != 1:
            raise BertpipeError(f"{probe.where}: text must have one {MASK}.")
        rows.append(np.array(ids, dtype=np.int32))
    return rows


def _make_batch(rows: Sequence[Int32Array], mask_id: int) -> PretrainingBatch:
    offsets = offsets_of(np.array([len(row) for row in rows], dtype=np.int64))
    tokens = np.concatenate(rows)
    return make_text_batch(tokens, offsets, np.flatnonzero(tokens == mask_id), None)


def _measure(scores: Tensor, expected: Sequence[Sequence[int]]) -> Tensor:
    """Rank (0 without an expected id), log-probability, and the `TOP_K` first ids of each row."""
    log_probabilities = scores.log_softmax(1)
    rows = []
    for own, ids in zip(log_probabilities, expected, strict=True):
        rank = (own >= own[list(ids)].amax()).sum() if ids else own.new_zeros(())
        total = own[list(ids)].logsumexp(0) if ids else own.new_zeros(())
        rows.append(torch.cat([torch.stack([rank, total]).double(), own.topk(TOP_K).indices]))
    return torch.stack(rows)
