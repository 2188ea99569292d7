"""A recipe with a source and its language alone is right for any language."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, RobertaForMaskedLM

from bert_pipeline.recipe import read_recipe, run_stages
from bert_pipeline.storage.manifest import read_manifest
from bert_pipeline.storage.shards import iterate_rows
from tests.helpers.languages import SENTENCES, invent_persian, make_documents, write_documents
from tests.helpers.local_hub import LocalHub
from tests.helpers.text import zstd

pytestmark = pytest.mark.integration


def letters(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("language", SENTENCES)
def test_source_and_language_are_enough(language: str, tmp_path: Path) -> None:
    write_documents(tmp_path / "texts", language)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"corpus:\n  source: ['text:{tmp_path}/texts/*.txt']\n  language: {language}\n"
        "pretrain:\n  max_steps: 1\n"
    )
    one_worker = [f"{stage}.workers=1" for stage in ("corpus", "tokenize", "examples")]
    run = tmp_path / "run"
    run_stages(read_recipe(recipe, run, one_worker, quiet=True), "examples", quiet=True)

    # No letter is changed, from the files to the ids of the examples.
    documents = make_documents(language)
    corpus = [
        text for (text,) in iterate_rows(sorted((run / "corpus").glob("*.parquet")), ["text"])
    ]
    assert sorted(map(letters, corpus)) == sorted(map(letters, documents))
    quality = read_manifest(run / "tokenizer", "tokenize").counts["quality"]
    assert quality["unknown_characters"] == 0
    auto = AutoTokenizer.from_pretrained(run / "tokenizer")
    tokens = auto.tokenize(documents[0])
    assert "".join(token.removeprefix("##") for token in tokens) == letters(documents[0])

    # Sentences end where their authors ended them, and all text is used.
    counts = read_manifest(run / "examples", "examples").counts
    assert counts["train_used_rate"] >= 0.95
    if language == "th":  # has no marks at sentence ends: paragraphs are split at spaces
        assert counts["sentences"] > len(documents) * 3
    else:
        assert counts["sentences"] == len(documents) * 3 * 6


@pytest.mark.slow
def test_persian_web_text_becomes_a_roberta(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The recipe `oscar-fa-roberta` whole, at toy size, from a hub."""
    rows = "".join(json.dumps({"content": invent_persian(n)}) + "\n" for n in range(60))
    small = {
        "tokenize.vocab_size": "420",
        "examples.max_seq_length": "64",
        "examples.validation_fraction": "0.1",
        "pretrain.model.num_hidden_layers": "1",
        "pretrain.model.hidden_size": "32",
        "pretrain.model.num_attention_heads": "2",
        "pretrain.model.intermediate_size": "64",
        "pretrain.batch_size": "8",
        "pretrain.learning_rate": "0.01",
    }
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        hub.add(
            "oscar-corpus/OSCAR-2301",
            {"fa_meta/fa_meta_part_1.jsonl.zst": zstd.compress(rows.encode())},
        )
        settings = [part for item in small.items() for part in ("--set", "=".join(item))]
        command = [sys.executable, "-m", "bert_pipeline", "run", "oscar-fa-roberta", *settings]
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
        }
        done = subprocess.run(
            [*command, "--out", "run"],
            env=os.environ | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "the expected word is in the top 5 in" in done.stdout
    model = tmp_path / "run" / "pretrain" / "model"
    network, report = RobertaForMaskedLM.from_pretrained(model, output_loading_info=True)
    assert not report["missing_keys"]
    assert network.config.type_vocab_size == 1
    assert AutoTokenizer.from_pretrained(model).mask_token == "<mask>"
    lines = map(json.loads, (model.parent / "metrics.jsonl").read_text().splitlines())
    last = [line for line in lines if "loss" in line][-1]
    assert last["epoch"] == 1  # the second one; they count from 0
