"""`scripts/feature_based_ner.py`: features are the states of transformers, and a BiLSTM learns."""

import random
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, ElectraConfig

from bert_pipeline.tasks.words import encode_words
from tests.helpers.task_models import make_model

SCRIPT = Path(__file__).parents[2] / "scripts" / "feature_based_ner.py"
TEXTS = [["the", "unknown", "room", "was", "warm"], ["a", "day"], ["paris", "felt", "very", "dull"]]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), num_hidden_layers=5)


@pytest.mark.parametrize("layers", ["last4", "sum4", "last", "second-to-last", "embeddings"])
@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_features_are_states_of_the_first_token_of_each_word(
    script: dict[str, Any], model: Path, layers: str, kind: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    shape = BertConfig.from_pretrained(model).to_dict()
    network = AutoModel.from_pretrained(model)
    if kind == "electra":  # an architecture that the unpadded encoder does not have
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")
        fields = {name: shape[name] for name in (*names, "num_attention_heads")}
        network = AutoModel.from_config(ElectraConfig(embedding_size=32, **fields))
    network.eval()
    examples = encode_words(tokenizer, TEXTS, 64, ["a", "b", "c"])
    split = script["make_split"](network, examples, layers, torch.device("cpu"))
    for words, features in zip(TEXTS, split.features, strict=True):
        batch = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        owners = batch.word_ids()
        first = [owners.index(number) for number in range(len(words))]
        with torch.no_grad():
            states = network(**batch, output_hidden_states=True).hidden_states
        expected = {
            "last4": torch.cat(states[-4:], -1),
            "sum4": sum(states[-4:]),
            "last": states[-1],
            "second-to-last": states[-2],
            "embeddings": states[0],
        }[layers]
        torch.testing.assert_close(features, expected[0, first], rtol=1e-4, atol=1e-5)


def write_conll(file: Path, count: int, seed: int) -> Path:
    """Sentences in which `paris` and `rome` are places, after `the` rooms."""
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        city = draw.choice(["paris", "rome"])
        words = ["a", "voice", "felt", "very", "warm"][: draw.randrange(1, 6)]
        lines += [f"{word}\tO" for word in words]
        lines += [f"the\tO\n{city}\tO" if draw.random() < 0.5 else f"{city}\tB-place", ""]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_places_are_learned_from_their_context(
    script: dict[str, Any], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        name: write_conll(tmp_path / name, count, seed)
        for seed, (name, count) in enumerate({"train": 80, "validation": 30, "test": 30}.items())
    }
    script["main"](
        model,
        files["train"],
        files["validation"],
        files["test"],
        hidden=16,
        epochs=8,
        batch_size=8,
        learning_rate=1e-2,
        threads=1,
        random=True,
    )
    table = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[0] for line in table] == ["pretrained", "random"]
    assert float(table[0].split()[2]) > 0.95
