"""New entries for an existing tokenizer: old ids and the split of other words stay."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bert_pipeline.config import build_config
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.examples.build import build_examples
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.storage.manifest import read_manifest
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.load import load_tokenizer
from bert_pipeline.tokenizer.train import train_tokenizer
from tests.helpers.text import invent_documents, invent_words, make_corpus

KINDS = ("wordpiece", "byte_bpe", "unigram")
ADDED = 60
NAMES = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
Extended = Callable[[str], tuple[Path, Path]]


def extend(out: Path, corpus: Path, old: Path, **options: Any) -> Path:
    settings: dict[str, Any] = {"add_vocab": ADDED, "workers": 1, "quiet": True}
    train_tokenizer(TokenizeConfig(out=out, corpus=corpus, extend=str(old), **(settings | options)))
    return out


def write_tokenizer(folder: Path, model: models.Model, *more: str) -> Path:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_tokens([AddedToken(name, special=True) for name in more])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def new_documents() -> list[str]:
    """Text with words that the tokenizers have never seen."""
    return invent_documents(seed=7)


@pytest.fixture(scope="module")
def new_corpus(tmp_path_factory: pytest.TempPathFactory, new_documents: list[str]) -> Path:
    return make_corpus(tmp_path_factory.mktemp("new") / "corpus", new_documents)


@pytest.fixture(scope="module")
def extended(
    tmp_path_factory: pytest.TempPathFactory, new_corpus: Path, request: pytest.FixtureRequest
) -> Extended:
    """A function that gives the folders of a tokenizer of some kind, and of the extended one."""
    made: dict[str, tuple[Path, Path]] = {}

    def get(kind: str) -> tuple[Path, Path]:
        if kind not in made:
            old: Path = request.getfixturevalue(f"{kind}_folder")
            made[kind] = old, extend(tmp_path_factory.mktemp("e") / kind, new_corpus, old)
        return made[kind]

    return get


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, extended: Extended) -> tuple[Path, Path]:
    return extended(request.param)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


# What stays


def test_old_ids_and_all_parts_but_the_vocabulary_stay(pair: tuple[Path, Path]):
    before, after = (
        json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")) for folder in pair
    )
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in pair)
    assert old.get_vocab().items() <= new.get_vocab().items()
    ids = set(new.get_vocab().values()) - set(old.get_vocab().values())
    assert sorted(ids) == list(range(len(old), len(old) + ADDED))
    del before["model"], after["model"]
    assert before == after
    assert (pair[0] / "tokenizer_config.json").read_bytes() == (
        pair[1] / "tokenizer_config.json"
    ).read_bytes()
    assert {path.name for path in pair[0].iterdir()} == {path.name for path in pair[1].iterdir()}


WORDS = [word for seed in (0, 7) for word in invent_words(Random(seed), 200)]
PARTS = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(WORDS).map(lambda word: word[:3]),
    st.text("abdeiknorstzABäß.,'-é中", min_size=1, max_size=5),
)


@pytest.mark.parametrize("kind", KINDS)
@given(words=st.lists(st.lists(PARTS, min_size=1, max_size=3).map("".join), min_size=1))
def test_words_without_a_new_entry_are_split_as_before(
    extended: Extended, kind: str, words: list[str]
):
    old, new = (load_tokenizer(folder) for folder in extended(kind))
    text = " ".join(words)
    before = old.tokenizer.encode(text, add_special_tokens=False)
    after = new.tokenizer.encode(text, add_special_tokens=False)

    def split(encoding: Any) -> list[list[int]]:
        words: dict[int, list[int]] = {}
        for number, word in zip(encoding.ids, encoding.word_ids, strict=True):
            words.setdefault(word, []).append(number)
        return list(words.values())

    for ours, theirs in zip(split(after), split(before), strict=True):
        if max(ours) < old.vocab_size:
            assert ours == theirs
        assert old.special.unk in theirs or old.special.unk not in ours
    assert new.tokenizer.decode(after.ids) == old.tokenizer.decode(before.ids)


def test_new_entry_within_a_longer_word_does_not_make_it_unknown(tmp_path: Path):
    names = [*NAMES.values(), "ab", "##c", "##cd", "x"]
    vocab = {name: number for number, name in enumerate(names)}
    old = write_tokenizer(tmp_path / "old", models.WordPiece(vocab, unk_token="[UNK]"))
    corpus = make_corpus(tmp_path / "corpus", ["abc abc x abc. " * 9, "x abcd abc " * 3])
    new = load_tokenizer(extend(tmp_path / "new", corpus, old, add_vocab=3)).tokenizer
    assert new.encode("abc", add_special_tokens=False).tokens == ["abc"]
    # `##d` was within `##cd` only.
    assert new.encode("abcd", add_special_tokens=False).tokens == ["abc", "##d"]
    with pytest.raises(BertpipeError, match=r"2 characters occur within longer entries only"):
        extend(tmp_path / "small", corpus, old, add_vocab=1)


def test_tokens_outside_the_model_keep_their_ids(tmp_path: Path):
    pieces = [(name, 0.0) for name in list(NAMES.values())[:4]]
    pieces += [("▁", -2.0), ("a", -3.0), ("b", -4.0), ("▁a", -3.5)]
    tokenizer = Tokenizer(models.Unigram(pieces, 1, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["[MASK]"])  # as in DeBERTa-v3
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES).save_pretrained(tmp_path / "old")
    corpus = make_corpus(tmp_path / "corpus", ["a ab a bb a. " * 9, "ab a ab " * 9])
    new = AutoTokenizer.from_pretrained(
        extend(tmp_path / "new", corpus, tmp_path / "old", add_vocab=1)
    )
    assert new.mask_token_id == 8
    assert new("ab bb[MASK]", add_special_tokens=False)["input_ids"] == [9, 4, 6, 6, 8]


# What is new


def test_new_entries_are_frequent_words_and_save_tokens(
    pair: tuple[Path, Path], new_documents: list[str]
):
    old, new = (load_tokenizer(folder).tokenizer for folder in pair)
    lines = [line for text in new_documents for line in text.split("\n")]
    before, after = (sum(len(encode(each, line)) for line in lines) for each in (old, new))
    words = sum(len(line.split()) for line in lines)
    counts = read_manifest(pair[1], "tokenize").counts
    assert after < 0.8 * before
    assert counts["before"]["tokens_per_word"] == round(before / words, 4)
    assert counts["quality"]["tokens_per_word"] == round(after / words, 4)
    assert counts["new_entries"] == ADDED
    frequent = [word for word, _ in counts["before"]["frequent_words"]]
    assert all(pieces == [word] for word, pieces in counts["quality"]["frequent_words"])
    assert frequent == [word for word, _ in counts["quality"]["frequent_words"]]


def test_changed_words_are_measured(pair: tuple[Path, Path], new_documents: list[str]):
    old, new = (load_tokenizer(folder).tokenizer for folder in pair)
    words = "\n".join(new_documents).split()
    changed = [word for word in words if encode(old, " " + word) != encode(new, " " + word)]
    counts = read_manifest(pair[1], "tokenize").counts
    assert 0 < len(changed) < len(words)
    assert counts["changed_words"] == round(len(changed) / len(words), 6)
    characters = sum(map(len, changed)) / sum(map(len, words))
    assert counts["changed_characters"] == round(characters, 6)


def test_an_entry_that_makes_other_words_longer_is_not_added(tmp_path: Path):
    letters = [mark + letter for letter in "abcdefg" for mark in ("", "##")]
    names = [*NAMES.values(), *letters, "ab", "##cdefg"]
    vocab = {name: number for number, name in enumerate(names)}
    old = write_tokenizer(tmp_path / "old", models.WordPiece(vocab, unk_token="[UNK]"))
    # `abc` saves 10 tokens, but `abcdefg` would be `abc ##d ##e ##f ##g` instead of `ab ##cdefg`.
    corpus = make_corpus(tmp_path / "corpus", ["abc d " * 10, "abcdefg d " * 6])
    new = load_tokenizer(extend(tmp_path / "new", corpus, old, add_vocab=1)).tokenizer
    assert new.encode("abcdefg abc", add_special_tokens=False).tokens == ["abcdefg", "ab", "##c"]


def test_unigram_entries_hold_no_punctuation(extended: Extended):
    old, new = (load_tokenizer(folder) for folder in extended("unigram"))
    names = [new.tokenizer.id_to_token(i) for i in range(old.vocab_size, new.vocab_size)]
    assert all(re.fullmatch(r"▁?(\w+|[^\w]+)", name) for name in names)


def test_fewer_useful_entries_than_asked_for_are_reported(
    tmp_path: Path, wordpiece_folder: Path, capsys: pytest.CaptureFixture[str]
):
    corpus = make_corpus(
        tmp_path / "corpus", ["Kadimost vurlestan kadimost. " * 9, "Vurlestan. " * 9]
    )
    out = extend(tmp_path / "t", corpus, wordpiece_folder, add_vocab=500, quiet=False)
    vocab = AutoTokenizer.from_pretrained(out).get_vocab()
    assert {"kadimost", "vurlestan"} <= vocab.keys()
    printed = capsys.readouterr().out
    assert "2 new entries instead of 500 (--add-vocab)" in printed
    assert "tokens per word" in printed
    assert "with 2 new entries" in printed


def test_min_frequency_and_sample_apply(tmp_path: Path, wordpiece_folder: Path, new_corpus: Path):
    rare = extend(tmp_path / "a", new_corpus, wordpiece_folder, add_vocab=5000, min_frequency=1)
    often = extend(tmp_path / "b", new_corpus, wordpiece_folder, add_vocab=5000, min_frequency=9)
    part = extend(tmp_path / "c", new_corpus, wordpiece_folder, sample_mb=0.003)
    counts = [read_manifest(folder, "tokenize").counts for folder in (rare, often, part)]
    assert counts[0]["new_entries"] > 1.5 * counts[1]["new_entries"] > 0
    assert counts[2]["bytes"] < counts[0]["bytes"] / 2


@pytest.mark.slow
def test_same_bytes_with_any_number_of_workers(
    extended: Extended, tmp_path: Path, new_corpus: Path
):
    old, new = extended("unigram")
    arguments = ["--corpus", new_corpus, "--extend", old, "--add-vocab", ADDED, "--workers", 3]
    arguments += ["--out", tmp_path / "t", "--quiet"]
    command = [sys.executable, "-m", "bert_pipeline", "tokenize", *map(str, arguments)]
    subprocess.run(command, check=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "t" / name).read_bytes() == (new / name).read_bytes()


def test_examples_hold_new_entries(extended: Extended, tmp_path: Path, new_corpus: Path):
    old, new = (load_tokenizer(folder) for folder in extended("wordpiece"))
    config = ExamplesConfig(
        out=tmp_path / "examples",
        corpus=new_corpus,
        tokenizer=extended("wordpiece")[1],
        max_seq_length=32,
        dupe_factor=1,
        workers=1,
        quiet=True,
    )
    build_examples(config)
    rows = pq.read_table(config.out / "train-00000.parquet").to_pylist()
    ids = {number for row in rows for number in row["tokens"]}
    assert old.vocab_size < max(ids) < new.vocab_size


# What is refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"extend": "x"}, "--extend and --add-vocab require each other"),
        ({"add_vocab": 5}, "--extend and --add-vocab require each other"),
        ({"extend": "x", "add_vocab": 5, "tokenizer": "y"}, "exclude each other"),
        (
            {"extend": "x", "add_vocab": 5, "kind": "unigram", "lowercase": True},
            "--extend uses an existing tokenizer, which excludes --kind, --lowercase",
        ),
    ],
)
def test_conflicting_options_give_a_one_line_error(options: dict[str, Any], said: str):
    with pytest.raises(UsageError, match=said) as caught:
        build_config(TokenizeConfig, {"out": "o", "corpus": "c", **options})
    assert "\n" not in str(caught.value)


def test_other_tokenizers_are_refused(tmp_path: Path, corpus_folder: Path):
    vocab = {name: number for number, name in enumerate(NAMES.values())}
    words = write_tokenizer(tmp_path / "words", models.WordLevel(vocab, unk_token="[UNK]"))
    with pytest.raises(BertpipeError, match=r"words: a WordLevel tokenizer cannot be extended"):
        extend(tmp_path / "t", corpus_folder, words)
    tokenizer = Tokenizer(models.BPE(vocab, []))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES).save_pretrained(tmp_path / "all")
    with pytest.raises(BertpipeError, match="does not split a text into words"):
        extend(tmp_path / "t", corpus_folder, tmp_path / "all")
