"""Evaluation on held-out examples whose masks were written once, so that every evaluation sees the same ones."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import AutoModelForMaskedLM, BertForPreTraining
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from bert_pipeline.errors import BertpipeError
from bert_pipeline.examples.schema import STAGE, TOKEN_COUNTS
from bert_pipeline.examples.splits import Split
from bert_pipeline.model.architectures import count_positions
from bert_pipeline.model.pretraining_model import PretrainingModel
from bert_pipeline.model.unpadded_batch import UnpaddedBatch
from bert_pipeline.predict.load import find_model, load_model
from bert_pipeline.pretraining.batches import Examples, chunks
from bert_pipeline.progress import bar
from bert_pipeline.ragged import Int64Array
from bert_pipeline.storage.manifest import read_manifest
from bert_pipeline.tokenizer.load import hash_vocabulary

ROWS_A_BATCH = 64
FIGURES, MASKED = 7, 4
"""How many sums make an evaluation, and which of them counts the masked tokens."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures over masked tokens (losses in nats) and sentence pairs (None without them)."""

    mlm_loss: float
    perplexity: float
    top1_accuracy: float
    top5_accuracy: float
    nsp_accuracy: float | None
    unigram_loss: float
    masked_tokens: int


def unigram_log_probabilities(examples_folder: Path) -> torch.Tensor:
    """Log-frequencies of the training documents' tokens, add-one smoothed; float32 of shape (vocab_size,)."""
    counts = (
        torch.from_numpy(np.load(examples_folder / TOKEN_COUNTS, allow_pickle=False)).double() + 1
    )
    return (counts / counts.sum()).log().float()


@torch.no_grad()
def sum_figures(
    model: PretrainingModel, examples: Examples, rows: Int64Array, unigram: torch.Tensor
) -> torch.Tensor:
    """Sums over `rows`, float64: loss, top-1, top-5, unigram loss, masked tokens, right pairs, pairs."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    sums = torch.zeros(FIGURES, dtype=torch.float64, device=device)
    unigram = unigram.to(device)
    for part in chunks(rows, ROWS_A_BATCH):
        sums += _sum_batch(model, examples.collate(part).to(device), unigram)
    model.train(was_training)
    return sums


def _sum_batch(
    model: PretrainingModel, batch: UnpaddedBatch, unigram: torch.Tensor
) -> torch.Tensor:
    scores, pair_scores = model.score(batch)
    logits = scores.float()
    labels = batch.masked_labels
    own = logits.gather(1, labels[:, None])
    better = (~(logits <= own)).sum(1)  # where nothing can be compared, all are: NaN is never right
    right, pairs = torch.zeros((), device=logits.device), 0
    if pair_scores is not None and batch.is_random_next is not None:
        right = (pair_scores.argmax(1) == batch.is_random_next).sum()
        pairs = len(pair_scores)
    figures = [
        F.cross_entropy(logits, labels, reduction="sum"),
        (better < 1).sum(),
        (better < 5).sum(),
        -unigram[labels].sum(),
        torch.tensor(len(labels)),
        right,
        torch.tensor(pairs),
    ]
    return torch.stack([figure.double().to(logits.device) for figure in figures])


def summarise(sums: torch.Tensor) -> Evaluation:
    """Figures out of the sums of all rows."""
    loss, top1, top5, unigram, masked, right, pairs = sums.tolist()
    each = masked or math.nan  # the few rows that are looked at in between may have no mask
    return Evaluation(
        mlm_loss=loss / each,
        perplexity=float(np.exp(min(loss / each, 700.0))),
        top1_accuracy=top1 / each,
        top5_accuracy=top5 / each,
        nsp_accuracy=right / pairs if pairs else None,
        unigram_loss=unigram / each,
        masked_tokens=int(masked),
    )


def describe(evaluation: Evaluation, split: str = "validation") -> list[tuple[str, str]]:
    """The figures on the examples of a split as lines for people."""
    gain = evaluation.unigram_loss - evaluation.mlm_loss
    side = "under" if gain >= 0 else "above"
    baseline = f"{abs(gain):.2f} {side} the unigram baseline ({evaluation.unigram_loss:.3f})"
    documents = "held-out" if split == "validation" else "training"
    lines = [
        (
            "masked loss",
            f"{evaluation.mlm_loss:.3f} nats, {baseline}",
        ),
        ("perplexity", f"{evaluation.perplexity:.1f}"),
        (
            "masked word right",
            f"{evaluation.top1_accuracy:.1%} top-1, {evaluation.top5_accuracy:.1%} top-5",
        ),
    ]
    if evaluation.nsp_accuracy is not None:
        lines.append(("sentence pairs right", f"{evaluation.nsp_accuracy:.1%}"))
    return [
        *lines,
        ("measured on", f"{evaluation.masked_tokens:,} masked tokens of {documents} documents"),
    ]


def load_pretrained(folder: Path) -> Any:
    """Load a model folder with the heads that it was saved with."""
    names = (
        json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    )
    if "BertForPreTraining" in names:
        return load_model(folder, BertForPreTraining)
    if set(names) & set(MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()):
        return load_model(folder, AutoModelForMaskedLM)
    raise BertpipeError(
        f"{folder}: a BertForPreTraining or a masked LM was expected, this is {', '.join(names) or 'unnamed'}."
    )


def evaluate_folder(
    model: Path, examples_folder: Path, split: Split, *, quiet: bool = False
) -> Evaluation:
    """Evaluate a model folder on one split of an examples folder.

    Raises `BertpipeError` where the two do not belong together.
    """
    manifest = read_manifest(examples_folder, STAGE)
    folder = find_model(model)
    network = load_pretrained(folder)
    if network.config.vocab_size != manifest.counts["vocab_size"]:
        raise BertpipeError(
            f"{model} has a vocabulary of {network.config.vocab_size}, but {examples_folder} was made with one of "
            f"{manifest.counts['vocab_size']}: give the examples that belong to the model."
        )
    tokenizer = folder / "tokenizer.json"
    if (
        tokenizer.is_file()
        and hash_vocabulary(Tokenizer.from_file(str(tokenizer))) != manifest.counts["vocabulary"]
    ):
        raise BertpipeError(
            f"{examples_folder} was made with another tokenizer than that of {model}, so the figures would mean "
            "nothing: give the examples that belong to the model."
        )
    positions = count_positions(network.config)
    if positions is not None and positions < manifest.config["max_seq_length"]:
        raise BertpipeError(
            f"{examples_folder} holds examples of up to {manifest.config['max_seq_length']} tokens, but {model} has "
            f"{positions} positions."
        )
    examples = Examples.open(
        examples_folder, manifest, split, network.config.vocab_size, quiet=quiet
    )
    pretrained = PretrainingModel(network).to("cuda" if torch.cuda.is_available() else "cpu")
    unigram = unigram_log_probabilities(examples_folder)
    sums = torch.zeros(FIGURES, dtype=torch.float64, device=network.device)
    with bar("evaluating", len(examples), quiet=quiet) as progress:
        for rows in chunks(np.arange(len(examples)), ROWS_A_BATCH):
            sums += sum_figures(pretrained, examples, rows, unigram)
            progress.advance(len(rows))
    if not sums[MASKED]:
        raise BertpipeError(
            f"{examples_folder}: none of its {split} examples has a token to predict."
        )
    return summarise(sums)
