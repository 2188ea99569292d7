"""Corpus: every way that text lies about on disks, whole or broken, becomes documents or one clear message."""

from __future__ import annotations

import gzip
import json
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
from conftest import invent_documents, write_jsonl
from hypothesis import example, given
from hypothesis import strategies as st

from bert_pipeline.artifact import Manifest, read_manifest
from bert_pipeline.corpus.build import build_corpus
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.sentences import split_sentences
from bert_pipeline.corpus.text import MAX_DOCUMENT_CHARS, clean_document, clean_line, split_documents
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.shards import read_columns

Read = Callable[..., list[str]]


def texts_of(folder: Path) -> list[str]:
    names = sorted(folder.glob("*.parquet"))
    return [text for name in names for text in read_columns(name, ["text"])["text"].to_pylist()]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write bytes to a file of some name, make a corpus of it, return its texts; `read.counts` are the manifest's."""

    def build(name: str, content: bytes | str, **options: Any) -> list[str]:
        file = tmp_path / name
        file.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        kind = {"txt": "text", "jsonl": "jsonl", "parquet": "parquet"}[name.split(".")[1]]
        config = CorpusConfig(out=tmp_path / "corpus", source=(f"{kind}:{file}",), workers=1, quiet=True, **options)
        build.counts = build_corpus(config).counts  # type: ignore[attr-defined]
        return texts_of(config.out)

    return build


def counts(read: Read) -> dict[str, Any]:
    return read.counts  # type: ignore[attr-defined, no-any-return]


def objects(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


# Plain text


def test_blank_lines_part_paragraphs_and_wrapped_lines_are_joined(read: Read):
    text = "The boat is\nin the  harbour\r\nuntil noon.\n\n\n \t\nThen it\nleaves.\n"
    assert read("a.txt", text) == ["The boat is in the harbour until noon.\nThen it leaves."]


def test_long_lines_are_paragraphs_of_their_own(read: Read):
    first, second = "The first one. " * 10, "The second one. " * 10
    assert read("a.txt", f"{first}\n{second}\n") == [f"{first.strip()}\n{second.strip()}"]


def test_wikitext_titles_begin_documents_and_headings_are_paragraphs(read: Read):
    text = (
        " \n = Boats = \n \n Boats float . \n They are old . \n \n = = History = = \n \n The first sank . \n"
        " \n = = = Early = = = \n \n It was 1 + 1 = 2 then . \n \n = 3 = 3 = \n \n A title with a sign . \n"
    )
    assert read("a.txt", text) == [
        "Boats\nBoats float . They are old .\nHistory\nThe first sank .\nEarly\nIt was 1 + 1 = 2 then .",
        "3 = 3\nA title with a sign .",
    ]


def test_an_equation_within_a_paragraph_begins_nothing(read: Read):
    assert read("a.txt", "The sum\n= a + b =\nis known.\n") == ["The sum = a + b = is known."]


def test_one_sentence_a_line_loses_no_sentence(read: Read):
    lines = [f"This is sentence number {number}." for number in range(9000)]
    found = read("a.txt", "\n".join(lines))
    assert len(found) > 1
    assert split_sentences("\n".join(found), "en") == lines


def test_a_book_is_cut_at_paragraph_ends(read: Read):
    paragraphs = [f"Paragraph {n} " + "begins and goes on " * 30 + f"and ends {n}." for n in range(500)]
    wrapped = ["\n".join(re.findall(r".{1,60}(?: |$)", paragraph)) for paragraph in paragraphs]
    found = read("a.txt", "\n\n".join(wrapped))
    assert len(found) > 2
    assert max(map(len, found)) < 1.5 * MAX_DOCUMENT_CHARS
    assert " ".join(found).replace("\n", " ") == " ".join(paragraphs)
    assert all(text.startswith("Paragraph") and text.endswith(".") for text in found)


def test_a_line_of_ten_megabytes_is_no_obstacle(read: Read):
    line = "It goes on and on. " * 530_000
    [found] = read("a.txt", line)
    assert found == line.strip()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"])
def test_words_are_not_glued_whatever_ends_a_line(read: Read, end: str):
    [found] = read("a.txt", f"one{end}two")
    assert found.split() == ["one", "two"]


def test_bytes_that_are_no_text_are_replaced_and_counted(read: Read):
    assert read("a.txt", b"\xef\xbb\xbfcaf\xc3\xa9 caf\xe9 \xff\xfe nul\x00byte\x07\x1b bad \xed\xa0\x80 end") == [
        "café caf\ufffd \ufffd\ufffd nulbyte bad \ufffd\ufffd\ufffd end"
    ]
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
def test_text_that_is_not_latin_is_kept_as_it_is(read: Read, text: str):
    assert read("a.txt", text) == [text]
    assert clean_document(text) == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_cleaning_keeps_every_visible_character_and_can_be_repeated(text: str):
    cleaned = clean_line(text)
    assert clean_line(cleaned) == cleaned

    def visible(line: str) -> str:
        hidden = ("Cc", "Zs", "Zl", "Zp")
        return "".join(c for c in line if unicodedata.category(c) not in hidden and c != "\ufeff")

    assert visible(cleaned) == visible(text)


@given(st.text(st.sampled_from("ab \ud800\udc00\udbff\udfff\U00010000")))
@example("\ud83d\ude00")
@example("\ud800")
@example("a\ud800b")
def test_cleaning_leaves_text_that_can_be_written(text: str):
    cleaned = clean_line(text)
    cleaned.encode("utf-8")
    assert cleaned.count("a") == text.count("a")
    assert cleaned.count("b") == text.count("b")


line_texts = st.text(st.sampled_from("ab. =\t\u200c"), max_size=12)


@given(st.lists(line_texts, max_size=30))
def test_splitting_a_text_file_loses_nothing_but_signs_of_headings(lines: list[str]):
    documents = list(split_documents(lines))
    squeezed = re.sub(r"[\s=]", "", "".join(lines))
    assert re.sub(r"[\s=]", "", "".join(documents)) == squeezed
    assert all(document.strip() for document in documents if squeezed)


# JSON lines


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_compressed_files_of_one_or_more_members_are_read_whole(read: Read, suffix: str, copies: int):
    zstandard = pytest.importorskip("zstandard")
    part = objects({"text": "One."}, {"text": "Two."}).encode()
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
    assert read("a.jsonl" + suffix, pack(part) * copies) == ["One.", "Two."] * copies


def cut_files() -> list[tuple[str, bytes]]:
    zstandard = pytest.importorskip("zstandard")
    rows = objects(*({"text": text} for text in invent_documents(0, 200))).encode()
    packed = {".gz": gzip.compress(rows), ".zst": zstandard.ZstdCompressor().compress(rows)}
    return [(suffix, data[:end]) for suffix, data in packed.items() for end in (len(data) // 2, -4, -1, 5)]


@pytest.mark.parametrize(("suffix", "content"), cut_files(), ids=lambda value: str(len(value)))
def test_a_cut_off_file_fails_or_is_counted(read: Read, suffix: str, content: bytes):
    with pytest.raises(BertpipeError, match=rf"a\.jsonl{suffix}: broken or cut off .*--on-error skip"):
        read("a.jsonl" + suffix, content)


def test_the_readable_part_of_a_cut_off_file_is_kept_on_demand(read: Read, tmp_path: Path):
    texts = invent_documents(0, 300)
    whole = gzip.compress(objects(*({"text": text} for text in texts)).encode())
    found = read("a.jsonl.gz", whole[: len(whole) // 2], on_error="skip")
    assert 10 < len(found) < 300
    assert found == texts[: len(found)]
    assert counts(read)["skipped_broken_file"] == 1


@pytest.mark.parametrize(
    "bad", ['{"text": "cut', "{'text': 1}", "[]", "3", '"text"', "null", b'{"text": "\xff"}', "{" * 100_000, "\x00"]
)
def test_a_bad_line_is_named_by_file_and_line_or_skipped_and_counted(read: Read, tmp_path: Path, bad: str | bytes):
    line = bad if isinstance(bad, bytes) else bad.encode()
    content = b'{"text": "One."}\n\n' + line + b'\n{"text": "Two."}\n'
    with pytest.raises(BertpipeError, match=r"a\.jsonl, line 3: .*--on-error skip"):
        read("a.jsonl", content)
    assert not (tmp_path / "corpus" / "manifest.json").exists()
    subprocess.run(["rm", "-r", str(tmp_path / "corpus")], check=True)
    assert read("a.jsonl", content, on_error="skip") == ["One.", "Two."]
    assert counts(read)["skipped_not_json"] == 1


def test_values_that_are_no_text_are_counted(read: Read):
    rows = [{"text": value} for value in ("One.", None, 3, ["x"], {"a": 1}, "", " \n\t", "\x00", "Two.")]
    assert read("a.jsonl", objects(*rows)) == ["One.", "Two."]
    found = counts(read)
    assert (found["documents"], found["skipped_no_text"], found["skipped_empty"]) == (2, 4, 3)
    assert found["bytes"] == len("One.Two.")


def test_the_field_is_text_else_content_else_what_is_asked_for(read: Read, tmp_path: Path):
    assert read("a.jsonl", objects({"content": "One."}, {"text": "Two.", "content": "x"})) == ["One.", "Two."]
    with pytest.raises(BertpipeError, match=r"b\.jsonl, line 1: no field text or content; it has: body, id"):
        corpus_of(tmp_path, objects({"body": "One.", "id": 3}))
    assert corpus_of(tmp_path, objects({"body": "One.", "id": 3}), text_field="body") == ["One."]
    with pytest.raises(BertpipeError, match=r"no field bodies; it has: body"):
        corpus_of(tmp_path, objects({"body": "One."}), text_field="bodies")


def corpus_of(tmp_path: Path, content: str, **options: Any) -> list[str]:
    file = tmp_path / "b.jsonl"
    file.write_text(content, encoding="utf-8")
    out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
    build_corpus(CorpusConfig(out=out, source=(f"jsonl:{file}",), workers=1, quiet=True, **options))
    return texts_of(out)


def test_escaped_surrogates_are_joined_or_replaced(read: Read):
    content = r'{"text": "a \ud83d\ude00 b \ud800 c"}' + "\n" + r'{"text": "\udc00"}' + "\n"
    assert read("a.jsonl", content) == ["a 😀 b \ufffd c", "\ufffd"]


def test_line_breaks_in_a_record_part_its_paragraphs(read: Read):
    assert read("a.jsonl", objects({"text": "One.\r\n\r\nTwo\rThree\n \nFour"})) == ["One.\nTwo\nThree\nFour"]


# Parquet


def parquet_bytes(tmp_path: Path, table: pa.Table, **options: Any) -> bytes:
    pq.write_table(table, tmp_path / "made", **options)
    return (tmp_path / "made").read_bytes()


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_is_read_by_its_text_column(read: Read, tmp_path: Path, kind: pa.DataType):
    column = pa.array(["One.", None, "Two.", ""], pa.string()).cast(kind)
    content = parquet_bytes(tmp_path, pa.table({"id": [1, 2, 3, 4], "content": column}))
    assert read("a.parquet", content) == ["One.", "Two."]
    assert counts(read)["skipped_no_text"] == 1


def test_a_parquet_column_that_is_not_there_lists_those_that_are(read: Read, tmp_path: Path):
    content = parquet_bytes(tmp_path, pa.table({"id": [1], "body": ["One."]}))
    with pytest.raises(BertpipeError, match=r"a\.parquet: no field text or content; it has: id, body.*--text-field"):
        read("a.parquet", content)


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_a_truncated_parquet_file_is_named(read: Read, tmp_path: Path, keep: float):
    content = parquet_bytes(tmp_path, pa.table({"text": invent_documents()}))
    with pytest.raises(BertpipeError, match=r"a\.parquet: broken or cut off"):
        read("a.parquet", content[: int(len(content) * keep)])


def test_a_flipped_bit_in_parquet_is_found_by_its_checksum(read: Read, tmp_path: Path):
    content = parquet_bytes(
        tmp_path,
        pa.table({"text": invent_documents()}),
        compression="none",
        write_page_checksum=True,
        use_dictionary=False,
    )
    middle = content.index(invent_documents()[20].encode()[:20])
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    with pytest.raises(BertpipeError, match=r"a\.parquet: broken or cut off"):
        read("a.parquet", flipped)


# Nothing to read


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", ""),
        ("a.txt", " \n\n\t\x00\n"),
        ("a.jsonl", ""),
        ("a.jsonl", objects({"text": None}, {"text": " "})),
        ("a.jsonl.gz", gzip.compress(b"")),
        ("a.jsonl.gz", b""),
    ],
)
def test_a_corpus_without_text_is_an_error_and_not_an_empty_corpus(
    read: Read, tmp_path: Path, name: str, content: str | bytes
):
    with pytest.raises(BertpipeError, match="no document with any text") as caught:
        read(name, content)
    assert name in str(caught.value)
    assert not (tmp_path / "corpus" / "manifest.json").exists()


def test_an_empty_file_among_others_is_no_obstacle(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl", [])
    write_jsonl(tmp_path / "b.jsonl", ["One."])
    config = CorpusConfig(
        out=tmp_path / "corpus", source=(f"jsonl:{tmp_path}/*.jsonl",), workers=1, quiet=True, shard_mb=1e-6
    )
    build_corpus(config)
    assert texts_of(config.out) == ["One."]


@pytest.mark.parametrize(("pattern", "problem"), [("absent/*.txt", "matches no file"), (".", "is a folder")])
def test_a_pattern_without_files_is_named(tmp_path: Path, pattern: str, problem: str):
    with pytest.raises(BertpipeError, match=problem):
        build_corpus(CorpusConfig(out=tmp_path / "corpus", source=(f"text:{tmp_path}/{pattern}",), quiet=True))
    assert not (tmp_path / "corpus").exists()


def test_an_unknown_source_lists_the_known_ones(tmp_path: Path):
    with pytest.raises(UsageError, match=r"nowhere: unknown.*python-docs.*text:GLOB"):
        build_corpus(CorpusConfig(out=tmp_path / "corpus", source=("nowhere",), quiet=True))


# The whole stage


def write_sources(tmp_path: Path, files: int = 6) -> tuple[str, ...]:
    texts = invent_documents(7, 60)
    for number in range(files):
        write_jsonl(tmp_path / "raw" / f"{number}.jsonl", texts[number::files])
    (tmp_path / "raw" / "b.txt").write_text("\n".join(texts[:5]).replace("\n", "\n\n"), encoding="utf-8")
    return f"jsonl:{tmp_path}/raw/*.jsonl", f"text:{tmp_path}/raw/b.txt"


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path):
    sources = write_sources(tmp_path)
    made = []
    for workers in (1, 2, 4):
        out = tmp_path / f"corpus-{workers}"
        build_corpus(CorpusConfig(out=out, source=sources, workers=workers, quiet=True, shard_mb=1e-6))
        made.append(shard_bytes(out))
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == 8


def test_rows_and_the_manifest_agree_with_what_was_given(tmp_path: Path):
    sources = write_sources(tmp_path)
    config = CorpusConfig(out=tmp_path / "corpus", source=sources, workers=1, quiet=True, language="tlh", shard_mb=1e-6)
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


def test_small_files_share_a_shard_and_a_large_one_has_its_own(tmp_path: Path):
    for number, size in enumerate([100, 100, 5000, 100, 100]):
        write_jsonl(tmp_path / f"{number}.jsonl", ["x" * size])
    config = CorpusConfig(
        out=tmp_path / "corpus", source=(f"jsonl:{tmp_path}/*.jsonl",), workers=1, quiet=True, shard_mb=0.001
    )
    build_corpus(config)
    assert [pq.read_metadata(path).num_rows for path in sorted(config.out.glob("*.parquet"))] == [2, 1, 2]


def corpus_command(tmp_path: Path, out: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "bert_pipeline", "corpus", "--source", f"jsonl:{tmp_path}/raw/*.jsonl"),
        *("--out", str(out), "--workers", "2", "--shard-mb", "0.1", "--quiet"),
    ]


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path: Path, stop: signal.Signals):
    texts = invent_documents(8, 100)
    for number in range(12):
        write_jsonl(tmp_path / "raw" / f"{number:02}.jsonl", texts * 10)
    out, whole = tmp_path / "corpus", tmp_path / "whole"
    with subprocess.Popen(corpus_command(tmp_path, out), stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while len(list(out.glob("*.parquet"))) < 2 and time.monotonic() < end and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(stop)
        _, said = process.communicate()
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("[0-9]*.parquet")}
    assert finished
    assert not (out / "manifest.json").exists(), "the run was over before it could be stopped"
    assert process.returncode == (-stop if stop == signal.SIGKILL else 128 + stop)
    assert "Traceback" not in said
    for folder in (out, whole):
        build_corpus(CorpusConfig(out=folder, source=(f"jsonl:{tmp_path}/raw/*.jsonl",), shard_mb=0.1, workers=1))
    assert shard_bytes(out) == shard_bytes(whole)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert read_manifest(out, "corpus").counts["documents"] == 12 * 1000


def test_the_order_of_files_is_by_name_and_not_by_the_disk(tmp_path: Path):
    for name in ("b", "c", "a"):
        write_jsonl(tmp_path / f"{name}.jsonl", [name])
    os.utime(tmp_path / "a.jsonl", (9e9, 9e9))
    config = CorpusConfig(out=tmp_path / "corpus", source=(f"jsonl:{tmp_path}/*.jsonl",), workers=1, quiet=True)
    build_corpus(config)
    assert texts_of(config.out) == ["a", "b", "c"]


# Sentences


@pytest.mark.parametrize(
    ("language", "sentences"),
    [
        ("fa", ["قیمت ۳.۵ تومان است.", "بعد به خانه رفت."]),
        ("fa", ["او می\u200cرود.", "کجا؟", "نمی\u200cدانم!"]),
        ("ar", ["السعر ٣.٥ دينار.", "ثم ذهب."]),
        ("en", ["It costs 3.5 pounds.", "Dr. Smith paid at 5 p.m. on Mr. Hill's account.", "Why?"]),
        ("en", ["It was 1990.", "5 men came."]),
        ("en", ["See e.g. the manual.", "It is there."]),
        ("hi", ["राम गया।", "सीता आई।", "ठीक है"]),
        ("zh", ["你好。", "再见！"]),
        ("de", ["Das ist z.B. gut.", "Ja!"]),
    ],
)
def test_sentences_end_where_people_end_them(language: str, sentences: list[str]):
    joint = "" if language == "zh" else " "
    assert split_sentences(joint.join(sentences), language) == sentences


def test_paragraphs_end_sentences():
    assert split_sentences("A title\nIt begins. It ends", "en") == ["A title", "It begins.", "It ends"]


@given(
    st.text(
        st.one_of(st.sampled_from("ab .!?\n۳۵3।。؟\u200c\"'()"), st.characters(exclude_categories=["Cs"])), max_size=80
    ),
    st.sampled_from(["en", "fa", "hi", "zh", "xx"]),
)
@example("۳.۵", "fa")
@example("3.5.", "en")
def test_splitting_into_sentences_loses_nothing_but_white_space(text: str, language: str):
    sentences = split_sentences(text, language)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)
