"""Evaluation on held-out examples, whose masks are fixed so that all evaluations compare."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForMaskedLM, BertForPreTraining
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from bert_pipeline.errors import BertpipeError
from bert_pipeline.examples.schema import STAGE, TOKEN_COUNTS
from bert_pipeline.examples.splits import Split
from bert_pipeline.model.architectures import count_positions
from bert_pipeline.model.pretraining_model import PretrainingModel
from bert_pipeline.model.unpadded_batch import PretrainingBatch
from bert_pipeline.predict.load import find_model, load_model, read_architectures, read_tokenizer
from bert_pipeline.pretraining.batches import Examples, chunks
from bert_pipeline.progress import bar, err, human_count
from bert_pipeline.ragged import Int64Array
from bert_pipeline.storage.manifest import Manifest, read_manifest, verify_file
from bert_pipeline.tokenizer.load import hash_vocabulary

ROWS_PER_BATCH = 64
MASK_SUMS = ("mlm_loss", "top1_correct", "top5_correct", "unigram_loss", "masked_tokens")
"""What is summed over masked tokens."""
SUMS = (*MASK_SUMS, "pairs_correct", "pairs")
"""What is summed over examples, in the order of the sums' elements."""
SHOWN_SOURCES = 5
"""How many sources are printed, those with the most masked tokens."""
NAME_LENGTH = 24
"""Most characters of a source that are printed, so that its figures are one line of 80 columns."""


class SourceMetrics(TypedDict):
    """Metrics over the masked tokens of one source's documents."""

    mlm_loss: float
    top1_accuracy: float
    top5_accuracy: float
    unigram_loss: float
    masked_tokens: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics over masked tokens (losses in nats) and sentence pairs (None without them)."""

    mlm_loss: float
    perplexity: float
    top1_accuracy: float
    top5_accuracy: float
    nsp_accuracy: float | None
    unigram_loss: float
    masked_tokens: int
    bits_per_byte: float | None
    """`mlm_loss` in bits per UTF-8 byte of text, which compares across tokenizers; None for
    examples that an older version made."""
    sources: Mapping[str, SourceMetrics] | None = None
    """Of each source with a masked token; None for a corpus of one source, for training examples,
    and for examples that an older version made."""

    def describe(self, split: str = "validation") -> list[tuple[str, str]]:
        """The metrics on the examples of a split as lines for people."""
        gain = self.unigram_loss - self.mlm_loss
        side = "below" if gain >= 0 else "above"
        baseline = f"{abs(gain):.2f} {side} the unigram baseline ({self.unigram_loss:.3f})"
        documents = "held-out" if split == "validation" else "training"
        perplexity = f"{self.perplexity:.1f}"
        if self.bits_per_byte is not None:
            perplexity += f", {self.bits_per_byte:.3f} bits per byte"
        lines = [
            ("masked-LM loss", f"{self.mlm_loss:.3f} nats, {baseline}"),
            ("perplexity", perplexity),
            ("top-1 accuracy", f"{self.top1_accuracy:.1%} (top-5 {self.top5_accuracy:.1%})"),
        ]
        if self.nsp_accuracy is not None:
            lines.append(("sentence pairs", f"{self.nsp_accuracy:.1%} accuracy"))
        measured = f"{self.masked_tokens:,} masked tokens of {documents} documents"
        names = ("by source", *[""] * SHOWN_SOURCES)
        by_source = zip(names, self.describe_sources(), strict=False)
        return [*lines, ("measured on", measured), *by_source]

    def describe_sources(self) -> list[str]:
        """A line for each of the largest sources; none with a single source."""
        if self.sources is None or len(self.sources) < 2:
            return []
        largest_first = sorted(self.sources.items(), key=lambda item: -item[1]["masked_tokens"])
        lines = [
            f"{found['mlm_loss']:.3f} nats, top-1 {found['top1_accuracy']:.1%} of "
            f"{human_count(found['masked_tokens'])}: {_shorten(name)}"
            for name, found in largest_first[:SHOWN_SOURCES]
        ]
        if (others := len(largest_first) - SHOWN_SOURCES) > 0:
            lines.append(f"and {others:,} smaller")
        return lines


def _shorten(source: str) -> str:
    """The end of a long name: paths begin alike."""
    return source if len(source) <= NAME_LENGTH else f"…{source[1 - NAME_LENGTH :]}"


def unigram_log_probabilities(examples_folder: Path) -> torch.Tensor:
    """Add-one smoothed log-frequencies of the training tokens, float32 `[vocab_size]`."""
    path = examples_folder / TOKEN_COUNTS
    verify_file(path, read_manifest(examples_folder, STAGE).files[TOKEN_COUNTS]["sha256"])
    counts = np.load(path, allow_pickle=False)
    smoothed = torch.from_numpy(counts).double() + 1
    return (smoothed / smoothed.sum()).log().float()


@torch.no_grad()
def sum_metrics(
    model: PretrainingModel, examples: Examples, rows: Int64Array, unigram: torch.Tensor
) -> torch.Tensor:
    """The `SUMS` over some rows, then those of each source; see `empty_sums`."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    sums = empty_sums(examples, device)
    unigram = unigram.to(device)
    for part in chunks(rows, ROWS_PER_BATCH):
        batch = examples.collate(part).to(device)
        found = _measure_batch(model, batch, unigram)
        sums[0] += found.sums
        if examples.sources:
            of_source = torch.from_numpy(examples.masks_of_sources(part)).to(device)
            sums[1:, : len(MASK_SUMS)] += found.sum_masks(of_source)
    model.train(was_training)
    return sums


def empty_sums(examples: Examples, device: torch.device) -> torch.Tensor:
    """Zeros, float64 `[1 + sources, len(SUMS)]`; pairs are not summed by source."""
    return torch.zeros(1 + len(examples.sources), len(SUMS), dtype=torch.float64, device=device)


@dataclass(frozen=True, slots=True)
class _Measured:
    """What was measured in a batch."""

    sums: torch.Tensor
    """The `SUMS`, float64."""
    masks: Mapping[str, torch.Tensor]
    """The terms of `MASK_SUMS`, one for each masked token."""

    def sum_masks(self, groups: torch.Tensor) -> torch.Tensor:
        """`MASK_SUMS` of groups of masked tokens, given as bool `[groups, masked tokens]`."""
        terms = torch.stack([self.masks[name].double() for name in MASK_SUMS], dim=1)
        return torch.where(groups[:, :, None], terms, 0.0).sum(1)


def _measure_batch(
    model: PretrainingModel, batch: PretrainingBatch, unigram: torch.Tensor
) -> _Measured:
    scores, pair_scores = model.score(batch)
    logits = scores.float()
    labels = batch.masked_labels
    # Masked tokens. The rank of a label counts equal scores, and NaN, before it.
    own = logits.gather(1, labels[:, None])
    rank = (~(logits < own)).sum(1)
    log_probabilities = logits.log_softmax(1)
    masks = {
        "mlm_loss": F.nll_loss(log_probabilities, labels, reduction="none"),
        "top1_correct": rank <= 1,
        "top5_correct": rank <= 5,
        "unigram_loss": -unigram[labels],
        "masked_tokens": torch.ones_like(labels),
    }
    # Sentence pairs.
    pairs_correct = torch.zeros((), device=logits.device)
    pairs = 0
    if pair_scores is not None and batch.is_random_next is not None:
        pairs_correct = (pair_scores.argmax(1) == batch.is_random_next).sum()
        pairs = len(pair_scores)
    sums = {name: terms.sum() for name, terms in masks.items()} | {
        # Rounded otherwise than the sum of `masks`, as in the evaluations of earlier versions.
        "mlm_loss": F.nll_loss(log_probabilities, labels, reduction="sum"),
        "pairs_correct": pairs_correct,
        "pairs": torch.tensor(pairs),
    }
    return _Measured(torch.stack([sums[name].double().to(logits.device) for name in SUMS]), masks)


def compute_metrics(sums: torch.Tensor, examples: Examples) -> Evaluation:
    """Metrics from the sums of all rows and those of each source."""
    total, *by_source = (dict(zip(SUMS, row, strict=True)) for row in sums.tolist())
    found = _divide_by_masks(total)
    loss = found["mlm_loss"]
    pairs = total["pairs"]
    size = examples.bytes_per_token
    named = zip(examples.sources, by_source, strict=True)
    return Evaluation(
        **found,
        perplexity=float(np.exp(min(loss, 700.0))),
        nsp_accuracy=total["pairs_correct"] / pairs if pairs else None,
        bits_per_byte=None if size is None else loss / math.log(2) / size,
        sources={name: _divide_by_masks(part) for name, part in named if part["masked_tokens"]}
        or None,
    )


def _divide_by_masks(sums: Mapping[str, float]) -> SourceMetrics:
    masked = sums["masked_tokens"] or math.nan  # a few rows may have no mask
    return {
        "mlm_loss": sums["mlm_loss"] / masked,
        "top1_accuracy": sums["top1_correct"] / masked,
        "top5_accuracy": sums["top5_correct"] / masked,
        "unigram_loss": sums["unigram_loss"] / masked,
        "masked_tokens": int(sums["masked_tokens"]),
    }


def load_pretrained(folder: Path) -> Any:
    """Load a model folder with the heads that it was saved with."""
    names = read_architectures(folder)
    if "BertForPreTraining" in names:
        return load_model(folder, BertForPreTraining)
    if set(names) & set(MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()):
        return load_model(folder, AutoModelForMaskedLM)
    found = ", ".join(names) or "unnamed"
    raise BertpipeError(
        f"{folder}: a BertForPreTraining or a masked LM was expected, but this model is {found}."
    )


def evaluate_folder(
    model: Path, examples_folder: Path, split: Split, *, quiet: bool = False
) -> Evaluation:
    """Evaluate a model folder on one split of an examples folder.

    Raises `BertpipeError` if the examples were made for another model.
    """
    manifest = read_manifest(examples_folder, STAGE)
    folder = find_model(model)
    network = load_pretrained(folder)
    _check_match(model, folder, network, examples_folder, manifest)
    vocab_size = network.config.vocab_size
    examples = Examples.open(examples_folder, manifest, split, vocab_size, quiet=quiet)
    if examples.has_pairs and not isinstance(network, BertForPreTraining) and not quiet:
        err.print("Sentence pairs are not measured: the model has no head for them.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pretrained = PretrainingModel(network).to(device)
    unigram = unigram_log_probabilities(examples_folder)
    sums = empty_sums(examples, network.device)
    with bar("evaluating", len(examples), quiet=quiet) as progress:
        for rows in chunks(np.arange(len(examples)), ROWS_PER_BATCH):
            sums += sum_metrics(pretrained, examples, rows, unigram)
            progress.advance(len(rows))
    if not sums[0, SUMS.index("masked_tokens")]:
        raise BertpipeError(f"{examples_folder}: no {split} example has a token to predict.")
    if not sums.isfinite().all():
        raise BertpipeError(f"{folder}: its loss is not a finite number; check its config.json.")
    return compute_metrics(sums, examples)


def _check_match(
    model: Path, folder: Path, network: Any, examples_folder: Path, manifest: Manifest
) -> None:
    """Raise `BertpipeError` if the examples were not made for the model."""
    advice = "use the examples that were made for the model."
    vocab_size = network.config.vocab_size
    expected = manifest.counts["vocab_size"]
    tokenizer = read_tokenizer(folder)
    # The vocabulary of a model may be padded beyond that of its tokenizer.
    if vocab_size < expected or (vocab_size > expected and tokenizer is None):
        raise BertpipeError(
            f"{model} has a vocabulary of {vocab_size} tokens, but {examples_folder} was made with "
            f"one of {expected}; {advice}"
        )
    if tokenizer and hash_vocabulary(tokenizer) != manifest.counts["vocabulary"]:
        raise BertpipeError(
            f"{examples_folder} was made with another tokenizer than that of {model}; {advice}"
        )
    positions = count_positions(network.config)
    length = manifest.config["max_seq_length"]
    if positions is not None and positions < length:
        raise BertpipeError(
            f"{examples_folder} has examples of up to {length} tokens, but {model} has {positions} "
            "positions."
        )
