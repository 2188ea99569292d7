"""Hub sources: rows, ids and counts of every format and layout."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.local_hub import LocalHub

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd
from tests.helpers.hub_reading import (
    FORMATS,
    LINES,
    RAW,
    TEXTS,
    Read,
    add_oscar,
    add_wikitext,
    articles_of_file,
    count_documents,
    environment,
    hub,
    invent_texts,
    oscar_rows,
    pack,
    read,
    reader,
    run,
    server,
    start_reader,
    to_jsonl,
    to_parquet,
)

__all__ = ["environment", "hub", "read", "reader", "run", "server"]

pytestmark = pytest.mark.integration


def test_wikitext_articles_equal_those_of_a_text_file(
    hub: LocalHub, read: Read, tmp_path: Path
) -> None:
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
def test_wikitext_articles_may_span_files(
    hub: LocalHub, read: Read, tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    bounds = [0, *cuts, len(LINES)]
    add_wikitext(hub, *(LINES[a:b] for a, b in pairwise(bounds)))
    reading = read("wikitext-2")
    assert len(reading.tasks) == len(cuts) + 1
    assert reading.texts == articles_of_file(tmp_path, LINES)
    assert len(set(reading.ids)) == 3


def test_moved_dataset_name_is_replaced_and_reported(hub: LocalHub, read: Read) -> None:
    add_wikitext(hub, LINES)
    reading = read(f"hub:wikitext:{RAW}")
    assert reading.texts == read("wikitext-2").texts
    assert reading.printed.splitlines() == [
        f"--source hub:wikitext:{RAW}: wikitext is now Salesforce/wikitext."
    ]


@pytest.mark.parametrize("layout", ["OSCAR-2301", "OSCAR-2201", "community-oscar"])
def test_oscar_files_are_found_by_language_in_every_layout(
    hub: LocalHub, read: Read, layout: str
) -> None:
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
            in reading.printed
        )


def test_oscar_unknown_language_lists_languages(hub: LocalHub, read: Read) -> None:
    add_oscar(hub, "OSCAR-2301")
    assert read("oscar:xx").error == (
        f"{hub.url}/datasets/oscar-corpus/OSCAR-2301: no files of language 'xx'. Languages: de, fa."
    )


def test_files_option_selects_files_by_glob(hub: LocalHub, read: Read) -> None:
    add_oscar(hub, "OSCAR-2301")
    assert len(read("oscar:fa", files="fa_meta/*_2.jsonl.zst").texts) == 1
    assert len(read("hub:oscar-corpus/OSCAR-2301", files="**/*.jsonl.zst").texts) == 7
    error = read("oscar:fa", files="fa/*").error
    assert "--files fa/* matches no file" in error
    assert "--source oscar:LANG --repository oscar-corpus/OSCAR-2301" in error


# Rows and ids
@pytest.mark.parametrize("form", FORMATS)
def test_rows_and_ids_of_every_format(hub: LocalHub, read: Read, form: str) -> None:
    hub.add(
        "me/data",
        {f"data/train-0.{form}": pack(TEXTS, form), f"data/test-0.{form}": pack(["test"], form)},
    )
    reading = read("hub:me/data")
    assert reading.texts == TEXTS
    assert reading.ids == [f"data/train-0.{form}#{number}" for number in range(len(TEXTS))]
    assert not reading.counts
    assert reading.printed == ""
    assert read("hub:me/data", split="test").texts == ["test"]


def test_csv_tsv_json_arrow_text_and_xz_files(hub: LocalHub, read: Read) -> None:
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
    assert "h.png has an unknown format. Formats: parquet, jsonl" in (
        hub.add("me/formats", {"h.png": b"\x89PNG"}) and read("hub:me/formats", files="h.png").error
    )


def test_small_files_share_a_task_and_are_downloaded_once(hub: LocalHub, read: Read) -> None:
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


def test_other_columns_may_have_different_types_per_file(hub: LocalHub, read: Read) -> None:
    """As in OSCAR, whose metadata have different types per file, and with an unknown type."""
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


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_language_field_of_hub_files(hub: LocalHub, read: Read, form: str) -> None:
    columns = {"text": ["One.", "Two."], "lang": ["per", "deu"]}
    rows = [{"text": "One.", "lang": "per"}, {"text": "Two.", "lang": "deu"}]
    hub.add(
        "me/data", {f"train.{form}": to_parquet(columns) if form == "parquet" else to_jsonl(rows)}
    )
    reading = read("hub:me/data", language_field="lang")
    assert [document.language for task in reading.tasks for document in task] == ["fa", "de"]
    assert "no field langs" in read("hub:me/data", language_field="langs").error


def test_text_field_of_hub_files(hub: LocalHub, read: Read) -> None:
    hub.add("me/data", {"train.parquet": to_parquet({"body": ["b"], "title": ["t"]})})
    hub.add("me/lines", {"train.jsonl": to_jsonl([{"content": "c"}, {"body": "b"}])})
    commit = read("hub:me/data", text_field="body").described["commit"]
    assert read("hub:me/data").error == (
        f"{hub.url}/datasets/me/data/resolve/{commit}/train.parquet: no field text or content; "
        "fields: body, title. Choose one with --text-field."
    )
    assert read("hub:me/data", text_field="body").texts == ["b"]
    assert re.search(
        r"train\.jsonl, line 2: no field text or content; fields: body\.",
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


def test_values_that_are_not_strings_are_counted(hub: LocalHub, read: Read) -> None:
    hub.add("me/data", {"train.jsonl": to_jsonl([{"text": 1}, {"text": ["a"]}, {"text": "b"}])})
    hub.add("me/numbers", {"train.parquet": to_parquet({"text": [1, 2]})})
    reading = read("hub:me/data")
    assert (reading.texts, reading.counts["skipped_no_text"]) == (["b"], 2)
    assert read("hub:me/numbers").counts["skipped_no_text"] == 2


def test_unusual_characters_and_long_lines_are_unchanged(hub: LocalHub, read: Read) -> None:
    """NUL, lone surrogates, U+200C, right-to-left text, line separators, a long line."""
    texts = [
        "a\0b",
        "lone \ud800 half",
        "می‌روم به خانه",
        "a\u2028b\x85c\x0bd\x1ee",
        "x" * 190_000,
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


@pytest.mark.slow
def test_memory_does_not_grow_with_file_size(hub: LocalHub, environment: dict[str, str]) -> None:
    """240 MB of text in one row group, one compressed stream, one file without blank lines."""
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


def test_invalid_utf8_is_replaced_and_counted(hub: LocalHub, read: Read) -> None:
    good = "It is fine. " * 100
    row = b'{"text": "' + good.encode() + b'caf\xe9"}\n{"text": "\xef\xbf\xbd"}\n'
    hub.add("me/data", {"train.jsonl": row})
    hub.add("me/text", {"train.txt": good.encode() + b"caf\xe9 \xff\n"})
    reading = read("hub:me/data")
    assert (reading.texts, reading.counts) == (
        [f"{good}caf\ufffd", "\ufffd"],
        Counter(invalid_bytes_replaced=1),
    )
    assert read("hub:me/text").counts == Counter(invalid_bytes_replaced=2)


def test_text_in_another_encoding_is_an_error(hub: LocalHub, read: Read) -> None:
    text = "Вечером мы сидели у реки и говорили о старых друзьях.\n"
    hub.add("me/text", {"train.txt": text.encode("cp1251")})
    error = read("hub:me/text").error
    assert f"{hub.url}/datasets/me/text" in error
    assert "train.txt: not UTF-8, likely cp1251. Give --encoding cp1251." in error
    assert read("hub:me/text", encoding="cp1251").texts == [text.strip()]


@pytest.mark.parametrize("form", FORMATS)
def test_files_without_rows(hub: LocalHub, read: Read, form: str) -> None:
    hub.add(
        "me/data",
        {f"data/train-0.{form}": pack([], form), f"data/train-1.{form}": pack(["one"], form)},
    )
    assert read("hub:me/data").texts == ["one"]
    if form.startswith("jsonl"):
        hub.add("me/empty", {f"train.{form}": b""})
        error = read("hub:me/empty").error  # an empty file is a truncated zstd file
        assert ("broken or truncated" in error) if form.endswith("zst") else (error == "")
