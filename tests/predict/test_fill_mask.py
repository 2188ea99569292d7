"""`evaluate` and `fill-mask` against independent computations with stock transformers."""

import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, BertForPreTraining, pipeline

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.examples.build import build_examples
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.predict.fill_mask import MaskFiller, format_candidates
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.evaluation import evaluate_folder
from bert_pipeline.pretraining.pretrain import pretrain
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.train import train_tokenizer

pytestmark = pytest.mark.integration  # most tests need the trained model

SHAPE = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


@pytest.fixture(scope="module")
def model(
    examples_folder: Path, wordpiece_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a short run."""
    out = tmp_path_factory.mktemp("model") / "pretrain"
    config = PretrainConfig(
        examples=examples_folder,
        tokenizer=wordpiece_folder,
        out=out,
        model=SHAPE | {"max_position_embeddings": 64},
        max_steps=40,
        batch_size=16,
        learning_rate=5e-3,
        precision="fp32",
        threads=1,
        quiet=True,
    )
    pretrain(config)
    return out


def test_evaluation_equals_transformers_model_row_by_row(
    model: Path, examples_folder: Path, documents: list[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model / "model")
    stock = BertForPreTraining.from_pretrained(model / "model").eval()
    train = [pq.read_table(path).to_pylist() for path in sorted(examples_folder.glob("train-*"))]
    counts = np.load(examples_folder / "token_counts.npy")
    assert counts.sum() > 0
    assert counts[[2, 3, 4]].sum() == 0  # [CLS], [SEP] and [MASK] do not occur in text
    assert len(counts) == 400
    frequency = (counts + 1) / (counts + 1).sum()
    loss = unigram = 0.0
    first = five = right = masked = pairs = 0
    for path in sorted(examples_folder.glob("validation-*")):
        for row in pq.read_table(path).to_pylist():
            with torch.no_grad():
                output = stock(
                    input_ids=torch.tensor([row["tokens"]]),
                    token_type_ids=torch.tensor([row["segment_ids"]]),
                )
            pairs += 1
            right += int(output.seq_relationship_logits.argmax()) == int(row["is_random_next"])
            for position, label in zip(row["masked_positions"], row["masked_labels"], strict=True):
                logits = output.prediction_logits[0, position]
                best = logits.topk(5).indices.tolist()
                masked += 1
                first += best[0] == label
                five += label in best
                loss -= float(logits.log_softmax(0)[label])
                unigram -= math.log(frequency[label])
    assert train
    result = evaluate_folder(model, examples_folder, "validation")
    assert result.masked_tokens == masked
    assert result.mlm_loss == pytest.approx(loss / masked, rel=1e-4)
    assert result.perplexity == pytest.approx(math.exp(loss / masked), rel=1e-3)
    assert result.unigram_loss == pytest.approx(unigram / masked, rel=1e-4)
    texts = [" ".join(text.split()) for text in documents]
    tokens = len(tokenizer(" ".join(texts), add_special_tokens=False)["input_ids"])
    bits = loss / masked / math.log(2) * tokens / sum(len(text.encode()) for text in texts)
    assert result.bits_per_byte == pytest.approx(bits, rel=1e-4)
    assert result.top1_accuracy == pytest.approx(first / masked)
    assert result.top5_accuracy == pytest.approx(five / masked)
    assert result.nsp_accuracy == pytest.approx(right / pairs)


def test_evaluation_is_deterministic_and_equals_metrics(model: Path, examples_folder: Path) -> None:
    first, second = (evaluate_folder(model, examples_folder, "validation") for _ in range(2))
    assert first == second
    line = json.loads((model / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["eval_mlm_loss"] == pytest.approx(first.mlm_loss, rel=1e-6)


def test_evaluation_rejects_other_vocab_size(
    model: Path, examples_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    config = json.loads((model / "model" / "config.json").read_text()) | {"vocab_size": 300}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BertpipeError):
        evaluate_folder(folder, examples_folder, "validation")


def test_evaluation_rejects_other_tokenizer_of_same_size(
    model: Path, corpus_folder: Path, examples_folder: Path, tmp_path: Path
) -> None:
    train_tokenizer(
        TokenizeConfig(
            out=tmp_path / "other",
            corpus=corpus_folder,
            kind="byte-bpe",
            vocab_size=400,
            workers=1,
            quiet=True,
        )
    )
    config = ExamplesConfig(
        out=tmp_path / "examples",
        corpus=corpus_folder,
        tokenizer=tmp_path / "other",
        max_seq_length=64,
        dupe_factor=1,
        workers=1,
        quiet=True,
    )
    build_examples(config)
    with pytest.raises(BertpipeError, match="made with another tokenizer"):
        evaluate_folder(model, config.out, "validation")
    # The training examples can be evaluated too.
    assert evaluate_folder(model, examples_folder, "train").masked_tokens > 1000


def assert_same(found: Any, expected: Any) -> None:
    """Equal but for the rounding of scores."""
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected | {"score": pytest.approx(expected["score"], abs=2e-6)}


@pytest.mark.parametrize(
    "texts",
    [
        ["Dabi [MASK] gose."],
        ["Dabi [MASK] gose [MASK]."],
        ["Dabi [MASK].", "A [MASK] b [MASK].", "[MASK]"],
    ],
)
def test_fill_mask_equals_transformers_pipeline(model: Path, texts: list[str]) -> None:
    expected = pipeline("fill-mask", model=str(model / "model"))(
        texts[0] if len(texts) == 1 else texts, top_k=3
    )
    assert_same(MaskFiller(model).fill(texts, 3), expected)


def test_masks_of_long_text_are_predicted_from_the_tokens_around_them(model: Path) -> None:
    """The model takes 64 tokens; those far from a mask make no difference."""
    filler = MaskFiller(model)
    near = "gose " * 70 + "[MASK] " + "dabi " * 70
    (found,) = filler.fill_each(["gose " * 500 + near + "[MASK] " * 2 + "dabi " * 500], 3)
    assert len(found) == 3
    (alone,) = filler.fill_each([near], 3)
    (longer,) = filler.fill_each(["gose " * 500 + near], 3)
    assert [[c["token"] for c in mask] for mask in longer] == [[c["token"] for c in alone[0]]]
    words = alone[0][0]["sequence"].split()  # of several tokens each
    assert min(words.count("gose"), words.count("dabi")) > 5
    for text in ("[MASK] " + "dabi " * 500, "dabi " * 500 + "[MASK]"):
        assert len(filler.fill([text], 5)) == 5


@pytest.mark.parametrize("top_k", [2, 9])
def test_targets_equal_transformers_pipeline(model: Path, top_k: int) -> None:
    targets = [" a", "b", "d", "B"]  # not all as they are in the vocabulary
    with warnings.catch_warnings(action="ignore"):
        stock = pipeline("fill-mask", model=str(model / "model"))
        expected = stock("Dabi [MASK] gose.", top_k=top_k, targets=targets)
    assert_same(MaskFiller(model).fill(["Dabi [MASK] gose."], top_k, targets), expected)


def test_target_of_several_tokens_is_refused(model: Path) -> None:
    filler = MaskFiller(model)
    with pytest.raises(UsageError, match=r"is \d+ tokens.*'☃' is not in the vocabulary"):
        filler.fill(["a [MASK]"], 2, ["a", "dabigosedabigose", "☃"])


@pytest.mark.parametrize("text", ["a <mask> b", "a [mask] b", "a ___ b", "a [MASK] b [Mask]"])
def test_mask_token_that_the_model_lacks_is_refused(model: Path, text: str) -> None:
    with pytest.raises(BertpipeError, match=r"is not a mask token of this model. Write \[MASK\]"):
        MaskFiller(model).fill([text], 1)


def test_texts_of_all_lengths_keep_their_order(model: Path) -> None:
    filler = MaskFiller(model)
    texts = [f"{'dabi ' * (number * 7 % 50)}[MASK] gose" for number in range(60)]
    texts[7] = " "
    together = list(filler.fill_each(texts, 2))
    assert together[7] == []
    for text, found in zip(texts, together, strict=True):
        if text.strip():
            assert_same(found[0], filler.fill([text], 2))


def test_fill_mask_names_text_without_mask(model: Path) -> None:
    with pytest.raises(BertpipeError, match=r"Text 2 has no \[MASK\]"):
        MaskFiller(model).fill(["a [MASK]", "b"], 5)
    with pytest.raises(BertpipeError, match=r"Text 2 has no \[MASK\]"):
        list(MaskFiller(model).fill_each(["a [MASK]", "b"], 5))


@pytest.mark.parametrize("top_k", [0, 401])
def test_fill_mask_rejects_invalid_top_k(model: Path, top_k: int) -> None:
    with pytest.raises(UsageError, match="--top-k"):
        MaskFiller(model).fill(["a [MASK]"], top_k)


def test_fill_mask_rejects_folder_without_model(tmp_path: Path, corpus_folder: Path) -> None:
    for folder in (tmp_path / "nowhere", corpus_folder):
        with pytest.raises(BertpipeError, match="no model found"):
            MaskFiller(folder)


def test_fill_mask_is_independent_of_padding(model: Path) -> None:
    """One text alone and together with a longer one."""
    tokenizer = AutoTokenizer.from_pretrained(model / "model")
    assert tokenizer.mask_token == "[MASK]"
    filler = MaskFiller(model)
    alone = filler.fill(["dabi [MASK]"], 3)
    together = filler.fill(["dabi [MASK]", "dabi gose [MASK] dabi gose"], 3)
    assert [c["token"] for c in alone] == [c["token"] for c in together[0]]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("weights", "its weights are damaged or incomplete"),
        ("tokenizer", "no tokenizer found"),
    ],
)
def test_incomplete_model_is_one_clear_message(
    model: Path, tmp_path: Path, damage: str, said: str
) -> None:
    shutil.copytree(model / "model", tmp_path / "copy")
    if damage == "weights":
        weights = tmp_path / "copy" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        for pattern in ("*token*", "vocab*"):
            for file in (tmp_path / "copy").glob(pattern):
                file.unlink()
    with pytest.raises(BertpipeError, match=said):
        MaskFiller(tmp_path / "copy").fill(["the [MASK] is"], top_k=1)


def test_invisible_words_are_printed_escaped() -> None:
    candidates = [{"score": 0.5, "token_str": "\u200c"}, {"score": 0.5, "token_str": " word"}]
    lines = format_candidates([candidates])
    assert lines[0].endswith(r"'\u200c'")
    assert lines[1].endswith(" word")
