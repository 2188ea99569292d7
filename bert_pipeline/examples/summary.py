"""The counts of an examples folder: for the manifest, and as a summary for people."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.examples.encode_corpus import find_sources
from bert_pipeline.examples.objectives import OBJECTIVES
from bert_pipeline.examples.splits import Splits
from bert_pipeline.progress import count_of, print_line, print_pairs
from bert_pipeline.storage.manifest import Manifest
from bert_pipeline.tokenizer.load import LoadedTokenizer, hash_vocabulary

MIN_USED_RATE = 0.8
"""A warning is printed if a smaller share of the training text reaches an example."""

CHINESE = frozenset({"zh", "yue", "wuu", "lzh"})
"""Chinese languages: some tokenizers, such as BERT's, make each character a word."""
UNSPACED = {"ja": "Japanese", "km": "Khmer", "lo": "Lao", "my": "Burmese", "th": "Thai"}
"""Other languages that are written without spaces between words."""


def manifest_counts(
    totals: Mapping[str, int],
    splits: Splits,
    loaded: LoadedTokenizer,
    corpus: Manifest,
    config: ExamplesConfig,
) -> dict[str, Any]:
    """The manifest's counts: the totals, the rates computed from them, languages and sources.

    A corpus made by an earlier version has no `languages`: documents of each by its code. Only
    several sources are listed: those that the column `source` may have.
    """
    counts: dict[str, Any] = dict(sorted(totals.items()))
    if "languages" in corpus.counts:
        counts["languages"] = corpus.counts["languages"]
    if sources := find_sources(corpus):
        counts["sources"] = list(sources)
    counts["unknown_rate"] = totals["unknown"] / max(1, totals["tokens"])
    counts["validation_share"] = 1 - totals["train_document_tokens"] / totals["tokens"]
    counts["train_used_rate"] = totals["train_tokens_used"] / totals["train_document_tokens"]
    for split in ("train", "validation"):
        counts[f"{split}_documents"] = splits.size(split)
        if rows := totals.get(f"{split}_rows", 0):
            tokens = totals[f"{split}_tokens"]
            counts[f"{split}_padding"] = 1 - tokens / (rows * config.max_seq_length)
            counts[f"{split}_truncated_rate"] = totals[f"{split}_truncated"] / rows
            if OBJECTIVES[config.objective].has_pairs:
                counts[f"{split}_label_balance"] = totals[f"{split}_random_next"] / rows
    vocabulary = {"vocab_size": loaded.vocab_size, "vocabulary": hash_vocabulary(loaded.tokenizer)}
    return counts | vocabulary | {"special_ids": asdict(loaded.special)}


def print_note_on_words(corpus: Manifest, loaded: LoadedTokenizer, config: ExamplesConfig) -> None:
    """Say where the corpus has languages in which whole-word masking masks no words."""
    if config.mask_unit != "whole-word":
        return
    languages = {code.partition("-")[0] for code in corpus.counts.get("languages", {})}
    runs = [name for code, name in UNSPACED.items() if code in languages]
    facts = []
    if languages & CHINESE:
        words = set(loaded.tokenizer.encode("中文", add_special_tokens=False).word_ids)
        if len(words) == 2:
            facts.append("in Chinese a word is one character, so it masks what `token` masks")
        else:
            runs.insert(0, "Chinese")
    if runs:
        facts.append(
            f"in {', '.join(runs)} a word is all text between spaces or punctuation, often a "
            "whole clause"
        )
    if facts:
        print_line(f"note: --mask-unit whole-word: {'; '.join(facts)}", quiet=config.quiet)


def print_summary(manifest: Manifest, config: ExamplesConfig) -> None:
    """Print the result in a few lines, and all counts with `--verbose`."""
    counts = manifest.counts
    rows = counts["train_rows"]
    tokens = counts["train_tokens"]
    lines = [
        f"examples: {rows:,} for training, {counts.get('validation_rows', 0):,} for validation "
        f"→ {config.out}",
        f"  {tokens:,} training tokens, {tokens / rows:.1f} per example",
        f"  {counts['train_used_rate']:.1%} of the training text is in at least one example",
    ]
    if counts["train_used_rate"] < MIN_USED_RATE:
        length = counts["tokens"] / counts["sentences"]
        lines.append(
            "  warning: pairs lose the tokens that exceed --max-seq-length, most where sentences "
            f"are long (here {length:.0f} tokens on average). Use --objective mlm, or raise "
            "--dupe-factor or --max-seq-length"
        )
    if config.masks == "static" and (empty := counts["train_without_prediction"]):
        examples = count_of(empty, "example")
        lines.append(f"  {examples} without a masked token: --max-predictions is too small")
    print_line("\n".join(lines), quiet=config.quiet)
    if config.verbose:
        print_pairs("Training examples", _details(counts, config), quiet=config.quiet)


def _details(counts: Mapping[str, Any], config: ExamplesConfig) -> list[tuple[str, str]]:
    masked = "drawn in each epoch of training (--masks dynamic)"
    if config.masks == "static":
        special = counts["train_masked_special"]
        rate = counts["train_masked"] / counts["train_tokens"]
        masked = f"{rate:.1%} of the tokens, {special} of them special tokens"
    details = [
        ("documents", _describe_splits(counts, config)),
        ("to predict", masked),
        ("unknown tokens", f"{counts['unknown_rate']:.3%}"),
        (
            "padding",
            f"{counts['train_padding']:.1%} if padded to {config.max_seq_length} (bertpipe trains "
            "without padding)",
        ),
    ]
    objective = OBJECTIVES[config.objective]
    if objective.has_pairs:
        share = counts["train_label_balance"]
        details.append(("labels", f"{objective.positive_label} in {share:.1%}"))
    return details


def _describe_splits(counts: Mapping[str, Any], config: ExamplesConfig) -> str:
    text = (
        f"{counts['train_documents']:,} for training, {count_of(config.dupe_factor, 'pass')}; "
        f"{counts['validation_documents']:,} for validation, "
        f"{counts['validation_share']:.1%} of the text"
    )
    if divided := counts["divided_documents"]:
        text += f"; {count_of(divided, 'long document')} divided, only the end held out"
    return text
