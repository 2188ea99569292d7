"""Trained tokenizers: `AutoTokenizer` loads them, and WordPiece equals that of the BERT release."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bert_pipeline.config import build_config
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.storage.manifest import read_manifest
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.load import load_tokenizer
from bert_pipeline.tokenizer.train import train_tokenizer
from tests.helpers.text import invent_documents, make_corpus

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
KINDS = ("wordpiece", "byte-bpe", "unigram")


def train(folder: Path, corpus: Path, **options: Any) -> Path:
    given: dict[str, Any] = {
        "out": folder,
        "corpus": corpus,
        "workers": 1,
        "quiet": True,
        "vocab_size": 300,
    }
    train_tokenizer(TokenizeConfig(**(given | options)))
    return folder


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest) -> Path:
    name = request.param.replace("-", "_") + "_folder"
    return request.getfixturevalue(name)  # type: ignore[no-any-return]


# AutoTokenizer


def test_auto_tokenizer_loads_the_folder(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [
        tokenizer.pad_token,
        tokenizer.unk_token,
        tokenizer.cls_token,
        tokenizer.sep_token,
    ] == SPECIALS[:4]
    assert tokenizer.mask_token == "[MASK]"
    assert tokenizer.convert_tokens_to_ids(SPECIALS) == [0, 1, 2, 3, 4]
    assert tokenizer.is_fast
    assert len(tokenizer) == read_manifest(folder, "tokenize").counts["vocab_size"]
    assert len(tokenizer) == len(
        {tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))}
    )


def test_pair_has_segment_ids_0_and_1(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    a, b = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("ba na", "fe mi do")
    )
    pair = tokenizer("ba na", "fe mi do")
    assert pair["input_ids"] == [2, *a, 3, *b, 3]
    assert pair["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert pair["attention_mask"] == [1] * len(pair["input_ids"])
    assert tokenizer("ba na")["input_ids"] == [2, *a, 3]
    assert tokenizer.pad({"input_ids": [[2, 3], [2, 5, 3]]})["input_ids"][0] == [2, 3, 0]


def test_mask_in_text_is_recognized_with_and_without_space(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in ("ba [MASK] na", "ba[MASK] na", "[MASK]"):
        assert tokenizer(text)["input_ids"].count(4) == 1


def test_load_tokenizer_agrees_with_auto_tokenizer(folder: Path, documents: list[str]):
    loaded = load_tokenizer(folder)
    auto = AutoTokenizer.from_pretrained(folder)
    assert loaded.vocab_size == len(auto)
    special = loaded.special
    assert [special.pad, special.unk, special.cls, special.sep, special.mask] == [0, 1, 2, 3, 4]
    assert loaded.tokenizer.encode(documents[0]).ids == auto(documents[0])["input_ids"]


def test_edited_tokenizer_file_is_rejected(tmp_path: Path, corpus_folder: Path):
    file = train(tmp_path / "tokenizer", corpus_folder) / "tokenizer.json"
    before = file.read_text(encoding="utf-8")
    after = before.replace('"lowercase": false', '"lowercase":  true')
    assert len(after) == len(before) != 0
    assert after != before
    file.write_text(after, encoding="utf-8")
    with pytest.raises(BertpipeError, match=r"tokenizer\.json"):
        load_tokenizer(file.parent)


# WordPiece, compared with a reference in plain Python


def is_punctuation(char: str) -> bool:
    is_ascii_symbol = char.isascii() and char.isprintable() and not char.isalnum() and char != " "
    return is_ascii_symbol or unicodedata.category(char).startswith("P")


def is_cjk(char: str) -> bool:
    ranges = [
        (0x4E00, 0x9FFF),
        (0x3400, 0x4DBF),
        (0x20000, 0x2A6DF),
        (0x2A700, 0x2B73F),
        (0x2B740, 0x2B81F),
    ]
    ranges += [(0xF900, 0xFAFF), (0x2F800, 0x2FA1F)]
    return any(low <= ord(char) <= high for low, high in ranges)


def basic_words(
    text: str, *, lowercase: bool, strip_accents: bool, chinese: bool = True
) -> list[str]:
    """The BERT release's BasicTokenizer."""
    cleaned = ""
    for char in text:
        if char in "\t\n\r" or unicodedata.category(char) == "Zs":
            cleaned += " "
        elif char not in "\x00\ufffd" and not unicodedata.category(char).startswith("C"):
            cleaned += f" {char} " if chinese and is_cjk(char) else char
    words = []
    for word in cleaned.split():
        if lowercase:
            word = "".join(char.lower() for char in word)
        if strip_accents:
            word = "".join(
                char
                for char in unicodedata.normalize("NFD", word)
                if unicodedata.category(char) != "Mn"
            )
        current = ""
        for char in word:
            if is_punctuation(char):
                words += [current, char]
                current = ""
            else:
                current += char
        words.append(current)
    return [word for word in words if word]


def pieces_of(word: str, vocabulary: set[str]) -> list[str]:
    """The BERT release's WordpieceTokenizer: the longest piece first."""
    if len(word) > 200:
        return ["[UNK]"]
    pieces: list[str] = []
    start = 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = ("##" if start else "") + word[start:end]
            if piece in vocabulary:
                break
        else:
            return ["[UNK]"]
        pieces.append(piece)
        start = end
    return pieces


MIXED = [
    "Ünïcode ÉCLAIR naïve Straße ångström über Zażółć gęślą jaźń.",
    "東京都 is 日本 and 中文字 too. 漢字かな交じり文",
    "سلام دنیا، این یک متن است. می\u200cخواهم",
    "Привет мир, это текст! Ёлка",
    "e\u0301 cafe\u0301 can't stop; 3.5% of $10 (maybe) a_b-c/d @home #tag",
    "नमस्ते दुनिया। यह पाठ है",
]
NASTY = st.text(
    st.one_of(
        st.sampled_from("bdnaeiou .,'-\t\n"),
        st.sampled_from("".join(MIXED)),
        st.sampled_from(
            "\x00\ufffd\u200b\u200c\u200d\u00ad\u3000\xa0\u2028ÀÉ\u0301\u0308東😀[]#~^`<>$+|=«»…—"
        ),
        st.characters(codec="ascii"),
    ),
    max_size=60,
)
FOLDING = [(True, True), (False, False), (True, False), (False, True)]


@pytest.fixture(scope="module")
def mixed_tokenizers(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[bool, bool], Path]:
    place = tmp_path_factory.mktemp("mixed")
    corpus = make_corpus(place / "corpus", [*MIXED * 3, *invent_documents(2, 20)])
    return {
        (lowercase, accents): train(
            place / f"{lowercase}-{accents}",
            corpus,
            lowercase=lowercase,
            strip_accents=accents,
            clean_text=True,
            max_word_characters=200,
            vocab_size=500,
        )
        for lowercase, accents in FOLDING
    }


@pytest.mark.integration
@pytest.mark.parametrize(("lowercase", "accents"), FOLDING)
def test_wordpiece_equals_the_bert_release(
    mixed_tokenizers: dict[tuple[bool, bool], Path], lowercase: bool, accents: bool
):
    auto = AutoTokenizer.from_pretrained(mixed_tokenizers[lowercase, accents])
    vocabulary = set(auto.get_vocab())

    @given(NASTY)
    @example("\n".join(MIXED))
    @example("x" * 201 + " " + "b" * 200)
    @example("\u0301a [MASK")
    def check(text: str) -> None:
        words = basic_words(text, lowercase=lowercase, strip_accents=accents)
        expected = [piece for word in words for piece in pieces_of(word, vocabulary)]
        assert auto.tokenize(text) == expected

    check()


def test_lowercase_and_strip_accents_options(
    mixed_tokenizers: dict[tuple[bool, bool], Path],
):
    def same(options: tuple[bool, bool], a: str, b: str) -> bool:
        auto = AutoTokenizer.from_pretrained(mixed_tokenizers[options])
        return bool(auto(a)["input_ids"] == auto(b)["input_ids"])

    assert same((True, True), "ÉCLAIR über", "eclair uber")
    assert not same((False, False), "Éclair", "éclair")
    assert not same((True, False), "über", "uber")
    assert same((True, False), "ÜBER", "über")
    assert same((False, True), "Über", "Uber")


def test_chinese_characters_option_splits_cjk(tmp_path: Path):
    corpus = make_corpus(tmp_path / "corpus", [*MIXED * 3, *invent_documents(2, 20)])
    apart = AutoTokenizer.from_pretrained(train(tmp_path / "apart", corpus, vocab_size=500))
    joined = AutoTokenizer.from_pretrained(
        train(tmp_path / "joined", corpus, vocab_size=500, chinese_characters=False)
    )
    assert apart.tokenize("日本中") == ["日", "本", "中"]
    assert "".join(joined.tokenize("日本中")).replace("##", "") == "日本中"
    assert any(piece.startswith("##") for piece in joined.tokenize("日本中"))


def test_alphabet_size_limits_known_characters(tmp_path: Path):
    corpus = make_corpus(tmp_path / "corpus", ["abcde " * 40 + "xyz", *invent_documents(2, 20)])
    full = AutoTokenizer.from_pretrained(train(tmp_path / "full", corpus, min_frequency=1))
    assert "[UNK]" not in full.tokenize("xyz zyx abcde")
    small = AutoTokenizer.from_pretrained(
        train(tmp_path / "small", corpus, min_frequency=1, alphabet_size=18)
    )
    assert small.tokenize("xyz") == ["[UNK]"]


# Byte-level BPE


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("می\u200cخواهم \u200fשלום")
@example(" two  spaces\n\tand\x00more ")
@example("don ' t . , ! n't")
@example("\ufeff\ufffd\u0301")
def test_byte_bpe_round_trip(byte_bpe_folder: Path, text: str):
    auto = cached_auto(byte_bpe_folder)
    ids = auto(text, add_special_tokens=False)["input_ids"]
    assert 1 not in ids
    back = auto.decode(ids, clean_up_tokenization_spaces=False)
    assert back in (text, " " + text)


CACHE: dict[Path, Any] = {}


def cached_auto(folder: Path) -> Any:
    if folder not in CACHE:
        CACHE[folder] = AutoTokenizer.from_pretrained(folder)
    return CACHE[folder]


def test_byte_bpe_word_has_same_tokens_at_sentence_start_and_within(
    byte_bpe_folder: Path, documents: list[str]
):
    auto = AutoTokenizer.from_pretrained(byte_bpe_folder)
    word = documents[0].split()[1].strip(".,!?")
    assert auto.tokenize(word) == auto.tokenize("ba " + word)[-len(auto.tokenize(word)) :]


def test_byte_bpe_lowercase_option(tmp_path: Path, corpus_folder: Path):
    auto = AutoTokenizer.from_pretrained(
        train(tmp_path / "t", corpus_folder, kind="byte-bpe", lowercase=True)
    )
    assert auto("BANA Fe")["input_ids"] == auto("bana fe")["input_ids"]


# Sizes and determinism


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_has_exactly_vocab_size_entries(tmp_path: Path, corpus_folder: Path, kind: str):
    for size in (290, 333):
        folder = train(tmp_path / str(size), corpus_folder, kind=kind, vocab_size=size)
        assert len(AutoTokenizer.from_pretrained(folder)) == size


@pytest.mark.parametrize("kind", KINDS)
def test_corpus_that_cannot_fill_the_vocabulary_gives_a_smaller_one(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
):
    corpus = make_corpus(
        tmp_path / "corpus", ["The sea is blue. The sea is deep. The sky is blue."]
    )
    folder = train(tmp_path / "t", corpus, kind=kind, vocab_size=5000, quiet=False)
    size = len(AutoTokenizer.from_pretrained(folder))
    assert f"{size} entries instead of 5,000 (--vocab-size)" in capsys.readouterr().out
    assert read_manifest(folder, "tokenize").counts["vocab_size"] == size < 320


def test_vocab_size_smaller_than_alphabet_is_rejected(tmp_path: Path, corpus_folder: Path):
    with pytest.raises(
        BertpipeError, match=r"--vocab-size 30 is too small: the corpus has \d+ single characters"
    ):
        train(tmp_path / "a", corpus_folder, vocab_size=30)
    with pytest.raises(BertpipeError, match="--vocab-size 260: --kind byte-bpe needs at least 261"):
        train(tmp_path / "b", corpus_folder, kind="byte-bpe", vocab_size=260)
    with pytest.raises(UsageError, match="--vocab-size"):
        build_config(TokenizeConfig, {"out": "x", "corpus": "y", "vocab_size": 5})


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["wordpiece", pytest.param("byte-bpe", marks=pytest.mark.slow)])
def test_same_bytes_for_any_hash_seed_and_thread_count(
    tmp_path: Path, corpus_folder: Path, kind: str
):
    made = []
    for seed, workers in (("1", 1), ("2", 2)):
        out = tmp_path / seed / "tokenizer"
        command = [
            "tokenize",
            "--corpus",
            corpus_folder,
            "--out",
            out,
            "--kind",
            kind,
            "--vocab-size",
            450,
        ]
        subprocess.run(
            [
                sys.executable,
                "-m",
                "bert_pipeline",
                *map(str, command),
                "--workers",
                str(workers),
                "--quiet",
            ],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
        )
        made.append(
            {
                path.name: path.read_bytes()
                for path in sorted(out.iterdir())
                if path.name != "manifest.json"
            }
        )
    assert made[0] == made[1]
    vocabulary = ["vocab.txt"] if kind == "wordpiece" else ["merges.txt", "vocab.json"]
    assert sorted(made[0]) == sorted(["tokenizer.json", "tokenizer_config.json", *vocabulary])


def test_large_corpus_is_sampled_by_seed_and_reported(
    tmp_path: Path, corpus_folder: Path, capsys: pytest.CaptureFixture[str]
):
    def sample(name: str, **options: Any) -> tuple[bytes, dict[str, Any]]:
        folder = train(tmp_path / name, corpus_folder, vocab_size=100, **options)
        return (folder / "tokenizer.json").read_bytes(), read_manifest(folder, "tokenize").counts

    total = read_manifest(corpus_folder, "corpus").counts["bytes"]
    cap = total / 2 / 1e6
    one = sample("1", sample_mb=cap)
    again = sample("2", sample_mb=cap)
    other = sample("3", sample_mb=cap, seed=1)
    assert one == again
    assert one[0] != other[0]
    assert 0.2 * total < one[1]["bytes"] < 0.8 * total
    assert 0 < one[1]["documents"] < 40
    assert sample("4")[1]["documents"] == 40
    capsys.readouterr()
    train(tmp_path / "5", corpus_folder, vocab_size=100, sample_mb=cap, quiet=False)
    assert f"{one[1]['documents']} documents" in capsys.readouterr().out


def test_special_token_names_in_corpus_are_not_added_twice(tmp_path: Path):
    texts = [text + " [MASK] [SEP] [PAD]" for text in invent_documents(2, 20)]
    auto = AutoTokenizer.from_pretrained(
        train(tmp_path / "t", make_corpus(tmp_path / "corpus", texts))
    )
    assert auto.convert_tokens_to_ids(SPECIALS) == [0, 1, 2, 3, 4]
    saved = json.loads((tmp_path / "t" / "tokenizer.json").read_text(encoding="utf-8"))
    assert sorted(token["content"] for token in saved["added_tokens"]) == sorted(SPECIALS)
    assert len(saved["model"]["vocab"]) == 300
