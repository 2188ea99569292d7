"""The folders load in older transformers, in classes of single models, and without transformers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertTokenizer,
    RobertaTokenizer,
)

from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.pretrain import pretrain

TEXTS = ["Dabi gose [MASK] bana.", "ba, na (fe) mi!", "Mi do; re fa? La."]
SHAPE = {
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 66,
}
READ = """
import json, sys
import transformers
from transformers import AutoTokenizer
assert transformers.__version__.startswith("4.")
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
texts = json.loads(sys.argv[2])
print(json.dumps([tokenizer(text)["input_ids"] for text in texts] + [tokenizer(*texts[:2]).data]))
"""


@pytest.mark.slow
def test_transformers_4_gives_the_same_ids(
    tmp_path: Path, wordpiece_folder: Path, byte_bpe_folder: Path, unigram_folder: Path
) -> None:
    old = ["transformers<5", "tokenizers<0.23", "huggingface_hub<1"]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run(
        [*install, "--target", tmp_path / "old", *old], check=True, capture_output=True, timeout=250
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "old"), "USE_TORCH": "0"}
    for folder in (wordpiece_folder, byte_bpe_folder, unigram_folder):
        command = [sys.executable, "-c", READ, folder, json.dumps(TEXTS)]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        auto = AutoTokenizer.from_pretrained(folder)
        expected = [auto(text)["input_ids"] for text in TEXTS] + [auto(*TEXTS[:2]).data]
        assert json.loads(done.stdout) == expected


def test_vocab_txt_is_read_by_bert_tokenizer(tmp_path: Path, wordpiece_folder: Path) -> None:
    auto = AutoTokenizer.from_pretrained(wordpiece_folder)
    entries = (wordpiece_folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert auto.convert_tokens_to_ids(entries) == list(range(len(auto)))
    (tmp_path / "vocab.txt").write_bytes((wordpiece_folder / "vocab.txt").read_bytes())
    plain = BertTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert plain(text)["input_ids"] == auto(text)["input_ids"]


def test_vocab_json_and_merges_are_read_by_byte_level_classes(byte_bpe_folder: Path) -> None:
    auto = AutoTokenizer.from_pretrained(byte_bpe_folder)
    files = [str(byte_bpe_folder / name) for name in ("vocab.json", "merges.txt")]
    bare = ByteLevelBPETokenizer(*files, add_prefix_space=True)
    roberta = RobertaTokenizer.from_pretrained(byte_bpe_folder)
    for text in TEXTS[1:]:
        ids = auto(text, add_special_tokens=False)["input_ids"]
        assert bare.encode(text).ids == ids
        assert roberta(text)["input_ids"] == [auto.cls_token_id, *ids, auto.sep_token_id]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("model", "has_segments"),
    [
        ({"model_type": "roberta", "type_vocab_size": 1}, False),
        ({"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2}, False),
        ({}, True),
    ],
)
def test_saved_model_accepts_what_its_tokenizer_gives_for_a_pair(
    tmp_path: Path,
    make_examples: Callable[..., Path],
    wordpiece_folder: Path,
    model: dict[str, object],
    has_segments: bool,
) -> None:
    examples = make_examples("mlm-pairs", objective="mlm")
    shape = SHAPE if model.get("model_type") != "distilbert" else {"max_position_embeddings": 66}
    pretrain(
        PretrainConfig(
            examples=examples,
            tokenizer=wordpiece_folder,
            out=tmp_path / "run",
            model=shape | model,  # type: ignore[arg-type]
            max_steps=1,
            batch_size=4,
            threads=1,
            save_backbone=True,
            quiet=True,
        )
    )
    folder = tmp_path / "run" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pair = tokenizer(*TEXTS[:2], return_tensors="pt")
    assert ("token_type_ids" in pair) == has_segments
    assert tokenizer.model_max_length <= 66
    network = AutoModelForMaskedLM.from_pretrained(folder)
    hidden = network(**pair, output_hidden_states=True).hidden_states[-1]
    backbone = AutoModel.from_pretrained(folder / "backbone")
    same = AutoTokenizer.from_pretrained(folder / "backbone")(*TEXTS[:2], return_tensors="pt")
    assert backbone(**same).last_hidden_state.equal(hidden)
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab() == tokenizer.get_vocab()
