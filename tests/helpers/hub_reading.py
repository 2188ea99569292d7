"""Fixtures for tests of Hub sources, read from a local hub over HTTP.

`huggingface_hub` reads `HF_ENDPOINT` on import. Therefore sources are read in another process, one
per test file, and the command line is run as a subprocess.
"""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.documents import Document
from bert_pipeline.corpus.sources import plain_text
from bert_pipeline.errors import BertpipeError
from tests.helpers.local_hub import LocalHub

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


RAW = "wikitext-2-raw-v1"


FORMATS = ["parquet", "jsonl", "jsonl.gz", "jsonl.zst"]
FEWER_FORMATS = [
    "parquet",
    "jsonl.gz",
    *(pytest.param(form, marks=pytest.mark.slow) for form in ("jsonl", "jsonl.zst")),
]
"""Formats for tests that wait; the others are slow tests."""


FOREVER = float("inf")


@dataclass
class Reading:
    """The result of reading a source."""

    tasks: list[list[Document]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    described: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    error: str = ""
    exit_code: int = 0
    printed: str = ""
    seconds: float = 0

    @property
    def texts(self) -> list[str]:
        return [document.text for task in self.tasks for document in task]

    @property
    def ids(self) -> list[str]:
        return [document.id for task in self.tasks for document in task]


def read_source(spec: str, options: dict[str, Any], token: str) -> Reading:
    """Read all tasks of a source, in the process whose endpoint is the local hub."""
    from bert_pipeline.corpus.sources.load import open_source

    reading = Reading()
    printed = io.StringIO()
    start = time.monotonic()
    os.environ["HF_TOKEN"] = token
    with redirect_stderr(printed):
        try:
            config = CorpusConfig(out=Path("unused"), source=(spec,), **options)
            source = open_source(spec, config)
            reading.fingerprint = source.fingerprint()
            reading.described = source.describe()
            for task in source.tasks(config):
                documents: list[Document] = []
                reading.tasks.append(documents)
                # Pickled, as for workers.
                for document in pickle.loads(pickle.dumps(task)).documents(reading.counts):  # noqa: S301
                    documents.append(document)  # noqa: PERF402 (what came before an error counts)
        except BertpipeError as error:
            reading.error = str(pickle.loads(pickle.dumps(error)))  # noqa: S301
            reading.exit_code = error.exit_code
    reading.printed = printed.getvalue()
    reading.seconds = time.monotonic() - start
    return reading


def peak_memory() -> int:
    """Peak memory of this process in bytes; 0 when unknown."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def count_documents(spec: str, options: dict[str, Any]) -> tuple[int, int]:
    """The number of documents, and the memory for reading them in bytes."""
    from bert_pipeline.corpus.sources.load import open_source

    config = CorpusConfig(out=Path("unused"), source=(spec,), **options)
    tasks = open_source(spec, config).tasks(config)
    before = peak_memory()
    return sum(1 for task in tasks for _ in task.documents(Counter())), peak_memory() - before


Read = Callable[..., Reading]


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with LocalHub(tmp_path_factory.mktemp("no-hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def environment(server: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = str(tmp_path_factory.mktemp("hf"))
    return {"HF_ENDPOINT": server.url, "HF_HOME": home, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}


@contextmanager
def start_reader(environment: dict[str, str]) -> Iterator[ProcessPoolExecutor]:
    """A process with this environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(os.getpid).result()  # started in this environment
            yield pool


@pytest.fixture(scope="module")
def reader(environment: dict[str, str]) -> Iterator[ProcessPoolExecutor]:
    with start_reader(environment) as pool:
        yield pool


@pytest.fixture
def hub(server: LocalHub, tmp_path: Path) -> LocalHub:
    server.begin(tmp_path / "hub")
    return server


@pytest.fixture
def read(reader: ProcessPoolExecutor, hub: LocalHub) -> Read:
    def read(spec: str, token: str = "", **options: Any) -> Reading:
        return reader.submit(read_source, spec, {"max_wait": 20} | options, token).result()

    return read


@pytest.fixture
def run(environment: dict[str, str], hub: LocalHub) -> Run:
    def run(*arguments: str | Path, **changed: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bert_pipeline", *map(str, arguments)],
            env=os.environ | environment | changed,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def to_parquet(columns: dict[str, list[Any]], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def to_jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def pack(texts: list[str], form: str) -> bytes:
    """The texts as a file of some format; parquet in several row groups and with page checksums."""
    if form == "parquet":
        return to_parquet(
            {"text": texts}, row_group_size=100, write_page_checksum=True, compression="none"
        )
    plain = to_jsonl([{"text": text} for text in texts])
    return {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstd.compress}[form](plain)


def invent_texts(count: int, words: int = 60, seed: int = 0) -> list[str]:
    """Random texts, which hardly compress."""
    rng = random.Random(seed)
    return [
        f"{number}: " + " ".join(f"{rng.getrandbits(40):x}" for _ in range(words))
        for number in range(count)
    ]


@cache
def long_texts() -> list[str]:
    """Texts that need more than two ranges of five megabytes, also compressed."""
    return invent_texts(5000, 400)


TEXTS = invent_texts(400)


DATA = r"/cdn/|resolve/.*/data"


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


# WikiText
ARTICLES = [
    [
        " = Valkyria = \n",
        "",
        " A game . \n",
        "",
        " = = Plot = = \n",
        "",
        " It has = one = .\n",
        " = 5 = 5 = \n",
        "",
    ],
    [" = Tower = \n", "", " A tower .\n", ""],
    [" = Corn = \n", "", " = = = Kinds = = = \n", "", " Two kinds .\n", " More .\n", ""],
]


CARD = f"""---
configs:
- config_name: {RAW}
  data_files:
  - split: test
    path: {RAW}/test-*
  - split: train
    path: {RAW}/train-*
- config_name: wikitext-103-raw-v1
  data_files:
  - split: train
    path: wikitext-103-raw-v1/train-*
---
# WikiText
"""


def add_wikitext(hub: LocalHub, *train: list[str]) -> Path:
    """The repository in its real layout, with the train split in one or more files."""
    total = f"{len(train):05}"
    files: dict[str, bytes | str] = {
        f"{RAW}/train-{number:05}-of-{total}.parquet": to_parquet({"text": lines})
        for number, lines in enumerate(train)
    }
    other = to_parquet({"text": ["", " = Other = \n", "", " Other .\n"]})
    files |= {
        f"{RAW}/test-00000-of-00001.parquet": other,
        "wikitext-103-raw-v1/train-00000-of-00001.parquet": other,
    }
    return hub.add("Salesforce/wikitext", {"README.md": CARD} | files)


LINES = ["", *(line for article in ARTICLES for line in article)]


def articles_of_file(tmp_path: Path, lines: list[str]) -> list[str]:
    """The documents of a text file with these lines."""
    path = tmp_path / "wiki.txt"
    path.write_text(
        "".join(line if line.endswith("\n") else line + "\n" for line in lines), encoding="utf-8"
    )
    config = CorpusConfig(out=tmp_path, source=(f"text:{path}",))
    (task,) = plain_text.open_source(config.source[0], config).tasks(config)
    return [document.text for document in task.documents(Counter())]


# OSCAR
def oscar_rows(language: str, count: int = 3) -> list[dict[str, Any]]:
    return [
        {
            "content": f"{language} متن {n}",
            "warc_headers": {},
            "metadata": {"quality": ["tiny"] if n % 2 else None},
        }
        for n in range(count)
    ]


def add_oscar(hub: LocalHub, layout: str) -> Path:
    fa = oscar_rows("fa", 4)
    de = oscar_rows("de")
    files: dict[str, dict[str, bytes | str]] = {
        "OSCAR-2301": {
            "OSCAR-2301.py": "import datasets",
            "fa_meta/fa_meta_part_1.jsonl.zst": zstd.compress(to_jsonl(fa[:2]))
            + zstd.compress(to_jsonl(fa[2:3])),
            "fa_meta/fa_meta_part_2.jsonl.zst": zstd.compress(to_jsonl(fa[3:])),
            "fa_meta/checksum.sha256": "0",
            "de_meta/de_meta.jsonl.zst": zstd.compress(to_jsonl(de)),
        },
        "OSCAR-2201": {
            "OSCAR-2201.py": "import datasets",
            "compressed/fa_meta/fa_meta_part_1.jsonl.gz": gzip.compress(to_jsonl(fa)),
            "compressed/de_meta/de_meta_part_1.jsonl.gz": gzip.compress(to_jsonl(de)),
        },
        "community-oscar": {
            "data/2014-42/fa_meta/fa_meta_part-00001.jsonl.zst": zstd.compress(to_jsonl(de)),
            "data/2024-22/fa_meta/fa_meta_part-00001.jsonl.zst": zstd.compress(to_jsonl(fa)),
            "data/2024-22/de_meta/de_meta_part-00001.jsonl.zst": zstd.compress(to_jsonl(de)),
        },
    }
    return hub.add(
        f"oscar-corpus/{layout}", {"README.md": "---\nlicense: cc0-1.0\n---\n", **files[layout]}
    )
