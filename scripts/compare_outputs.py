"""Run a small pipeline with two versions of bertpipe and compare the SHA-256 of all outputs.

Called by scripts/compare-outputs. The text is the documentation in the standard library, so it runs
anywhere. Only the command line is used, whose options are stable between versions.
"""

import ast
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

MODULES = ["argparse", "ast", "collections/__init__", "csv", "datetime", "decimal", "difflib"]
MODULES += ["email/message", "fractions", "functools", "heapq", "http/client", "inspect"]
MODULES += ["json/decoder", "logging/__init__", "pathlib", "pickle", "random", "shutil", "socket"]
MODULES += ["statistics", "string", "subprocess", "tarfile", "textwrap", "threading", "typing"]
MODULES += ["unittest/mock", "urllib/request", "zipfile"]
SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 128, "max_position_embeddings": 130}

EXAMPLES = (
    "--corpus corpus --max-seq-length 64 --dupe-factor 2 --validation-fraction 0.1 --workers 2"
)
TRAINING = "--max-steps 50 --batch-size 16 --threads 1 --learning-rate 1e-3 --dropout 0.1"
COMMANDS = {
    "corpus": "corpus --source text:../texts/*.txt --clean basic,exact,near"
    " --shard-mb 0.1 --workers 2",
    "wordpiece": "tokenize --corpus corpus --kind wordpiece --vocab-size 1000",
    "byte-bpe": "tokenize --corpus corpus --kind byte-bpe --vocab-size 1000 --specials roberta",
    "nsp": f"examples {EXAMPLES} --tokenizer wordpiece",
    "sop": f"examples {EXAMPLES} --tokenizer byte-bpe --objective mlm+sop --mask-unit whole-word",
    "mlm": f"examples {EXAMPLES} --tokenizer byte-bpe --objective mlm --mask-unit span",
    "dynamic": f"examples {EXAMPLES} --tokenizer wordpiece --masks dynamic",
    "adamw": f"pretrain --examples nsp --tokenizer wordpiece {TRAINING} --model ../bert.json",
    "lamb": f"pretrain --examples sop --tokenizer byte-bpe {TRAINING} --model ../bert.json"
    " --optimizer lamb",
    "muon": f"pretrain --examples dynamic --tokenizer wordpiece {TRAINING} --model ../bert.json"
    " --optimizer muon --mask-rate-end 0.1 --initialization informed",
    "roberta": f"pretrain --examples mlm --tokenizer byte-bpe {TRAINING} --model ../roberta.json",
}
"""Commands by the name of their output folder."""
COMPARED = ("*.parquet", "*.npy", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


def write_inputs(folder: Path) -> None:
    """Write the docstrings of some modules as text files, and two model configs."""
    (folder / "texts").mkdir()
    library = Path(sysconfig.get_path("stdlib"))
    for module in MODULES:
        source = ast.parse((library / f"{module}.py").read_text(encoding="utf-8"))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [ast.get_docstring(n) for n in ast.walk(source) if isinstance(n, documented)]
        text = "\n\n".join(filter(None, found))
        (folder / "texts" / f"{module.replace('/', '.')}.txt").write_text(text, encoding="utf-8")
    (folder / "bert.json").write_text(json.dumps(SMALL), encoding="utf-8")
    roberta = SMALL | {"model_type": "roberta"}
    (folder / "roberta.json").write_text(json.dumps(roberta), encoding="utf-8")


def run_pipeline(source: Path, out: Path) -> None:
    """Run all commands with the package in `source`, writing to `out`."""
    out.mkdir()
    # PYTHONPATH comes before the installed package.
    environment = os.environ | {"PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1"}
    where = [sys.executable, "-c", "import bert_pipeline; print(bert_pipeline.__file__)"]
    found = subprocess.check_output(where, cwd=out, env=environment, text=True).strip()
    assert found == str(source / "bert_pipeline" / "__init__.py"), found
    for name, command in COMMANDS.items():
        started = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "-m", "bert_pipeline", *command.split(), "--out", name, "--quiet"],
            cwd=out,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            sys.exit(f"{source}: bertpipe {command}\n{result.stderr}")
        print(f"  {name:<10} {time.perf_counter() - started:5.1f} s", flush=True)


def hash_outputs(out: Path, name: str) -> dict[str, str]:
    """SHA-256 of the compared files of one output folder, by relative path."""
    folder = out / name
    files = {path for pattern in COMPARED for path in folder.rglob(pattern)}
    kept = {path for path in files if "checkpoints" not in path.parts}
    hashed = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}
    return {str(path.relative_to(folder)): hashed[path] for path in sorted(kept)}


def compare(base: Path, new: Path) -> int:
    """Print a table of both outputs; return the number of files that differ."""
    print(f"\n{'output':<10} {'files':>5} {'differ':>6}  SHA-256 of the list of hashes")
    total = 0
    for name in COMMANDS:
        before = hash_outputs(base, name)
        after = hash_outputs(new, name)
        paths = before.keys() | after.keys()
        different = sorted(path for path in paths if before.get(path) != after.get(path))
        digest = hashlib.sha256(json.dumps(after).encode()).hexdigest()[:16]
        print(f"{name:<10} {len(paths):>5} {len(different):>6}  {digest}")
        for path in different:
            print(f"             {path}")
        total += len(different)
    print("identical" if not total else f"{total} files differ")
    return total


def main() -> None:
    """Run both versions in a folder and compare; exit code 1 if any file differs."""
    folder = Path(sys.argv[1])
    write_inputs(folder)
    outputs = []
    for number, argument in enumerate(sys.argv[2:]):
        label, _, source = argument.partition("=")
        print(f"{label}:", flush=True)
        outputs.append(folder / f"outputs-{number}")
        run_pipeline(Path(source), outputs[-1])
    sys.exit(bool(compare(*outputs)))


if __name__ == "__main__":
    main()
