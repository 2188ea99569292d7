"""Text files in any encoding, and files that are not text."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bert_pipeline.config import build_config
from bert_pipeline.corpus.build import build_corpus
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.errors import BertpipeError, UsageError
from tests.helpers.corpora import Read, counts, read, texts_of

__all__ = ["read"]

RUSSIAN = "Вечером мы долго сидели у реки и говорили о старых друзьях, а потом пошёл дождь."
UKRAINIAN = "Увечері ми довго сиділи біля річки й говорили про давніх друзів, її голос був тихий."
JAPANESE = "夕方、私たちは川のそばに長く座って、古い友だちの話をした。それから雨が降り出した。"
CHINESE = "傍晚我们在河边坐了很久，谈起了老朋友。后来下起了雨，我们只好跑回家。"
TAIWANESE = "傍晚我們在河邊坐了很久，談起了老朋友。後來下起了雨，我們只好跑回家。"
KOREAN = "저녁에 우리는 강가에 오래 앉아 옛 친구들 이야기를 했다. 그러다 비가 내렸다."
THAI = "ตอนเย็นเรานั่งอยู่ริมแม่น้ำเป็นเวลานานและพูดถึงเพื่อนเก่า แล้วฝนก็ตก"
ARABIC = "جلسنا في المساء طويلا قرب النهر وتحدثنا عن الأصدقاء القدامى، ثم نزل المطر."
PERSIAN = "ديشب مدت زيادي کنار رودخانه نشستيم و از دوستان قديمي حرف زديم، بعد باران گرفت."
HEBREW = "בערב ישבנו זמן רב ליד הנהר ודיברנו על חברים ותיקים, ואחר כך ירד גשם ורצנו הביתה."
GREEK = "Το βράδυ καθίσαμε πολλή ώρα δίπλα στο ποτάμι και μιλήσαμε για παλιούς φίλους."
TURKISH = (
    "Akşam ırmağın kıyısında uzun süre oturduk, eski dostlarımızı andık, sonra yağmur başladı."
)
POLISH = (
    "Wieczorem długo siedzieliśmy nad rzeką i wspominaliśmy przyjaciół, aż zaczął padać deszcz."
)
LITHUANIAN = "Vakare ilgai sėdėjome prie upės ir kalbėjomės apie draugus, paskui pradėjo lyti."
FRENCH = "Le soir, nous sommes restés près de la rivière à évoquer nos amis, puis l'orage a éclaté."
GERMAN = (
    "Am Abend saßen wir lange am Fluss, später fing es an zu regnen und wir liefen über die Brücke."
)

IN_ENCODINGS = [
    (RUSSIAN, "cp1251", "cp1251"),
    (RUSSIAN, "koi8-r", "koi8_r"),
    (RUSSIAN, "iso8859-5", "iso8859_5"),
    (RUSSIAN, "cp866", "cp866"),
    (UKRAINIAN, "koi8-u", "koi8_u"),
    (JAPANESE, "shift_jis", "cp932"),
    (JAPANESE, "euc_jp", "euc_jp"),
    (JAPANESE, "iso2022_jp", "iso2022_jp"),
    (CHINESE, "gb18030", "gb18030"),
    (CHINESE, "gbk", "gb18030"),
    (TAIWANESE, "big5", "big5"),
    (KOREAN, "euc_kr", "cp949"),
    (THAI, "tis_620", "cp874"),
    (ARABIC, "cp1256", "cp1256"),
    (ARABIC, "iso8859-6", "iso8859_6"),
    (PERSIAN, "cp1256", "cp1256"),
    (HEBREW, "cp1255", "cp1255"),
    (GREEK, "cp1253", "cp1253"),
    (TURKISH, "iso8859-9", "cp1254"),
    (POLISH, "cp1250", "cp1250"),
    (POLISH, "iso8859-2", "iso8859_2"),
    (LITHUANIAN, "cp1257", "cp1257"),
    (FRENCH, "latin-1", "cp1252"),
    (GERMAN, "cp1252", "cp1252"),
    (CHINESE, "utf-16-le", "utf-16-le"),
    (RUSSIAN, "utf-16-be", "utf-16-be"),
    (FRENCH, "utf-32-le", "utf-32-le"),
]


def error_of(read: Read, name: str, content: bytes, **options: Any) -> str:
    with pytest.raises(BertpipeError) as caught:
        read(name, content, **options)
    return str(caught.value)


@pytest.mark.parametrize("copies", [1, 200])
@pytest.mark.parametrize(
    ("text", "encoding", "named"),
    IN_ENCODINGS,
    ids=[case[1] + case[0][:2] for case in IN_ENCODINGS],
)
def test_other_encoding_is_refused_by_name_and_read_with_the_option(
    read: Read, text: str, encoding: str, named: str, copies: int
):
    content = f"{text}\n\n".encode(encoding) * copies
    error = error_of(read, "notes.txt", content)
    assert f"notes.txt: not UTF-8, likely {named}. Give --encoding {named}." in error
    assert read("notes.txt", content, encoding=named) == ["\n".join([text] * copies)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_byte_order_mark_tells_the_encoding(read: Read, encoding: str, suffix: str):
    pack = gzip.compress if suffix else bytes
    text = f"{PERSIAN}\n\n{CHINESE}\n"
    assert read(f"a.txt{suffix}", pack(text.encode(encoding))) == [f"{PERSIAN}\n{CHINESE}"]
    assert "invalid_bytes_replaced" not in counts(read)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_byte_order_mark_of_json_lines(read: Read, encoding: str):
    rows = "".join(
        json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in (THAI, KOREAN)
    )
    assert read("a.jsonl", rows.encode(encoding)) == [THAI, KOREAN]


def test_json_lines_in_another_encoding(read: Read):
    row = json.dumps({"text": RUSSIAN}, ensure_ascii=False) + "\n"
    assert "likely koi8_r" in error_of(read, "a.jsonl", row.encode("koi8-r") * 20)
    assert read("a.jsonl", row.encode("koi8-r") * 2, encoding="KOI8-R") == [RUSSIAN] * 2


@pytest.mark.parametrize("encoding", ["cp1251", "utf-16"])
def test_option_does_not_change_files_in_utf8(tmp_path: Path, encoding: str):
    (tmp_path / "a.txt").write_text(RUSSIAN, encoding="utf-8")
    (tmp_path / "b.txt").write_text(RUSSIAN, encoding=encoding)
    (tmp_path / "c.txt").write_text(RUSSIAN, encoding="utf-16")
    (tmp_path / "d.txt").write_text("Plain ASCII.", encoding="ascii")
    config = CorpusConfig(
        out=tmp_path / "out", source=(f"text:{tmp_path}/*.txt",), encoding=encoding, quiet=True
    )
    build_corpus(config)
    assert texts_of(config.out) == [RUSSIAN] * 3 + ["Plain ASCII."]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"PK\x03\x04" + bytes(range(256)), "a zip archive"),
        (b"\x7fELF\x02\x01\x01" + bytes(200), "an executable"),
        (b"%PDF-1.7\n1 0 obj\n", "a PDF file"),
        (bytes(5000), "binary data"),
        (b"word " * 50 + bytes(20), "binary data"),
        (bytes(range(256)) * 40, "binary data"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_file_that_is_not_text_is_refused(read: Read, name: str, content: bytes, kind: str):
    assert f"{name}: not text, but {kind}" in error_of(read, name, content)


def test_files_that_are_not_text_are_skipped_with_the_option(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "b.txt").write_text("One.")
    (tmp_path / "c.txt").write_text(RUSSIAN, encoding="cp1251")
    config = CorpusConfig(
        out=tmp_path / "out", source=(f"text:{tmp_path}/*.txt",), on_error="skip", quiet=True
    )
    found = build_corpus(config).counts
    assert texts_of(config.out) == ["One."]
    assert (found["skipped_not_text"], found["skipped_wrong_encoding"]) == (1, 1)
    with pytest.raises(BertpipeError, match="skipped not text: 1"):
        build_corpus(config.model_copy(update={"on_error": "fail"}))


def test_few_invalid_bytes_in_a_large_file_are_replaced(read: Read):
    good = "The boat is in the harbour until noon, and then it leaves again.\n\n" * 9000
    damaged = good.encode() + RUSSIAN.encode("cp1251")
    [*_, last] = read("a.txt", damaged)
    assert last.endswith("\ufffd.")
    assert counts(read)["invalid_bytes_replaced"] > 50


def test_rare_accented_letters_of_latin_1_are_not_replaced(read: Read):
    """Fewer than one letter in a hundred is accented, but all of those would be lost."""
    german = "Die Wolken standen am Abend noch lange hell im Westen, und es blieb warm. " * 3
    text = f"{german}Das war schön für uns.\n\n" * 40
    assert sum(not char.isascii() for char in text) < 0.01 * len(text)
    assert "a.txt: not UTF-8, likely cp1252" in error_of(read, "a.txt", text.encode("latin-1"))


def test_mixed_encodings_are_named(read: Read):
    mixed = "Иван и Инна. ".encode() * 50 + f"{RUSSIAN} ".encode("cp1251") * 50
    error = error_of(read, "a.txt", mixed, encoding="cp1251")
    assert "it mixes encodings" in error


def test_encoding_that_changes_far_behind_the_start_is_refused(read: Read):
    good = "The boat is in the harbour until noon, and then it leaves again.\n\n" * 9000
    content = good.encode() + f"{RUSSIAN}\n\n".encode("koi8-r") * 300
    assert "a.txt: not UTF-8, likely koi8_r" in error_of(read, "a.txt", content)


@pytest.mark.parametrize(("name", "near"), [("cp125l", "cp125"), ("shift-jsi", "shift_jis")])
def test_misspelt_encoding_suggests_a_near_one(name: str, near: str):
    values = {"out": Path("x"), "source": ("text:*",), "encoding": name}
    with pytest.raises(UsageError, match=f"--encoding: .*Did you mean .*{near}"):
        build_config(CorpusConfig, values)


@pytest.mark.parametrize("name", ["hex", "rot13", "undefined", "zlib"])
def test_codec_that_is_no_text_encoding_is_refused(name: str):
    with pytest.raises(UsageError, match="--encoding: not an encoding"):
        build_config(CorpusConfig, {"out": Path("x"), "source": ("text:*",), "encoding": name})


def test_encoding_without_text_files_is_refused():
    values = {"out": Path("x"), "source": ("parquet:*",), "encoding": "cp1251"}
    with pytest.raises(UsageError, match="--encoding: applies only to text, jsonl, csv and tsv"):
        build_config(CorpusConfig, values)


@pytest.mark.integration
def test_quiet_command_prints_the_likely_encoding(tmp_path: Path):
    (tmp_path / "notes.txt").write_text(RUSSIAN, encoding="cp1251")
    command = [sys.executable, "-m", "bert_pipeline", "corpus", "--quiet", "--workers", "1"]
    command += ["--source", "text:notes.txt", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "notes.txt: not UTF-8, likely cp1251. Give --encoding cp1251." in done.stderr
