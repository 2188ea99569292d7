"""Tokenizers keep every letter of any script, and sentences have the ids of the running text."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from bert_pipeline.corpus.sentences import split_running
from bert_pipeline.storage.manifest import read_manifest
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.encode import SentenceEncoder
from bert_pipeline.tokenizer.load import LoadedTokenizer, load_tokenizer
from bert_pipeline.tokenizer.train import train_tokenizer
from tests.helpers.languages import TEXTS
from tests.helpers.text import make_corpus

KINDS = ("wordpiece", "byte-bpe", "unigram")


def train(out: Path, *texts: str, quiet: bool = True, **options: Any) -> Path:
    corpus = make_corpus(out.with_name(out.name + "-corpus"), [text + "\n" for text in texts])
    given: dict[str, Any] = {"out": out, "corpus": corpus, "workers": 1, "quiet": quiet}
    train_tokenizer(TokenizeConfig(**(given | {"vocab_size": 1000} | options)))
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_default_tokenizer_changes_no_letter_of_any_language(tmp_path: Path, kind: str) -> None:
    auto = AutoTokenizer.from_pretrained(train(tmp_path / "t", *[*TEXTS.values()] * 5, kind=kind))
    for text in TEXTS.values():
        ids = auto(text, add_special_tokens=False)["input_ids"]
        assert auto.unk_token_id not in ids
        pieces = "".join(auto.decode([i]).removeprefix("##").strip() for i in ids)
        if kind == "byte-bpe":  # a token may end within a character
            pieces = auto.decode(ids)
        assert pieces.replace(" ", "") == text.replace(" ", "")


def test_byte_bpe_learns_words_with_combining_marks(tmp_path: Path) -> None:
    texts = [TEXTS["hi"], TEXTS["th"], TEXTS["fa"]] * 20
    folder = train(tmp_path / "t", *texts, kind="byte-bpe")
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(folder)
    for word in ("हिन्दी", "डॉक्टर", "เมื่อคืนฝนตกหนักมาก", "می‌خواهم"):
        assert len(auto.tokenize(word)) == 1, word
        assert plain.encode(word).ids == auto(word)["input_ids"], (
            "tokenizers and transformers agree"
        )


def test_words_of_hundreds_of_letters_have_no_unknown_characters(tmp_path: Path) -> None:
    clause = TEXTS["th"].replace(" ", "") * 8
    assert len(clause) > 300
    folder = train(tmp_path / "t", *[clause] * 3)
    quality = read_manifest(folder, "tokenize").counts["quality"]
    assert quality["unknown_characters"] == 0
    limited = train(tmp_path / "l", *[clause, "ปลา ปลา"] * 3, max_word_characters=100)
    quality = read_manifest(limited, "tokenize").counts["quality"]
    assert quality["unknown_characters"] == pytest.approx(len(clause) / (len(clause) + 6))


def test_option_that_merges_words_prints_their_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["schön schon schön. Haus haus Baum"] * 2
    train(tmp_path / "a", *texts, quiet=False)
    assert "equal" not in capsys.readouterr().out
    train(tmp_path / "b", *texts, quiet=False, lowercase=True, strip_accents=True)
    assert (
        "--lowercase, --strip-accents: 80.0% of the distinct words become equal to another one "
        "(schön = schon; Haus = haus)"
    ) in " ".join(capsys.readouterr().out.split())


def test_unigram_gives_the_same_bytes_at_every_run_and_for_any_number_of_workers(
    tmp_path: Path, corpus_folder: Path
) -> None:
    found = set()
    for workers in (1, 1, 3):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        train_tokenizer(
            TokenizeConfig(
                out=out, corpus=corpus_folder, kind="unigram", workers=workers, quiet=True
            )
        )
        found.add((out / "tokenizer.json").read_bytes())
    assert len(found) == 1


# Text after a mask


@pytest.mark.parametrize("kind", ["byte-bpe", "unigram"])
def test_mask_adds_no_space_to_the_text_after_it(tmp_path: Path, kind: str) -> None:
    auto = AutoTokenizer.from_pretrained(train(tmp_path / "t", *[*TEXTS.values()] * 5, kind=kind))

    def after_mask(text: str) -> list[int]:
        ids: list[int] = auto(text, add_special_tokens=False)["input_ids"]
        return ids[ids.index(auto.mask_token_id) + 1 :]

    def within(text: str) -> list[int]:
        """The ids of a text without those of the `的` before it."""
        before, both = (auto(t, add_special_tokens=False)["input_ids"] for t in ("的", "的" + text))
        assert both[: len(before)] == before
        return both[len(before) :]  # type: ignore[no-any-return]

    for text in (".", "的", " schon", " schon."):
        assert after_mask("schön [MASK]" + text) == within(text)
    assert auto("的", add_special_tokens=False)["input_ids"] != within("的"), "a text has a space"


# Sentences and the running text


def with_specials(tokenizer: Tokenizer) -> Tokenizer:
    mask = AddedToken("[MASK]", lstrip=True, normalized=False, special=True)
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", mask])
    return tokenizer


def like_roberta(folder: Path, adds_space: bool) -> Tokenizer:
    """GPT-2's and RoBERTa's tokenizer: ByteLevel alone, by default without a prefix space."""
    trained = json.loads(load_tokenizer(folder).tokenizer.to_str())["model"]
    tokenizer = Tokenizer(models.BPE(trained["vocab"], [tuple(m) for m in trained["merges"]]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=adds_space)
    tokenizer.decoder = decoders.ByteLevel()
    return with_specials(tokenizer)


def like_xlm_roberta(folder: Path) -> Tokenizer:
    """XLM-RoBERTa's and ALBERT's: words at white space, each with a prefix space."""
    trained = json.loads(load_tokenizer(folder).tokenizer.to_str())["model"]
    entries = [(piece, score) for piece, score in trained["vocab"]]
    tokenizer = Tokenizer(models.Unigram(entries, trained["unk_id"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    return with_specials(tokenizer)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedTokenizer]:
    place = tmp_path_factory.mktemp("kinds")
    texts = [*TEXTS.values(), "The cat sat. The dog ran."] * 4
    folders = {kind: train(place / kind, *texts, kind=kind, vocab_size=800) for kind in KINDS}
    own = {kind: load_tokenizer(folder) for kind, folder in folders.items()}
    taken = {
        "roberta": like_roberta(folders["byte-bpe"], adds_space=False),
        "roberta, with space": like_roberta(folders["byte-bpe"], adds_space=True),
        "xlm-roberta": like_xlm_roberta(folders["unigram"]),
    }
    return own | {
        name: dataclasses.replace(own["byte-bpe"], tokenizer=tokenizer)
        for name, tokenizer in taken.items()
    }


sentences = st.sampled_from(
    [*TEXTS.values(), "The cat sat.", "Why?", "(Yes.)", "e\u0301", "[MASK] it!", "3.5", "了"]
)
paragraphs = st.lists(sentences, min_size=1, max_size=4).map(" ".join)
unspaced = st.lists(sentences, min_size=1, max_size=4).map("".join)
documents = st.lists(st.one_of(paragraphs, unspaced), min_size=1, max_size=4).map("\n".join)


@pytest.mark.parametrize("name", [*KINDS, "roberta", "roberta, with space", "xlm-roberta"])
def test_ids_of_sentences_joined_are_the_ids_of_the_running_text(
    name: str, loaded: dict[str, LoadedTokenizer]
) -> None:
    plain = Tokenizer.from_str(loaded[name].tokenizer.to_str())
    plain.encode_special_tokens = True
    encoder = SentenceEncoder(loaded[name], with_word_starts=False)
    special = loaded[name].special

    @settings(max_examples=60)
    @given(documents, st.sampled_from([*TEXTS, "en"]))
    def check(document: str, language: str) -> None:
        pieces = split_running(document, language)
        found = encoder.encode([encoder.text_prefix + pieces[0], *pieces[1:]])
        running = " ".join(document.split("\n"))
        ids = plain.encode(running, add_special_tokens=False).ids
        # Unigram may give the name of a special token its id; in a text it is an unknown word.
        assert found.ids.tolist() == [special.unk if i == special.mask else i for i in ids]

    check()


# SentencePiece


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "model_type", "pieces"),
    [
        ("spiece.model", "albert", {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}),
        ("sentencepiece.bpe.model", "xlm-roberta", {}),
    ],
)
def test_repository_with_a_sentencepiece_model_alone_is_taken(
    tmp_path: Path, corpus_folder: Path, name: str, model_type: str, pieces: dict[str, int]
) -> None:
    model = io.BytesIO()
    names = {"bos_piece": "[CLS]", "eos_piece": "[SEP]", "control_symbols": ["[MASK]"]}
    SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS.values()] * 5),
        model_writer=model,
        vocab_size=500,
        hard_vocab_limit=False,
        minloglevel=3,
        **(pieces | (names if pieces else {})),
    )
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / name).write_bytes(model.getvalue())
    (theirs / "config.json").write_text(json.dumps({"model_type": model_type}))
    taken = tmp_path / "taken"
    train_tokenizer(
        TokenizeConfig(out=taken, corpus=corpus_folder, tokenizer=str(theirs), quiet=True)
    )
    expected = AutoTokenizer.from_pretrained(theirs)
    auto = AutoTokenizer.from_pretrained(taken)
    for text in [*TEXTS.values(), "a  b\tc "]:
        assert (
            auto(text, add_special_tokens=False)["input_ids"]
            == expected(text, add_special_tokens=False)["input_ids"]
        )
    assert auto.mask_token == expected.mask_token
    mask = auto.mask_token
    assert auto.tokenize(f"Haus {mask}.")[-1] == "."


def test_taken_tokenizer_that_merges_words_prints_their_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["schön schon schön. Haus haus Baum"] * 2
    options = {"lowercase": True, "strip_accents": True}
    theirs = train(tmp_path / "theirs", *texts, **options)
    capsys.readouterr()
    taken = {"out": tmp_path / "taken", "corpus": tmp_path / "theirs-corpus"}
    train_tokenizer(TokenizeConfig(**taken, tokenizer=str(theirs)))
    assert "its normalization: 80.0% of the distinct words" in capsys.readouterr().out
