"""`bertpipe run`: all stages, kills, rejected recipes, and the shipped recipes."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, BertForPreTraining, pipeline

from bert_pipeline.pretraining.sampler import draw_rows
from bert_pipeline.recipe import find_recipe, read_recipe
from bert_pipeline.storage.manifest import read_manifest
from bert_pipeline.storage.shards import iterate_rows
from tests.helpers.cli import run_cli
from tests.helpers.text import invent_documents, write_jsonl

ROOT = Path(__file__).parents[1]
RECIPE = """
corpus: {source: ["jsonl:texts/*.jsonl"], shard_mb: 0.01}
tokenize: {vocab_size: 400}
examples: {max_seq_length: 64, dupe_factor: 4, validation_fraction: 0.1}
pretrain:
  model: {num_hidden_layers: 2, hidden_size: 64, num_attention_heads: 2, intermediate_size: 128}
  optimizer: muon
  batch_size: 16
  max_steps: 60
  checkpoint_every: 5
  threads: 1
probes:
  - {text: "Dabi [MASK].", expect: gose}
"""


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [
        sys.executable,
        "-m",
        "bert_pipeline",
        "run",
        "recipe.yaml",
        "--out",
        "out",
        *arguments,
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    )


def fill_mask(folder: Path, text: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "bert_pipeline", "fill-mask", "out", text]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    )


def finish(process: "subprocess.Popen[str]", code: int = 0) -> tuple[str, str]:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    return output, errors


def make_folder(folder: Path) -> Path:
    """A recipe and its texts."""
    folder.mkdir()
    texts = invent_documents(count=60)
    for number in range(6):
        write_jsonl(folder / "texts" / f"{number}.jsonl", texts[number * 10 : number * 10 + 10])
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def hashes(run: Path) -> dict[str, str]:
    """Hashes of all files that must be byte-identical."""
    files = [
        *run.glob("*/*.parquet"),
        *run.glob("tokenizer/*"),
        *run.glob("pretrain/model/*"),
        *run.glob("*/*.npy"),
    ]
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.fixture(scope="module")
def continuous(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run without kills: its folder, and what it printed."""
    folder = make_folder(tmp_path_factory.mktemp("continuous") / "run")
    return folder, finish(start(folder))[0]


@pytest.mark.integration
def test_run_prints_the_metrics_and_the_probes(continuous: tuple[Path, str]) -> None:
    folder, output = continuous
    for said in (
        "masked-LM loss",
        "unigram baseline",
        "top-1 accuracy",
        "sentence pairs",
        "Probes",
    ):
        assert said in output
    assert "the expected word is in the top 5 in" in output
    BertForPreTraining.from_pretrained(folder / "out/pretrain/model")


@pytest.mark.integration
def test_repeated_run_changes_nothing_and_prints_the_metrics(continuous: tuple[Path, str]) -> None:
    folder, _ = continuous
    before = {
        path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.is_file()
    }
    output, _ = finish(start(folder))
    assert {
        path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.is_file()
    } == before
    assert output.count("already complete") == 4
    assert "masked-LM loss" in output


@pytest.mark.slow
def test_run_killed_at_random_moments_ends_with_the_same_bytes(
    continuous: tuple[Path, str], tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "run")
    rng = random.Random(1)
    kills = 0
    for _ in range(6):
        process = start(folder)
        time.sleep(rng.uniform(0.5, 7.0))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 2
    finish(start(folder))
    assert hashes(folder / "out") == hashes(continuous[0] / "out")
    assert not [
        path
        for path in folder.rglob("*")
        if path.name.endswith(".tmp") or path.name == ".unfinished.json"
    ]


@pytest.mark.integration
def test_number_of_workers_does_not_change_the_bytes(
    continuous: tuple[Path, str], tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "run")
    workers = [f"--set={stage}.workers=1" for stage in ("corpus", "tokenize", "examples")]
    finish(start(folder, *workers, "--through", "examples"))
    made = hashes(folder / "out")
    assert made.items() <= hashes(continuous[0] / "out").items()
    assert len(made) > 10


PERSIAN = [
    "او",
    "می\u200cرود",
    "خانه\u200cای",
    "بزرگ",
    "را",
    "می\u200cبیند",
    "کتاب\u200cها",
    "روی",
    "میز",
    "نیم\u200cفاصله",
    "است",
    "و",
    "باران",
    "می\u200cبارد",
    "مردم",
    "در",
    "شهر",
    "راه",
    "می\u200cروند",
]


@pytest.mark.slow
def test_persian_run_keeps_zero_width_non_joiners(tmp_path: Path) -> None:
    """U+200C is part of the spelling of words, not a control character to remove."""
    rng = random.Random(0)
    texts = []
    for _ in range(40):
        sentences = [
            " ".join(rng.choices(PERSIAN, k=rng.randint(4, 9))) + rng.choice([".", "؟"])
            for _ in range(8)
        ]
        texts.append(" ".join(sentences) + " بهای آن ۳.۵ است.")
    write_jsonl(tmp_path / "texts" / "fa.jsonl", texts)
    given = [
        "corpus.language=fa",
        "tokenize.kind=byte-bpe",
        "tokenize.vocab_size=330",
        "pretrain.max_steps=150",
    ]
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    finish(
        start(
            tmp_path, "--set=pretrain.learning_rate=0.003", *(f"--set={value}" for value in given)
        )
    )
    read = [
        text
        for (text,) in iterate_rows(sorted((tmp_path / "out/corpus").glob("*.parquet")), ["text"])
    ]
    assert read == texts
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/pretrain/model")
    assert (
        tokenizer.decode(tokenizer(texts[0])["input_ids"], skip_special_tokens=True).strip()
        == texts[0]
    )
    tokens = [
        row
        for (row,) in iterate_rows(sorted((tmp_path / "out/examples").glob("train-*")), ["tokens"])
    ]
    assert any("\u200c" in tokenizer.decode(row) for row in tokens)
    output, _ = finish(fill_mask(tmp_path, "او [MASK] خانه‌ای بزرگ را."))
    assert output.splitlines()[0] == "او [MASK] خانه‌ای بزرگ را."
    assert len(output.splitlines()) == 6


@pytest.mark.slow
def test_changed_stage_is_rejected_with_a_diff_and_rebuilt_by_overwrite(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run")
    finish(start(folder, "--through", "examples"))
    old = hashes(folder / "out")
    _, errors = finish(
        start(folder, "--through", "examples", "--set", "examples.dupe_factor=2"), code=1
    )
    assert "dupe_factor: 4 → 2" in errors
    assert "--overwrite" in errors
    assert hashes(folder / "out") == old
    finish(start(folder, "--through", "examples", "--set", "examples.dupe_factor=2", "--overwrite"))
    new = hashes(folder / "out")
    assert {name for name in old if old[name] == new.get(name)} >= {
        name for name in old if "examples" not in name
    }
    assert len([name for name in new if "train-" in name]) * 2 == len(
        [name for name in old if "train-" in name]
    )
    (folder / "texts" / "5.jsonl").write_text('{"text": "Another text. It is short."}\n')
    _, errors = finish(start(folder, "--through", "examples"), code=1)
    assert "its content changed" in errors


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("corpus: {source: [python-docs], colour: red}", "option `colour` is unknown"),
        ("colour: {red: 1}", "section `colour` is unknown"),
        (
            "corpus: {surce: [python-docs]}",
            "recipe.yaml, corpus: option `surce` is unknown. Did you",
        ),
        ("tokenise: {vocab_size: 1}", "recipe.yaml: section `tokenise` is unknown. Did you mean"),
        ("corpus: {source: [python-docs], out: x}", "remove `out`"),
        ("corpus: {source: [python-docs]}\npretrain: {max_steps: many}", "--max-steps"),
        (
            "corpus: {source: [python-docs]}\npretrain: {max_steps: 1, max_minutes: 1}",
            "give exactly one of --max-steps",
        ),
        ("corpus: [python-docs]", "lines were expected"),
        ("corpus: {source: [python-docs]}\npretrain: {max_steps: 1}\nprobes: [a]", "probes"),
        (
            "corpus: {source: [python-docs]}\npretrain: {max_steps: 1}\n"
            "probes: [{text: a word, expect: b}]",
            "probes, entry 1: 'a word' must be a text with one [MASK]",
        ),
        (
            "corpus:\n  source: [python-docs\n",
            "recipe.yaml: not valid YAML: line 3, column 1: expected ',' or ']'",
        ),
        ("- corpus", "mapping"),
    ],
)
def test_wrong_recipe_is_rejected_before_the_first_stage(
    recipe: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe)
    result = run_cli("run", "recipe.yaml", "--out", "out", cwd=tmp_path)
    assert result.code == 2
    assert said in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_recipes_are_valid(path: Path, tmp_path: Path) -> None:
    assert find_recipe(path.stem) == path
    recipe = read_recipe(path, tmp_path, [], overwrite=False, quiet=True)
    assert set(recipe.stages) - {"long_examples"} == {"corpus", "tokenize", "examples", "pretrain"}
    assert len(recipe.probes) == 10


def test_bert_base_recipe_has_the_settings_of_the_paper(tmp_path: Path) -> None:
    recipe = read_recipe(find_recipe("bert-base"), tmp_path, [], overwrite=False, quiet=True)
    short, longer, pretrain = (
        recipe.stages[stage].content() for stage in ("examples", "long_examples", "pretrain")
    )
    assert (short["max_seq_length"], short["max_predictions"]) == (128, 20)
    assert longer == short | {"max_seq_length": 512, "max_predictions": 77}
    assert round(pretrain["max_steps"] * pretrain["warmup"]) == 10_000
    assert round(pretrain["max_steps"] * (1 - pretrain["long_share"])) == 900_000
    assert pretrain["batch_size"] * 128 == 32_768


LONGER = RECIPE + "long_examples: {max_seq_length: 96, dupe_factor: 2}\n"


@pytest.mark.slow
def test_long_examples_train_the_last_share_of_the_run(
    continuous: tuple[Path, str], tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "run")
    (folder / "recipe.yaml").write_text(LONGER)
    given = ["pretrain.long_share=0.3", "pretrain.long_batch_size=5", "pretrain.batch_size_start=4"]
    given += [
        "pretrain.batch_size_warmup=0.2",
        "pretrain.max_steps=30",
        "pretrain.log_every=1",
        "pretrain.accumulate=3",
    ]
    settings = [f"--set={value}" for value in given]
    finish(start(folder, *settings, "--through", "long_examples"))
    assert not (folder / "out/pretrain").exists()
    made = read_manifest(folder / "out/examples-long", "examples")
    assert (made.config["max_seq_length"], made.config["dupe_factor"]) == (96, 2)
    assert made.config["validation_fraction"] == 0.1  # inherited from `examples`
    short = {
        name: made
        for name, made in hashes(folder / "out").items()
        if not name.startswith("examples-long")
    }
    assert short.items() <= hashes(continuous[0] / "out").items()

    finish(start(folder, *settings))
    lengths = {}
    for name in ("examples", "examples-long"):
        files = sorted((folder / "out" / name).glob("train-*"))
        lengths[name] = np.array([len(row) for (row,) in iterate_rows(files, ["tokens"])])
    lines = [
        json.loads(line)
        for line in (folder / "out/pretrain/metrics.jsonl").read_text().splitlines()
    ]
    tokens = np.diff([0, *(line["tokens"] for line in lines if "loss" in line)])
    expected = []
    first = 0
    for step in range(21):
        size = min(16, 4 * (1 + int(step / 6 * 4)))
        rows, _ = draw_rows(len(lengths["examples"]), first, size, seed=0)
        expected.append(lengths["examples"][rows].sum())
        first += size
    for step in range(9):
        rows, _ = draw_rows(len(lengths["examples-long"]), step * 5, 5, seed=0, phase=1)
        expected.append(lengths["examples-long"][rows].sum())
    assert tokens.tolist() == expected
    assert "eval_long_mlm_loss" in [line for line in lines if "eval_mlm_loss" in line][-1]
    pretrained = read_manifest(folder / "out/pretrain", "pretrain")
    assert pretrained.inputs["long_examples"].fingerprint == made.fingerprint
    assert not (folder / "out/pretrain/.examples").exists()

    (folder / "recipe.yaml").write_text(RECIPE)
    without = [setting for setting in settings if "long" not in setting]
    _, errors = finish(start(folder, *without), code=1)
    assert "long_examples: True → False" in errors


@pytest.mark.parametrize(
    ("recipe", "arguments", "said"),
    [
        (
            RECIPE,
            ["--through", "long_examples"],
            "--through long_examples: the recipe has no such section",
        ),
        (LONGER.replace("max_seq_length: 96", "colour: red"), [], "option `colour` is unknown"),
        (LONGER, ["--set", "pretrain.long_examples=x"], "remove `long_examples`"),
        (RECIPE, ["--set", "long_examples.corpus=x"], "remove `corpus`"),
    ],
)
def test_wrong_long_examples_section_is_rejected(
    recipe: str, arguments: list[str], said: str, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "run")
    (folder / "recipe.yaml").write_text(recipe)
    result = run_cli("run", "recipe.yaml", "--out", "out", *arguments, cwd=folder)
    assert result.code == 2
    assert said in result.stderr
    assert not (folder / "out").exists()


@pytest.mark.slow
def test_quickstart_with_less_text_and_time(tmp_path: Path) -> None:
    """All stages of the quickstart, on a fraction of its text and training time."""
    command = [
        sys.executable,
        "-m",
        "bert_pipeline",
        "run",
        "quickstart",
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--set", "corpus.max_documents=700", "--set", "pretrain.max_minutes=0.2"]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200"}
    )
    assert result.returncode == 0, result.stderr
    assert "unigram baseline" in result.stdout
    fill = pipeline("fill-mask", model=str(tmp_path / "out/pretrain/model"))
    assert fill("Raise a [MASK] if the key is not found.")[0]["score"] > 0.01
