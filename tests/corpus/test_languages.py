"""`--language`: codes, guesses, several languages in one corpus."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bert_pipeline.config import build_config
from bert_pipeline.corpus.build import build_corpus
from bert_pipeline.corpus.cleaning.cleaner import Cleaner
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.languages import guess_language, normalize_language
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.storage.shards import read_columns
from tests.helpers.cli import run_cli
from tests.helpers.corpora import shard_bytes

TEXTS = {
    "en": "The ferry left the harbour at seven, and nobody on the deck spoke for a while.",
    "de": "Die Fähre verließ um sieben den Hafen, und eine Weile sprach niemand an Deck.",
    "fr": "Le bac a quitté le port à sept heures, et personne n'a parlé pendant un moment.",
    "fa": "کشتی ساعت هفت از بندر بیرون رفت و تا مدتی هیچ‌کس روی عرشه حرفی نزد.",
    "ar": "غادرت العبارة الميناء في الساعة السابعة ولم يتكلم أحد على السطح لبعض الوقت.",
    "ur": "کشتی سات بجے بندرگاہ سے نکلی اور کچھ دیر تک عرشے پر کسی نے کوئی بات نہیں کی۔",
    "hi": "नाव सात बजे घाट से चली और कुछ देर तक किसी ने कोई बात नहीं की।",
    "ru": "Паром вышел из гавани в семь часов, и на палубе долго никто не говорил.",
    "uk": "Пором вийшов з гавані о сьомій годині, і на палубі довго ніхто не говорив.",
    "zh": "渡船七点钟离开了码头，甲板上的人们很久没有说话。",
    "ja": "渡し船は七時に港を出て、甲板の人たちはしばらく何も話さなかった。",
    "ko": "나룻배는 일곱 시에 항구를 떠났고 갑판에서는 한동안 아무도 말하지 않았다.",
    "th": "เรือข้ามฟากออกจากท่าตอนเจ็ดโมงและไม่มีใครบนดาดฟ้าพูดอะไรอยู่นาน",
    "my": "သင်္ဘောသည် ခုနစ်နာရီတွင် ဆိပ်ကမ်းမှ ထွက်ခွာခဲ့ပြီး မည်သူမျှ စကားမပြောကြပါ။",
    "bo": "གྲུ་གཟིངས་ཆུ་ཚོད་བདུན་པར་གྲུ་ཁ་ནས་ཐོན་སོང་། ཡུན་རིང་སུས་ཀྱང་སྐད་ཆ་མ་བཤད།",
}


@pytest.mark.parametrize("language", TEXTS)
def test_language_of_a_sentence_is_guessed(language: str):
    assert guess_language(TEXTS[language]) == language


@pytest.mark.parametrize("text", ["", "12 + 30", "One.", "\ufffd" * 100])
def test_language_of_a_few_letters_is_not_guessed(text: str):
    assert guess_language(text) == "und"


@pytest.mark.parametrize(
    ("code", "standard"),
    [
        ("fas", "fa"),
        ("per", "fa"),
        ("pes", "fa"),
        ("FA", "fa"),
        ("fa_ir", "fa-IR"),
        ("ger", "de"),
        ("deu", "de"),
        ("de_CH", "de-CH"),
        ("cmn", "zh"),
        ("zh-hant", "zh-Hant"),
        ("iw", "he"),
        ("ckb", "ckb"),
        ("tlh", "tlh"),
    ],
)
def test_codes_of_one_language_are_the_same(code: str, standard: str):
    assert normalize_language(code) == standard


@pytest.mark.parametrize(
    ("code", "near"), [("persian", "fa"), ("german", "de"), ("xx", "xh"), ("en_US.UTF-8", "en")]
)
def test_unknown_code_is_refused_with_a_near_one(code: str, near: str):
    with pytest.raises(
        UsageError, match=rf"--language: not a language code.*Did you mean.* {near}\b"
    ):
        make_config(Path("x"), ["text:*"], language=[code])


@pytest.mark.parametrize("language", [["fa", "en"], ["fa", "en", "de", "fr"]])
def test_number_of_languages_must_be_that_of_sources(language: list[str]):
    with pytest.raises(UsageError, match=r"--language: give one, or one for each --source"):
        make_config(Path("x"), ["text:a", "text:b", "text:c"], language=language)


def test_norwegian_in_yaml_without_quotes_is_explained():
    with pytest.raises(UsageError, match='Write "no" in quotes'):
        make_config(Path("x"), ["text:a"], language=False)


def make_config(out: Path, source: Sequence[str], **options: Any) -> CorpusConfig:
    return build_config(
        CorpusConfig, {"out": out, "source": list(source), "workers": 1, "quiet": True} | options
    )


def languages_of(out: Path) -> list[str]:
    tables = [read_columns(path, ["language"]) for path in sorted(out.glob("*.parquet"))]
    return [language for table in tables for language in table["language"].to_pylist()]


def build(
    tmp_path: Path, source: Sequence[str], **options: Any
) -> tuple[list[str], dict[str, Any]]:
    config = make_config(tmp_path / "out", source, **options)
    counts = build_corpus(config).counts
    return languages_of(config.out), counts


def write_texts(folder: Path, language: str, copies: int = 3) -> str:
    file = folder / f"{language}.txt"
    file.write_text(f"{TEXTS[language]}\n\n" * copies, encoding="utf-8")
    return f"text:{file}"


def test_each_source_has_its_guessed_language(tmp_path: Path):
    found, counts = build(tmp_path, [write_texts(tmp_path, code) for code in ("fa", "de", "zh")])
    assert found == ["fa", "de", "zh"]
    assert counts["languages"] == {"de": 1, "fa": 1, "zh": 1}
    assert counts["taken"][f"text:{tmp_path}/fa.txt"]["guessed_language"] == "fa"


def test_languages_are_given_to_sources_in_their_order(tmp_path: Path):
    sources = [write_texts(tmp_path, "hi"), write_texts(tmp_path, "de")]
    found, counts = build(tmp_path, sources, language=["mar", "de-AT"])
    assert found == ["mr", "de-AT"]
    assert "guessed_language" not in counts["taken"][sources[0]]


def rows_of(languages: Sequence[str]) -> list[dict[str, Any]]:
    return [{"text": TEXTS[code], "lang": code} for code in languages]


ORDER = ["ru", "fa", "fa", "uk", "fa", "ru"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_language_is_read_from_a_field(tmp_path: Path, kind: str):
    rows = [*rows_of(ORDER), {"text": TEXTS["de"], "lang": None}, {"text": "One.", "lang": "per"}]
    file = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    found, counts = build(tmp_path, [f"{kind}:{file}"], language_field="lang")
    assert found == [*ORDER, "de", "fa"]
    assert next(iter(counts["languages"].items())) == ("fa", 4)


def test_missing_language_field_is_an_error(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(json.dumps(rows_of(["fa"])[0]) + "\n")
    with pytest.raises(
        BertpipeError, match=r"no field langs; fields: text, lang.*--language-field"
    ):
        build(tmp_path, [f"jsonl:{tmp_path}/a.jsonl"], language_field="langs")


def test_unknown_language_in_a_field_is_an_error_or_skipped(tmp_path: Path):
    rows = [*rows_of(["fa"]), {"text": TEXTS["de"], "lang": "germanic"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = [f"jsonl:{tmp_path}/a.jsonl"]
    with pytest.raises(BertpipeError, match=r"a\.jsonl, row 1: 'germanic' is not a language code"):
        build(tmp_path, source, language_field="lang")
    found, counts = build(tmp_path, source, language_field="lang", on_error="skip")
    assert (found, counts["skipped_unknown_language"]) == (["fa"], 1)


def test_language_field_without_fields_is_refused():
    with pytest.raises(UsageError, match="--language-field: applies only to jsonl"):
        make_config(Path("x"), ["text:*"], language_field="lang")


def test_language_of_each_document_is_guessed(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(ORDER)))
    found, _ = build(tmp_path, [f"jsonl:{tmp_path}/a.jsonl"], language=["guess-each"])
    assert found == ORDER


def test_counts_of_languages_leave_out_removed_documents(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(ORDER)))
    options = {"language": ["guess-each"], "clean": ["exact"], "max_documents": 2}
    _, counts = build(tmp_path, [f"jsonl:{tmp_path}/a.jsonl"], **options)
    assert counts["languages"] == {"fa": 1, "ru": 1}


@pytest.mark.integration
@pytest.mark.parametrize("language", ["guess", "guess-each"])
def test_guess_does_not_depend_on_workers_or_limits(tmp_path: Path, language: str):
    for number in range(4):
        rows = rows_of(["de"] * 10 if number else ["fr"] * 10)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{number}.jsonl").write_text(text)
    source = [f"jsonl:{tmp_path}/*.jsonl"]
    options = {"language": [language], "shard_mb": 0.001}
    for workers in (1, 3):
        build_corpus(make_config(tmp_path / str(workers), source, **options | {"workers": workers}))
    assert shard_bytes(tmp_path / "1") == shard_bytes(tmp_path / "3")
    build_corpus(make_config(tmp_path / "few", source, max_documents=3, **options))
    assert languages_of(tmp_path / "few") == languages_of(tmp_path / "1")[:3]


@pytest.mark.integration
def test_command_prints_the_guess_and_warns_about_another_language(tmp_path: Path):
    write_texts(tmp_path, "fa")
    command = ["corpus", "--workers", "1", "--source", "text:fa.txt", "--out", "out"]

    def run(*options: str) -> tuple[str, str]:
        done = run_cli(*command, *options, cwd=tmp_path)
        assert done.code == 0, done.stderr
        return done.stdout, done.stderr

    printed, errors = run()
    assert "language: fa (guessed; set --language to change it)" in printed
    assert not errors
    assert "already complete" in run()[0]
    _, errors = run("--language", "en", "--overwrite")
    assert "--language en is given, but the text looks like fa" in errors
    assert run("--language", "per", "--overwrite")[1] == ""


# The cleaning step
def test_step_language_removes_what_is_mostly_undecodable():
    cleaner = Cleaner(["language"], "fa")
    assert cleaner.clean(TEXTS["fa"]).removed is None
    assert cleaner.clean("\ufffd" * 50 + " " + TEXTS["fa"][:20]).removed == "language: undecodable"
    assert cleaner.clean(TEXTS["fa"] + "\ufffd").removed is None


def test_step_language_uses_the_guessed_language(tmp_path: Path):
    rows = rows_of(["fa"] * 5 + ["en", "fa"])
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, counts = build(tmp_path, [f"jsonl:{tmp_path}/a.jsonl"], clean=["language"])
    assert found == ["fa"] * 6
    assert counts["removed"]["language"]["documents"] == 1
