"""The account of an examples folder: what the manifest says of it, and the summary for people."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.examples.objectives import OBJECTIVES
from bert_pipeline.examples.splits import Splits
from bert_pipeline.progress import print_pairs
from bert_pipeline.storage.manifest import Manifest
from bert_pipeline.tokenizer.load import LoadedTokenizer, hash_vocabulary


def describe(
    totals: Mapping[str, int], splits: Splits, loaded: LoadedTokenizer, config: ExamplesConfig
) -> dict[str, Any]:
    """The manifest's counts: the totals, and the shares that follow from them."""
    described: dict[str, Any] = dict(sorted(totals.items()))
    described["unknown_rate"] = totals["unknown"] / max(1, totals["tokens"])
    for split in ("train", "validation"):
        described[f"{split}_documents"] = splits.size(split)
        if rows := totals.get(f"{split}_rows", 0):
            tokens = totals[f"{split}_tokens"]
            described[f"{split}_padding"] = 1 - tokens / (rows * config.max_seq_length)
            described[f"{split}_truncated_rate"] = totals[f"{split}_truncated"] / rows
            if OBJECTIVES[config.objective].has_pairs:
                described[f"{split}_label_balance"] = totals[f"{split}_random_next"] / rows
    vocabulary = {"vocab_size": loaded.vocab_size, "vocabulary": hash_vocabulary(loaded.tokenizer)}
    return described | vocabulary | {"special_ids": asdict(loaded.special)}


def summarise(manifest: Manifest, config: ExamplesConfig) -> None:
    """Print what was made."""
    counts = manifest.counts
    rows, tokens = counts["train_rows"], counts["train_tokens"]
    masked = "drawn anew in every epoch"
    if config.masks == "static":
        special = counts["train_masked_special"]
        masked = (
            f"{counts['train_masked'] / tokens:.1%} of the tokens, {special} of them special tokens"
        )
    lines = [
        ("tokens", f"{tokens:,} in training rows, {tokens / rows:.1f} a row"),
        (
            "padding",
            f"{counts['train_padding']:.1%} of a batch padded to {config.max_seq_length} (none is trained on)",
        ),
        (
            "truncated",
            f"{counts['train_truncated_rate']:.1%} of the rows lost tokens to the length",
        ),
        ("unknown", f"{counts['unknown_rate']:.3%} of the tokens"),
        ("to predict", masked),
    ]
    objective = OBJECTIVES[config.objective]
    if objective.has_pairs:
        share = counts["train_label_balance"]
        lines.append(("labels", f"{objective.positive_label} in {share:.1%} of the rows"))
    if config.masks == "static" and (alone := counts["train_without_prediction"]):
        lines.append(
            (
                "nothing to predict",
                f"in {alone:,} rows, whose words are all longer than what may be masked",
            )
        )
    title = (
        f"examples: {rows:,} training rows from {counts['train_documents']:,} documents × {config.dupe_factor}, "
        f"{counts.get('validation_rows', 0):,} held-out rows from {counts['validation_documents']:,} → {config.out}"
    )
    print_pairs(title, lines, quiet=config.quiet)
