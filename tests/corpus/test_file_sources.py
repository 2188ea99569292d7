"""Local files as sources: plain text, JSON lines and parquet, also broken ones."""

from __future__ import annotations

import bz2
import glob
import gzip
import json
import lzma
import os
import re
import subprocess
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.corpus.build import build_corpus
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.sentences import split_sentences
from bert_pipeline.corpus.sources.error_policy import MAX_LINE_CHARS
from bert_pipeline.corpus.sources.find_files import find_files
from bert_pipeline.corpus.sources.plain_text import MAX_DOCUMENT_CHARS, split_documents
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.storage.shards import read_columns
from tests.helpers.corpora import (
    Read,
    counts,
    objects,
    read,
    texts_of,
)
from tests.helpers.text import invent_documents, write_jsonl, zstd

__all__ = ["read"]


# Plain text
def test_text_paragraphs_are_separated_by_blank_lines_and_unwrapped(read: Read):
    text = "The boat is\nin the  harbour\r\nuntil noon.\n\n\n \t\nThen it\nleaves.\n"
    assert read("a.txt", text) == ["The boat is in the harbour until noon.\nThen it leaves."]


def test_text_long_lines_are_paragraphs(read: Read):
    first = "The first one. " * 10
    second = "The second one. " * 10
    assert read("a.txt", f"{first}\n{second}\n") == [f"{first.strip()}\n{second.strip()}"]


def test_text_wikitext_titles_start_documents(read: Read):
    text = (
        " \n = Boats = \n \n Boats float . \n They are old . \n \n = = History = = \n"
        " \n The first sank . \n"
        " \n = = = Early = = = \n \n It was 1 + 1 = 2 then . \n \n = 3 = 3 = \n"
        " \n A title with a sign . \n"
    )
    assert read("a.txt", text) == [
        "Boats\nBoats float .\nThey are old .\nHistory\nThe first sank .\nEarly\n"
        "It was 1 + 1 = 2 then .",
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
    found = read("a.txt", line)
    assert " ".join(found) == line.strip()
    assert all(text.endswith("on.") for text in found)
    assert max(map(len, found)) <= 2 * MAX_DOCUMENT_CHARS


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"])
def test_text_line_separators_keep_words_separate(read: Read, end: str):
    [found] = read("a.txt", f"one{end}two")
    assert found.split() == ["one", "two"]


def test_text_invalid_utf8_is_replaced_and_counted(read: Read):
    good = "It is fine. " * 600
    damaged = b"caf\xc3\xa9 caf\xe9 \xff\xfe nul\x00byte\x07\x1b bad \xed\xa0\x80 end"
    assert read("a.txt", b"\xef\xbb\xbf" + good.encode() + damaged) == [
        f"{good}café caf\ufffd \ufffd\ufffd nulbyte bad \ufffd\ufffd\ufffd end"
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
    ],
)
def test_jsonl_invalid_line_is_reported_or_skipped(read: Read, tmp_path: Path, bad: str | bytes):
    line = bad if isinstance(bad, bytes) else bad.encode()
    long_row = json.dumps({"text": "One.", "note": "It is fine. " * 30}).encode()
    content = long_row + b"\n\n" + line + b'\n{"text": "Two."}\n'
    with pytest.raises(BertpipeError, match=r"a\.jsonl, line 3: .*--on-error skip"):
        read("a.jsonl", content)
    assert not (tmp_path / "corpus" / "manifest.json").exists()
    subprocess.run(["rm", "-r", str(tmp_path / "corpus")], check=True)
    assert read("a.jsonl", content, on_error="skip") == ["One.", "Two."]
    assert counts(read)["skipped_not_json"] == 1


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_ids_are_row_numbers_also_after_skipped_rows(read: Read, tmp_path: Path, kind: str):
    texts = ["One.", None, "", "Two.", " ", "Three."]
    content: str | bytes = objects(*({"text": text} for text in texts))
    if kind == "parquet":
        content = parquet_bytes(tmp_path, pa.table({"text": texts}))
    assert read(f"a.{kind}", content) == ["One.", "Two.", "Three."]
    ids = read_columns(tmp_path / "corpus" / "00000.parquet", ["id"])["id"].to_pylist()
    assert ids == [f"a.{kind}#{number}" for number in (0, 3, 5)]


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
    good = "It is fine. " * 60
    content = b'\xef\xbb\xbf{"text": "' + good.encode() + b'caf\xe9 \xff."}\n'
    assert read("a.jsonl", content) == [f"{good}caf\ufffd \ufffd."]
    assert counts(read)["invalid_bytes_replaced"] == 2


def test_jsonl_escaped_surrogates_are_joined_or_replaced(read: Read):
    content = r'{"text": "a \ud83d\ude00 b \ud800 c"}' + "\n" + r'{"text": "\udc00"}' + "\n"
    assert read("a.jsonl", content) == ["a 😀 b \ufffd c", "\ufffd"]


def test_jsonl_line_breaks_separate_paragraphs(read: Read):
    assert read("a.jsonl", objects({"text": "One.\r\n\r\nTwo\rThree\n \nFour"})) == [
        "One.\nTwo\nThree\nFour"
    ]


@pytest.mark.parametrize("kind", ["jsonl.xz", "parquet"])
def test_row_that_is_too_long_is_broken_data(read: Read, tmp_path: Path, kind: str):
    long = "It goes on. " * (MAX_LINE_CHARS // 12 + 10)
    content = lzma.compress(objects(*({"text": t} for t in ("One.", long, "Two."))).encode())
    if kind == "parquet":
        content = parquet_bytes(tmp_path, pa.table({"text": ["One.", long, "Two."]}))
    place = "line 2" if kind == "jsonl.xz" else "row 1"
    with pytest.raises(BertpipeError, match=rf"a\.{kind}, {place}: longer than 32,000,000 char"):
        read(f"a.{kind}", content)
    assert read(f"a.{kind}", content, on_error="skip") == ["One.", "Two."]
    assert counts(read)["skipped_too_long"] == 1


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


@pytest.mark.timeout(20)
def test_symbolic_links_in_a_circle_are_followed_once(tmp_path: Path):
    """With two of them, the paths that match are too many to list."""
    (folder := tmp_path / "texts").mkdir()
    (outside := tmp_path / "outside").mkdir()
    for path in (folder / "a.txt", outside / "b.txt", folder / ".hidden.txt"):
        path.write_text(f"Text of {path.name}.")
    for name in ("first", "second"):
        (folder / name).symlink_to(folder)
    (folder / "third").symlink_to(outside)
    found = find_files(f"{folder}/**/*.txt")
    assert [str(path.relative_to(folder)) for path in found] == ["a.txt", "third/b.txt"]
    (outside / "back").symlink_to(folder)
    assert find_files(f"{folder}/**/*.txt") == found


@pytest.mark.parametrize("target", ["lost.txt", "link.txt"])
def test_symbolic_link_to_nothing_is_not_left_out(tmp_path: Path, target: str):
    (tmp_path / "a.txt").write_text("Text of a.")
    (tmp_path / "link.txt").symlink_to(target)
    config = CorpusConfig(out=tmp_path / "out", source=(f"text:{tmp_path}/*.txt",), workers=1)
    with pytest.raises(
        BertpipeError, match=r"link\.txt is a symbolic link to a file that does not"
    ):
        build_corpus(config)


@pytest.mark.parametrize(
    "pattern",
    ["**/*.txt", "*/**/c.txt", "**", "a/**", "**/b/**", "./**/*.txt", "a**/*.txt", "a[[]1]/**/*"],
)
def test_patterns_match_the_same_files_as_glob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
):
    for name in ("e.txt", "a/d.txt", "a/b/c.txt", "k/a/b/c.txt", "a[1]/z.txt", ".h/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    expected = {Path(name) for name in glob.glob(pattern, recursive=True)}  # noqa: PTH207
    assert [path for path in find_files(pattern) if path.is_file()] == sorted(
        path for path in expected if path.is_file()
    )


# Nothing to read
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", ""),
        ("a.txt", " \n\n\t\n"),
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


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", "text"),
        ("a.jsonl", "jsonl"),
        ("a.jsonl.gz", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.parquet", "parquet"),
        ("README", "text"),
        ("*.jsonl", "jsonl"),
    ],
)
def test_file_without_source_kind_suggests_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
):
    (tmp_path / name.replace("*", "b")).touch()
    monkeypatch.chdir(tmp_path)
    assert f"Did you mean '{kind}:{name}'?" in error_of_source(name)


def test_folder_without_source_kind_suggests_a_pattern(tmp_path: Path):
    for name in ("a.jsonl", "b.jsonl", "c.txt"):
        (tmp_path / name).touch()
    assert f"Did you mean 'jsonl:{tmp_path}/**/*.jsonl'?" in error_of_source(str(tmp_path))


@pytest.mark.parametrize(
    ("spec", "meant"),
    [
        ("txt:a/*.txt", "Did you mean text:a/*.txt?"),
        ("wikitext2", "Did you mean wikitext-2?"),
        ("python-doc", "Did you mean python-docs?"),
        ("oskar:fa", "Did you mean oscar:fa?"),
        ("oscar", "Write oscar:LANG."),
        ("data/a.csv", "Did you mean 'csv:data/a.csv'?"),
        ("data/a.json", "Files in the format json are not read"),
    ],
)
def test_misspelt_source_suggests_the_near_one(spec: str, meant: str):
    assert meant in error_of_source(spec)


def error_of_source(spec: str) -> str:
    with pytest.raises(UsageError, match="unknown source") as caught:
        build_corpus(CorpusConfig(out=Path("unused"), source=(spec,), quiet=True))
    return str(caught.value)


def test_corrected_command_after_an_empty_corpus_needs_no_overwrite(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl", ["{ a curly bracket }", "lorem ipsum"])
    config = CorpusConfig(
        out=tmp_path / "out",
        source=(f"jsonl:{tmp_path}/a.jsonl",),
        clean=("c4",),
        language=("en",),
        workers=1,
        quiet=True,
    )
    with pytest.raises(BertpipeError, match="no document with text"):
        build_corpus(config)
    build_corpus(config.model_copy(update={"clean": ("whitespace",)}))
    assert texts_of(config.out) == ["{ a curly bracket }", "lorem ipsum"]
