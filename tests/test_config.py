"""Options: precedence of their sources, validation and error messages."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bert_pipeline.config import StageConfig, build_config, read_section, read_yaml
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.recipe import SECTIONS, read_recipe
from bert_pipeline.tokenizer.config import TokenizeConfig
from tests.helpers.cli import run_cli

CONFIGS = {
    "corpus": CorpusConfig,
    "tokenize": TokenizeConfig,
    "examples": ExamplesConfig,
    "pretrain": PretrainConfig,
}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("corpse:\n  source: [python-docs]\n", "`corpse`"),
        ("corpus:\n  sauce: [python-docs]\n", "`sauce`"),
        ("corpus:\n  source: [python-docs]\ntokenize:\n  vocab-size: 300\n", "`vocab-size`"),
        ("corpus:\n  source: [3]\n", "--source"),
        ("corpus:\n  source: []\n", "--source"),
        ("corpus:\n  shard_mb: 3\n", "--source"),
        ("corpus:\n  source: [python-docs]\ntokenize:\n  vocab_size: many\n", "--vocab-size"),
        ("corpus:\n  source: [python-docs]\ntokenize:\n  kind: trigram\n", "--kind"),
        ("corpus:\n  source: [python-docs]\n  language: no\n", "--language"),
        ("corpus:\n  source: [python-docs]\n  shard_mb: 0\n", "--shard-mb"),
        ("corpus:\n  source: [python-docs]\n  workers: 0\n", "--workers"),
        ("corpus:\n  source: [python-docs]\ntokenize:\n  seed: -1\n", "--seed"),
        ("corpus:\n  source: [python-docs]\nexamples:\n  seed: -1\n", "--seed"),
        ("corpus:\n  source: [python-docs]\nexamples:\n  mask_rate: 1.5\n", "--mask-rate"),
        (
            "corpus:\n  source: [python-docs]\nexamples:\n  max_seq_length: 12.5\n",
            "--max-seq-length",
        ),
        ("corpus:\n  source: [python-docs]\nexamples:\n  corpus: elsewhere\n", "`corpus`"),
        (
            "corpus:\n  source: [python-docs]\npretrain:\n  max_steps: 5\n  max_minutes: 1\n",
            "--max-minutes",
        ),
        ("corpus:\n  source: [python-docs]\npretrain: {}\n", "--max-steps"),
        (
            "corpus:\n  source: [python-docs]\n"
            "pretrain:\n  max_steps: 5\n  batch_size: 3\n  batch_size_start: 2\n",
            "--batch-size",
        ),
        (
            "corpus:\n  source: [python-docs]\npretrain:\n  max_steps: 5\n  learning_rate: .inf\n",
            "--learning-rate",
        ),
        ("corpus:\n  source: [python-docs]\npretrain:\n  max_minutes: .inf\n", "--max-minutes"),
        (
            "corpus:\n  source: [python-docs]\npretrain:\n  max_steps: 5\n  seed: 4294967296\n",
            "--seed",
        ),
        ("corpus: [python-docs]\n", "corpus"),
        ("- corpus\n", "section"),
        ("1: 2\n", "section"),
        ("corpus: [\n", "YAML"),
        (
            "corpus:\n  source: [python-docs]\npretrain:\n  max_steps: 5\nprobes:\n  - word\n",
            "probes",
        ),
    ],
)
def test_invalid_recipe_is_rejected_and_the_option_named(tmp_path: Path, text: str, named: str):
    recipe = write(tmp_path / "recipe.yaml", text)
    with pytest.raises(UsageError, match=re.escape(named)) as caught:
        read_recipe(recipe, tmp_path / "run", [], overwrite=False, quiet=True)
    assert caught.value.exit_code == 2
    assert str(recipe) in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("tokenize.vocab_size", "STAGE.FIELD=VALUE"),
        ("vocab_size=3", "STAGE.FIELD=VALUE"),
        ("tokenise.vocab_size=300", "stage `tokenise` is unknown. Did you mean `tokenize`"),
        ("tokenize.vocabulary=300", "`vocabulary`"),
        ("tokenize.vocab_size=[", "YAML"),
        ("tokenize.vocab_size.x=3", "--vocab-size"),
    ],
)
def test_invalid_set_option_is_rejected(tmp_path: Path, setting: str, named: str):
    recipe = write(
        tmp_path / "recipe.yaml", "corpus:\n  source: [python-docs]\npretrain:\n  max_steps: 5\n"
    )
    with pytest.raises(UsageError, match=re.escape(named)):
        read_recipe(recipe, tmp_path / "run", [setting], overwrite=False, quiet=True)


def test_set_overrides_recipe_and_recipe_overrides_defaults(tmp_path: Path):
    recipe = write(
        tmp_path / "recipe.yaml",
        "corpus:\n  source: [python-docs]\ntokenize:\n  vocab_size: 300\n  min_frequency: 3\n"
        "pretrain:\n  max_steps: 5\n",
    )
    read = read_recipe(
        recipe, tmp_path / "run", ["tokenize.vocab-size=400"], overwrite=False, quiet=True
    )
    tokenize = read.stages["tokenize"]
    assert isinstance(tokenize, TokenizeConfig)
    assert (tokenize.vocab_size, tokenize.min_frequency) == (400, 3)
    assert tokenize.alphabet_size == TokenizeConfig.model_fields["alphabet_size"].default
    assert tokenize.corpus == tmp_path / "run" / "corpus"


@pytest.mark.integration
def test_command_line_overrides_config_file_and_config_file_overrides_defaults(
    tmp_path: Path, corpus_folder: Path
):
    recipe = write(
        tmp_path / "recipe.yaml",
        "tokenize:\n  vocab_size: 310\n  min_frequency: 1\n  lowercase: false\n  workers: 1\n",
    )
    out = tmp_path / "tokenizer"
    done = run_cli(
        "tokenize",
        "--config",
        recipe,
        "--corpus",
        corpus_folder,
        "--out",
        out,
        "--vocab-size",
        290,
        "--lowercase",
    )
    assert done.code == 0, done.stderr
    config = read_yaml(out / "manifest.json")["config"]
    assert (config["vocab_size"], config["min_frequency"], config["lowercase"]) == (290, 1, True)
    assert config["seed"] == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["corpus", "--out", "x"], "--source"),
        (["corpus", "--out", "x", "--source", "nowhere"], "nowhere"),
        (["corpus", "--out", "x", "--source", "text:"], "text:"),
        (["corpus", "--out", "x", "--source", "python-docs", "--on-error", "ignore"], "--on-error"),
        (["tokenize", "--out", "x", "--corpus", "c", "--vocab-size", "3"], "--vocab-size"),
        (
            ["examples", "--out", "x", "--corpus", "c", "--tokenizer", "t", "--mask-rate", "0"],
            "--mask-rate",
        ),
        (["run", "recipe-that-is-not-shipped", "--set", "a=b"], "recipe-that-is-not-shipped"),
    ],
)
def test_bad_usage_exits_with_one_message(tmp_path: Path, arguments: list[str], named: str):
    done = run_cli(*arguments, cwd=tmp_path)
    assert done.code == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", CONFIGS)
def test_help_shows_every_option_with_its_docstring(stage: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 500)
    done = run_cli(stage, "--help")
    assert done.code == 0
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stdout).split())
    for name, field in CONFIGS[stage].model_fields.items():
        assert "--" + name.replace("_", "-") in shown
        assert field.description, f"{name} has no docstring"
        assert " ".join(field.description.split()) in shown


def test_all_invalid_options_are_named():
    with pytest.raises(UsageError) as caught:
        build_config(TokenizeConfig, {"kind": "x", "vocab_size": 1})
    message = str(caught.value)
    assert all(
        option in message
        for option in ("--kind", "--vocab-size", "--corpus is required", "--out is required")
    )


def test_wordpiece_option_is_rejected_for_byte_bpe():
    values: dict[str, Any] = {
        "out": "x",
        "corpus": "c",
        "kind": "byte-bpe",
        "vocab_size": 300,
        "strip_accents": True,
    }
    with pytest.raises(UsageError, match=r"strip[-_]accents"):
        build_config(TokenizeConfig, values)


def test_execution_options_are_not_in_content():
    class Config(StageConfig):
        depth: int = 3

    one = Config(out=Path("a"), depth=4)
    other = Config(out=Path("b"), depth=4, overwrite=True, quiet=True)
    assert one.content() == other.content() == {"depth": 4}
    few, many = (CorpusConfig(out=Path("a"), source=("python-docs",), workers=n) for n in (1, 9))
    assert few.content() == many.content()


def test_recipe_section_may_be_missing_or_empty(tmp_path: Path):
    path = write(tmp_path / "recipe.yaml", "corpus:\n")
    assert read_section(path, "corpus", SECTIONS) == {}
    assert read_section(path, "tokenize", SECTIONS) == {}
    assert read_section(write(path, ""), "corpus", SECTIONS) == {}


def test_missing_config_file_is_named_in_error(tmp_path: Path):
    with pytest.raises(BertpipeError, match=r"absent\.yaml: cannot be read"):
        read_yaml(tmp_path / "absent.yaml")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in pairwise("abcdefgh")
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n"
    for before, name in pairwise("abcdefghij")
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("corpus: " + "[" * 20_000, "nested too deeply"),
        ("corpus: " + "{a: " * 20_000, "nested too deeply"),
        (BOMB, "more than 10,000 values"),
        (MERGED, "more than 10,000 values"),
        ("corpus: &a [*a]", "more than 10,000 values"),
        ("corpus: {seed: 2024-13-45}", "month must be in 1..12"),
        (f"corpus: {{source: x, seed: {'9' * 5000}}}", "not valid YAML"),
        (f"corpus: {{source: x, text_field: 0x{'f' * 5000}}}", "--text-field"),
        (f"corpus: {{source: x, seed: {'y' * 100_000}}}", "--seed"),
        (f"corpus: {{source: x, workers: [{'[y, y], ' * 3000}]}}", "--workers"),
        (f"corpus: {{source: [{'[y, y], ' * 3000}]}}", "--source"),
        (f"corpus:\n  ? {'y' * 100_000}\n  : 1", "`y+` is unknown"),
        ("corpus: \x01", "not valid YAML"),
    ],
)
def test_yaml_that_is_huge_or_deep_is_one_short_message(tmp_path: Path, text: str, problem: str):
    path = write(tmp_path / "recipe.yaml", text)
    with pytest.raises(UsageError, match=problem) as caught:
        read_recipe(path, tmp_path / "run")
    message = str(caught.value).replace(str(path), "")
    assert len(message) < 1000
    assert "corpus" in message or "YAML" in message or "values" in message
    setting = text.removeprefix("corpus: ")
    if setting != text:
        with pytest.raises(UsageError):
            read_recipe(write(path, "{}"), tmp_path / "run", [f"corpus.near_threshold={setting}"])
