"""`--mask-unit whole-word` in languages that are written without spaces between words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bert_pipeline.examples.build import build_examples
from bert_pipeline.examples.config import ExamplesConfig
from tests.helpers.text import make_corpus

CHARACTERS = "in Chinese a word is one character, so it masks what `token` masks"
RUNS = "a word is all text between spaces or punctuation"


@pytest.fixture
def printed(
    tmp_path: Path,
    wordpiece_folder: Path,
    byte_bpe_folder: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> str:
    """What the command prints for a corpus of some languages, a tokenizer and a mask unit."""
    languages, kind, unit = request.param
    corpus = make_corpus(tmp_path / "corpus", ["One. Two.", "Three. Four."])
    manifest = json.loads((corpus / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["counts"]["languages"] = dict.fromkeys(languages.split(), 1)
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    config = ExamplesConfig(
        out=tmp_path / "examples",
        corpus=corpus,
        tokenizer=wordpiece_folder if kind == "wordpiece" else byte_bpe_folder,
        mask_unit=unit,
        validation_fraction=0,
        workers=1,
    )
    build_examples(config)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("printed", "notes"),
    [
        (("en zh-Hant", "wordpiece", "whole-word"), [CHARACTERS]),
        (("zh", "byte-bpe", "whole-word"), [f"in Chinese {RUNS}"]),
        (("th ja zh", "wordpiece", "whole-word"), [CHARACTERS, f"in Japanese, Thai {RUNS}"]),
        (("en fa", "wordpiece", "whole-word"), []),
        (("zh th", "wordpiece", "token"), []),
    ],
    indirect=["printed"],
)
def test_note_says_what_a_whole_word_is(printed: str, notes: list[str]) -> None:
    assert all(note in printed for note in notes)
    assert printed.count("note: ") == (1 if notes else 0)
