"""The command line as a user meets it: real processes, exit codes, messages."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "tokenizers",
    "pyarrow",
    "numpy",
    "datatrove",
    "ray",
}
COMMANDS = ["run", "corpus", "tokenize", "examples", "pretrain", "evaluate", "fill-mask"]


def bertpipe(*arguments: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bert_pipeline", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "200", "TERM": "dumb"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=cwd, env=environment, check=False
    )


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=["", *COMMANDS])
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['bertpipe', *sys.argv[1:]]\n"
        "from bert_pipeline.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"heavy = {HEAVY!r} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    arguments = [sys.executable, "-c", code, *command, "--help"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("run", "--out --set --through --overwrite"),
        ("corpus", "--source --out --workers --engine --overwrite --quiet --config"),
        ("tokenize", "--corpus --out --kind --vocab-size --workers --overwrite --quiet --config"),
        (
            "examples",
            "--corpus --tokenizer --out --max-seq-length --objective --workers --seed --engine --config",
        ),
        (
            "pretrain",
            "--examples --tokenizer --out --model --max-steps --max-minutes --batch-size --accumulate --learning-rate "
            "--checkpoint-every --keep-checkpoints --num-processes --precision --seed --overwrite --quiet --config",
        ),
        ("evaluate", "--examples --split --json"),
        ("fill-mask", "--top-k --json"),
    ],
)
def test_commands_have_the_options_of_the_contract(command: str, expected: str) -> None:
    shown = re.findall(r"--[a-z-]+", bertpipe(command, "--help").stdout)
    assert set(expected.split()) <= set(shown)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["corpus", "--out", "x"], 2, "--source is missing"),
        (
            ["corpus", "--source", "text:nowhere/*.txt", "--out", "x"],
            1,
            "nowhere/*.txt matches no file",
        ),
        (
            ["corpus", "--source", "floppy", "--out", "x"],
            2,
            "oscar:LANG, hub:REPO[:CONFIG], text:GLOB, jsonl:GLOB, parquet:GLOB",
        ),
        (["corpus", "--source", "python-docs", "--out", "x", "--workers", "0"], 2, "--workers"),
        (["corpus", "--source", "python-docs", "--out", "x", "--engine", "abacus"], 2, "abacus"),
        (["tokenize", "--corpus", "nowhere", "--out", "x"], 1, "nowhere: no such folder"),
        (["examples", "--nonsense"], 2, "--nonsense"),
        (
            ["pretrain", "--examples", "e", "--tokenizer", "t", "--out", "x"],
            2,
            "give one of --max-steps, --max-tokens and --max-minutes",
        ),
        (
            ["run", "nonsense"],
            1,
            "neither a YAML file nor a shipped recipe (bert-base, quickstart)",
        ),
        (["run", "quickstart", "--set", "pretrain.colour=red"], 2, "colour"),
        (["run", "quickstart", "--set", "colour"], 2, "STAGE.FIELD=VALUE"),
        (["fill-mask", "nowhere", "a [MASK]"], 1, "no model folder"),
        (["evaluate", "nowhere", "--examples", "nowhere"], 1, "nowhere"),
        (["dance"], 2, "dance"),
    ],
)
def test_bad_usage_is_one_clear_message(
    arguments: list[str], code: int, said: str, tmp_path: Path
) -> None:
    result = bertpipe(*arguments, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not result.stdout
    assert not any(path.is_file() and path.suffix != ".lock" for path in tmp_path.rglob("*"))


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = bertpipe("--debug", "fill-mask", tmp_path, "a [MASK]")
    assert "Traceback" in result.stderr


def test_a_recipe_file_gives_options_and_the_line_wins(corpus_folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "tokenize: {kind: byte-bpe, vocab_size: 450}\nexamples: {max_seq_length: 32}\n"
    )
    given = ["--config", recipe, "--corpus", corpus_folder, "--out", tmp_path / "t"]
    result = bertpipe("tokenize", *given, "--vocab-size", 400)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "t" / "manifest.json").read_text())
    assert manifest["config"]["kind"] == "byte-bpe"
    assert manifest["counts"]["vocab_size"] == 400
    recipe.write_text("tokenise: {kind: byte-bpe}\n")
    result = bertpipe(
        "tokenize", "--config", recipe, "--corpus", corpus_folder, "--out", tmp_path / "u"
    )
    assert result.returncode == 2
    assert "tokenise" in result.stderr


def test_quiet_prints_nothing(corpus_folder: Path, tmp_path: Path) -> None:
    result = bertpipe(
        "tokenize",
        "--corpus",
        corpus_folder,
        "--out",
        tmp_path / "t",
        "--vocab-size",
        400,
        "--quiet",
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
