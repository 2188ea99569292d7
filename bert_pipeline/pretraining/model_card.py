"""The model card: the README of a finished model folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.storage.manifest import Manifest
from bert_pipeline.training.position import Position

METRIC_TITLES = {
    "eval_mlm_loss": "masked-LM loss (nats)",
    "eval_unigram_loss": "unigram baseline (nats)",
    "eval_perplexity": "perplexity",
    "eval_bits_per_byte": "bits per byte of text",
    "eval_top1_accuracy": "top-1 accuracy",
    "eval_top5_accuracy": "top-5 accuracy",
    "eval_nsp_accuracy": "sentence-pair accuracy",
}


def write_model_card(
    folder: Path,
    config: PretrainConfig,
    examples: Manifest,
    position: Position,
    metrics: Mapping[str, Any],
) -> None:
    """Write `README.md`: training data, settings and metrics of the model.

    The normalization of the text is read from the tokenizer in `folder`.
    """
    languages: Mapping[str, int] = examples.counts.get("languages", {})
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    steps = list(_list_normalizers(tokenizer["normalizer"]))
    rows = [
        f"| {title} | {metrics[key]:.4f} |"
        for key, title in METRIC_TITLES.items()
        if metrics.get(key) is not None
    ]
    table = ["", "| on held-out documents | |", "|---|---|", *rows] if rows else []
    objective = examples.config["objective"]
    length = examples.config["max_seq_length"]
    documents = examples.counts["train_documents"]
    lines = [
        "---",
        _format_header(languages, steps),
        "---",
        "",
        "# A masked language model pretrained with bertpipe",
        "",
        f"Objective {objective}, examples of up to {length} tokens, {documents:,} documents; "
        f"{position.step:,} steps with batch size {config.batch_size}, {position.tokens:,} tokens, "
        f"optimizer {config.optimizer}, seed {config.seed}.",
        "",
        *_describe_languages(languages),
        f"Text is {'' if 'lowercase' in steps else 'not '}lower-cased. "
        f"Normalization: {', '.join(steps) or 'none'}.",
        *table,
        "",
        "```python",
        "from transformers import pipeline",
        "",
        'fill = pipeline("fill-mask", model="PATH_OF_THIS_FOLDER")',
        "```",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _format_header(languages: Mapping[str, int], normalization: Sequence[str]) -> str:
    """What the Hub and other programs read, as YAML."""
    import yaml

    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "lowercase": "lowercase" in normalization,
        "normalization": list(normalization),
    }
    if languages:  # the Hub knows them without regions
        header["language"] = sorted({code.partition("-")[0] for code in languages})
    return yaml.safe_dump(header, sort_keys=False).rstrip()


def _describe_languages(languages: Mapping[str, int]) -> Iterator[str]:
    if languages:
        most_first = sorted(languages.items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{code} {documents:,}" for code, documents in most_first)
        yield f"Languages of the corpus, with the number of documents: {named}."


def _list_normalizers(normalizer: Mapping[str, Any] | None) -> Iterator[str]:
    """The names of what a normalizer of `tokenizer.json` does to a text, in order."""
    if normalizer is None:
        return
    if normalizer["type"] == "Sequence":
        for part in normalizer["normalizers"]:
            yield from _list_normalizers(part)
    elif normalizer["type"] == "BertNormalizer":
        lowercase = normalizer["lowercase"]
        strips = normalizer["strip_accents"]
        steps = {
            "clean_text": normalizer["clean_text"],
            "handle_chinese_chars": normalizer["handle_chinese_chars"],
            "strip_accents": lowercase if strips is None else strips,
            "lowercase": lowercase,
        }
        yield from (name for name, is_used in steps.items() if is_used)
    else:
        name = normalizer["type"]
        yield {"Lowercase": "lowercase", "StripAccents": "strip_accents"}.get(name, name)
