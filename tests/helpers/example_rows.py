"""Reading example files and checking the invariants of their rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bert_pipeline.corpus.sentences import split_sentences
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.tokenizer.load import load_tokenizer
from tests.helpers.original_algorithm import EncodedDocument, Instance

PAD, UNK, CLS, SEP, MASK = range(5)
COLUMNS = ["tokens", "segment_ids", "is_random_next", "masked_positions", "masked_labels"]


def rows_of(folder: Path, split: str = "train") -> list[Instance]:
    """The rows as instances; the numbers of truncated tokens are unknown."""
    table = pa.concat_tables(
        pq.read_table(path) for path in sorted(folder.glob(f"{split}-*.parquet"))
    )
    return [
        Instance(*row, (0, 0), (0, 0))
        for row in zip(*(table[name].to_pylist() for name in COLUMNS), strict=True)
    ]


def restore(row: Instance) -> list[int]:
    tokens = list(row.tokens)
    for position, label in zip(row.masked_positions, row.masked_labels, strict=True):
        tokens[position] = label
    return tokens


def encode(
    texts: Sequence[str], tokenizer_folder: Path, language: str = "en"
) -> list[EncodedDocument]:
    """Documents of sentences of ids, one sentence at a time."""
    tokenizer = load_tokenizer(tokenizer_folder).tokenizer
    tokenizer.encode_special_tokens = True
    documents = []
    for text in texts:
        sentences = [
            tokenizer.encode(s, add_special_tokens=False).ids
            for s in split_sentences(text, language)
        ]
        documents.append([sentence for sentence in sentences if sentence])
    return [document for document in documents if document]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Texts:
    """The ids of documents as strings with one character per id, to search for runs."""

    def __init__(self, documents: list[EncodedDocument]) -> None:
        self.strings = [
            "".join(chr(token) for sentence in document for token in sentence)
            for document in documents
        ]

    def places(self, run: Sequence[int]) -> set[tuple[int, int]]:
        """(document, position) of every occurrence of a run."""
        wanted = "".join(map(chr, run))
        found = set()
        for number, text in enumerate(self.strings):
            at = text.find(wanted)
            while at >= 0:
                found.add((number, at))
                at = text.find(wanted, at + 1)
        return found


def check_row(
    row: Instance, texts: Texts, config: ExamplesConfig, vocab_size: int, rate: float
) -> set[int]:
    """Check all invariants; returns the documents that the first segment may come from."""
    tokens = restore(row)
    length = len(tokens)
    assert len(row.segment_ids) == length <= config.max_seq_length
    assert tokens[0] == CLS
    assert tokens[-1] == SEP
    assert all(0 <= token < vocab_size for token in row.tokens)
    limit = config.max_predictions or math.ceil(rate * config.max_seq_length)
    ordinary = [i for i, token in enumerate(tokens) if token not in (PAD, CLS, SEP, MASK)]
    assert len(row.masked_positions) == min(limit, max(1, round(rate * length)), len(ordinary))
    assert row.masked_positions == sorted(set(row.masked_positions))
    assert set(row.masked_positions) <= set(ordinary)
    untouched = set(range(length)) - set(row.masked_positions)
    assert all(row.tokens[i] == tokens[i] for i in untouched)

    if config.objective == "mlm":
        assert row.is_random_next is None
        assert set(row.segment_ids) == {0}
        runs = [
            list(run)
            for is_separator, run in groupby(tokens[1:], lambda token: token == SEP)
            if not is_separator
        ]
        assert tokens == [CLS, *(token for run in runs for token in (*run, SEP))]
        assert len(runs) == 1 or config.across_documents
        owners = [{number for number, _ in texts.places(run)} for run in runs]
        assert all(owners), "no contiguous run of any document"
        return owners[0] if len(runs) == 1 else set()

    assert len(ordinary) == length - 3
    middle = tokens.index(SEP, 1)
    assert row.segment_ids == [0] * (middle + 1) + [1] * (length - middle - 1)
    a = tokens[1:middle]
    b = tokens[middle + 1 : -1]
    assert a
    assert b
    places_a = texts.places(a)
    places_b = texts.places(b)
    assert places_a
    assert places_b
    if row.is_random_next and config.objective == "mlm+sop":
        return follow(b, places_b, places_a, length == config.max_seq_length)
    if row.is_random_next:
        owners = {d for d, _ in places_a if any(e != d for e, _ in places_b)}
        assert owners, "a random next of the same document"
        return owners
    return follow(a, places_a, places_b, length == config.max_seq_length)


def follow(
    a: list[int], places_a: set[tuple[int, int]], places_b: set[tuple[int, int]], may_be_cut: bool
) -> set[int]:
    """The documents in which B follows A, with a gap if tokens were truncated between them."""
    after = {d for d, i in places_a if (d, i + len(a)) in places_b}
    if may_be_cut:
        last = dict(sorted(places_b))
        after |= {d for d, i in places_a if last.get(d, -1) > i + len(a)}
    assert after, "the second segment does not follow the first"
    return after


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Kolmogorov-Smirnov: the largest gap between two cumulative distributions."""
    values = np.unique(np.concatenate([one, other]))
    below = [
        np.searchsorted(np.sort(sample), values, side="right") / len(sample)
        for sample in (one, other)
    ]
    return float(np.max(np.abs(below[0] - below[1])))
