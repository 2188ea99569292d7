"""Id layouts, scripts with many characters, and quality figures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from bert_pipeline.errors import UsageError
from bert_pipeline.predict.fill_mask import MaskFiller
from bert_pipeline.storage.manifest import read_manifest
from bert_pipeline.tokenizer.load import load_tokenizer
from tests.helpers.text import invent_documents, make_corpus
from tests.tokenizer.test_train import SPECIALS, train

# Id layouts


def id_of(auto: Any, *tokens: str) -> list[int]:
    return [auto.get_vocab()[token] for token in tokens]


def test_roberta_special_tokens_have_roberta_ids_and_examples_layout(
    tmp_path: Path, corpus_folder: Path
):
    auto = AutoTokenizer.from_pretrained(
        train(
            tmp_path / "t",
            corpus_folder,
            kind="byte-bpe",
            specials="roberta",
            unused=3,
            vocab_size=310,
        )
    )
    assert id_of(auto, "<s>", "<pad>", "</s>", "<unk>", "<mask>", "[unused0]", "[unused2]") == [
        0,
        1,
        2,
        3,
        4,
        5,
        7,
    ]
    assert [auto.cls_token_id, auto.pad_token_id, auto.sep_token_id, auto.mask_token_id] == [
        0,
        1,
        2,
        4,
    ]
    a, b = (auto(text, add_special_tokens=False)["input_ids"] for text in ("ba na", "fe"))
    pair = auto("ba na", "fe")
    assert pair["input_ids"] == [0, *a, 2, *b, 2]
    assert pair["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    word = auto("ba", add_special_tokens=False)["input_ids"]
    assert auto("ba <mask> ba", add_special_tokens=False)["input_ids"] == [*word, 4, *word]
    assert load_tokenizer(tmp_path / "t").special.mask == 4


def test_original_id_layout_equals_bert_release(tmp_path: Path, corpus_folder: Path):
    auto = AutoTokenizer.from_pretrained(
        train(tmp_path / "t", corpus_folder, id_layout="original", unused=101, vocab_size=400)
    )
    names = [f"[unused{n}]" for n in range(101)]
    expected = ["[PAD]", *names[:99], "[UNK]", "[CLS]", "[SEP]", "[MASK]", *names[99:]]
    assert auto.convert_ids_to_tokens(range(106)) == expected
    assert len(auto.convert_ids_to_tokens([106])[0]) == 1
    assert len(auto) == 400


@pytest.mark.parametrize("options", [{"id_layout": "original"}, {"kind": "byte-bpe", "unused": 20}])
def test_unused_slots_are_never_produced_from_text(tmp_path: Path, options: dict[str, Any]):
    texts = [text + " [unused7] [unused7]" for text in invent_documents(2, 30)]
    folder = train(tmp_path / "t", make_corpus(tmp_path / "corpus", texts), **options)
    auto = AutoTokenizer.from_pretrained(folder)
    loaded = load_tokenizer(folder)
    slots = set(id_of(auto, *(f"[unused{n}]" for n in range(20))))
    assert len(slots) == 20
    for text in ("[unused7]", "ba [unused7]na", " [unused19] "):
        assert slots.isdisjoint(auto(text)["input_ids"])
        assert slots.isdisjoint(loaded.tokenizer.encode(text).ids)
    assert set(auto.all_special_tokens) == set(SPECIALS)


@pytest.mark.integration
def test_fill_mask_accepts_bert_mask_and_own_mask(tmp_path: Path, corpus_folder: Path):
    folder = train(tmp_path / "model", corpus_folder, kind="byte-bpe", specials="roberta")
    shape = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    BertForMaskedLM(BertConfig(vocab_size=300, **shape)).save_pretrained(folder)
    filler = MaskFiller(folder)
    assert filler.fill(["ba [MASK] na"], 3) == filler.fill(["ba <mask> na"], 3)


# Scripts with many characters


def hanzi(seed: int, kinds: int, documents: int = 60) -> list[str]:
    """Clauses of Chinese characters, a few frequent and many rare, without spaces."""
    random = Random(seed)
    characters = [chr(0x4E00 + number) for number in range(kinds)]
    weights = [1 / (rank + 5) for rank in range(kinds)]
    clauses = [
        "".join(random.choices(characters, weights, k=random.randint(8, 30)))
        for _ in range(documents * 40)
    ]
    return ["，".join(clauses[start : start + 40]) for start in range(0, len(clauses), 40)]


@pytest.mark.integration
def test_alphabet_covers_text_or_reports_unknown_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    texts = hanzi(1, 2500)
    corpus = make_corpus(tmp_path / "corpus", texts)
    counts = Counter("".join(texts))
    covering = 0
    needed = 0
    for _, count in counts.most_common():
        if covering >= 0.9995 * counts.total():
            break
        covering = covering + count
        needed = needed + 1
    folder = train(tmp_path / "large", corpus, vocab_size=needed + len(SPECIALS), quiet=False)
    loaded = load_tokenizer(folder)
    unknown = sum(
        count for char, count in counts.items() if loaded.tokenizer.token_to_id(char) is None
    )
    assert unknown <= 0.0005 * counts.total()
    assert "unknown tokens." not in capsys.readouterr().out
    folder = train(tmp_path / "small", corpus, vocab_size=1800, quiet=False)
    loaded = load_tokenizer(folder)
    unknown = sum(
        count for char, count in counts.items() if loaded.tokenizer.token_to_id(char) is None
    )
    said = " ".join(capsys.readouterr().out.split())
    assert f"{unknown / counts.total():.2%} of the text, are unknown tokens" in said
    assert loaded.vocab_size == 1800
    given = load_tokenizer(train(tmp_path / "given", corpus, vocab_size=700, alphabet_size=695))
    assert sum(len(entry) == 1 for entry in given.tokenizer.get_vocab()) == 695


@pytest.mark.integration
@pytest.mark.parametrize("kind", [pytest.param("wordpiece", marks=pytest.mark.slow), "byte-bpe"])
def test_one_megabyte_line_without_spaces(tmp_path: Path, kind: str):
    line = "".join(hanzi(2, 900, 500))
    corpus = make_corpus(tmp_path / "corpus", [line])
    folder = train(tmp_path / "t", corpus, kind=kind, vocab_size=906)
    counts = read_manifest(folder, "tokenize").counts
    assert counts["bytes"] == len(line.encode()) > 1e6
    assert counts["quality"]["characters_per_token"] >= 0.9
    assert counts["quality"]["frequent_words"] == []


@pytest.mark.integration
def test_sample_is_smaller_for_text_with_long_words(tmp_path: Path):
    corpus = make_corpus(tmp_path / "corpus", [text.replace("，", "") for text in hanzi(3, 500)])
    for kind, expected in (("byte-bpe", 50), ("wordpiece", 1000)):
        folder = train(tmp_path / kind, corpus, kind=kind, vocab_size=505)
        assert read_manifest(folder, "tokenize").counts["sample_mb"] == pytest.approx(
            expected, rel=0.1
        )


def test_byte_bpe_keeps_zero_width_non_joiners(tmp_path: Path):
    random = Random(4)
    words = [
        "می\u200cخواهم",
        "کتاب\u200cها",
        "دنیا",
        "خانه",
        "نمی\u200cدانم",
        "است",
        "شهر",
        "باران",
    ]
    texts = [" ".join(random.choices(words, k=60)) + "." for _ in range(30)]
    auto = AutoTokenizer.from_pretrained(
        train(
            tmp_path / "t", make_corpus(tmp_path / "corpus", texts), kind="byte-bpe", vocab_size=300
        )
    )
    ids = auto(texts[0], add_special_tokens=False)["input_ids"]
    assert auto.decode(ids, clean_up_tokenization_spaces=False).strip() == texts[0]
    assert len(ids) < len(texts[0]) / 2


# Quality figures


def test_quality_figures_equal_a_direct_count(
    tmp_path: Path, wordpiece_folder: Path, documents: list[str]
):
    counts = read_manifest(wordpiece_folder, "tokenize").counts
    auto = AutoTokenizer.from_pretrained(wordpiece_folder)
    tokens = [token for text in documents for token in auto.tokenize(text)]
    text = "".join(documents).replace("\n", "")
    words = sum(len(text.split()) for text in documents)
    quality = counts["quality"]
    assert counts["measured_on"] == {"documents": 40, "bytes": len(text.encode()), "words": words}
    assert quality["tokens_per_word"] == pytest.approx(len(tokens) / words, abs=1e-4)
    assert quality["bytes_per_token"] == pytest.approx(len(text.encode()) / len(tokens), abs=1e-4)
    assert quality["characters_per_token"] == pytest.approx(len(text) / len(tokens), abs=1e-4)
    assert quality["unknown_rate"] == pytest.approx(tokens.count("[UNK]") / len(tokens), abs=1e-6)
    assert quality["vocabulary_use"] == pytest.approx(
        len(set(tokens) - {"[UNK]"}) / (len(auto) - 5), abs=1e-4
    )
    occurrences = Counter(word.strip(".,?!") for text in documents for word in text.split())
    frequent = sorted(
        (word for word in occurrences if len(word) >= 5 and len(auto.tokenize(word)) > 1),
        key=lambda word: (-occurrences[word], word),
    )
    assert [word for word, _ in quality["frequent_words"]] == frequent[:5]
    assert all(pieces == auto.tokenize(word) for word, pieces in quality["frequent_words"])


def test_compare_prints_a_column_per_tokenizer_and_fails_early(
    tmp_path: Path, corpus_folder: Path, byte_bpe_folder: Path, capsys: pytest.CaptureFixture[str]
):
    def lines(**options: Any) -> list[str]:
        train(tmp_path / "t", corpus_folder, quiet=False, **options)
        return capsys.readouterr().out.splitlines()

    complete = f"tokenizer: already complete in {tmp_path / 't'}"
    own, other = (
        read_manifest(folder, "tokenize").counts["quality"]["tokens_per_word"]
        for folder in (train(tmp_path / "t", corpus_folder), byte_bpe_folder)
    )
    assert lines() == [complete]
    for options, figures in [
        ({"verbose": True}, f"{own:.2f}"),
        ({"compare": (str(byte_bpe_folder),)}, f"{own:.2f} {other:.2f}"),
    ]:
        first, *table = lines(**options)
        assert first == complete
        assert f"tokens per word {figures}" in [" ".join(line.split()) for line in table]
        assert max(map(len, table)) <= 80
    train(tmp_path / "t", corpus_folder, quiet=True)
    assert capsys.readouterr().out == ""
    with pytest.raises(UsageError, match="no such folder"):
        train(tmp_path / "u", corpus_folder, compare=("./none",))
    assert not (tmp_path / "u").exists()


def test_summary_has_few_short_lines(
    tmp_path: Path, corpus_folder: Path, capsys: pytest.CaptureFixture[str]
):
    folder = train(tmp_path / "t", corpus_folder, quiet=False)
    first, *figures = capsys.readouterr().out.splitlines()
    assert first == f"tokenizer: wordpiece, 300 entries → {folder}"
    assert len(figures) == 2
    assert max(map(len, figures)) <= 80
