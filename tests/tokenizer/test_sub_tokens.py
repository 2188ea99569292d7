"""Entries of one tokenizer in terms of another: what a new row of an embedding is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.load import LoadedTokenizer, load_tokenizer
from bert_pipeline.tokenizer.sub_tokens import shared_entries, sub_tokens_of_new_entries
from bert_pipeline.tokenizer.train import train_tokenizer
from tests.helpers.text import invent_documents, make_corpus

KINDS = ("wordpiece", "byte-bpe", "unigram")
ROLES = ("pad", "unk", "cls", "sep", "mask")


def write(folder: Path, tokenizer: Tokenizer, specials: str = "[{}]") -> LoadedTokenizer:
    names = {f"{role}_token": specials.format(role.upper()) for role in ROLES}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return load_tokenizer(folder)


def wordpiece(folder: Path, *entries: str) -> LoadedTokenizer:
    names = [*(f"[{role.upper()}]" for role in ROLES), *entries]
    vocab = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return write(folder, tokenizer)


def byte_bpe(folder: Path, *merges: tuple[str, str]) -> LoadedTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [
        *(f"<{role.upper()}>" for role in ROLES),
        *letters,
        *("".join(pair) for pair in merges),
    ]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return write(folder, tokenizer, "<{}>")


def unigram(folder: Path, *pieces: str) -> LoadedTokenizer:
    names = [*(f"[{role.upper()}]" for role in ROLES), *pieces]
    scored = [(name, -float(not name.startswith("["))) for name in names]
    tokenizer = Tokenizer(models.Unigram(scored, 1, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return write(folder, tokenizer)


def describe(old: LoadedTokenizer, new: LoadedTokenizer) -> dict[str, list[str]]:
    return {
        new.tokenizer.id_to_token(number): [old.tokenizer.id_to_token(each) for each in ids]
        for number, ids in sub_tokens_of_new_entries(old, new).items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_other_vocabulary_of_the_same_kind(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
):
    old = load_tokenizer(request.getfixturevalue(kind.replace("-", "_") + "_folder"))
    corpus = make_corpus(tmp_path / "corpus", invent_documents(seed=7))
    config = TokenizeConfig(
        **{"out": tmp_path / "new", "corpus": corpus, "kind": kind, "vocab_size": 600},  # type: ignore[arg-type]
        lowercase=kind == "wordpiece",
        workers=1,
        quiet=True,
    )
    train_tokenizer(config)
    new = load_tokenizer(config.out)
    same = shared_entries(old, new)
    ours = {i: new.tokenizer.id_to_token(i) for i in range(new.vocab_size)}
    assert same == {
        i: old.tokenizer.token_to_id(name)
        for i, name in ours.items()
        if old.tokenizer.token_to_id(name) is not None
    }
    parts = describe(old, new)
    assert len(parts) > 100
    assert {new.tokenizer.token_to_id(name) for name in parts}.isdisjoint(same)
    unknown = {name for i, name in ours.items() if i not in same} - parts.keys()
    assert all(len(name.removeprefix("##")) == 1 for name in unknown)
    for name, pieces in parts.items():
        if kind == "wordpiece":
            assert name.startswith("##") == pieces[0].startswith("##")
            assert all(piece.startswith("##") for piece in pieces[1:])
        assert "".join(pieces).replace("##", "") == name.replace("##", "")


def test_special_tokens_are_equal_by_role(tmp_path: Path):
    old = wordpiece(tmp_path / "old", "a")
    new = byte_bpe(tmp_path / "new")
    assert shared_entries(old, new) == {i: i for i in range(5)}
    assert sub_tokens_of_new_entries(old, new)[new.tokenizer.token_to_id("a")] == [5]


def test_pieces_within_words_and_normalization(tmp_path: Path):
    old = wordpiece(tmp_path / "old", "new", "##new", "##s", "##e", "e", "(", "s", "##(")
    new = wordpiece(tmp_path / "new", "news", "##news", "NEWE", "##SE", "##(s", "zz", "##zs")
    assert describe(old, new) == {
        "news": ["new", "##s"],
        "##news": ["##new", "##s"],
        "NEWE": ["new", "##e"],
        "##SE": ["##s", "##e"],
        "##(s": ["(", "s"],
    }


def test_other_kind(tmp_path: Path):
    old = wordpiece(tmp_path / "old", "bana", "##na", "##s", "na", ",", "##b", "ð", "##ð")
    merges = [("Ġ", "b"), ("Ġb", "a"), ("n", "a"), ("Ġba", "na"), ("Ġbana", "na"), ("na", "s")]
    bpe = byte_bpe(tmp_path / "bpe", *merges, ("Ã", "°"))
    parts = describe(old, bpe)
    assert parts["Ġbanana"] == ["bana", "##na"]
    assert parts["nas"] == ["##na", "##s"]
    assert parts[","] == [","]
    assert parts["Ã°"] == ["##ð"]
    assert "Ã" not in parts, "half a character"
    assert "Ġ" not in parts
    metaspace = unigram(tmp_path / "unigram", "▁banana", "nas", "▁", ",")
    assert describe(old, metaspace) == {
        k.replace("Ġ", "▁"): parts[k] for k in ("Ġbanana", "nas", ",")
    }
    back = describe(bpe, old)
    assert back["bana"] == ["Ġbana"]
    assert back["na"] == ["Ġ", "na"]
    assert back["##na"] == ["na"]
    assert back[","] == [","]
    assert describe(bpe, metaspace)["▁banana"] == ["Ġbanana"]
