"""Fixtures that many tests share: small real artifacts, built once and never changed."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

# Tests run in parallel and their models are tiny, so more threads would only wait for each other.
# torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads of tests that use more sleep while they wait: busy waiting would stop the other tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from hypothesis import settings

from bert_pipeline.examples.build import build_examples
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.train import train_tokenizer
from tests.helpers.text import invent_documents, make_corpus

# A shell that starts the tests in the background makes them ignore SIGINT, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Same inputs in every run and no deadline: a test that fails here fails everywhere.
settings.register_profile(
    "bertpipe", deadline=None, derandomize=True, database=None, max_examples=40
)
settings.load_profile("bertpipe")


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all tests but those that need one: the others expect a CPU's arithmetic."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first; keep tests that share a module's fixture on one worker.

    Otherwise a long test that starts last keeps one worker busy while the others have finished,
    and every worker would build its own copy of a module-scoped fixture.
    """
    items.sort(key=lambda item: (_is_without(item, "slow"), _is_without(item, "integration")))
    for item in items:
        if _has_module_fixture(item):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))


def _is_without(item: pytest.Item, marker: str) -> bool:
    return item.get_closest_marker(marker) is None


def _has_module_fixture(item: pytest.Item) -> bool:
    definitions = getattr(item, "_fixtureinfo", None)
    if definitions is None:
        return False
    used = definitions.name2fixturedefs.values()
    return any(definition.scope == "module" for found in used for definition in found)


@pytest.fixture(autouse=True)
def reset_libraries() -> None:
    """Undo what earlier training runs set for the process: threads, TF32, Accelerate's state."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
        sys.modules["torch"].set_float32_matmul_precision("highest")
    if "accelerate" in sys.modules:
        from tests.helpers.training_runs import reset_accelerate

        reset_accelerate()


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the shared artifacts; all workers of pytest-xdist use the same one."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "artifacts"
    folder.mkdir(exist_ok=True)
    return folder


def build_shared(folder: Path, build: Callable[[], object]) -> Path:
    """Build an artifact while other workers wait; return its folder.

    A stage that finds its folder complete does nothing, so only the first worker does the work.
    Source: https://pytest-xdist.readthedocs.io/en/stable/how-to.html (session fixtures that run
    only once).
    """
    with folder.with_name(f".{folder.name}.building").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build()
    return folder


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """The texts of `corpus_folder`."""
    return invent_documents()


@pytest.fixture(scope="session")
def corpus_folder(artifacts: Path, documents: list[str]) -> Path:
    """40 documents in 4 shards."""
    folder = artifacts / "corpus"

    def build() -> None:
        if not (folder / "manifest.json").exists():
            make_corpus(folder, documents, shards=4)

    return build_shared(folder, build)


@pytest.fixture(scope="session")
def wordpiece_folder(artifacts: Path, corpus_folder: Path) -> Path:
    """An uncased WordPiece tokenizer of 400 entries."""
    config = TokenizeConfig(
        out=artifacts / "wordpiece",
        corpus=corpus_folder,
        vocab_size=400,
        lowercase=True,
        workers=1,
        quiet=True,
    )
    return build_shared(config.out, lambda: train_tokenizer(config))


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
    return build_shared(config.out, lambda: train_tokenizer(config))


@pytest.fixture(scope="session")
def unigram_folder(artifacts: Path, corpus_folder: Path) -> Path:
    """A unigram tokenizer of 300 entries."""
    config = TokenizeConfig(
        out=artifacts / "unigram",
        corpus=corpus_folder,
        kind="unigram",
        vocab_size=300,
        workers=1,
        quiet=True,
    )
    return build_shared(config.out, lambda: train_tokenizer(config))


@pytest.fixture(scope="session")
def make_examples(
    artifacts: Path, corpus_folder: Path, wordpiece_folder: Path
) -> Callable[..., Path]:
    """A function that builds an examples folder; it takes the options of `bertpipe examples`.

    The same name must always be given the same options.
    """

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
        return build_shared(config.out, lambda: build_examples(config))

    return make


@pytest.fixture(scope="session")
def examples_folder(make_examples: Callable[..., Path]) -> Path:
    """Sentence pairs of at most 64 tokens: 3 passes over 36 documents, 4 documents held out."""
    return make_examples("examples")


@pytest.fixture(scope="session")
def mlm_examples_folder(make_examples: Callable[..., Path]) -> Path:
    """The same without sentence pairs."""
    return make_examples("mlm-examples", objective="mlm")
