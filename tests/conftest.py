"""Small real artifacts that many tests read: made once a session, never changed."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

# Tests run side by side and their models are tiny: threads would only wait for one another. Read when torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from bert_pipeline.corpus.build import build_corpus
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.examples.build import build_examples
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.train import train_tokenizer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["zstd"]

# A shell that starts the tests in the background has them ignore Ctrl-C, which some send to processes of theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same inputs at every run, and no clock: a test that fails here fails everywhere.
settings.register_profile(
    "bertpipe", deadline=None, derandomize=True, database=None, max_examples=40
)
settings.load_profile("bertpipe")

LONGEST = [
    f"test_{name}"
    for name in [
        "clusters",
        "recipe",
        "distributed",
        "resume",
        "hub",
        "readme",
        "corpus",
        "compile",
        "examples",
        "dynamic_masks",
        "cli",
    ]
]
"""Files that take longest: begun first, so that none of them is what all the others wait for at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(
        key=lambda item: (
            LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST)
        )
    )


DOCUMENTS = 40
TOPICS = 5


def invent_words(random: Random, count: int) -> list[str]:
    """Pronounceable words that no language has, all different."""
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = [
            random.choice("bdfgklmnprstvz") + random.choice("aeiou")
            for _ in range(random.randint(1, 4))
        ]
        words["".join(syllables) + random.choice(["", "", "n", "r", "st"])] = None
    return list(words)


def invent_documents(seed: int = 0, count: int = DOCUMENTS) -> list[str]:
    """Documents of sentence-like text, paragraphs one a line; each has a topic, whose words are frequent in it."""
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
    """One document a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def make_corpus(folder: Path, texts: Sequence[str], shards: int = 1) -> Path:
    """A corpus folder of some documents, in about so many shards."""
    raw = folder.with_name(folder.name + "-raw")
    per_file = -(-len(texts) // shards)
    for number, start in enumerate(range(0, len(texts), per_file)):
        write_jsonl(raw / f"{number:03}.jsonl", texts[start : start + per_file])
    size = max(file.stat().st_size for file in raw.iterdir()) / 1e6
    build_corpus(
        CorpusConfig(
            out=folder, source=(f"jsonl:{raw}/*.jsonl",), shard_mb=size, workers=1, quiet=True
        )
    )
    return folder


@pytest.fixture(autouse=True)
def no_run_before() -> None:
    """Accelerate keeps the settings of a process's first run: forget them."""
    if "accelerate" in sys.modules:
        from tests.helpers.training_runs import reset_accelerate

        reset_accelerate()


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the shared artifacts lie in."""
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """The texts of `corpus_folder`."""
    return invent_documents()


@pytest.fixture(scope="session")
def corpus_folder(artifacts: Path, documents: list[str]) -> Path:
    """40 documents in 4 shards."""
    return make_corpus(artifacts / "corpus", documents, shards=4)


@pytest.fixture(scope="session")
def wordpiece_folder(artifacts: Path, corpus_folder: Path) -> Path:
    """An uncased WordPiece tokenizer of 400 entries."""
    config = TokenizeConfig(
        out=artifacts / "wordpiece", corpus=corpus_folder, vocab_size=400, workers=1, quiet=True
    )
    train_tokenizer(config)
    return config.out


@pytest.fixture(scope="session")
def byte_bpe_folder(artifacts: Path, corpus_folder: Path) -> Path:
    """A byte-level BPE tokenizer of 500 entries."""
    config = TokenizeConfig(
        out=artifacts / "byte-bpe",
        corpus=corpus_folder,
        kind="byte-bpe",
        vocab_size=500,
        workers=1,
        quiet=True,
    )
    train_tokenizer(config)
    return config.out


@pytest.fixture(scope="session")
def make_examples(
    artifacts: Path, corpus_folder: Path, wordpiece_folder: Path
) -> Callable[..., Path]:
    """A function that makes an examples folder beside the others, by options of `bertpipe examples`."""

    def make(name: str, **options: object) -> Path:
        given: dict[str, object] = {
            "out": artifacts / name,
            "corpus": corpus_folder,
            "tokenizer": wordpiece_folder,
            "max_seq_length": 64,
            "dupe_factor": 3,
            "validation_fraction": 0.1,
            "workers": 1,
            "quiet": True,
        }
        config = ExamplesConfig(**(given | options))  # type: ignore[arg-type]
        build_examples(config)
        return config.out

    return make


@pytest.fixture(scope="session")
def examples_folder(make_examples: Callable[..., Path]) -> Path:
    """Sentence pairs of at most 64 tokens: 3 passes over 36 documents, and 4 documents held out."""
    return make_examples("examples")


@pytest.fixture(scope="session")
def mlm_examples_folder(make_examples: Callable[..., Path]) -> Path:
    """The same without pairs."""
    return make_examples("mlm-examples", objective="mlm")
