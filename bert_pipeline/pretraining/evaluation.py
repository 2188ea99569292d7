"""Evaluation on held-out examples, whose masks are fixed so that all evaluations compare."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from bert_pipeline.predict.load import find_model, load_model, read_tokenizer
from bert_pipeline.pretraining.batches import Examples, chunks
from bert_pipeline.progress import bar, err
from bert_pipeline.ragged import Int64Array
from bert_pipeline.storage.manifest import Manifest, read_manifest, verify_file
from bert_pipeline.tokenizer.load import hash_vocabulary

ROWS_PER_BATCH = 64
SUMS = (
    "mlm_loss",
    "top1_correct",
    "top5_correct",
    "unigram_loss",
    "masked_tokens",
    "pairs_correct",
    "pairs",
)
"""What is summed over examples, in the order of the sums' elements."""


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
    """The `SUMS` over some rows, float64 `[len(SUMS)]`."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
    unigram = unigram.to(device)
    for part in chunks(rows, ROWS_PER_BATCH):
        sums += _sum_batch(model, examples.collate(part).to(device), unigram)
    model.train(was_training)
    return sums


def _sum_batch(
    model: PretrainingModel, batch: PretrainingBatch, unigram: torch.Tensor
) -> torch.Tensor:
    scores, pair_scores = model.score(batch)
    logits = scores.float()
    labels = batch.masked_labels
    # Masked tokens. The rank of a label counts equal scores, and NaN, before it.
    own = logits.gather(1, labels[:, None])
    rank = (~(logits < own)).sum(1)
    # Sentence pairs.
    pairs_correct = torch.zeros((), device=logits.device)
    pairs = 0
    if pair_scores is not None and batch.is_random_next is not None:
        pairs_correct = (pair_scores.argmax(1) == batch.is_random_next).sum()
        pairs = len(pair_scores)
    sums = {
        "mlm_loss": F.cross_entropy(logits, labels, reduction="sum"),
        "top1_correct": (rank <= 1).sum(),
        "top5_correct": (rank <= 5).sum(),
        "unigram_loss": -unigram[labels].sum(),
        "masked_tokens": torch.tensor(len(labels)),
        "pairs_correct": pairs_correct,
        "pairs": torch.tensor(pairs),
    }
    return torch.stack([sums[name].double().to(logits.device) for name in SUMS])


def compute_metrics(sums: torch.Tensor, bytes_per_token: float | None) -> Evaluation:
    """Metrics from the sums of all rows; `bytes_per_token` is that of the examples."""
    total = dict(zip(SUMS, sums.tolist(), strict=True))
    masked = total["masked_tokens"] or math.nan  # a few rows may have no mask
    loss = total["mlm_loss"] / masked
    pairs = total["pairs"]
    return Evaluation(
        mlm_loss=loss,
        perplexity=float(np.exp(min(loss, 700.0))),
        top1_accuracy=total["top1_correct"] / masked,
        top5_accuracy=total["top5_correct"] / masked,
        nsp_accuracy=total["pairs_correct"] / pairs if pairs else None,
        unigram_loss=total["unigram_loss"] / masked,
        masked_tokens=int(total["masked_tokens"]),
        bits_per_byte=None if bytes_per_token is None else loss / math.log(2) / bytes_per_token,
    )


def describe(evaluation: Evaluation, split: str = "validation") -> list[tuple[str, str]]:
    """The metrics on the examples of a split as lines for people."""
    gain = evaluation.unigram_loss - evaluation.mlm_loss
    side = "below" if gain >= 0 else "above"
    baseline = f"{abs(gain):.2f} {side} the unigram baseline ({evaluation.unigram_loss:.3f})"
    documents = "held-out" if split == "validation" else "training"
    top1 = f"{evaluation.top1_accuracy:.1%}"
    perplexity = f"{evaluation.perplexity:.1f}"
    if evaluation.bits_per_byte is not None:
        perplexity += f", {evaluation.bits_per_byte:.3f} bits per byte"
    lines = [
        ("masked-LM loss", f"{evaluation.mlm_loss:.3f} nats, {baseline}"),
        ("perplexity", perplexity),
        ("top-1 accuracy", f"{top1} (top-5 {evaluation.top5_accuracy:.1%})"),
    ]
    if evaluation.nsp_accuracy is not None:
        lines.append(("sentence pairs", f"{evaluation.nsp_accuracy:.1%} accuracy"))
    measured = f"{evaluation.masked_tokens:,} masked tokens of {documents} documents"
    return [*lines, ("measured on", measured)]


def load_pretrained(folder: Path) -> Any:
    """Load a model folder with the heads that it was saved with."""
    names = _read_architectures(folder)
    if "BertForPreTraining" in names:
        return load_model(folder, BertForPreTraining)
    if set(names) & set(MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()):
        return load_model(folder, AutoModelForMaskedLM)
    found = ", ".join(names) or "unnamed"
    raise BertpipeError(
        f"{folder}: a BertForPreTraining or a masked LM was expected, but this model is {found}."
    )


def _read_architectures(folder: Path) -> list[str]:
    path = folder / "config.json"
    try:
        names = json.loads(path.read_text(encoding="utf-8")).get("architectures") or []
        return [str(name) for name in names]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        raise BertpipeError(f"{path}: not the config of a transformers model.") from None


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
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=network.device)
    with bar("evaluating", len(examples), quiet=quiet) as progress:
        for rows in chunks(np.arange(len(examples)), ROWS_PER_BATCH):
            sums += sum_metrics(pretrained, examples, rows, unigram)
            progress.advance(len(rows))
    if not sums[SUMS.index("masked_tokens")]:
        raise BertpipeError(f"{examples_folder}: no {split} example has a token to predict.")
    if not sums.isfinite().all():
        raise BertpipeError(f"{folder}: its loss is not a finite number; check its config.json.")
    return compute_metrics(sums, examples.bytes_per_token)


def _check_match(
    model: Path, folder: Path, network: Any, examples_folder: Path, manifest: Manifest
) -> None:
    """Raise `BertpipeError` if the examples were not made for the model."""
    advice = "use the examples that were made for the model."
    vocab_size = network.config.vocab_size
    expected = manifest.counts["vocab_size"]
    if vocab_size != expected:
        raise BertpipeError(
            f"{model} has a vocabulary of {vocab_size} tokens, but {examples_folder} was made with "
            f"one of {expected}; {advice}"
        )
    tokenizer = read_tokenizer(folder)
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
