"""Corpus: every way that text lies about on disks, whole or broken, becomes documents or one clear message."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import re
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_pipeline.config import build_config
from bert_pipeline.corpus.build import build_corpus
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.sentences import split_sentences
from bert_pipeline.corpus.sources.plain_text import MAX_DOCUMENT_CHARS, split_documents
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.storage.manifest import Manifest, read_manifest
from bert_pipeline.storage.shards import read_columns
from tests.conftest import invent_documents, write_jsonl, zstd

Read = Callable[..., list[str]]


def texts_of(folder: Path) -> list[str]:
    names = sorted(folder.glob("*.parquet"))
    return [text for name in names for text in read_columns(name, ["text"])["text"].to_pylist()]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """A function that builds a corpus from the content of one file and returns its texts.

    `read.counts` are the counts in the manifest.
    """

    def build(name: str, content: bytes | str, **options: Any) -> list[str]:
        file = tmp_path / name
        file.write_bytes(
            content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        )
        kind = {"txt": "text", "jsonl": "jsonl", "parquet": "parquet"}[name.split(".")[1]]
        config = CorpusConfig(
            out=tmp_path / "corpus", source=(f"{kind}:{file}",), workers=1, quiet=True, **options
        )
        build.counts = build_corpus(config).counts  # type: ignore[attr-defined]
        return texts_of(config.out)

    return build


def counts(read: Read) -> dict[str, Any]:
    return read.counts  # type: ignore[attr-defined, no-any-return]


def objects(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


# Plain text


def test_text_paragraphs_are_separated_by_blank_lines_and_unwrapped(read: Read):
    text = "The boat is\nin the  harbour\r\nuntil noon.\n\n\n \t\nThen it\nleaves.\n"
    assert read("a.txt", text) == ["The boat is in the harbour until noon.\nThen it leaves."]


def test_text_long_lines_are_paragraphs(read: Read):
    first, second = "The first one. " * 10, "The second one. " * 10
    assert read("a.txt", f"{first}\n{second}\n") == [f"{first.strip()}\n{second.strip()}"]


def test_text_wikitext_titles_start_documents(read: Read):
    text = (
        " \n = Boats = \n \n Boats float . \n They are old . \n \n = = History = = \n \n The first sank . \n"
        " \n = = = Early = = = \n \n It was 1 + 1 = 2 then . \n \n = 3 = 3 = \n \n A title with a sign . \n"
    )
    assert read("a.txt", text) == [
        "Boats\nBoats float . They are old .\nHistory\nThe first sank .\nEarly\nIt was 1 + 1 = 2 then .",
        "3 = 3\nA title with a sign .",
    ]


def test_text_equation_is_not_a_wikitext_title(read: Read):
    assert read("a.txt", "The sum\n= a + b =\nis known.\n") == ["The sum = a + b = is known."]


def test_text_one_sentence_per_line_keeps_all_sentences(read: Read):
    lines = [f"This is sentence number {number}." for number in range(9000)]
    found = read("a.txt", "\n".join(lines))
    assert len(found) > 1
    assert split_sentences("\n".join(found), "en") == lines


def test_text_long_file_is_split_at_paragraph_ends(read: Read):
    paragraphs = [
        f"Paragraph {n} " + "begins and goes on " * 30 + f"and ends {n}." for n in range(500)
    ]
    wrapped = ["\n".join(re.findall(r".{1,60}(?: |$)", paragraph)) for paragraph in paragraphs]
    found = read("a.txt", "\n\n".join(wrapped))
    assert len(found) > 2
    assert max(map(len, found)) < 1.5 * MAX_DOCUMENT_CHARS
    assert " ".join(found).replace("\n", " ") == " ".join(paragraphs)
    assert all(text.startswith("Paragraph") and text.endswith(".") for text in found)


def test_text_line_of_ten_megabytes(read: Read):
    line = "It goes on and on. " * 530_000
    [found] = read("a.txt", line)
    assert found == line.strip()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"])
def test_text_line_separators_keep_words_separate(read: Read, end: str):
    [found] = read("a.txt", f"one{end}two")
    assert found.split() == ["one", "two"]


def test_text_invalid_utf8_is_replaced_and_counted(read: Read):
    assert read(
        "a.txt",
        b"\xef\xbb\xbfcaf\xc3\xa9 caf\xe9 \xff\xfe nul\x00byte\x07\x1b bad \xed\xa0\x80 end",
    ) == ["café caf\ufffd \ufffd\ufffd nulbyte bad \ufffd\ufffd\ufffd end"]
    assert counts(read)["invalid_bytes_replaced"] == 6


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم به خانه‌ بروم.",
        "\u200fשלום עולם\u200f",
        "a\u200db",
        "e\u0301",
        "👩\u200d👩\u200d👧",
        "zero\u00adwidth",
    ],
)
def test_text_format_characters_and_emoji_are_kept(read: Read, text: str):
    assert read("a.txt", text) == [unicodedata.normalize("NFC", text)]


line_texts = st.text(st.sampled_from("ab. =\t\u200c"), max_size=12)


@given(st.lists(line_texts, max_size=30))
def test_text_split_documents_keeps_all_characters(lines: list[str]):
    documents = list(split_documents(lines))
    squeezed = re.sub(r"[\s=]", "", "".join(lines))
    assert re.sub(r"[\s=]", "", "".join(documents)) == squeezed
    assert all(document.strip() for document in documents if squeezed)


# JSON lines


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".bz2", ".xz", ".GZ", ".old"])
def test_compressed_files_with_several_members_are_read_completely(
    read: Read, suffix: str, copies: int
):
    part = objects({"text": "One."}, {"text": "Two."}).encode()
    packs = {
        "": bytes,
        ".gz": gzip.compress,
        ".zst": zstd.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
    }
    pack = packs.get(suffix, gzip.compress)
    assert read("a.jsonl" + suffix, pack(part) * copies) == ["One.", "Two."] * copies


def cut_files() -> list[tuple[str, bytes]]:
    rows = objects(*({"text": text} for text in invent_documents(0, 200))).encode()
    packed = {".gz": gzip.compress(rows), ".zst": zstd.compress(rows)}
    return [
        (suffix, data[:end])
        for suffix, data in packed.items()
        for end in (len(data) // 2, -4, -1, 5)
    ]


@pytest.mark.parametrize(("suffix", "content"), cut_files(), ids=lambda value: str(len(value)))
def test_truncated_compressed_file_is_an_error(read: Read, suffix: str, content: bytes):
    with pytest.raises(
        BertpipeError, match=rf"a\.jsonl{suffix}: broken or truncated .*--on-error skip"
    ):
        read("a.jsonl" + suffix, content)


def test_on_error_skip_keeps_readable_part_of_truncated_file(read: Read, tmp_path: Path):
    texts = invent_documents(0, 300)
    whole = gzip.compress(objects(*({"text": text} for text in texts)).encode())
    found = read("a.jsonl.gz", whole[: len(whole) // 2], on_error="skip")
    assert 10 < len(found) < 300
    assert found == texts[: len(found)]
    assert counts(read)["skipped_broken_file"] == 1


@pytest.mark.parametrize(
    "bad",
    [
        '{"text": "cut',
        "{'text': 1}",
        "[]",
        "3",
        '"text"',
        "null",
        b'{"text": \xff}',
        "{" * 100_000,
        "\x00",
    ],
)
def test_jsonl_invalid_line_is_reported_or_skipped(read: Read, tmp_path: Path, bad: str | bytes):
    line = bad if isinstance(bad, bytes) else bad.encode()
    content = b'{"text": "One."}\n\n' + line + b'\n{"text": "Two."}\n'
    with pytest.raises(BertpipeError, match=r"a\.jsonl, line 3: .*--on-error skip"):
        read("a.jsonl", content)
    assert not (tmp_path / "corpus" / "manifest.json").exists()
    subprocess.run(["rm", "-r", str(tmp_path / "corpus")], check=True)
    assert read("a.jsonl", content, on_error="skip") == ["One.", "Two."]
    assert counts(read)["skipped_not_json"] == 1


def test_jsonl_values_that_are_not_text_are_counted(read: Read):
    rows = [
        {"text": value} for value in ("One.", None, 3, ["x"], {"a": 1}, "", " \n\t", "\x00", "Two.")
    ]
    assert read("a.jsonl", objects(*rows)) == ["One.", "Two."]
    found = counts(read)
    assert (found["documents"], found["skipped_no_text"], found["skipped_empty"]) == (2, 4, 2)
    assert found["removed"]["empty"]["documents"] == 1
    assert found["bytes"] == len("One.Two.")


def test_text_field_default_and_option(read: Read, tmp_path: Path):
    assert read("a.jsonl", objects({"content": "One."}, {"text": "Two.", "content": "x"})) == [
        "One.",
        "Two.",
    ]
    with pytest.raises(
        BertpipeError, match=r"b\.jsonl, line 1: no field text or content; fields: body, id"
    ):
        corpus_of(tmp_path, objects({"body": "One.", "id": 3}))
    assert corpus_of(tmp_path, objects({"body": "One.", "id": 3}), text_field="body") == ["One."]
    with pytest.raises(BertpipeError, match=r"no field bodies; fields: body"):
        corpus_of(tmp_path, objects({"body": "One."}), text_field="bodies")


def corpus_of(tmp_path: Path, content: str, **options: Any) -> list[str]:
    file = tmp_path / "b.jsonl"
    file.write_text(content, encoding="utf-8")
    out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
    build_corpus(CorpusConfig(out=out, source=(f"jsonl:{file}",), workers=1, quiet=True, **options))
    return texts_of(out)


def test_jsonl_invalid_utf8_is_replaced_and_counted(read: Read):
    assert read("a.jsonl", b'\xef\xbb\xbf{"text": "caf\xe9 \xff."}\n') == ["caf\ufffd \ufffd."]
    assert counts(read)["invalid_bytes_replaced"] == 2


def test_jsonl_escaped_surrogates_are_joined_or_replaced(read: Read):
    content = r'{"text": "a \ud83d\ude00 b \ud800 c"}' + "\n" + r'{"text": "\udc00"}' + "\n"
    assert read("a.jsonl", content) == ["a 😀 b \ufffd c", "\ufffd"]


def test_jsonl_line_breaks_separate_paragraphs(read: Read):
    assert read("a.jsonl", objects({"text": "One.\r\n\r\nTwo\rThree\n \nFour"})) == [
        "One.\nTwo\nThree\nFour"
    ]


# Parquet


def parquet_bytes(tmp_path: Path, table: pa.Table, **options: Any) -> bytes:
    pq.write_table(table, tmp_path / "made", **options)
    return (tmp_path / "made").read_bytes()


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_string_types_of_text_column(read: Read, tmp_path: Path, kind: pa.DataType):
    column = pa.array(["One.", None, "Two.", ""], pa.string()).cast(kind)
    content = parquet_bytes(tmp_path, pa.table({"id": [1, 2, 3, 4], "content": column}))
    assert read("a.parquet", content) == ["One.", "Two."]
    assert counts(read)["skipped_no_text"] == 1


def test_parquet_missing_text_column_lists_columns(read: Read, tmp_path: Path):
    content = parquet_bytes(tmp_path, pa.table({"id": [1], "body": ["One."]}))
    with pytest.raises(
        BertpipeError, match=r"a\.parquet: no field text or content; fields: id, body.*--text-field"
    ):
        read("a.parquet", content)


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_parquet_truncated_file_is_an_error(read: Read, tmp_path: Path, keep: float):
    content = parquet_bytes(tmp_path, pa.table({"text": invent_documents()}))
    with pytest.raises(BertpipeError, match=r"a\.parquet: broken or truncated"):
        read("a.parquet", content[: int(len(content) * keep)])


def test_parquet_checksum_detects_flipped_bit(read: Read, tmp_path: Path):
    content = parquet_bytes(
        tmp_path,
        pa.table({"text": invent_documents()}),
        compression="none",
        write_page_checksum=True,
        use_dictionary=False,
    )
    middle = content.index(invent_documents()[20].encode()[:20])
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    with pytest.raises(BertpipeError, match=r"a\.parquet: broken or truncated"):
        read("a.parquet", flipped)


def test_parquet_invalid_utf8_is_replaced_and_counted(read: Read, tmp_path: Path):
    data = b"fine.bad \xff\xfe text."
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 5, len(data))))
    column = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(data))
    assert read("a.parquet", parquet_bytes(tmp_path, pa.table({"text": column}))) == [
        "fine.",
        "bad \ufffd\ufffd text.",
    ]
    assert counts(read)["invalid_bytes_replaced"] == 2


def test_parquet_binary_text_column_is_an_error(read: Read, tmp_path: Path):
    content = parquet_bytes(tmp_path, pa.table({"id": [1], "text": [b"One."]}))
    with pytest.raises(
        BertpipeError, match=r"a\.parquet: column text has type binary, not string; .* id, text"
    ):
        read("a.parquet", content)


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_file_name_that_is_not_utf8(tmp_path: Path, kind: str):
    name = os.fsdecode(b"caf\xe9 \n.x")
    content = {"text": b"One.", "jsonl": b'{"text": "One."}'}.get(kind) or parquet_bytes(
        tmp_path, pa.table({"text": ["One."]})
    )
    (tmp_path / name).write_bytes(content)
    build_corpus(
        CorpusConfig(
            out=tmp_path / "out", source=(f"{kind}:{tmp_path}/*.x",), workers=1, quiet=True
        )
    )
    assert texts_of(tmp_path / "out") == ["One."]


def test_file_matched_by_two_patterns_is_read_once(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"Text of {name}.")
    config = CorpusConfig(
        out=tmp_path / "out",
        source=(f"text:{tmp_path}/a.txt", f"text:{tmp_path}/*.txt"),
        workers=1,
        quiet=True,
    )
    build_corpus(config)
    assert texts_of(config.out) == ["Text of a.", "Text of b."]


# Nothing to read


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", ""),
        ("a.txt", " \n\n\t\x00\n"),
        ("a.jsonl", ""),
        ("a.jsonl", objects({"text": None}, {"text": " "})),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)),
        ("a.jsonl.gz", b""),
    ],
)
def test_corpus_without_text_is_an_error(
    read: Read, tmp_path: Path, name: str, content: str | bytes
):
    with pytest.raises(BertpipeError, match="no document with text") as caught:
        read(name, content)
    assert name in str(caught.value)
    assert not (tmp_path / "corpus" / "manifest.json").exists()


def test_empty_file_among_others_is_ignored(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl", [])
    write_jsonl(tmp_path / "b.jsonl", ["One."])
    config = CorpusConfig(
        out=tmp_path / "corpus",
        source=(f"jsonl:{tmp_path}/*.jsonl",),
        workers=1,
        quiet=True,
        shard_mb=1e-6,
    )
    build_corpus(config)
    assert texts_of(config.out) == ["One."]


@pytest.mark.parametrize(
    ("pattern", "problem"), [("absent/*.txt", "matches no file"), (".", "is a folder")]
)
def test_pattern_without_files_is_an_error(tmp_path: Path, pattern: str, problem: str):
    with pytest.raises(BertpipeError, match=problem):
        build_corpus(
            CorpusConfig(
                out=tmp_path / "corpus", source=(f"text:{tmp_path}/{pattern}",), quiet=True
            )
        )
    assert not (tmp_path / "corpus").exists()


def test_unknown_source_lists_known_sources(tmp_path: Path):
    with pytest.raises(UsageError, match=r"nowhere: unknown source.*python-docs.*text:GLOB"):
        build_corpus(CorpusConfig(out=tmp_path / "corpus", source=("nowhere",), quiet=True))


# The whole stage


def write_sources(tmp_path: Path, files: int = 6) -> tuple[str, ...]:
    texts = invent_documents(7, 60)
    for number in range(files):
        write_jsonl(tmp_path / "raw" / f"{number}.jsonl", texts[number::files])
    (tmp_path / "raw" / "b.txt").write_text(
        "\n".join(texts[:5]).replace("\n", "\n\n"), encoding="utf-8"
    )
    return f"jsonl:{tmp_path}/raw/*.jsonl", f"text:{tmp_path}/raw/b.txt"


def test_bytes_do_not_depend_on_workers(tmp_path: Path):
    sources = write_sources(tmp_path)
    made = []
    for workers in (1, 3):
        out = tmp_path / f"corpus-{workers}"
        build_corpus(
            CorpusConfig(out=out, source=sources, workers=workers, quiet=True, shard_mb=1e-6)
        )
        made.append(shard_bytes(out))
    assert made[0] == made[1]
    assert len(made[0]) > 8


def test_rows_and_manifest_match_the_input(tmp_path: Path):
    sources = write_sources(tmp_path)
    config = CorpusConfig(
        out=tmp_path / "corpus",
        source=sources,
        workers=1,
        quiet=True,
        language="tlh",
        shard_mb=1e-6,
    )
    build_corpus(config)
    manifest: Manifest = read_manifest(config.out, "corpus")
    table = pa.concat_tables(pq.read_table(config.out / name) for name in sorted(manifest.files))
    texts = invent_documents(7, 60)
    paragraph_lines = "\n".join(texts[:5])
    assert sorted(table["text"].to_pylist()) == sorted([*texts, paragraph_lines])
    assert set(table["language"].to_pylist()) == {"tlh"}
    assert set(table["source"].to_pylist()) == set(sources)
    assert len(set(table["id"].to_pylist())) == 61
    assert "3.jsonl#0" in table["id"].to_pylist()
    assert manifest.counts["documents"] == 61
    assert manifest.counts["bytes"] == sum(len(text.encode()) for text in table["text"].to_pylist())
    assert manifest.counts["taken"][sources[0]]["files"] == 6
    assert table.schema.names == ["id", "text", "source", "language"]


def test_small_files_share_a_shard(tmp_path: Path):
    for number, size in enumerate([100, 100, 5000, 100, 100]):
        write_jsonl(tmp_path / f"{number}.jsonl", ["x" * size])
    config = CorpusConfig(
        out=tmp_path / "corpus",
        source=(f"jsonl:{tmp_path}/*.jsonl",),
        workers=1,
        quiet=True,
        shard_mb=0.001,
    )
    build_corpus(config)
    assert [pq.read_metadata(path).num_rows for path in sorted(config.out.glob("*.parquet"))] == [
        2,
        1,
        2,
    ]


def corpus_command(tmp_path: Path, out: Path) -> list[str]:
    return [
        *(
            sys.executable,
            "-m",
            "bert_pipeline",
            "corpus",
            "--source",
            f"jsonl:{tmp_path}/raw/*.jsonl",
        ),
        *("--out", str(out), "--workers", "2", "--shard-mb", "0.1", "--quiet"),
    ]


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_killed_run_resumes_to_the_same_bytes(tmp_path: Path, stop: signal.Signals):
    texts = invent_documents(8, 100)
    for number in range(12):
        write_jsonl(tmp_path / "raw" / f"{number:02}.jsonl", texts * 10)
    out, whole = tmp_path / "corpus", tmp_path / "complete"
    with subprocess.Popen(
        corpus_command(tmp_path, out), stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + 60
        while (
            len(list(out.glob("*.parquet"))) < 2
            and time.monotonic() < end
            and process.poll() is None
        ):
            time.sleep(0.002)
        process.send_signal(stop)
        _, said = process.communicate()
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("[0-9]*.parquet")}
    assert finished
    assert not (out / "manifest.json").exists(), "the run finished before it could be stopped"
    assert process.returncode == (-stop if stop == signal.SIGKILL else 128 + stop)
    assert "Traceback" not in said
    for folder in (out, whole):
        build_corpus(
            CorpusConfig(
                out=folder, source=(f"jsonl:{tmp_path}/raw/*.jsonl",), shard_mb=0.1, workers=1
            )
        )
    assert shard_bytes(out) == shard_bytes(whole)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert read_manifest(out, "corpus").counts["documents"] == 12 * 1000


def test_files_are_read_in_order_of_names(tmp_path: Path):
    for name in ("b", "c", "a"):
        write_jsonl(tmp_path / f"{name}.jsonl", [name])
    os.utime(tmp_path / "a.jsonl", (9e9, 9e9))
    config = CorpusConfig(
        out=tmp_path / "corpus", source=(f"jsonl:{tmp_path}/*.jsonl",), workers=1, quiet=True
    )
    build_corpus(config)
    assert texts_of(config.out) == ["a", "b", "c"]


# Limits, shuffling, duplicates, the account


def big_rows(tmp_path: Path, files: int = 5, rows: int = 40) -> tuple[str, list[str]]:
    """Files of different rows of various lengths; returns the source and the texts in order."""
    texts = [f"Row {n} says {'so ' * (n * 7 % 50)}and ends." for n in range(files * rows)]
    for number in range(files):
        write_jsonl(
            tmp_path / "raw" / f"{number}.jsonl", texts[number * rows : (number + 1) * rows]
        )
    return f"jsonl:{tmp_path}/raw/*.jsonl", texts


def build(out: Path, source: str, **options: Any) -> tuple[list[str], dict[str, Any]]:
    given = {"workers": 1, "quiet": True, "shard_mb": 0.001} | options
    manifest = build_corpus(CorpusConfig(out=out, source=(source,), **given))
    return texts_of(out), manifest.counts


@pytest.mark.parametrize("steps", ["basic", "basic,exact,near"])
@pytest.mark.parametrize(
    ("limit", "workers"),
    [*((limit, 1) for limit in (1, 2, 39, 40, 41, 137, 200, 1000)), (41, 3), (1000, 3)],
)
def test_max_documents_keeps_the_first_documents(
    tmp_path: Path, steps: str, limit: int, workers: int
):
    source, texts = big_rows(tmp_path)
    found, counts = build(
        tmp_path / "out", source, max_documents=limit, workers=workers, clean=(steps,)
    )
    assert found == texts[:limit]
    assert counts["documents"] == min(limit, 200)


@pytest.mark.parametrize("steps", ["basic", "basic,exact"])
@pytest.mark.parametrize("limit", [30, 1000, 1001, 5000, 10**6])
def test_max_bytes_keeps_complete_documents(tmp_path: Path, limit: int, steps: str):
    source, texts = big_rows(tmp_path)
    found, counts = build(tmp_path / "out", source, max_bytes=limit, clean=(steps,))
    fitting = [
        n for n in range(len(texts) + 1) if sum(len(text.encode()) for text in texts[:n]) <= limit
    ]
    assert found == texts[: fitting[-1]]
    assert counts["bytes"] == sum(len(text.encode()) for text in found) <= limit


def test_max_documents_is_counted_after_cleaning_and_deduplication(tmp_path: Path):
    texts = [
        f"Text {n // 4} is here in four copies, as it were, and that is that." for n in range(400)
    ]
    for number in range(4):
        write_jsonl(
            tmp_path / "raw" / f"{number}.jsonl", [" \n", *texts[number * 100 : number * 100 + 100]]
        )
    found, counts = build(
        tmp_path / "out", f"jsonl:{tmp_path}/raw/*.jsonl", max_documents=30, clean=("basic,exact",)
    )
    assert found == [texts[4 * n] for n in range(30)]
    assert counts["documents"] == 30


def test_max_bytes_below_first_document_is_an_error(tmp_path: Path):
    source, _ = big_rows(tmp_path)
    for steps in ("exact", "basic"):
        with pytest.raises(
            BertpipeError,
            match=r"the first document has \d+ bytes or more, which exceeds --max-bytes 3",
        ):
            build(tmp_path / steps, source, max_bytes=3, clean=(steps,))


@pytest.mark.parametrize("buffer", [2, 16, 1000])
def test_shuffle_buffer_is_reproducible_and_keeps_all_documents(tmp_path: Path, buffer: int):
    source, texts = big_rows(tmp_path)
    first, _ = build(tmp_path / "a", source, shuffle_buffer=buffer, seed=5)
    again, _ = build(tmp_path / "b", source, shuffle_buffer=buffer, seed=5, workers=3)
    other, _ = build(tmp_path / "c", source, shuffle_buffer=buffer, seed=6)
    assert first == again
    assert first != other
    assert first != texts
    assert sorted(first) == sorted(other) == sorted(texts)


def test_shuffle_buffer_shuffles_files(tmp_path: Path):
    for number in range(200):
        write_jsonl(tmp_path / "raw" / f"{number:03}.jsonl", [f"Text {number:03}."])
    source = f"jsonl:{tmp_path}/raw/*.jsonl"
    first, _ = build(tmp_path / "out", source, shuffle_buffer=2, max_documents=20, shard_mb=16)
    assert min(first) < "Text 060." < "Text 140." < max(first)


def test_explain_removes_terminal_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "a.txt").write_text("A\x1b[31mred\x1b]0;title\x07 text.", encoding="utf-8")
    build(tmp_path / "out", f"text:{tmp_path}/a.txt", explain=True, quiet=False)
    said = capsys.readouterr().out
    assert "A·[31mred" in said
    assert not re.search("[\x00-\x09\x0b-\x1f]", said)


@pytest.mark.parametrize("pattern", ["~nobody-of-that-name/*.txt", "~/absent-*.txt"])
def test_tilde_in_pattern_is_expanded(pattern: str, tmp_path: Path):
    with pytest.raises(BertpipeError, match="matches no file"):
        build(tmp_path / "out", f"text:{pattern}")


def test_shuffle_buffer_size_limits_the_distance(tmp_path: Path):
    source, texts = big_rows(tmp_path, files=1, rows=300)
    found, _ = build(tmp_path / "out", source, shuffle_buffer=10)
    earlier = [texts.index(text) - place for place, text in enumerate(found)]
    assert max(earlier) <= 10
    assert sum(map(abs, earlier)) / len(earlier) > 2


options_of_runs = st.fixed_dictionaries(
    {
        "clean": st.sampled_from([("basic",), ("none",), ("basic,exact",), ("exact,near",)]),
        "max_documents": st.sampled_from([None, 7, 90]),
        "max_bytes": st.sampled_from([None, 2500]),
        "shuffle_buffer": st.sampled_from([None, 5]),
        "shard_mb": st.sampled_from([0.0005, 0.002, 1.0]),
    }
)


@settings(max_examples=6, deadline=None)
@given(options_of_runs)
def test_bytes_do_not_depend_on_workers_for_any_options(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]
):
    folder = tmp_path_factory.mktemp("runs")
    source, _ = big_rows(folder, files=6, rows=20)
    build(folder / "one", source, workers=1, **options)
    build(folder / "three", source, workers=3, **options)
    assert shard_bytes(folder / "one").keys() == shard_bytes(folder / "three").keys()
    for name, content in shard_bytes(folder / "one").items():
        assert (folder / "three" / name).read_bytes() == content
    assert not (folder / "one" / ".parts").exists()


@pytest.mark.parametrize("steps", ["basic", "basic,exact,near"])
@pytest.mark.parametrize("options", [{}, {"shuffle_buffer": 50}, {"max_documents": 2500}])
def test_kill_within_a_large_file_loses_and_repeats_no_row(
    tmp_path: Path, steps: str, options: dict[str, Any]
):
    texts = [
        f"Row {n} of a file: it{''.join(f' w{n}x{k}' for k in range(n % 40))} ends."
        for n in range(4000)
    ]
    (tmp_path / "raw.jsonl").write_text(
        "bad\n" + "\nbad\n".join(json.dumps({"text": t}) for t in texts)
    )
    shared = {
        "clean": (steps,),
        "on_error": "skip",
        "shard_mb": 0.05,
        "workers": 1,
        "quiet": True,
    } | options
    values = json.dumps(
        {"out": str(tmp_path / "out"), "source": [f"jsonl:{tmp_path}/raw.jsonl"]} | shared
    )
    code = (
        "import json, sys; from bert_pipeline.corpus.build import build_corpus; "
        "from bert_pipeline.corpus.config import CorpusConfig; build_corpus(CorpusConfig(**json.loads(sys.argv[1])))"
    )
    kills = 0
    for wanted in (2, 7, 11):
        with subprocess.Popen(
            [sys.executable, "-c", code, values], stderr=subprocess.DEVNULL
        ) as process:
            end = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < end:
                if len(list((tmp_path / "out").glob(".parts/*.parquet"))) >= wanted:
                    process.kill()
                    kills += 1
                    break
                time.sleep(0.001)
    assert kills, "the run finished before it could be killed"
    for out in (tmp_path / "out", tmp_path / "complete"):
        build_corpus(CorpusConfig(out=out, source=(f"jsonl:{tmp_path}/raw.jsonl",), **shared))
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "complete")
    expected = texts[: options.get("max_documents")]
    found = texts_of(tmp_path / "out")
    if "shuffle_buffer" in options:
        found, expected = sorted(found), sorted(expected)
    assert found == expected
    assert len(shard_bytes(tmp_path / "out")) > 5
    if not options:
        assert read_manifest(tmp_path / "out", "corpus").counts["skipped_not_json"] == 4000


def test_failed_run_resumes_with_on_error_skip(tmp_path: Path):
    source, texts = big_rows(tmp_path, files=3)
    with (tmp_path / "raw" / "2.jsonl").open("a") as file:
        file.write("broken\n")
    with pytest.raises(BertpipeError, match=r"2\.jsonl, line 41: not a JSON object"):
        build(tmp_path / "out", source)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert len(before) > 1
    found, counts = build(tmp_path / "out", source, on_error="skip")
    assert found == texts
    assert counts["skipped_not_json"] == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(BertpipeError, match=r"made with --on-error skip \(skipped not json: 1\)"):
        build(tmp_path / "out", source)


@pytest.mark.parametrize("steps", ["basic", "exact"])
def test_changed_settings_of_unfinished_run_are_rejected(tmp_path: Path, steps: str):
    source, _ = big_rows(tmp_path, files=1)
    with (tmp_path / "raw" / "0.jsonl").open("a") as file:
        file.write("broken\n")
    with pytest.raises(BertpipeError, match="not a JSON object"):
        build(tmp_path / "out", source, clean=(steps,))
    with pytest.raises(BertpipeError, match=r"made with other settings:\n +clean: "):
        build(tmp_path / "out", source, clean=("control",))


def test_lost_shard_of_unfinished_run_is_rewritten(tmp_path: Path):
    source, texts = big_rows(tmp_path, files=3)
    with (tmp_path / "raw" / "2.jsonl").open("a") as file:
        file.write("broken\n")
    with pytest.raises(BertpipeError, match="not a JSON object"):
        build(tmp_path / "out", source)
    (tmp_path / "out" / "00001.parquet").unlink()
    found, _ = build(tmp_path / "out", source, on_error="skip")
    assert found == texts


@pytest.mark.parametrize("option", ["files", "revision", "repository", "split"])
def test_hub_options_without_hub_source_are_rejected(option: str):
    with pytest.raises(UsageError, match=f"--{option}: applies only to sources on the Hub"):
        build_config(CorpusConfig, {"out": Path("x"), "source": ("text:*",), option: "x"})


def build_in_steps(out: Path, source: str, target: str, **options: Any) -> int:
    """Build in processes, each killed at a later call of the function `target`.

    Returns the number of killed processes.
    """
    values = json.dumps(
        {"out": str(out), "source": [source], "workers": 1, "quiet": True} | options
    )
    code = (
        "import json, os, sys; from importlib import import_module\n"
        "from bert_pipeline.corpus.build import build_corpus; from bert_pipeline.corpus.config import CorpusConfig\n"
        "name, _, function = sys.argv[2].rpartition('.')\n"
        "module = import_module(name); real = getattr(module, function)\n"
        "left = [int(sys.argv[3])]\n"
        "def once_more(*a, **k):\n"
        "    left[0] -= 1\n"
        "    return os._exit(9) if left[0] < 0 else real(*a, **k)\n"
        "setattr(module, function, once_more)\n"
        "build_corpus(CorpusConfig(**json.loads(sys.argv[1])))"
    )
    for calls in range(100):
        done = subprocess.run([sys.executable, "-c", code, values, target, str(calls)], check=False)
        if done.returncode == 0:
            return calls
    raise AssertionError("the build did not finish")


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("bert_pipeline.corpus.finalize.write_json", {"max_bytes": 1000, "shard_mb": 0.0005}),
        (
            "bert_pipeline.corpus.parts.write_shard",
            {"max_documents": 4, "clean": "exact", "shard_mb": 0.0004},
        ),
        (
            "bert_pipeline.corpus.selection.write_shard",
            {"max_documents": 4, "clean": "exact", "shard_mb": 0.0004},
        ),
        ("os.replace", {"shard_mb": 0.0005}),
        ("os.unlink", {"clean": "near"}),
    ],
)
def test_kill_at_every_write_resumes_to_the_same_bytes(
    tmp_path: Path, target: str, options: dict[str, Any]
):
    texts = [
        f"{n} {letter * size}"
        for n, (letter, size) in enumerate(zip("abcdeafgg", (400, 400, 900) * 3, strict=True))
    ]
    write_jsonl(tmp_path / "a.jsonl", texts[:4] * 2 + texts)
    source = f"jsonl:{tmp_path}/a.jsonl"
    assert build_in_steps(tmp_path / "killed", source, target, **options) > 0
    build(tmp_path / "complete", source, **({"shard_mb": 16.0} | options))
    assert shard_bytes(tmp_path / "killed") == shard_bytes(tmp_path / "complete")


def test_damaged_part_is_read_again(tmp_path: Path):
    source, texts = big_rows(tmp_path, files=1)
    options = {"clean": "exact", "shard_mb": 16.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bert_pipeline.corpus.build.write_kept", None)
        with pytest.raises(TypeError):
            build(tmp_path / "out", source, **options)
    part = tmp_path / "out" / ".parts" / "00000-00000.parquet"
    content = bytearray(part.read_bytes())
    content[300] ^= 1
    part.write_bytes(content)
    with pytest.raises(BertpipeError, match=r"damaged, and removed\. Rerun the same command"):
        build(tmp_path / "out", source, **options)
    assert build(tmp_path / "out", source, **options)[0] == texts


def test_counts_of_read_changed_removed_and_written_documents_add_up(tmp_path: Path):
    texts = [
        "One  text.",
        "One text.",
        "",
        "\x00",
        " \n",
        "Two.",
        "Two.\n",
        "Cafe\u0301.",
        None,
        4,
        "Three.",
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found, counts = build(
        tmp_path / "out", f"jsonl:{tmp_path}/a.jsonl", clean=("basic,exact",), shard_mb=1
    )
    assert found == ["One text.", "Two.", "Café.", "Three."]
    removed = {reason: line["documents"] for reason, line in counts["removed"].items()}
    assert removed == {"exact duplicate": 2, "empty": 1}
    assert (counts["skipped_empty"], counts["skipped_no_text"]) == (2, 2)
    assert counts["read"]["documents"] == counts["documents"] + sum(removed.values()) == 7
    assert (
        len(texts)
        == counts["read"]["documents"] + counts["skipped_empty"] + counts["skipped_no_text"]
    )
    assert counts["changed"]["whitespace"]["documents"] == 2
    assert counts["changed"]["unicode"]["documents"] == 1
    assert ["Two.", "Two."] in counts["removed"]["exact duplicate"]["samples"]


def test_explain_prints_samples_also_for_a_finished_corpus(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(
        objects(*({"text": f"Text  number {n % 6} of {'x' * 99}"} for n in range(12)))
    )
    command = [
        sys.executable,
        "-m",
        "bert_pipeline",
        "corpus",
        "--source",
        f"jsonl:{tmp_path}/a.jsonl",
    ]
    command += ["--out", str(tmp_path / "out"), "--clean", "whitespace,exact"]
    plain, explained = (
        subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout
        for more in ([], ["--explain"])
    )
    assert re.search(r"read +12", plain)
    assert re.search(r"changed by whitespace +12", plain)
    assert re.search(r"removed: exact duplicate +6", plain)
    assert re.search(r"written +6", plain)
    assert "Text  number" not in plain
    assert explained.count("before  Text  number") == 3
    assert explained.count("duplicates  Text number") == 3
    assert max(map(len, explained.splitlines())) < 110


def test_cleaning_table_has_one_row_per_step_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    texts = [
        "Too  short.",
        "Too short.",
        "The end of the day is near, and that is all there is to say of it.",
    ]
    (tmp_path / "a.jsonl").write_text(objects(*({"text": text} for text in texts)))
    build(
        tmp_path / "out",
        f"jsonl:{tmp_path}/a.jsonl",
        clean=("exact,whitespace,unicode,language,near",),
        quiet=False,
    )
    lines = capsys.readouterr().out.splitlines()
    table = [re.split(r"  +", line.strip())[:2] for line in lines[lines.index("Cleaning") + 2 :]]
    assert table == [
        ["read", "3"],
        ["changed by unicode", "0"],
        ["changed by whitespace", "1"],
        ["removed: language", "0"],
        ["removed: exact duplicate", "1"],
        ["removed: near", "0"],
        ["written", "2"],
    ]


def test_shard_numbers_have_no_gap_when_a_part_is_removed(tmp_path: Path):
    rows = [f"Text {n}, long enough to fill a part of its own {'x' * 900}" for n in range(6)]
    write_jsonl(tmp_path / "a.jsonl", [rows[0], rows[1], rows[1], rows[1], rows[2], rows[0]])
    found, _ = build(
        tmp_path / "out", f"jsonl:{tmp_path}/a.jsonl", clean=("exact",), shard_mb=0.0005
    )
    assert found == rows[:3]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.parquet")) == [
        f"{n:05}.parquet" for n in range(3)
    ]
