"""Deduplication, compared with an exact computation over all pairs."""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_pipeline.corpus.build import build_corpus
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.dedup import duplicates
from bert_pipeline.corpus.dedup.fingerprints import PERMUTATIONS, choose_bands, make_signatures
from bert_pipeline.corpus.selection import apply_limits
from bert_pipeline.storage.shards import read_columns
from tests.helpers.text import write_jsonl

WORDS = [
    f"{a}{b}"
    for a in ("ka", "lo", "mi", "ne", "su", "ta", "vo", "ri")
    for b in ("ba", "den", "fis", "gol", "pu")
]


@cache
def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[n : n + 5]) for n in range(max(1, len(words) - 4))}


def jaccard(first: str, second: str) -> float:
    a = shingles(first)
    b = shingles(second)
    return len(a & b) / len(a | b)


def invent(count: int, seed: int, length: int = 120) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=length)) for _ in range(count)]


def change_words(text: str, count: int, draw: random.Random) -> str:
    words = text.split(" ")
    for place in draw.sample(range(len(words)), count):
        words[place] = f"other{draw.randrange(10**6)}"
    return " ".join(words)


def kept(folder: Path, texts: list[str], **options: Any) -> list[str]:
    write_jsonl(folder / "a.jsonl", texts)
    given = {"workers": 1, "quiet": True} | options
    build_corpus(CorpusConfig(out=folder / "out", source=(f"jsonl:{folder}/a.jsonl",), **given))
    shards = sorted((folder / "out").glob("*.parquet"))
    return [text for shard in shards for text in read_columns(shard, ["text"])["text"].to_pylist()]


def test_minhash_signatures_estimate_jaccard_similarity():
    draw = random.Random(1)
    originals = invent(60, 2)
    changed = [change_words(text, n % 20, draw) for n, text in enumerate(originals)]
    first = make_signatures(originals)
    second = make_signatures(changed)
    assert first.shape == (60, PERMUTATIONS)
    errors = (first == second).mean(axis=1) - [
        jaccard(a, b) for a, b in zip(originals, changed, strict=True)
    ]
    # A binomial mean of 128 draws has a standard deviation of at most 0.045, of 60 such of 0.006.
    assert np.abs(errors).max() < 4.5 * 0.045
    assert abs(errors.mean()) < 4.5 * 0.006


def test_minhash_signature_depends_on_its_text_only():
    texts = [
        *invent(5, 3),
        "",
        "one",
        "one two three four five",
        "سلام دنیا",
        "!!!",
        "東京は日本の首都です。",
    ]
    together = make_signatures(texts)
    for number, text in enumerate(texts):
        assert (make_signatures([text]) == together[number]).all()
    assert (
        together
        == make_signatures([f" {text.upper()}!" if text.isascii() else text for text in texts])
    ).all(axis=1).sum() >= len(texts) - 2


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.95])
def test_bands_recall_at_the_threshold(threshold: float):
    bands, rows = choose_bands(threshold)
    assert bands * rows <= PERMUTATIONS
    assert 1 - (1 - threshold**rows) ** bands >= 0.99


def test_near_duplicates_equal_those_of_exact_jaccard(tmp_path: Path):
    draw = random.Random(4)
    originals = invent(150, 5)
    # With 1 or 2 of 120 words changed the similarity is above 0.84, with 8 or more below 0.6.
    texts = originals + [
        change_words(draw.choice(originals), draw.choice([1, 2, 10, 30]), draw) for _ in range(250)
    ]
    draw.shuffle(texts)
    expected = []
    for number, text in enumerate(texts):
        if max((jaccard(text, earlier) for earlier in texts[:number]), default=0) < 0.72:
            expected.append(text)
    found = kept(tmp_path, texts, clean=("near",), near_threshold=0.72)
    # 1% may be missed; pairs between 0.6 and 0.84 are rare here.
    assert len(set(found) ^ set(expected)) <= 4
    assert 150 < len(found) < 330
    assert [text for text in texts if text in set(found)] == found


@pytest.mark.parametrize("step", ["exact", "near"])
def test_earliest_duplicate_is_kept_across_shards(tmp_path: Path, step: str):
    texts = invent(30, 6)
    doubled = texts + texts[::-1] + texts[:10] * 3
    assert kept(tmp_path, doubled, clean=(step,), shard_mb=0.003) == texts


@pytest.mark.parametrize(
    "texts",
    [
        ["Ja.", "Nein.", "Ja!", "ja", "Ja, ja.", "Nein, ja."],
        ["!!!", "???", "—", "。"],
        ["بله", "خیر", "نه"],
        ["我喜歡貓", "我喜歡狗", "他喜歡貓", "我們喜歡貓和狗"],
    ],
)
def test_near_keeps_different_short_texts(tmp_path: Path, texts: list[str]):
    expected = ["Ja.", "Nein.", "Ja, ja.", "Nein, ja."] if texts[0] == "Ja." else texts
    assert kept(tmp_path, texts, clean=("near",)) == expected


def test_near_compares_characters_without_spaces(tmp_path: Path):
    base = (
        "東京は日本の首都であり世界でも有数の大都市である。"
        "江戸時代から政治と文化の中心として発展してきた。" * 3
    )
    near = base.replace("有数", "指折", 1)
    other = (
        "大阪は西日本最大の都市で商業の町として知られている。"
        "たこ焼きやお好み焼きなどの食べ物も有名である。" * 3
    )
    assert kept(tmp_path, [base, near, other], clean=("near",)) == [base, other]


def test_exact_keeps_texts_that_differ_in_one_character(tmp_path: Path):
    texts = ["A text.", "A text", "a text.", "A text.", "A  text."]
    assert kept(tmp_path, texts, clean=("exact",)) == ["A text.", "A text", "a text.", "A  text."]
    assert kept(tmp_path / "2", texts, clean=("whitespace,exact",)) == [
        "A text.",
        "A text",
        "a text.",
    ]


@pytest.mark.integration
@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.sampled_from(invent(6, 7, 30)), min_size=1, max_size=12),
    st.integers(1, 8),
    st.data(),
)
def test_limited_corpus_is_a_prefix_of_the_unlimited_one(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], limit: int, data: st.DataObject
):
    steps = data.draw(st.sampled_from([("exact",), ("near",), ("exact", "near")]))
    size = data.draw(st.sampled_from([0.0001, 0.001, 1]))
    complete = kept(tmp_path_factory.mktemp("complete"), texts, clean=steps, shard_mb=size)
    some = kept(
        tmp_path_factory.mktemp("some"), texts, clean=steps, shard_mb=size, max_documents=limit
    )
    assert complete == list(dict.fromkeys(texts))
    assert some == complete[:limit]


def test_sorting_in_chunks_finds_the_same_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    texts = invent(40, 8) * 2 + invent(40, 9)
    complete = kept(tmp_path / "complete", texts, clean=("exact,near",))
    monkeypatch.setattr(duplicates, "SORT_CHUNK_DOCUMENTS", 7)
    assert kept(tmp_path / "chunks", texts, clean=("exact,near",)) == complete


@given(
    st.lists(st.tuples(st.sampled_from([0, 0, 1, 2]), st.integers(1, 9)), max_size=12),
    st.integers(1, 8),
    st.integers(1, 40),
)
def test_apply_limits_keeps_the_first_documents(
    given: list[tuple[int, int]], documents: int, size: int
):
    status = np.array([number for number, _ in given], dtype=np.uint8)
    sizes = np.array([length for _, length in given], dtype=np.int64)
    taken: list[int] = []
    reached = False
    for number, (given_status, length) in enumerate(given):
        if given_status == 0 and not reached:
            if len(taken) + 1 > documents or sum(int(sizes[n]) for n in taken) + length > size:
                reached = True
            else:
                taken.append(number)
    enough = apply_limits(status, sizes, documents, size)
    assert np.flatnonzero(status == 0).tolist() == taken
    assert enough == (
        reached or len(taken) == documents or sum(int(sizes[n]) for n in taken) == size
    )
