"""The command line: options, exit codes, messages."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.helpers.cli import run_cli

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
COMMANDS = ["run", "corpus", "tokenize", "examples", "pretrain", "evaluate", "fill-mask", "embed"]


HELP_OF_ALL_COMMANDS = f"""
import sys
from bert_pipeline.cli import main
for command in {["", *COMMANDS]!r}:
    sys.argv = ["bertpipe", *filter(None, [command]), "--help"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (command, end.code)
heavy = {HEAVY!r} & set(sys.modules)
assert not heavy, heavy
"""


def bertpipe(*arguments: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """In a new process."""
    command = [sys.executable, "-m", "bert_pipeline", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "200", "TERM": "dumb"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=cwd, env=environment, check=False
    )


def test_help_imports_no_heavy_libraries() -> None:
    command = [sys.executable, "-c", HELP_OF_ALL_COMMANDS]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Usage") == 1 + len(COMMANDS)


def test_import_of_the_package_is_lazy() -> None:
    code = (
        "import sys, bert_pipeline\n"
        "assert 'pydantic' not in sys.modules\n"
        "from bert_pipeline import pretrain, fill_mask\n"
        f"assert not {HEAVY!r} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_version_is_printed() -> None:
    result = run_cli("--version")
    assert (result.code, result.stdout) == (0, f"bertpipe {version('bertpipe')}\n")


def test_shell_completion_is_offered() -> None:
    assert "--install-completion" in run_cli("--help").stdout


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("run", "--out --set --through --overwrite"),
        ("corpus", "--source --out --workers --engine --overwrite --quiet --config"),
        ("tokenize", "--corpus --out --kind --vocab-size --workers --overwrite --quiet --config"),
        (
            "examples",
            "--corpus --tokenizer --out --max-seq-length --objective --workers --seed --engine "
            "--config",
        ),
        (
            "pretrain",
            "--examples --tokenizer --out --model --max-steps --max-tokens --max-minutes "
            "--max-epochs "
            "--batch-size --accumulate --learning-rate --checkpoint-every --keep-checkpoints "
            "--num-processes --precision --seed --overwrite --quiet --verbose --config",
        ),
        ("evaluate", "--examples --split --json"),
        ("fill-mask", "--input --targets --top-k --json"),
        ("embed", "--input --out --pooling --level --text-field"),
    ],
)
def test_commands_have_the_documented_options(command: str, expected: str) -> None:
    shown = re.findall(r"--[a-z-]+", run_cli(command, "--help").stdout)
    assert set(expected.split()) <= set(shown)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["corpus", "--out", "x"], 2, "--source is required"),
        (
            ["corpus", "--source", "text:nowhere/*.txt", "--out", "x"],
            1,
            "nowhere/*.txt matches no file",
        ),
        (
            ["corpus", "--source", "floppy", "--out", "x"],
            2,
            "oscar:LANG, hub:REPO[:CONFIG], text:GLOB, jsonl:GLOB, csv:GLOB, tsv:GLOB",
        ),
        (
            ["corpus", "--source", __file__, "--out", "x"],
            2,
            f"Did you mean 'text:{__file__}'?",
        ),
        (["corpus", "--source", "python-docs", "--out", "x", "--workers", "0"], 2, "--workers"),
        (["corpus", "--source", "python-docs", "--out", "x", "--engine", "abacus"], 2, "abacus"),
        (["tokenize", "--corpus", "nowhere", "--out", "x"], 1, "nowhere: no such folder"),
        (["examples", "--nonsense"], 2, "--nonsense"),
        (
            ["pretrain", "--examples", "e", "--tokenizer", "t", "--out", "x"],
            2,
            "give exactly one of --max-steps, --max-tokens, --max-minutes, --max-epochs",
        ),
        (
            ["run", "nonsense"],
            2,
            "a shipped recipe. Known: bert-base, domain-adapt, oscar-fa-roberta, quickstart.",
        ),
        (["run", "quikstart"], 2, "shipped recipe. Did you mean `quickstart`?"),
        (
            ["run", "quickstart", "--set", "pretrain.optimiser=muon"],
            2,
            "--set pretrain.optimiser=muon: option `optimiser` is unknown. "
            "Did you mean `optimizer`?",
        ),
        (
            ["run", "quickstart", "--set", "pretain.seed=1"],
            2,
            "--set pretain.seed=1: stage `pretain` is unknown. Did you mean `pretrain`?",
        ),
        (["examples", "--objective", "nsp"], 2, "Invalid value for '--objective': 'nsp' is not"),
        (["run", "quickstart", "--set", "colour"], 2, "STAGE.FIELD=VALUE"),
        (["fill-mask", "nowhere", "a [MASK]"], 1, "no model found"),
        (["evaluate", "nowhere", "--examples", "nowhere"], 1, "nowhere"),
        (["dance"], 2, "dance"),
    ],
)
def test_bad_usage_is_one_clear_message(
    arguments: list[str], code: int, said: str, tmp_path: Path
) -> None:
    result = run_cli(*arguments, cwd=tmp_path)
    assert result.code == code, result.stderr
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not result.stdout
    assert not any(path.is_file() and path.suffix != ".lock" for path in tmp_path.rglob("*"))


@pytest.mark.integration
def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = bertpipe("--debug", "verify", tmp_path)
    assert "Traceback" in result.stderr


def test_command_line_overrides_the_config_file(corpus_folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "tokenize: {kind: byte-bpe, vocab_size: 450}\nexamples: {max_seq_length: 32}\n"
    )
    given = ["--config", recipe, "--corpus", corpus_folder, "--out", tmp_path / "t"]
    result = run_cli("tokenize", *given, "--vocab-size", 400)
    assert result.code == 0, result.stderr
    manifest = json.loads((tmp_path / "t" / "manifest.json").read_text())
    assert manifest["config"]["kind"] == "byte-bpe"
    assert manifest["counts"]["vocab_size"] == 400
    recipe.write_text("tokenise: {kind: byte-bpe}\n")
    result = run_cli(
        "tokenize", "--config", recipe, "--corpus", corpus_folder, "--out", tmp_path / "u"
    )
    assert result.code == 2
    assert "tokenise" in result.stderr


def test_quiet_prints_nothing(corpus_folder: Path, tmp_path: Path) -> None:
    result = run_cli(
        "tokenize",
        "--corpus",
        corpus_folder,
        "--out",
        tmp_path / "t",
        "--vocab-size",
        400,
        "--quiet",
    )
    assert (result.code, result.stdout, result.stderr) == (0, "", "")
