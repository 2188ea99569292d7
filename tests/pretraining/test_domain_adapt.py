"""The recipe `domain-adapt` whole, at toy size: a model and its old text come from a hub."""

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from tests.helpers.local_hub import LocalHub

BASE = "google-bert/bert-base-uncased"
CARD = (
    "---\nconfigs:\n- config_name: wikitext-2-raw-v1\n"
    "  data_files: [{split: train, path: wikitext-2-raw-v1/train-*}]\n---\n"
)


def add_model(hub: LocalHub, tokenizer: Path, folder: Path) -> None:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2}
    config = BertConfig(vocab_size=400, intermediate_size=64, **shape)
    BertForMaskedLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    hub.add(BASE, {path.name: path.read_bytes() for path in folder.iterdir()})


def add_wikitext(hub: LocalHub) -> None:
    lines = ["", " = A Title = ", "", " Rivers run to the sea , and the sea is never full . "] * 20
    table = BytesIO()
    pq.write_table(pa.table({"text": [line + "\n" for line in lines]}), table)
    shard = "wikitext-2-raw-v1/train-00000-of-00001.parquet"
    hub.add("Salesforce/wikitext", {"README.md": CARD, shard: table.getvalue()})


@pytest.mark.slow
def test_domain_adapt_makes_a_model_with_new_words(
    wordpiece_folder: Path,
    documents: list[str],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(documents):
        page = text.replace("\n", "\n\n")
        (tmp_path / "texts" / f"{number}.txt").write_text(page, encoding="utf-8")
    settings = ["tokenize.add_vocab=20", "examples.max_seq_length=32", "pretrain.batch_size=8"]
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        add_model(hub, wordpiece_folder, tmp_path / "base")
        add_wikitext(hub)
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
        }
        given = [part for setting in settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "bert_pipeline", "run", "domain-adapt", *given]
        done = subprocess.run(
            [*command, "--out", "run"],
            env=os.environ | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "20 new vocabulary entries" in done.stdout
    run = tmp_path / "run" / "pretrain"
    found = json.loads((run / "manifest.json").read_text())["counts"]["bits_per_byte"]
    assert set(found) == {"held-out text of this run", "wikitext-2"}
    new = found["held-out text of this run"]
    assert new["after"] < new["before"]
    network = BertForMaskedLM.from_pretrained(run / "model")
    assert network.config.vocab_size == 420
    assert len(AutoTokenizer.from_pretrained(run / "model")) == 420
