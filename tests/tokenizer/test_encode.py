"""The word table of `SentenceEncoder` gives the ids and words of the tokenizer itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from bert_pipeline.tokenizer import encode
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.encode import SentenceEncoder
from bert_pipeline.tokenizer.load import LoadedTokenizer, load_tokenizer
from bert_pipeline.tokenizer.prefix_space import set_prefix_space
from bert_pipeline.tokenizer.train import train_tokenizer
from bert_pipeline.tokenizer.words import is_wordwise
from tests.helpers.text import invent_documents, make_corpus

NAMES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCIS'İßσςΣéèñ東京中한글۳.,-[]#\u0301\u0323\u200c\u200d👩🚀"
WORDS = ["ba", "bab", "it", "the", "zu", "na", "東京", "straße", "έργος", "[MASK]", "it's", "##ba"]

# Handmade tokenizers


def pieces_of(prefix: str) -> dict[str, int]:
    """Entries for every letter at the start of a word and within it, and for some words."""
    return {
        piece: i
        for i, piece in enumerate(
            [*NAMES, *LETTERS, *(prefix + c for c in LETTERS), *WORDS, "##ab"]
        )
    }


def word_piece(
    normalizer: normalizers.Normalizer | None, pre_tokenizer: pre_tokenizers.PreTokenizer
) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(pieces_of("##"), unk_token="[UNK]"))
    return finish(tokenizer, normalizer, pre_tokenizer)


def word_level(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(pieces_of(""), unk_token="[UNK]"))
    return finish(tokenizer, None, pre_tokenizer)


def unigram(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    entries = [*NAMES, "▁", "▁▁", *LETTERS, "▁a", "▁ba", "ba", "▁the", "it", "▁東", *WORDS]
    scored = [
        (piece, -1.0 - 7 / (1 + len(piece)) - i * 1e-3)
        for i, piece in enumerate(dict.fromkeys(entries))
    ]
    return finish(Tokenizer(models.Unigram(scored, unk_id=1)), normalizers.NFKC(), pre_tokenizer)


def byte_bpe(
    normalizer: normalizers.Normalizer | None,
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    dropout: float | None = None,
) -> Tokenizer:
    """With merges across all wrong places to split: spaces, quotes, the bytes of one character."""
    entries = [*NAMES, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    pairs = "Ġ Ġ,ĠĠ ĠĠ,ĉ Ġ,Ġ a,Ġ b,Ġb a,b a,a b,ba b,i t,' s,Ġ ',Ġ' s,it 's,Ì ģ,Ġ Ìģ,Â ł,Â ħ"
    pairs += ",Ġ [,[ M,M A,A S,MA S"
    pairs += ",ð Ł,â Ģ,âĢ į,Ã ©"
    for pair in pairs.split(","):
        left, right = pair.split(" ")
        if left in entries and right in entries:
            merges.append((left, right))
            entries.append(left + right)
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(entries))}
    return finish(
        Tokenizer(models.BPE(vocabulary, merges, dropout=dropout)), normalizer, pre_tokenizer
    )


def finish(
    tokenizer: Tokenizer,
    normalizer: normalizers.Normalizer | None,
    pre_tokenizer: pre_tokenizers.PreTokenizer,
) -> Tokenizer:
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    mask = AddedToken("[MASK]", lstrip=True, normalized=False, special=True)
    tokenizer.add_special_tokens([*(name for name in NAMES if name != "[MASK]"), mask])
    return tokenizer


def with_added(tokenizer: Tokenizer) -> Tokenizer:
    """Added tokens that contain a space, or strip the spaces around them."""
    tokenizer.add_tokens(
        ["ba ba", AddedToken("it", lstrip=True, rstrip=True), AddedToken("zu", single_word=True)]
    )
    return tokenizer


byte_level = pre_tokenizers.ByteLevel
split_off_spaces = pre_tokenizers.Split(" ", "merged_with_next")
lower_and_strip = normalizers.Sequence(
    [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
)
BY_HAND: dict[str, tuple[bool, Callable[[], Tokenizer]]] = {
    # name: whether words can be looked up one by one, and how to make it
    "bert": (
        True,
        lambda: word_piece(normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()),
    ),
    "bert, cased": (
        True,
        lambda: word_piece(
            normalizers.BertNormalizer(lowercase=False), pre_tokenizers.BertPreTokenizer()
        ),
    ),
    "gpt-2": (True, lambda: byte_bpe(None, byte_level(add_prefix_space=False))),
    "modern bert": (True, lambda: byte_bpe(normalizers.NFC(), byte_level(add_prefix_space=False))),
    "roberta, lower case": (
        True,
        lambda: byte_bpe(normalizers.Lowercase(), byte_level(add_prefix_space=True)),
    ),
    "bytes of decomposed text": (
        True,
        lambda: byte_bpe(normalizers.NFD(), byte_level(add_prefix_space=True)),
    ),
    "bytes without accents": (
        False,
        lambda: byte_bpe(lower_and_strip, byte_level(add_prefix_space=False)),
    ),
    "bytes of bert's text": (False, lambda: byte_bpe(normalizers.BertNormalizer(), byte_level())),
    "words": (True, lambda: word_level(pre_tokenizers.Whitespace())),
    "words at spaces": (True, lambda: word_level(pre_tokenizers.WhitespaceSplit())),
    "a sequence of normalizers": (
        True,
        lambda: word_piece(lower_and_strip, pre_tokenizers.Whitespace()),
    ),
    "bytes of split words": (
        True,
        lambda: byte_bpe(
            None, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), byte_level()])
        ),
    ),
    "bytes without the expression": (
        False,
        lambda: byte_bpe(
            None, pre_tokenizers.Sequence([split_off_spaces, byte_level(use_regex=False)])
        ),
    ),
    "bytes of unsplit sentences": (False, lambda: byte_bpe(None, byte_level(use_regex=False))),
    "sentence piece": (False, lambda: unigram(pre_tokenizers.Metaspace())),
    "compatibility": (
        False,
        lambda: word_piece(normalizers.NFKC(), pre_tokenizers.WhitespaceSplit()),
    ),
    "added tokens": (False, lambda: with_added(word_level(pre_tokenizers.WhitespaceSplit()))),
    "added tokens, bytes": (
        False,
        lambda: with_added(byte_bpe(None, byte_level(add_prefix_space=False))),
    ),
}
TRAINED: dict[str, dict[str, object]] = {
    "wordpiece": {},
    "wordpiece, lower case": {"lowercase": True},
    "wordpiece, without accents": {"strip_accents": True, "clean_text": True},
    "wordpiece, CJK words": {"chinese_characters": False},
    "byte-bpe": {"kind": "byte-bpe"},
    "byte-bpe, lower case": {"kind": "byte-bpe", "lowercase": True},
    "unigram": {"kind": "unigram"},
    "unigram, lower case": {"kind": "unigram", "lowercase": True},
}
FOREIGN = (
    "Ο Οδυσσεύς της Ιθάκης. Die Straße ist naß, l'été à Orléans. "
    "İstanbul'da 東京 中国 한글 कि खी. It's 's.\n"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedTokenizer]:
    """A function that trains a tokenizer."""
    folder = tmp_path_factory.mktemp("trained")
    corpus = make_corpus(
        folder / "corpus", [text + "\n" + FOREIGN * 3 for text in invent_documents(count=12)]
    )

    def make(name: str) -> LoadedTokenizer:
        given: dict[str, object] = {
            "out": folder / name,
            "corpus": corpus,
            "vocab_size": 450,
            "workers": 1,
        }
        config = TokenizeConfig(**(given | {"min_frequency": 1, "quiet": True} | TRAINED[name]))  # type: ignore[arg-type]
        train_tokenizer(config)
        return load_tokenizer(config.out)

    return make


# The reference: the tokenizer itself, sentence by sentence


def read_plainly(
    tokenizer: Tokenizer, sentences: Sequence[str]
) -> tuple[list[list[int]], list[list[bool]]]:
    """Ids of each sentence, and whether each begins another word than the id before it."""
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    ids = [
        found.ids for found in plain.encode_batch_fast(list(sentences), add_special_tokens=False)
    ]
    # A vocabulary of words may have the names of special tokens: unknown words in a text.
    unknown = plain.token_to_id("[UNK]")
    special = {plain.token_to_id(f"[{name}]") for name in ("PAD", "CLS", "SEP", "MASK")}
    ids = [
        [unknown if token in special and unknown is not None else token for token in found]
        for found in ids
    ]
    starts = []
    for found in plain.encode_batch(list(sentences), add_special_tokens=False):
        words = found.word_ids
        if not plain.pre_tokenizer or len(plain.pre_tokenizer.pre_tokenize_str("a b")) == 1:
            # The tokenizer takes a text as one word: words are separated by white space.
            text = sentences[len(starts)]
            firsts = [
                next((i for i in range(s, e) if not text[i].isspace()), max(s, e - 1))
                for s, e in found.offsets
            ]
            words = [sum(char.isspace() for char in text[: first + 1]) for first in firsts]
        starts.append([i == 0 or words[i] != words[i - 1] for i in range(len(words))])
    return ids, starts


def check(
    encoder: SentenceEncoder, tokenizer: Tokenizer, sentences: Sequence[str], with_word_starts: bool
) -> None:
    encoded = encoder.encode(sentences)
    without_prefix, _ = set_prefix_space(tokenizer, "never")
    ids, starts = read_plainly(without_prefix, sentences)
    edges = [0]
    for length in encoded.lengths.tolist():
        edges.append(edges[-1] + length)
    assert len(encoded.lengths) == len(sentences)
    assert edges[-1] == len(encoded.ids)
    runs = [slice(edges[i], edges[i + 1]) for i in range(len(sentences))]
    assert [encoded.ids[run].tolist() for run in runs] == ids
    if with_word_starts:
        assert encoded.word_starts is not None
        assert len(encoded.word_starts) == edges[-1]
        assert [encoded.word_starts[run].tolist() for run in runs] == starts
    else:
        assert encoded.word_starts is None


NASTY = [
    *(
        "  ",
        "   ",
        " ",
        "\t",
        "\n",
        "\r",
        "\u00a0",
        "\u3000",
        "\x1c",
        "\x1d",
        "\x1e",
        "\x1f",
        "\x85",
    ),
    *("\u2028", "\u2029", " \t ", " \t \u3000 ", "\u00a0 \u00a0"),
    *(
        "\0",
        "\x01",
        "\x7f",
        "\u200b",
        "\u200c",
        "\u200d",
        "\ufeff",
        "\u180e",
        "\u2060",
        "\u00ad",
        "\ufffd",
    ),
    *("\u0301", " \u0301", " \u0301 \u0301", "e\u0301", "\u0323\u0301", " \u0327c"),
    *("क\u094d\u200dष", "\u0345", "\u1100\u1161"),
    *("İ", "ß", "ẞ", "ΑΣ", "ΑΣ ", "σς", "ﬁ", "¨", "½", "①", "é", "東京", "中 中", "한", "۳.۵"),
    *("👩\u200d🚀", "🇫🇷", "\U0001f1eb"),
    *("it's", " 's", "'s", "'S", " 'll", "''", "n't", ".", "...", "-", "##ba", "Ġ", "▁", " ▁"),
    *("x" * 47, "x" * 48, "x" * 49, "東" * 60, "ab" * 100),
    *NAMES,
    *(f" {name}" for name in NAMES),
    "<mask>",
    "ba ba",
    "ba  ba",
    "it",
    "zu",
    "zuzu",
]
plain_words = st.sampled_from(["ba", "bab", "the", "na", "The", "BA,", "it.", "3.5", "ba-na"])
spaced = st.lists(plain_words, min_size=1, max_size=6).map(" ".join)
nasty = st.lists(
    st.one_of(
        plain_words,
        st.just(" "),
        st.sampled_from(NASTY),
        st.characters(exclude_categories=["Cs"]),
        plain_words.map(lambda word: " " + word),
    ),
    max_size=9,
).map("".join)
batches = st.lists(st.lists(st.one_of(spaced, spaced, nasty), max_size=6), min_size=1, max_size=4)


@pytest.mark.parametrize("name", BY_HAND)
def test_word_table_ids_equal_tokenizer_ids_for_handmade_tokenizers(
    name: str, wordpiece_folder: Path
) -> None:
    by_words, make = BY_HAND[name]
    text = make().to_str()
    loaded = load_tokenizer(wordpiece_folder)
    assert is_wordwise(set_prefix_space(make(), "never")[0]) == by_words

    @settings(max_examples=25)
    @given(batches, st.booleans())
    def check_batches(given_batches: list[list[str]], with_word_starts: bool) -> None:
        tokenizer = Tokenizer.from_str(text)
        encoder = SentenceEncoder(
            dataclasses.replace(loaded, tokenizer=tokenizer), with_word_starts
        )
        for sentences in given_batches:
            check(encoder, tokenizer, sentences, with_word_starts)

    check_batches()


@pytest.mark.integration
@pytest.mark.parametrize("name", TRAINED)
def test_word_table_ids_equal_tokenizer_ids_for_trained_tokenizers(
    name: str, trained: Callable[[str], LoadedTokenizer]
) -> None:
    loaded = trained(name)
    text = loaded.tokenizer.to_str()
    assert is_wordwise(set_prefix_space(loaded.tokenizer, "never")[0])

    @settings(max_examples=25)
    @given(batches, st.booleans())
    def check_batches(given_batches: list[list[str]], with_word_starts: bool) -> None:
        tokenizer = Tokenizer.from_str(text)
        encoder = SentenceEncoder(
            dataclasses.replace(loaded, tokenizer=tokenizer), with_word_starts
        )
        for sentences in given_batches:
            check(encoder, tokenizer, sentences, with_word_starts)

    check_batches()


@pytest.fixture(
    params=["bert", "gpt-2", "roberta, lower case", "bytes without accents", "bytes of bert's text"]
)
def by_hand(request: pytest.FixtureRequest, wordpiece_folder: Path) -> LoadedTokenizer:
    return dataclasses.replace(
        load_tokenizer(wordpiece_folder), tokenizer=BY_HAND[request.param][1]()
    )


@pytest.mark.parametrize("with_word_starts", [True, False])
@pytest.mark.parametrize(
    "sentences",
    [
        [],
        [""],
        ["", "", ""],
        ["ba the", "", "the ba", ""],
        [" ", "  ", "\t"],
        ["ba  the", "the\tba", " ba", "ba ", "x" * 49],
        ["ba the", "ba  the", "the ba", "x" * 49 + " ba", "na"],
        ["ba\0the", "the ba"],
        ["\0", "\0\0", ""],
        ["\t \t b", "ba \t \u3000 the"],
        ["a \u0301 \u0301 b", "a\u0301 b", "中 中", "a \x01 \x01 b"],
        ["[MASK] [SEP]", "ba[MASK]", " [MASK]", "[CLS]ba [PAD]"],
    ],
)
def test_batches_with_words_not_in_the_table(
    by_hand: LoadedTokenizer, sentences: list[str], with_word_starts: bool
) -> None:
    encoder = SentenceEncoder(by_hand, with_word_starts)
    for batch in (sentences, ["the ba", "na"], sentences):
        check(encoder, by_hand.tokenizer, batch, with_word_starts)


@pytest.mark.parametrize("remembered", [0, 3, 20])
@pytest.mark.parametrize("name", ["bert", "modern bert"])
def test_clearing_the_word_table_changes_no_id(
    remembered: int, name: str, wordpiece_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "MAX_TABLE_WORDS", remembered)
    loaded = dataclasses.replace(load_tokenizer(wordpiece_folder), tokenizer=BY_HAND[name][1]())

    @settings(max_examples=20)
    @given(st.lists(st.lists(st.one_of(spaced, nasty), max_size=5), min_size=3, max_size=8))
    def check_batches(given_batches: list[list[str]]) -> None:
        encoder = SentenceEncoder(loaded, with_word_starts=True)
        for sentences in given_batches:
            check(encoder, loaded.tokenizer, sentences, with_word_starts=True)

    check_batches()


def test_batch_size_changes_no_id(
    trained: Callable[[str], LoadedTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = trained("byte-bpe")
    lines = [line for text in invent_documents(seed=3, count=20) for line in text.split("\n")]
    lines[5::7] = [line.replace(" ", "  ", 1) for line in lines[5::7]]
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 64)
    check(
        SentenceEncoder(loaded, with_word_starts=True),
        loaded.tokenizer,
        lines,
        with_word_starts=True,
    )
    encoder = SentenceEncoder(loaded, with_word_starts=True)
    for start in range(0, len(lines), 17):
        check(encoder, loaded.tokenizer, lines[start : start + 17], with_word_starts=True)


def test_bpe_dropout_is_applied_to_every_occurrence_of_a_word(wordpiece_folder: Path) -> None:
    tokenizer = byte_bpe(None, byte_level(add_prefix_space=False), dropout=0.5)
    loaded = dataclasses.replace(load_tokenizer(wordpiece_folder), tokenizer=tokenizer)
    encoder = SentenceEncoder(loaded, with_word_starts=False)
    # Three merges, each skipped with probability 0.5: 400 equal results are impossible.
    lengths = encoder.encode(["babab babab babab babab"] * 400).lengths
    assert len(set(lengths.tolist())) > 1
