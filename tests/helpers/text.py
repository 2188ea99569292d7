"""Invented text, and corpora made of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from bert_pipeline.corpus.build import build_corpus
from bert_pipeline.corpus.config import CorpusConfig

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["invent_documents", "invent_words", "make_corpus", "write_jsonl", "write_rows", "zstd"]

DOCUMENTS = 40
TOPICS = 5


def invent_words(random: Random, count: int) -> list[str]:
    """Different pronounceable words that exist in no language."""
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = [
            random.choice("bdfgklmnprstvz") + random.choice("aeiou")
            for _ in range(random.randint(1, 4))
        ]
        words["".join(syllables) + random.choice(["", "", "n", "r", "st"])] = None
    return list(words)


def invent_documents(seed: int = 0, count: int = DOCUMENTS) -> list[str]:
    """Documents of sentence-like text, one paragraph per line.

    Each document has a topic, whose words are frequent in it, so that a model can learn something.
    """
    random = Random(seed)
    common = invent_words(random, 60)
    topics = [invent_words(random, 40) for _ in range(TOPICS)]
    weights = [1 / rank for rank in range(1, 41)]

    def sentence(topic: list[str]) -> str:
        words = [
            random.choice(common) if random.random() < 0.4 else random.choices(topic, weights)[0]
            for _ in range(random.randint(4, 14))
        ]
        if random.random() < 0.2:
            words[random.randrange(len(words) - 1)] += ","
        text = " ".join(words)
        return text[0].upper() + text[1:] + random.choice("...?!")

    return [
        "\n".join(
            " ".join(sentence(topics[number % TOPICS]) for _ in range(random.randint(1, 5)))
            for _ in range(random.randint(2, 7))
        )
        for number in range(count)
    ]


def write_jsonl(path: Path, texts: Sequence[str]) -> Path:
    """Write one JSON object with a `text` field per line; return `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def make_corpus(
    folder: Path, texts: Sequence[str], shards: int = 1, *, several_sources: bool = False
) -> Path:
    """Build a corpus folder from `texts`, in about `shards` shards; return `folder`.

    The shards are made of as many files, which are one source or several.
    """
    raw = folder.with_name(folder.name + "-raw")
    per_file = -(-len(texts) // shards)
    for number, start in enumerate(range(0, len(texts), per_file)):
        write_jsonl(raw / f"{number:03}.jsonl", texts[start : start + per_file])
    files = sorted(raw.iterdir())
    size = max(file.stat().st_size for file in files) / 1e6
    build_corpus(
        CorpusConfig(
            out=folder,
            source=tuple(f"jsonl:{file}" for file in (files if several_sources else [raw / "*"])),
            language=("en",),  # the words are of no language
            shard_mb=size,
            workers=1,
            quiet=True,
        )
    )
    return folder


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """JSON lines, one object per row."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
