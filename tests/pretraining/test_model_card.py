"""The model card: languages, lower-casing and normalization, in its header and its text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bert_pipeline.examples.build import build_examples
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.model_card import write_model_card
from bert_pipeline.storage.manifest import Manifest, read_manifest
from bert_pipeline.training.position import Position
from tests.helpers.text import make_corpus

BERT = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": False,
    "strip_accents": None,
    "lowercase": True,
}


def make_card(folder: Path, examples: Manifest, normalizer: Any) -> tuple[dict[str, Any], str]:
    """The header and the text of the card."""
    (folder / "tokenizer.json").write_text(json.dumps({"normalizer": normalizer}))
    config = PretrainConfig(examples=folder, tokenizer="t", out=folder / "out", max_steps=1)
    write_model_card(folder, config, examples, Position(), {})
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), text


@pytest.mark.parametrize(
    ("normalizer", "steps"),
    [
        (None, []),
        (BERT, ["clean_text", "strip_accents", "lowercase"]),
        (BERT | {"lowercase": False}, ["clean_text"]),
        (
            {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]},
            ["NFKC", "lowercase"],
        ),
    ],
)
def test_card_names_lower_casing_and_normalization(
    examples_folder: Path, tmp_path: Path, normalizer: Any, steps: list[str]
) -> None:
    examples = read_manifest(examples_folder, "examples")
    header, text = make_card(tmp_path, examples, normalizer)
    assert header["lowercase"] == ("lowercase" in steps)
    assert header["normalization"] == steps
    assert ("Text is lower-cased" in text) == ("lowercase" in steps)
    assert f"Normalization: {', '.join(steps) or 'none'}." in text


def test_card_names_the_languages_of_the_corpus(wordpiece_folder: Path, tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", ["One. Two.", "Three. Four.", "Five. Six."])
    manifest = json.loads((corpus / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["counts"]["languages"] = {"no": 1, "pt-BR": 2000}
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    config = ExamplesConfig(
        out=tmp_path / "examples",
        corpus=corpus,
        tokenizer=wordpiece_folder,
        validation_fraction=0,
        workers=1,
        quiet=True,
    )
    header, text = make_card(tmp_path, build_examples(config), BERT)
    assert header["language"] == ["no", "pt"]
    assert "number of documents: pt-BR 2,000, no 1." in text


def test_card_of_a_corpus_without_languages(examples_folder: Path, tmp_path: Path) -> None:
    examples = read_manifest(examples_folder, "examples")
    examples.counts.pop("languages", None)
    header, text = make_card(tmp_path, examples, BERT)
    assert "language" not in header
    assert "Languages" not in text
