"""The permutation of documents, the splits, drawing other documents, and the token store."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bert_pipeline.corpus.sentences import split_sentences
from bert_pipeline.examples import splits as splits_module
from bert_pipeline.examples.counter_rng import Permutation
from bert_pipeline.examples.encode_corpus import EncodeJob, encode_piece, forget_encoder
from bert_pipeline.examples.splits import Split, Splits
from bert_pipeline.examples.token_store import TokenStore, piece_path
from bert_pipeline.ragged import Int64Array, offsets_of
from bert_pipeline.storage.atomic import hash_file
from bert_pipeline.tokenizer.load import load_tokenizer
from tests.helpers.text import invent_documents

SPLITS: tuple[Split, ...] = ("train", "validation")


def excess(counts: np.ndarray, expected: float | np.ndarray) -> float:
    """Pearson's chi-square statistic, in standard deviations above its mean."""
    statistic = float((((counts - expected) ** 2) / expected).sum())
    freedom = counts.size - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5


# The permutation


@pytest.mark.integration
@settings(max_examples=20)
@given(st.integers(1, 1_000_000), st.integers(0, 1000))
def test_permutation_is_bijective(count: int, seed: int) -> None:
    order = Permutation(count, seed)
    numbers = np.arange(count)
    places = order.place(numbers)
    assert places.min() == 0
    assert places.max() == count - 1
    assert np.bincount(places, minlength=count).max() == 1
    assert np.array_equal(order.at(places), numbers)
    assert np.array_equal(order.place(order.at(numbers)), numbers)


@given(st.integers(1, 60), st.integers(0, 10**9))
def test_short_permutation_is_bijective(count: int, seed: int) -> None:
    order = Permutation(count, seed, 1)
    assert sorted(order.place(np.arange(count)).tolist()) == list(range(count))
    assert order.at(order.place(np.arange(count))).tolist() == list(range(count))


@given(st.integers(10**6, 2**60), st.integers(0, 1000), st.data())
def test_huge_permutation_is_invertible(count: int, seed: int, data: st.DataObject) -> None:
    order = Permutation(count, seed)
    some = np.unique([*data.draw(st.lists(st.integers(0, count - 1), max_size=50)), 0, count - 1])
    places = order.place(some)
    assert places.min() >= 0
    assert places.max() < count
    assert len(np.unique(places)) == len(some)
    assert np.array_equal(order.at(places), some)
    assert np.array_equal(order.place(order.at(some)), some)


@pytest.mark.integration
@pytest.mark.parametrize("count", [2, 3, 5, 17])
def test_permutation_is_uniform_over_seeds(count: int) -> None:
    seeds = 1000
    table = np.zeros((count, count))
    for seed in range(seeds):
        table[np.arange(count), Permutation(count, seed).place(np.arange(count))] += 1
    # All rows and columns have the same sum: (count - 1)² degrees of freedom.
    statistic = float(((table - seeds / count) ** 2 / (seeds / count)).sum()) * (count - 1) / count
    freedom = (count - 1) ** 2
    assert (statistic - freedom) / (2 * freedom) ** 0.5 < 4.5


@pytest.mark.integration
@pytest.mark.parametrize("count", [1000, 65_537, 1_000_000, 10**12])
def test_permutation_spreads_neighbours_uniformly(count: int) -> None:
    numbers = np.arange(200_000 if count > 200_000 else count)
    sums = np.zeros(100)
    steps = np.zeros(100)
    for seed in range(200_000 // len(numbers)):
        places = Permutation(count, seed).place(numbers)
        part = min(len(numbers), 800)  # only some: all numbers together are uniform by definition
        sums += np.bincount(places[:part] * 100 // count, minlength=100)
        apart = (
            places[1:part] - places[: part - 1]
        ) % count  # any step but 0 is as likely as any other
        steps += np.bincount(apart * 100 // count, minlength=100)
    assert excess(sums, sums.sum() / 100) < 4.5
    assert excess(steps, steps.sum() / 100) < 4.5


def test_different_seeds_give_different_permutations() -> None:
    orders = {
        tuple(Permutation(30, *seed).place(np.arange(30)).tolist())
        for seed in [(0,), (1,), (0, 1), (1, 1), (2,)]
    }
    assert len(orders) == 5


# Splits


@given(st.integers(1, 3000), st.floats(0, 1), st.integers(0, 50), st.data())
def test_splits_partition_the_documents(
    count: int, share: float, seed: int, data: st.DataObject
) -> None:
    held_out = int(share * count)
    splits = Splits(count, held_out, seed)
    members = {split: splits.members(split, 0, count).tolist() for split in SPLITS}
    assert splits.size("validation") == len(members["validation"]) == held_out
    assert splits.size("train") == len(members["train"]) == count - held_out
    assert sorted(members["train"] + members["validation"]) == list(range(count))
    cut = data.draw(st.integers(0, count))
    random = np.random.default_rng(seed)
    for split in SPLITS:
        ascending = (
            splits.members(split, 0, cut).tolist() + splits.members(split, cut, count).tolist()
        )
        assert ascending == members[split] == sorted(members[split])
        if members[split]:
            assert set(splits.draw(split, 500, random).tolist()) <= set(members[split])


@pytest.mark.integration
def test_every_document_is_equally_likely_in_validation() -> None:
    count = 50
    held_out = 10
    seeds = 4000
    times = np.zeros(count)
    for seed in range(seeds):
        times[Splits(count, held_out, seed).members("validation", 0, count)] += 1
    # Each of 50 documents is drawn 800 times on average, with standard deviation 25.
    assert np.abs(times - 800).max() < 4.5 * 25.3


# Another document


def edges(sizes: list[int]) -> Int64Array:
    return offsets_of(np.array(sizes))


PIECES = {
    "one piece": [60],
    "few even pieces": [12] * 5,
    "many small pieces": [3] * 20,
    "a document each": [1] * 60,
    "uneven pieces": [1, 40, 0, 2, 1, 0, 0, 9, 1, 1, 3, 0, 2],
    "a piece with nearly all": [1, 0, 58, 1],
}


@pytest.mark.integration
@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize(("split", "near"), [("train", 1), ("train", 3), ("validation", 2)])
def test_other_document_is_drawn_uniformly_from_the_split(
    pieces: str, split: Split, near: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits_module, "PIECES_TO_DRAW_FROM", near)
    splits = Splits(60, 15, seed=4)
    members = splits.members(split, 0, 60)
    random = np.random.default_rng(7)
    calls = 400
    counts = np.zeros((calls, 60))
    for call in range(calls):
        own = random.permutation(members)
        others = splits.draw_others(split, own, edges(PIECES[pieces]), random)
        assert not (others == own).any()
        counts[call] = np.bincount(others, minlength=60)
    assert set(np.flatnonzero(counts.sum(axis=0)).tolist()) == set(members.tolist())
    # The draws of one call share pieces, so only calls are independent.
    # Of 45 documents one passes 4.5 standard errors less than once in three thousand tests.
    error = counts[:, members].std(axis=0) / calls**0.5
    assert (np.abs(counts[:, members].mean(axis=0) - 1) / error).max() < 4.5


@pytest.mark.parametrize("split", SPLITS)
def test_other_document_is_independent_of_own_document(split: Split) -> None:
    splits = Splits(60, 15, seed=4)
    members = splits.members(split, 0, 60)
    random = np.random.default_rng(7)
    own = random.choice(members, 100_000)
    others = splits.draw_others(split, own, edges([12] * 5), random)
    times = np.zeros((60, 60))
    np.add.at(times, (own, others), 1)
    pairs = times[np.ix_(members, members)]
    other = ~np.eye(len(members), dtype=bool)
    assert pairs[other].sum() == 100_000
    assert excess(pairs[other], 100_000 / other.sum()) < 4.5


@pytest.mark.parametrize("near", [1, 64])
@pytest.mark.parametrize("sizes", [[2], [1, 1], [0, 1, 0, 0, 1], [4], [1, 1, 1, 1], [3, 0, 1]])
def test_other_document_of_two_is_found(
    sizes: list[int], near: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits_module, "PIECES_TO_DRAW_FROM", near)
    random = np.random.default_rng(0)
    count = sum(sizes)
    for seed in range(20):
        splits = Splits(count, count - 2, seed)
        one, other = splits.members("train", 0, count).tolist()
        own = np.array([one, other] * 50)
        assert splits.draw_others("train", own, edges(sizes), random).tolist() == [other, one] * 50


def test_few_pieces_are_opened_in_a_large_corpus() -> None:
    splits = Splits(3000, 0, seed=0)
    pieces = edges([3] * 1000)
    others = splits.draw_others("train", np.zeros(5000, np.int64), pieces, np.random.default_rng(1))
    assert len(np.unique(others // 3)) <= 2 * splits_module.PIECES_TO_DRAW_FROM
    assert (
        len(splits.draw_others("train", np.empty(0, np.int64), pieces, np.random.default_rng(1)))
        == 0
    )


# The token store


EncodedSentence = list[tuple[int, bool]]
"""Ids, and whether each begins a word."""
EMPTY = ["\u0301\u0301", "\u200d\u200d", "\u0301 \u200d"]
SHARDS = [
    [*invent_documents(seed=9, count=6), "Zu.", EMPTY[0]],
    EMPTY,
    [
        "Ba na. " * 60,
        "Nopi. \u0301. \u200d\n\u0301\n\u0301",
        *invent_documents(seed=10, count=3),
        "Nu.",
    ],
]


def grow(tokenizer: Path, folder: Path) -> Path:
    """The tokenizer with 70,000 more entries, so that the ids that occur need four bytes."""
    shutil.copytree(tokenizer, folder)
    path = folder / "tokenizer.json"
    contents = json.loads(path.read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = contents["model"]["vocab"]
    for piece, number in vocabulary.items():
        vocabulary[piece] = number + 70_000 if number > 10 else number
    vocabulary |= {f"\ue000{number}": number for number in range(11, 70_011)}
    path.write_text(json.dumps(contents), encoding="utf-8")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    del manifest["sha256"]
    manifest["files"][path.name] = {"sha256": hash_file(path), "bytes": path.stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def read_literally(texts: list[str], tokenizer: Tokenizer) -> list[list[EncodedSentence]]:
    """Documents of sentences, without those that have no tokens."""
    documents = []
    for text in texts:
        document = []
        for sentence in split_sentences(text, "en"):
            found = tokenizer.encode(sentence, add_special_tokens=False)
            words = found.word_ids
            document.append(
                [(i, n == 0 or words[n] != words[n - 1]) for n, i in enumerate(found.ids)]
            )
        documents.append([sentence for sentence in document if sentence])
    return [document for document in documents if document]


@dataclass
class Stored:
    """A token store and its expected content."""

    store: TokenStore
    documents: list[list[EncodedSentence]]
    with_word_starts: bool
    id_type: str


@pytest.fixture(scope="module", params=["small", "large"])
def tokenizer_folder(
    request: pytest.FixtureRequest, wordpiece_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Ids of two bytes, and of four."""
    folder: Path = tmp_path_factory.mktemp("tokenizer") / request.param
    return wordpiece_folder if request.param == "small" else grow(wordpiece_folder, folder)


@pytest.fixture(scope="module", params=[True, False], ids=["with starts", "without"])
def stored(
    request: pytest.FixtureRequest, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Stored:
    """Pieces of one row, no rows, several rows, and rows without tokens."""
    folder = tmp_path_factory.mktemp("store")
    loaded = load_tokenizer(tokenizer_folder)
    tokenizer = Tokenizer.from_str(loaded.tokenizer.to_str())
    tokenizer.encode_special_tokens = True
    forget_encoder()
    documents = []
    counts = []
    for number, texts in enumerate(SHARDS):
        pq.write_table(
            pa.table({"text": texts, "language": ["en"] * len(texts)}), folder / f"{number}.parquet"
        )
        for first, end in [(0, 1), (1, 1), (1, 3), (3, len(texts))]:
            job = EncodeJob(
                piece_path(folder, len(counts)),
                folder / f"{number}.parquet",
                hash_file(folder / f"{number}.parquet"),
                first,
                end,
                tokenizer_folder,
                request.param,
            )
            expected = read_literally(texts[first:end], tokenizer)
            found = encode_piece(job)
            assert found == encode_piece(job), "a finished piece has other counts"
            whole = job.path.read_bytes()
            job.path.write_bytes(whole[: len(whole) // 2])
            assert found == encode_piece(job), "a damaged piece was not written again"
            assert job.path.read_bytes() == whole
            assert found["documents"] == len(expected)
            assert found["sentences"] == sum(map(len, expected))
            ids = [i for document in expected for sentence in document for i, _ in sentence]
            assert found["tokens"] == len(ids)
            assert found["unknown"] == ids.count(loaded.special.unk)
            documents += expected
            counts.append(len(expected))
    forget_encoder()
    assert 0 in counts
    id_type = "uint16" if loaded.vocab_size <= 65_536 else "int32"
    return Stored(TokenStore(folder, counts), documents, request.param, id_type)


def take(document: list[EncodedSentence], share: float, wanted: int) -> EncodedSentence:
    """Sentences from the one at `share` on, up to `wanted` tokens or the end of the document."""
    taken: EncodedSentence = []
    for sentence in document[int(share * len(document)) :]:
        taken += sentence
        if len(taken) >= wanted:
            break
    return taken


def test_token_store_has_every_document_in_order(stored: Stored) -> None:
    assert len(stored.store) == len(stored.documents)
    ids = [stored.store.open(piece).ids for piece in range(len(stored.store.first) - 1)]
    assert {str(each.dtype) for each in ids} == {stored.id_type}
    flat = [i for document in stored.documents for sentence in document for i, _ in sentence]
    assert np.concatenate(ids).tolist() == flat
    assert (max(flat) > 65_536) == (stored.id_type == "int32")


@given(st.data())
def test_token_store_reads_sentences_unchanged(stored: Stored, data: st.DataObject) -> None:
    below_one = st.floats(0, 1, exclude_max=True)
    wanted = st.one_of(st.integers(1, 40), st.integers(1, 5000))
    number = st.integers(0, len(stored.documents) - 1)
    asked = data.draw(st.lists(st.tuples(number, below_one, wanted), max_size=30))
    places = stored.store.find_sentences(
        np.array([document for document, _, _ in asked], dtype=np.int64),
        np.array([share for _, share, _ in asked], dtype=np.float64),
        np.array([wanted for _, _, wanted in asked], dtype=np.int64),
    )
    runs = stored.store.read(places)
    assert len(runs.offsets) == len(asked) + 1
    assert (runs.word_starts is not None) == (stored.with_word_starts and len(asked) > 0)
    for place, (document, share, count) in enumerate(asked):
        expected = take(stored.documents[document], share, count)
        run = slice(runs.offsets[place], runs.offsets[place + 1])
        assert runs.ids[run].tolist() == [i for i, _ in expected]
        if runs.word_starts is not None:
            assert runs.word_starts[run].tolist() == [starts for _, starts in expected]


def test_token_counts_without_excluded_documents(stored: Stored) -> None:
    vocab_size = 70_400 if stored.id_type == "int32" else 400
    for piece, (first, end) in enumerate(pairwise(stored.store.first.tolist())):
        excluded = list(range(first, end, 2))
        kept = [
            document
            for n, document in enumerate(stored.documents)
            if first <= n < end and n not in excluded
        ]
        ids = [i for document in kept for sentence in document for i, _ in sentence]
        expected = np.bincount(np.array(ids, dtype=np.int64), minlength=vocab_size)
        assert np.array_equal(
            stored.store.count_tokens(piece, np.array(excluded, np.int64), vocab_size), expected
        )
