"""Which lines are joined to paragraphs, in any script, and how long texts are cut."""

from __future__ import annotations

import json
import random
import re
import textwrap
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bert_pipeline.corpus.build import build_corpus
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.sentences import split_sentences
from bert_pipeline.corpus.sources.plain_text import MAX_DOCUMENT_CHARS
from bert_pipeline.storage.shards import read_columns
from tests.helpers.corpora import Read, objects, read

__all__ = ["read"]

ENGLISH = (
    "The ferry left the harbour at seven, as it did on every working day, and the people on the "
    "upper deck looked back at the town. Nobody spoke for a while. Then the old man beside the "
    "rail began to tell a story about the winter in which the river froze, and even the children "
    "came nearer to hear how it had ended."
)
GERMAN = (
    "Die Fähre verließ den Hafen um sieben Uhr, wie an jedem Werktag, und die Leute auf dem "
    "Oberdeck blickten zurück auf die Stadt. Eine Weile sprach niemand. Dann begann der alte Mann "
    "an der Reling von dem Winter zu erzählen, in dem der Fluss zugefroren war."
)
PERSIAN = (
    "کشتی مثل همیشه ساعت هفت از بندر بیرون رفت و مردم از عرشه به شهر نگاه می‌کردند. مدتی هیچ‌کس "
    "حرفی نزد. بعد پیرمردی که کنار نرده ایستاده بود از زمستانی گفت که رودخانه یخ زده بود، و حتی "
    "بچه‌ها هم نزدیک آمدند تا پایان داستان را بشنوند."
)
HINDI = (
    "नाव हर दिन की तरह सात बजे घाट से चली और लोग पीछे छूटते शहर को देखते रहे। कुछ देर तक कोई नहीं "
    "बोला। फिर एक बूढ़े आदमी ने उस सर्दी की कहानी सुनाई जब नदी जम गई थी, और बच्चे भी पास आ गए।"
)
CHINESE = (
    "渡船像每天一样在七点钟离开了码头，上层甲板上的人们回头望着城市，很久没有人说话。后来，栏杆旁边的"
    "一位老人讲起了河水结冰的那个冬天，连孩子们也走近来，想听听故事的结尾。船慢慢地转过了山脚，风也小了。"
)
JAPANESE = (
    "渡し船はいつもの日と同じように七時に港を出て、上の甲板の人たちは町をふり返って見ていた。しばらくは"
    "だれも話さなかった。やがて手すりのそばの老人が、川が凍った冬の話を始めると、子どもたちも近くに来た。"
)
KOREAN = (
    "나룻배는 매일 그랬듯이 일곱 시에 항구를 떠났고 위쪽 갑판의 사람들은 도시를 "
    "돌아보았다. 한동안 아무도 말하지 않았다. 그러다 난간 옆의 노인이 강이 얼어붙었던 "
    "겨울 이야기를 시작하자 아이들까지 다가왔다."
)
THAI = (
    "เรือข้ามฟากออกจากท่าตอนเจ็ดโมงเหมือนทุกวัน ผู้คนบนดาดฟ้ามองกลับไปที่เมืองและไม่มีใครพูดอะไรอยู่นาน "
    "แล้วชายชราที่ยืนข้างราวก็เล่าเรื่องฤดูหนาวที่แม่น้ำกลายเป็นน้ำแข็ง เด็กเด็กก็เดินเข้ามาฟังด้วย"
)


def wrap(text: str, width: int) -> str:
    """The text in lines of at most `width`, without spaces between words cut anywhere."""
    if " " in text and not re.search("[\u0e00-\u0e7f]", text):
        return textwrap.fill(text, width, break_on_hyphens=False)
    return "\n".join(text[start : start + width] for start in range(0, len(text), width))


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
@pytest.mark.parametrize(
    ("text", "width"),
    [
        (ENGLISH, 72),
        (ENGLISH, 40),
        (GERMAN, 60),
        (PERSIAN, 70),
        (HINDI, 60),
        (KOREAN, 72),
        (CHINESE, 30),
        (JAPANESE, 32),
        (THAI, 50),
    ],
)
def test_wrapped_prose_is_joined(read: Read, text: str, width: int, kind: str):
    content = f"{wrap(text, width)}\n\n{wrap(text, width)}\n"
    if kind == "jsonl":
        content = objects({"text": content})
    assert read(f"a.{kind}", content) == [f"{text}\n{text}"]


def test_mixed_line_of_chinese_and_english_words_keeps_its_spaces(read: Read):
    text = CHINESE[:58] + " English words " + CHINESE[58:]
    first, second = text[:66].rstrip(), text[66:].lstrip()
    [found] = read("a.txt", f"{first[:33]}\n{first[33:]}\n{second[:33]}\n{second[33:]}\n")
    assert " English words " in found.replace("\n", "")


def verse(rng: random.Random, words: list[str], length: int) -> str:
    line = ""
    while len(line) < rng.gauss(length, length / 10):
        line += f" {rng.choice(words)}"
    return line.strip()


@pytest.mark.parametrize("blank_after", [2, 10_000])
@pytest.mark.parametrize("text", [PERSIAN, HINDI, ENGLISH], ids=["fa", "hi", "en"])
def test_verses_stay_apart(read: Read, text: str, blank_after: int):
    rng = random.Random(3)
    words = re.sub("[.,،।]", "", text).split()
    lines = [verse(rng, words, 29) for _ in range(600)]
    parts = [lines[n : n + blank_after] for n in range(0, len(lines), blank_after)]
    [found] = read("a.txt", "\n\n".join("\n".join(part) for part in parts))
    assert found.split("\n") == lines


POEMS = [
    "晚船出港去\n江上起秋風\n老人言往事\n童子立舟中",
    "晚船出港去，\n江上起秋風。\n老人言往事，\n童子立舟中。",
    "The boat went out upon the tide,\nThe gulls were crying at its side,\n"
    "And those who stood along the pier\nSaw only mist, and did not hear.",
    "so little\ndepends on\na boat\nin the grey harbour",
]


@pytest.mark.parametrize("poem", POEMS)
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_poem_keeps_its_lines(read: Read, poem: str, kind: str):
    content = objects({"text": poem}) if kind == "jsonl" else poem
    assert read(f"a.{kind}", content) == [poem]


def test_poem_within_a_novel_keeps_its_lines(read: Read):
    content = f"{wrap(ENGLISH, 72)}\n\n{POEMS[2]}\n\n{wrap(ENGLISH, 72)}\n"
    assert read("a.txt", content) == [f"{ENGLISH}\n{POEMS[2]}\n{ENGLISH}"]


@pytest.mark.parametrize(
    "lines",
    [
        split_sentences(ENGLISH * 2, "en"),
        split_sentences(PERSIAN, "fa"),
        split_sentences(CHINESE, "zh"),
        ["Ferry late again", "Council votes on new bridge", "River freezes for the first time"],
        [
            "وزیر راه از پل تازه بازدید کرد",
            "رودخانه یخ زد",
            "کشتی امروز دیر رسید و مردم منتظر ماندند",
        ],
    ],
)
def test_one_sentence_or_headline_on_a_line_stays_apart(read: Read, lines: list[str]):
    assert read("a.txt", "\n".join(lines)) == ["\n".join(lines)]


# Long texts
def documents(out: Path, source: str, **options: Any) -> list[tuple[str, str]]:
    config = CorpusConfig(out=out, source=(source,), workers=1, quiet=True, **options)
    build_corpus(config)
    tables = [read_columns(path, ["id", "text"]) for path in sorted(out.glob("*.parquet"))]
    return [(row["id"], row["text"]) for table in tables for row in table.to_pylist()]


def write_rows(folder: Path, kind: str, texts: list[str]) -> str:
    file = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": texts}), file)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return f"{kind}:{file}"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(("text", "space"), [(ENGLISH, " "), (CHINESE, ""), (PERSIAN, " ")])
def test_long_row_is_cut_at_sentence_ends(tmp_path: Path, kind: str, text: str, space: str):
    long = space.join([text] * (7 * MAX_DOCUMENT_CHARS // len(text)))
    source = write_rows(tmp_path, kind, ["One.", long, "Two."])
    found = documents(tmp_path / "out", source)
    first, *parts, last = (part for _, part in found)
    assert (first, last) == ("One.", "Two.")
    assert space.join(parts) == long
    assert 3 < len(parts) < 8
    assert all(part.endswith((".", "。")) for part in parts)
    assert max(map(len, parts)) <= 2 * MAX_DOCUMENT_CHARS
    ids = [name for name, _ in found]
    assert ids[:3] == [f"rows.{kind}#{place}" for place in ("0", "1", "1.1")]
    assert ids[-1] == f"rows.{kind}#2"
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("unit", ["x", "word ", "कख", "字"])
def test_long_line_without_sentence_ends_is_cut_and_loses_nothing(read: Read, unit: str):
    line = unit * (500_000 // len(unit))
    found = read("a.txt", line)
    assert "".join(found).replace(" ", "") == line.replace(" ", "")
    assert max(map(len, found)) <= 2 * MAX_DOCUMENT_CHARS


def test_sentences_on_lines_without_blank_lines_are_split_between_lines(read: Read):
    lines = [f"This is line {number} of a long list of sentences." for number in range(12_000)]
    found = read("a.txt", "\n".join(lines))
    assert "\n".join(found).split("\n") == lines
    assert len(found) > 2
