"""Hub sources against a real hub over HTTP: what is read, what is survived, and what is said.

`huggingface_hub` takes `HF_ENDPOINT` when it is imported. So sources are read in a process of their own, which stays
for all tests, and the command line is run as users run it.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import multiprocessing
import os
import pickle
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.documents import Document
from bert_pipeline.corpus.sources.files import FileSource
from bert_pipeline.errors import BertpipeError, UsageError
from tests.helpers.local_hub import LocalHub

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

RAW = "wikitext-2-raw-v1"
FORMATS = ["parquet", "jsonl", "jsonl.gz", "jsonl.zst"]
FOR_EVER = float("inf")


@dataclass
class Reading:
    """What came of reading a source."""

    tasks: list[list[Document]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    described: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    error: str = ""
    exit_code: int = 0
    said: str = ""
    seconds: float = 0

    @property
    def texts(self) -> list[str]:
        return [document.text for task in self.tasks for document in task]

    @property
    def ids(self) -> list[str]:
        return [document.id for task in self.tasks for document in task]


def read_source(spec: str, options: dict[str, Any], token: str) -> Reading:
    """Read all tasks of a source (in the process whose endpoint is the local hub)."""
    from bert_pipeline.corpus.sources.hub_datasets import HubSource

    reading, said, began = Reading(), io.StringIO(), time.monotonic()
    os.environ["HF_TOKEN"] = token
    with redirect_stderr(said):
        try:
            config = CorpusConfig(out=Path("unused"), source=(spec,), **options)
            source = HubSource(spec, config)
            reading.fingerprint, reading.described = source.fingerprint(), source.describe()
            for task in source.tasks(config):
                documents: list[Document] = []
                reading.tasks.append(documents)
                # As workers get them.
                for document in pickle.loads(pickle.dumps(task)).documents(reading.counts):  # noqa: S301
                    documents.append(document)  # noqa: PERF402 (what came before an error counts)
        except BertpipeError as error:
            reading.error, reading.exit_code = (
                str(pickle.loads(pickle.dumps(error))),
                error.exit_code,
            )
    reading.said, reading.seconds = said.getvalue(), time.monotonic() - began
    return reading


def peak_memory() -> int:
    """Bytes that this process needed at most, where the system tells."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def count_documents(spec: str, options: dict[str, Any]) -> tuple[int, int]:
    """How many documents, and the memory that reading them took."""
    from bert_pipeline.corpus.sources.hub_datasets import HubSource

    config = CorpusConfig(out=Path("unused"), source=(spec,), **options)
    tasks = HubSource(spec, config).tasks(config)
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
    """A process to read in."""
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
    """Texts that no compression makes small."""
    rng = random.Random(seed)
    return [
        f"{number}: " + " ".join(f"{rng.getrandbits(40):x}" for _ in range(words))
        for number in range(count)
    ]


@cache
def long_texts() -> list[str]:
    """Texts of which no compression makes less than two ranges of five megabytes."""
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
    """The repository as it is laid out, its train split in one or more files."""
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
    """The same lines as a file on disk."""
    path = tmp_path / "wiki.txt"
    path.write_text(
        "".join(line if line.endswith("\n") else line + "\n" for line in lines), encoding="utf-8"
    )
    source = FileSource(f"text:{path}")
    (task,) = source.tasks(CorpusConfig(out=tmp_path, source=(source.spec,)))
    return [document.text for document in task.documents(Counter())]


def test_wikitext_is_articles_as_from_a_file(hub: LocalHub, read: Read, tmp_path: Path) -> None:
    add_wikitext(hub, LINES)
    reading = read("wikitext-2")
    assert reading.texts == articles_of_file(tmp_path, LINES)
    assert reading.texts[1] == "Tower\nA tower ."
    assert reading.ids == [f"{RAW}/train-00000-of-00001.parquet#{number}" for number in range(3)]
    assert reading.described["config"] == RAW
    assert read("wikitext-2", split="test").texts == ["Other\nOther ."]
    assert read("wikitext-103").texts == ["Other\nOther ."]


@pytest.mark.parametrize(
    "cuts", [(cut,) for cut in range(len(LINES) + 1)] + [(3, 4), (1, 12), (12, 13), (2, 3, 4, 18)]
)
def test_articles_go_over_the_ends_of_files(
    hub: LocalHub, read: Read, tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    bounds = [0, *cuts, len(LINES)]
    add_wikitext(hub, *(LINES[a:b] for a, b in pairwise(bounds)))
    reading = read("wikitext-2")
    assert len(reading.tasks) == len(cuts) + 1
    assert reading.texts == articles_of_file(tmp_path, LINES)
    assert len(set(reading.ids)) == 3


def test_a_moved_name_is_mapped_and_said(hub: LocalHub, read: Read) -> None:
    add_wikitext(hub, LINES)
    reading = read(f"hub:wikitext:{RAW}")
    assert reading.texts == read("wikitext-2").texts
    assert reading.said.splitlines() == [
        f"--source hub:wikitext:{RAW}: wikitext is Salesforce/wikitext now."
    ]


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
    fa, de = oscar_rows("fa", 4), oscar_rows("de")
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


@pytest.mark.parametrize("layout", ["OSCAR-2301", "OSCAR-2201", "community-oscar"])
def test_oscar_is_found_by_language_in_every_layout(hub: LocalHub, read: Read, layout: str) -> None:
    add_oscar(hub, layout)
    hub.page = 2
    reading = read(
        "oscar:fa", repository=None if layout == "OSCAR-2301" else f"oscar-corpus/{layout}"
    )
    assert reading.texts == [row["content"] for row in oscar_rows("fa", 4)]
    assert {document.language for task in reading.tasks for document in task} == {"fa"}
    assert not any(
        "/tree/" in request.path and request.path.endswith("de_meta") for request in hub.log
    )
    if layout == "community-oscar":
        assert (
            "fa is in 2 crawls; reading data/2024-22, others with --files 'data/2014-42/fa_meta/*'"
            in reading.said
        )


def test_a_language_that_is_not_there_lists_those_that_are(hub: LocalHub, read: Read) -> None:
    add_oscar(hub, "OSCAR-2301")
    assert read("oscar:xx").error == (
        f"{hub.url}/datasets/oscar-corpus/OSCAR-2301: no files of language 'xx'. There are: de, fa."
    )


def test_files_are_chosen_by_glob(hub: LocalHub, read: Read) -> None:
    add_oscar(hub, "OSCAR-2301")
    assert len(read("oscar:fa", files="fa_meta/*_2.jsonl.zst").texts) == 1
    assert len(read("hub:oscar-corpus/OSCAR-2301", files="**/*.jsonl.zst").texts) == 7
    error = read("oscar:fa", files="fa/*").error
    assert "--files fa/* matches no file" in error
    assert "--source oscar:LANG --repository oscar-corpus/OSCAR-2301" in error


# What is read


@pytest.mark.parametrize("form", FORMATS)
def test_rows_come_exactly_with_their_numbers(hub: LocalHub, read: Read, form: str) -> None:
    hub.add(
        "me/data",
        {f"data/train-0.{form}": pack(TEXTS, form), f"data/test-0.{form}": pack(["test"], form)},
    )
    reading = read("hub:me/data")
    assert reading.texts == TEXTS
    assert reading.ids == [f"data/train-0.{form}#{number}" for number in range(len(TEXTS))]
    assert not reading.counts
    assert reading.said == ""
    assert read("hub:me/data", split="test").texts == ["test"]


def test_other_formats_are_read_by_their_builders(hub: LocalHub, read: Read) -> None:
    stream = io.BytesIO()
    table = pa.table({"text": ["one", "two"], "n": [1, 2]})
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    files: dict[str, bytes | str] = {
        "a.csv": "n,text\n1,one\n2,two\n",
        "b.tsv": "n\ttext\n1\tone\n2\ttwo\n",
        "c.json": json.dumps([{"text": "one"}, {"text": "two"}], indent=1),
        "d.json": '{"text": "one"}\n{"text": "two"}\n',
        "e.arrow": stream.getvalue(),
        "f.txt": "one\n\n = Two = \n\ntwo\n",
        "g.ndjson.xz": lzma.compress(b'{"text": "one"}\n{"text": "two"}\n'),
    }
    hub.add("me/formats", files)
    for name in files:
        expected = ["one", "Two\ntwo"] if name == "f.txt" else ["one", "two"]
        assert read("hub:me/formats", files=name).texts == expected, name
    assert "h.png cannot be read. Formats: parquet, jsonl" in (
        hub.add("me/formats", {"h.png": b"\x89PNG"}) and read("hub:me/formats", files="h.png").error
    )


def test_small_files_share_a_task_and_tasks_share_no_bytes(hub: LocalHub, read: Read) -> None:
    files = {
        f"data/train-{n}.jsonl.gz": pack(invent_texts(20, seed=n), "jsonl.gz") for n in range(6)
    }
    hub.add("me/data", files)
    two = 2.5 * len(files["data/train-0.jsonl.gz"]) / 1e6
    reading = read("hub:me/data", shard_mb=two)
    assert [len(task) for task in reading.tasks] == [40, 40, 40]
    assert reading.described["bytes_on_hub"] == sum(map(len, files.values()))
    for name in files:
        ranges = sorted(hub.ranges(name))
        assert sum(last - first + 1 for first, last in ranges) == len(files[name])


def test_other_columns_may_differ_from_file_to_file(hub: LocalHub, read: Read) -> None:
    """As in OSCAR, whose metadata have other types in every part; and a card may know types that are not yet there."""
    schema = pa.schema([("text", pa.string()), ("meta", pa.struct([("a", pa.int64())]))])
    unknown = {
        "huggingface": json.dumps({"info": {"features": {"text": {"_type": "FromTheFuture"}}}})
    }
    table = pa.Table.from_pylist([{"text": "two", "meta": {"a": 1}}], schema.with_metadata(unknown))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    hub.add(
        "me/data",
        {
            "data/0.parquet": to_parquet({"meta": ["x"], "text": ["one"]}),
            "data/1.parquet": buffer.getvalue(),
        },
    )
    assert read("hub:me/data").texts == ["one", "two"]


def test_the_text_field_is_found_or_asked_for(hub: LocalHub, read: Read) -> None:
    hub.add("me/data", {"train.parquet": to_parquet({"body": ["b"], "title": ["t"]})})
    hub.add("me/lines", {"train.jsonl": to_jsonl([{"content": "c"}, {"body": "b"}])})
    where = f"{hub.url}/datasets/me/data/resolve/{read('hub:me/data', text_field='body').described['commit']}"
    assert read("hub:me/data").error == (
        f"{where}/train.parquet: no field text or content; it has: body, title. Choose one with --text-field."
    )
    assert read("hub:me/data", text_field="body").texts == ["b"]
    assert re.search(
        r"train\.jsonl, line 2: no field text or content; it has: body\.",
        read("hub:me/lines").error,
    )
    skipped = read("hub:me/lines", on_error="skip")
    assert (skipped.texts, skipped.counts) == (["c"], Counter(skipped_no_text_field=1))


@pytest.mark.parametrize("form", FORMATS)
def test_null_and_empty_texts_are_counted(hub: LocalHub, read: Read, form: str) -> None:
    hub.add("me/data", {f"train.{form}": pack(["one", None, "", " \n\t", "two"], form)})  # type: ignore[list-item]
    reading = read("hub:me/data")
    assert reading.ids == [f"train.{form}#0", f"train.{form}#4"]
    assert reading.counts == Counter(skipped_no_text=1, skipped_empty=2)


def test_texts_that_are_no_strings_are_counted(hub: LocalHub, read: Read) -> None:
    hub.add("me/data", {"train.jsonl": to_jsonl([{"text": 1}, {"text": ["a"]}, {"text": "b"}])})
    hub.add("me/numbers", {"train.parquet": to_parquet({"text": [1, 2]})})
    reading = read("hub:me/data")
    assert (reading.texts, reading.counts["skipped_no_text"]) == (["b"], 2)
    assert read("hub:me/numbers").counts["skipped_no_text"] == 2


def test_odd_characters_arrive_as_they_are(hub: LocalHub, read: Read) -> None:
    """NUL, lone surrogates, U+200C, right-to-left, separators that are no line ends, and ten megabytes in a line."""
    texts = [
        "a\0b",
        "lone \ud800 half",
        "می‌روم به خانه",
        "a\u2028b\x85c\x0bd\x1ee",
        "x" * 10_000_000,
        "\ufffd kept",
    ]
    hub.add(
        "me/data", {"train.jsonl.zst": zstd.compress(to_jsonl([{"text": text} for text in texts]))}
    )
    plain = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts[2:4])
    hub.add("me/plain", {"train.jsonl": plain.replace("\n", "\r\n")})
    reading = read("hub:me/data")
    assert reading.texts == texts
    assert not reading.counts
    assert read("hub:me/plain").texts == texts[2:4]


def test_memory_does_not_grow_with_the_file(hub: LocalHub, environment: dict[str, str]) -> None:
    """240 MB of text: in one row group, in one compressed stream, in one file without a blank line."""
    line = "lorem ipsum " * 1000
    lines = [f"{number} {line}" for number in range(20_000)]
    folder = hub.add("me/data", {"train.txt": "\n".join(lines)})
    with gzip.open(folder / "train.jsonl.gz", "wb", compresslevel=1) as file:
        file.writelines(to_jsonl([{"text": text}]) for text in lines)
    pq.write_table(
        pa.table({"text": lines}),
        folder / "train.parquet",
        row_group_size=20_000,
        use_dictionary=False,
    )
    with start_reader(environment) as reader:
        for name, expected in [
            ("train.parquet", 20_000),
            ("train.jsonl.gz", 20_000),
            ("train.txt", 1_000),
        ]:
            documents, memory = reader.submit(
                count_documents, "hub:me/data", {"files": name}
            ).result()
            assert documents >= expected
            assert memory < 100e6, name


def test_bytes_that_are_no_utf8_are_replaced_and_counted(hub: LocalHub, read: Read) -> None:
    hub.add("me/data", {"train.jsonl": b'{"text": "caf\xe9"}\n{"text": "\xef\xbf\xbd"}\n'})
    hub.add("me/text", {"train.txt": b"caf\xe9 \xff\n"})
    reading = read("hub:me/data")
    assert (reading.texts, reading.counts) == (
        ["caf\ufffd", "\ufffd"],
        Counter(invalid_bytes_replaced=1),
    )
    assert read("hub:me/text").counts == Counter(invalid_bytes_replaced=2)


@pytest.mark.parametrize("form", FORMATS)
def test_files_without_rows_give_nothing(hub: LocalHub, read: Read, form: str) -> None:
    hub.add(
        "me/data",
        {f"data/train-0.{form}": pack([], form), f"data/train-1.{form}": pack(["one"], form)},
    )
    assert read("hub:me/data").texts == ["one"]
    if form.startswith("jsonl"):
        hub.add("me/empty", {f"train.{form}": b""})
        error = read("hub:me/empty").error  # no zst file is that small, cut off it must be
        assert ("broken or cut off" in error) if form.endswith("zst") else (error == "")


# What is broken in the data


def break_data(form: str) -> bytes:
    """A file whose second half is not what it was."""
    whole = pack(TEXTS, form)
    if form == "parquet":
        place = whole.index(TEXTS[250].encode())
        return whole[: place + 20] + bytes([whole[place + 20] ^ 1]) + whole[place + 21 :]
    return whole[: len(whole) // 2]


@pytest.mark.parametrize("form", ["parquet", "jsonl.gz", "jsonl.zst"])
def test_broken_files_fail_or_are_counted(hub: LocalHub, read: Read, form: str) -> None:
    """A flipped bit in parquet, truncated .gz and .zst."""
    broken = break_data(form)
    hub.add(
        "me/data", {f"data/train-0.{form}": broken, f"data/train-1.{form}": pack(["next"], form)}
    )
    reading = read("hub:me/data")
    assert re.search(
        rf"/datasets/me/data/resolve/\w+/data/train-0\.{form}: broken or cut off \(.+\)\.",
        reading.error,
    )
    assert "--on-error skip" in reading.error
    skipped = [read("hub:me/data", on_error="skip") for _ in range(5)]
    assert skipped[0].counts == Counter(skipped_broken_file=1)
    assert skipped[0].texts[-1] == "next"
    assert skipped[0].texts[:-1] == TEXTS[: len(skipped[0].texts) - 1]
    assert all(again.texts == skipped[0].texts for again in skipped)
    assert skipped[0].said == reading.said == ""  # nothing of this was taken for trouble on the way


def test_truncated_parquet_fails_or_is_counted(hub: LocalHub, read: Read) -> None:
    whole = pack(TEXTS, "parquet")
    hub.add("me/data", {"0.parquet": whole[:-5000], "1.parquet": pack(["next"], "parquet")})
    assert "0.parquet: broken or cut off (" in read("hub:me/data").error
    skipped = read("hub:me/data", on_error="skip")
    assert (skipped.texts, skipped.counts) == (["next"], Counter(skipped_broken_file=1))


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_a_bad_line_is_named_or_counted(hub: LocalHub, read: Read, form: str) -> None:
    lines = [json.dumps({"text": text}) for text in TEXTS]
    lines[1], lines[300], lines[301] = "", '{"text": "cut o', "[1]"
    plain = "\n".join(lines).encode()
    hub.add(
        "me/data",
        {
            f"train.{form}": {"jsonl.gz": gzip.compress, "jsonl.zst": zstd.compress}.get(
                form, bytes
            )(plain)
        },
    )
    reading = read("hub:me/data")
    assert re.search(
        rf"/train\.{form}, line 301: not a JSON object \(Unterminated string", reading.error
    )
    assert reading.texts == [TEXTS[0], *TEXTS[2:300]]
    skipped = read("hub:me/data", on_error="skip")
    assert skipped.texts == [TEXTS[0], *TEXTS[2:300], *TEXTS[302:]]
    assert skipped.counts == Counter(skipped_not_json=2)
    assert skipped.ids[-1] == f"train.{form}#{len(TEXTS) - 1}"


def test_all_frames_of_a_zst_file_are_read(hub: LocalHub, read: Read) -> None:
    """`zstandard` ends after the first frame, and takes a truncated one for the end, without a word."""
    frames = [pack(TEXTS[start : start + 50], "jsonl.zst") for start in range(0, 400, 50)]
    hub.add("me/data", {"train.jsonl.zst": b"".join(frames)})
    assert read("hub:me/data").texts == TEXTS
    hub.add("me/cut", {"train.jsonl.zst": b"".join(frames)[:-10]})
    assert "broken or cut off" in read("hub:me/cut").error


def test_a_broken_file_of_wikitext_is_counted_once(hub: LocalHub, read: Read) -> None:
    folder = add_wikitext(hub, LINES[:3], LINES[3:12], LINES[12:])
    path = next(folder.glob(f"{RAW}/train-00001-*"))
    path.write_bytes(path.read_bytes()[:-20])
    reading = read("wikitext-2", on_error="skip")
    assert reading.counts == Counter(skipped_broken_file=1)
    assert "train-00001-of-00003.parquet: broken" in read("wikitext-2").error


# What goes wrong on the way


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["reset", "cut"])
def test_connections_that_break_lose_and_repeat_no_row(
    hub: LocalHub, read: Read, form: str, kind: Any
) -> None:
    """The declared length never arrives: that must not pass for a file that is broken or shorter."""
    hub.add("me/data", {f"data/train-0.{form}": pack(TEXTS, form)})
    hub.plant(kind, DATA, times=3 if kind == "reset" else 1, after=10_000, min_size=20_000)
    reading = read("hub:me/data", on_error="skip")
    assert reading.texts == TEXTS
    assert not reading.counts
    assert not hub.faults[0].times


@pytest.mark.parametrize("form", ["parquet", "jsonl.zst"])
def test_long_files_go_on_where_they_were(hub: LocalHub, read: Read, form: str) -> None:
    """Ranges of five megabytes: a failure costs one of them, not the file."""
    texts = long_texts()
    content = pack(texts, form)
    hub.add("me/data", {f"data/train-0.{form}": content})
    hub.plant("cut", DATA, times=2, after=1_000_000, min_size=4_000_000, spared=1)
    assert read("hub:me/data").texts == texts
    got = sum(last - first + 1 for first, last in hub.ranges("train-0"))
    assert len(content) < got < len(content) + 2 * 7_000_000
    assert not hub.faults[0].times


@pytest.mark.parametrize("form", ["parquet", "jsonl.zst"])
def test_long_files_that_must_wait_lose_and_repeat_no_row(
    hub: LocalHub, read: Read, form: str
) -> None:
    texts = long_texts()
    hub.add("me/data", {f"data/train-0.{form}": pack(texts, form)})
    hub.plant(
        "status",
        DATA,
        status=429,
        headers={"Retry-After": "1"},
        times=2,
        min_size=4_000_000,
        spared=1,
    )
    reading = read("hub:me/data")
    assert reading.texts == texts
    assert len(reading.said.splitlines()) == 2


def test_a_file_that_is_read_whole_is_read_again(hub: LocalHub, read: Read) -> None:
    texts = invent_texts(200)
    hub.add("me/data", {"data/0.json": json.dumps([{"text": text} for text in texts])})
    hub.plant("cut", r"resolve/.*0\.json", times=3, after=50_000, min_size=100_000)
    assert read("hub:me/data").texts == texts


def test_a_hub_that_stalls_is_asked_again(hub: LocalHub, read: Read) -> None:
    hub.add("me/data", {"data/train-0.jsonl.gz": pack(TEXTS, "jsonl.gz")})
    hub.plant("stall", "/api/datasets/me/data")
    hub.plant("stall", DATA, after=10_000, min_size=20_000)
    reading = read("hub:me/data", max_wait=4)
    assert reading.texts == TEXTS
    assert [line.split("; ")[0].rpartition(": ")[2] for line in reading.said.splitlines()] == [
        "nothing came for 1 s"
    ] * 2


@pytest.mark.parametrize("form", FORMATS)
def test_too_many_requests_wait_as_long_as_asked(hub: LocalHub, read: Read, form: str) -> None:
    hub.add("me/data", {f"data/train-0.{form}": pack(TEXTS, form)})
    hub.plant("status", DATA, status=429, headers={"Retry-After": "1"}, min_size=20_000)
    reading = read("hub:me/data")
    assert reading.texts == TEXTS
    assert re.search(
        r"^http://\S+/train-0\S+: 429 Too Many Requests; trying again in 1\.0 s, for at most \d+ s\.$",
        reading.said,
    )
    assert reading.seconds >= 1


def test_a_wait_longer_than_allowed_is_not_begun(hub: LocalHub, read: Read) -> None:
    hub.add("me/data", {"data/train-0.parquet": pack(TEXTS, "parquet")})
    hub.plant("status", "/api/datasets/me/data", status=429, headers={"Retry-After": "3600"})
    reading = read("hub:me/data")
    assert (
        "429 Too Many Requests. The hub asks to wait 3600 s, longer than --max-wait 20 allows."
        in reading.error
    )
    assert reading.seconds < 5


@pytest.mark.parametrize(
    ("kind", "path", "method"),
    [
        ("status", r"/api/datasets/me/data$", "GET"),
        ("status", r"/revision/", "GET"),
        ("status", r"/tree/", "GET"),
        ("status", r"resolve/.*README", "HEAD"),
        ("reset", r"resolve/.*README", "HEAD"),
        ("cut", r"resolve/.*README", "GET"),
        ("reset", r"/tree/", "GET"),
    ],
)
def test_every_kind_of_request_is_tried_again(
    hub: LocalHub, read: Read, kind: Any, path: str, method: str
) -> None:
    """503 and resets where the libraries give up, or wait by rules of their own."""
    content = {
        "data/train-0.parquet": pack(TEXTS, "parquet"),
        "README.md": f"# {kind} {path} {method}\n",  # a commit that no cache knows
    }
    hub.add("me/data", content)
    hub.plant(kind, path, method=method, status=503, times=2)
    reading = read("hub:me/data")
    assert reading.texts == TEXTS
    assert not hub.faults[0].times
    assert reading.seconds < 10


@pytest.mark.parametrize(("path", "status"), [(r"^/api/", 500), (r"/cdn/.*train-1", 502)])
def test_errors_for_ever_end_in_time_and_name_the_url(
    hub: LocalHub, read: Read, path: str, status: int
) -> None:
    hub.add("me/data", {f"data/train-{n}.parquet": pack(TEXTS, "parquet") for n in range(2)})
    hub.plant("status", path, status=status, times=FOR_EVER)
    reading = read("hub:me/data", max_wait=1.5, on_error="skip", shard_mb=0.001)
    assert 1.5 <= reading.seconds < 6
    assert re.match(
        rf"http://\S+({'train-1' if status == 502 else 'me/data'})\S*: {status} \w+", reading.error
    )
    assert "--max-wait 1.5" in reading.error
    assert "run the same command again" in reading.error
    assert reading.texts == (TEXTS if status == 502 else [])
    assert not reading.counts


@pytest.mark.parametrize("form", ["jsonl.gz", "parquet"])
def test_a_file_that_is_gone_is_never_skipped(hub: LocalHub, read: Read, form: str) -> None:
    hub.add("me/data", {f"train.{form}": pack(TEXTS, form)})
    hub.plant("status", r"/cdn/", status=404, times=FOR_EVER)
    reading = read("hub:me/data", on_error="skip")
    assert re.search(rf"train\.{form}: 404 Not Found", reading.error)
    assert (
        "Signature" not in reading.error
    )  # a signed address opens the file to whoever reads the log
    assert reading.seconds < 5


def test_a_hub_that_ignores_ranges_is_not_believed(hub: LocalHub, read: Read) -> None:
    texts = long_texts()
    hub.add("me/data", {"data/train-0.jsonl.gz": pack(texts, "jsonl.gz")})
    hub.plant("no-range", "/cdn/", times=2, spared=1)
    reading = read("hub:me/data")
    assert reading.texts == texts
    assert re.findall(r": (\d+ bytes came where bytes) ", reading.said)


@pytest.mark.parametrize("answers", [True, False])
def test_a_dead_host_ends_in_time(run: Run, tmp_path: Path, answers: bool) -> None:
    """One that refuses connections, and one that takes them and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if not answers:
            listening.listen()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        began = time.monotonic()
        done = run(
            "corpus",
            "--source",
            "oscar:fa",
            "--out",
            tmp_path / "out",
            "--max-wait",
            "1",
            HF_ENDPOINT=url,
        )
        assert time.monotonic() - began < 20
    assert done.returncode == 1
    assert f"{url}/api/datasets/oscar-corpus/OSCAR-2301: " in done.stderr
    assert ("Connection refused" if answers else "nothing came for 1 s") in done.stderr
    assert "Traceback" not in done.stderr


# Which files


def test_gated_repositories_have_three_answers(hub: LocalHub, read: Read) -> None:
    add_oscar(hub, "OSCAR-2301")
    hub.gated, hub.tokens = {"oscar-corpus/OSCAR-2301": {"hf_good"}}, {"hf_good", "hf_other"}
    page = f"{hub.url}/datasets/oscar-corpus/OSCAR-2301"
    assert read("oscar:fa").error == (
        f"{page} is gated: ask for access on that page, then pass a token with access to it: set HF_TOKEN, or "
        "`hf auth login` once."
    )
    assert f"{page}: the hub refuses your token (401)" in read("oscar:fa", "hf_wrong").error
    assert f"{page} is gated, and your token has no access (403): ask for it on that page" in (
        read("oscar:fa", "hf_other").error
    )
    hub.clear()
    good = read("oscar:fa", "hf_good")
    assert len(good.texts) == 4
    assert "hf_good" not in good.said
    assert {request.authorization for request in hub.log if request.host in hub.url} == {
        "Bearer hf_good"
    }
    assert {request.authorization for request in hub.log if request.host not in hub.url} == {""}


def test_access_that_ends_midway_is_said(hub: LocalHub, read: Read) -> None:
    hub.add("me/data", {"train.jsonl.gz": pack(TEXTS, "jsonl.gz")})
    hub.plant(
        "status",
        "resolve/.*train",
        status=403,
        times=FOR_EVER,
        headers={"X-Error-Code": "GatedRepo"},
    )
    assert "your token has no access (403)" in read("hub:me/data", on_error="skip").error


def test_a_missing_repository_is_said(hub: LocalHub, read: Read) -> None:
    error = read("hub:me/none").error
    assert error.startswith(
        f"{hub.url}/datasets/me/none: there is no such data set. If it is private, pass a token"
    )


def test_script_repositories_name_the_way_that_works(hub: LocalHub, read: Read) -> None:
    add_oscar(hub, "OSCAR-2301")
    hub.add(
        "me/books",
        {
            "books.py": "",
            "README.md": "",
            "dataset_infos.json": "{}",
            "txt/a.jsonl.gz": pack(["a"], "jsonl.gz"),
        },
    )
    hub.add("me/nothing", {"nothing.py": "", "README.md": ""})
    error = read("hub:oscar-corpus/OSCAR-2301").error
    assert (
        "is read by a script, and scripts are no longer run. Read it by language with: --source oscar:LANG"
        in error
    )
    error = read("hub:me/books").error
    assert error.endswith("Read its files with: --source hub:me/books --files 'txt/*.jsonl.gz'")
    assert read("hub:me/books", files="txt/*.jsonl.gz").texts == ["a"]
    assert "It holds no files that can be read" in read("hub:me/nothing").error


def test_cards_that_no_one_can_follow_are_said(hub: LocalHub, read: Read) -> None:
    card = "---\nconfigs:\n- config_name: default\n  data_files: {}\n---\n"
    jsonl = to_jsonl([{"text": "a"}])
    hub.add("me/missing", {"README.md": card.format("data/x-*.parquet"), "data/y.jsonl": jsonl})
    hub.add(
        "me/away",
        {"README.md": card.format("https://example.com/x.parquet"), "data/y.jsonl": jsonl},
    )
    hub.add("me/broken", {"README.md": "---\nconfigs: [\n---\n", "data/y.jsonl": jsonl})
    for name in ("missing", "away", "broken"):
        error = read(f"hub:me/{name}").error
        assert error.startswith(f"{hub.url}/datasets/me/{name}: its data files were not made out (")
        assert error.endswith(f"Read its files with: --source hub:me/{name} --files 'data/*.jsonl'")
        assert read(f"hub:me/{name}", files="data/*.jsonl").texts == ["a"]
    hub.add("me/nothing", {"README.md": ""})
    assert "It holds no files that can be read (parquet, jsonl," in read("hub:me/nothing").error


def test_wrong_names_list_the_choices(hub: LocalHub, read: Read) -> None:
    add_wikitext(hub, LINES)
    hub.add("Salesforce/wikitext", {"README.md": CARD}, revision="v2")
    page = f"{hub.url}/datasets/Salesforce/wikitext"
    choose = (
        f"Choose one with --source hub:Salesforce/wikitext:CONFIG from: {RAW}, wikitext-103-raw-v1."
    )
    assert read("hub:Salesforce/wikitext:raw").error == f"{page}: no config raw. {choose}"
    assert read("hub:Salesforce/wikitext").error == f"{page}: it has several configs. {choose}"
    assert (
        read("wikitext-2", split="dev").error
        == f"{page}: no split dev. Choose one with --split from: test, train."
    )
    assert (
        read("wikitext-2", revision="v9").error
        == f"{page}: no revision v9. There are: main, v2, and commit ids."
    )


@pytest.mark.parametrize(
    "spec", ["hub:", "hub:nothing", "hub:a/b/c", "oscar:", "oscar:Persian", "hub:oscar"]
)
def test_specs_that_name_nothing_are_wrong_usage(read: Read, spec: str) -> None:
    reading = read(spec)
    assert reading.exit_code == UsageError.exit_code
    assert reading.error.startswith(f"--source {spec}: ")
    assert ("oscar:fa" if "oscar" in spec else "hub:OWNER/NAME[:CONFIG]") in reading.error


def test_a_revision_is_read_and_a_branch_that_moves_is_not(
    hub: LocalHub, read: Read, tmp_path: Path
) -> None:
    hub.add("me/data", {"train.jsonl": to_jsonl([{"text": "new"}])})
    hub.add("me/data", {"train.jsonl": to_jsonl([{"text": "old"}])}, revision="v1")
    assert read("hub:me/data").texts == ["new"]
    assert read("hub:me/data", revision="v1").texts == ["old"]
    asked = [
        request.path
        for request in hub.log
        if "/resolve/" in request.path and "train" in request.path
    ]
    assert all(re.search(r"/resolve/[0-9a-f]{40}/", path) for path in asked)


def test_the_fingerprint_is_of_the_files_read(hub: LocalHub, read: Read) -> None:
    hub.add(
        "me/data",
        {
            "README.md": "# Data\n",
            "train.jsonl": pack(["a"], "jsonl"),
            "test.jsonl": pack(["t"], "jsonl"),
        },
    )
    before = read("hub:me/data")
    hub.add(
        "me/data", {"README.md": "# Data, described better\n", "test.jsonl": pack(["u"], "jsonl")}
    )
    described = read("hub:me/data")
    assert described.fingerprint == before.fingerprint
    assert described.described["commit"] != before.described["commit"]
    hub.add("me/data", {"train.jsonl": pack(["b"], "jsonl")})
    assert read("hub:me/data").fingerprint != before.fingerprint


# The command


def test_the_command_makes_the_same_corpus_with_any_workers_after_any_trouble(
    hub: LocalHub, run: Run, tmp_path: Path
) -> None:
    for number in range(3):
        hub.add(
            "me/data",
            {f"data/train-{number}.parquet": pack(invent_texts(300, seed=number), "parquet")},
        )
    command = ["corpus", "--source", "hub:me/data", "--shard-mb", "0.1", "--max-wait", "3"]
    whole = run(*command, "--workers", "1", "--out", tmp_path / "whole")
    assert (whole.returncode, whole.stderr) == (0, "")
    assert not [
        request.path for request in hub.log if "me/data" not in request.path
    ]  # nobody else is told or asked
    hub.plant("status", "train-2", status=500, times=FOR_EVER, min_size=50_000)
    stopped = run(*command, "--workers", "1", "--out", tmp_path / "again")
    assert stopped.returncode == 1
    assert "500 Internal Server Error" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    hub.clear()
    resumed = run(*command, "--workers", "2", "--out", tmp_path / "again")
    assert resumed.returncode == 0
    assert shards(tmp_path / "again") == shards(tmp_path / "whole")
    assert len(shards(tmp_path / "whole")) > 3
    assert not hub.ranges("train-0.parquet")  # it was finished
    taken = json.loads((tmp_path / "whole" / "manifest.json").read_text())["counts"]["taken"][
        "hub:me/data"
    ]
    assert taken["repository"] == "me/data"
    assert re.fullmatch(r"[0-9a-f]{40}", taken["commit"])


def test_the_command_reads_wikitext_and_gated_oscar_and_tells_no_token(
    hub: LocalHub, run: Run, tmp_path: Path
) -> None:
    add_wikitext(hub, LINES)
    add_oscar(hub, "OSCAR-2301")
    hub.gated, hub.tokens = {"oscar-corpus/OSCAR-2301": {"hf_secret"}}, {"hf_secret"}
    command = [
        "--debug",
        "corpus",
        "--source",
        "wikitext-2",
        "--source",
        "oscar:fa",
        "--out",
        tmp_path / "out",
    ]
    hub.plant("reset", "/cdn/")
    done = run(*command, HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    table = pa.concat_tables(
        [pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    )
    assert Counter(
        zip(table["source"].to_pylist(), table["language"].to_pylist(), strict=True)
    ) == {
        ("wikitext-2", "en"): 3,
        ("oscar:fa", "fa"): 4,
    }
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(
        b"hf_secret" in content
        for content in [*written, done.stdout.encode(), done.stderr.encode()]
    )


def test_a_limit_ends_the_reading_of_all_workers_quietly(
    hub: LocalHub, run: Run, tmp_path: Path
) -> None:
    for number in range(4):
        hub.add(
            "me/data",
            {f"data/train-{number}.parquet": pack(invent_texts(300, seed=number), "parquet")},
        )
    # The second file would never come: who has enough does not wait for it.
    hub.plant("status", "train-1", status=500, times=FOR_EVER, min_size=50_000)
    command = [
        "corpus",
        "--source",
        "hub:me/data",
        "--workers",
        "3",
        "--max-documents",
        "10",
        "--quiet",
    ]
    began = time.monotonic()
    done = run(*command, "--shard-mb", "0.01", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < 40
    assert (
        sum(pq.read_metadata(path).num_rows for path in (tmp_path / "out").glob("*.parquet")) == 10
    )
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_finished_corpus_needs_no_network(hub: LocalHub, run: Run, tmp_path: Path) -> None:
    hub.add("me/data", {"data/train-0.jsonl": pack(["One.", "Two."], "jsonl")})
    command = ["corpus", "--source", "hub:me/data", "--max-wait", "0.5", "--out", tmp_path / "out"]
    assert run(*command).returncode == 0
    before = shards(tmp_path / "out")
    for offline in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        again = run(*command, **offline)
        assert again.returncode == 0, again.stderr
        assert "is complete; its sources give no answer" in again.stdout
        other = run(*command, "--clean", "none", **offline)
        assert other.returncode == 1
        assert "is complete" not in other.stdout
    assert shards(tmp_path / "out") == before


def list_paths(repository: str, path: str) -> list[str]:
    import huggingface_hub

    from bert_pipeline.hub.client import connect

    connect(20, True)
    found = huggingface_hub.HfApi().get_paths_info(repository, [path], repo_type="dataset")
    return [entry.path for entry in found]


def test_a_post_that_only_reads_is_tried_again(hub: LocalHub, reader: ProcessPoolExecutor) -> None:
    """Which of its requests `huggingface_hub` uses to look at a file hangs on its version."""
    hub.add("me/paths", {"a.txt": b"One."})
    hub.plant("status", "/paths-info/", method="POST", status=503, times=2)
    assert reader.submit(list_paths, "me/paths", "a.txt").result() == ["a.txt"]
    assert not hub.faults[0].times


# What the libraries do by themselves, and why lines are not read through `load_dataset`


def load_plainly(builder: str, path: str, **options: Any) -> list[Any] | str:
    """The texts that `load_dataset` streams with our settings, or the name of its error."""
    import datasets

    from bert_pipeline.hub.client import connect

    connect(20, True)
    try:
        rows = datasets.load_dataset(
            builder, data_files=f"hf://datasets/{path}", split="train", streaming=True, **options
        )
        return [row["text"] for row in rows]
    except Exception as error:
        return type(error).__name__


@pytest.mark.parametrize(
    ("kind", "details"),
    [
        ("reset", {"after": 10_000, "min_size": 20_000, "times": 3}),
        ("cut", {"after": 10_000, "min_size": 20_000}),
        ("status", {"status": 503}),
        ("status", {"status": 429, "headers": {"Retry-After": "1"}}),
    ],
)
@pytest.mark.parametrize("form", ["parquet", "jsonl.gz", "jsonl.zst"])
def test_load_dataset_streams_through_faults_unmodified(
    hub: LocalHub, reader: ProcessPoolExecutor, form: str, kind: Any, details: dict[str, Any]
) -> None:
    # The libraries remember a repository's files: each case has its own.
    repository = f"me/{form.replace('.', '-')}-{kind}-{details.get('status', 0)}"
    hub.add(repository, {f"train.{form}": pack(TEXTS, form)})
    hub.plant(kind, DATA, **details)
    builder = "parquet" if form == "parquet" else "json"
    assert reader.submit(load_plainly, builder, f"{repository}/train.{form}").result() == TEXTS
    assert not hub.faults[0].times


def test_load_dataset_fails_on_one_byte_that_is_no_utf8(
    hub: LocalHub, reader: ProcessPoolExecutor
) -> None:
    """Should this ever pass, `lines` in hub_rows.py can go."""
    hub.add("me/bytes", {"train.txt": b"caf\xe9\n"})
    read = reader.submit(load_plainly, "text", "me/bytes/train.txt", encoding_errors="replace")
    assert read.result() == "UnicodeDecodeError"


@pytest.mark.parametrize(("form", "workers"), [("parquet", 1), ("jsonl.gz", 1), ("jsonl.gz", 2)])
def test_ctrl_c_ends_a_wait_at_once(
    hub: LocalHub, environment: dict[str, str], tmp_path: Path, form: str, workers: int
) -> None:
    hub.add("me/data", {f"data/train-{number}.{form}": pack(TEXTS, form) for number in range(2)})
    # The texts, not parquet's footer: what Arrow reads in threads of its own.
    hub.plant(
        "status",
        "/cdn/",
        status=503,
        headers={"Retry-After": "50"},
        times=FOR_EVER,
        min_size=100_000,
    )
    command = [
        "-m",
        "bert_pipeline",
        "corpus",
        "--source",
        "hub:me/data",
        "--workers",
        str(workers),
    ]
    process = subprocess.Popen(
        [sys.executable, *command, "--out", str(tmp_path / "out")],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        assert "trying again in 50.0 s" in process.stderr.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert time.monotonic() - began < 5
    assert process.returncode == 130
    assert "Traceback" not in said
