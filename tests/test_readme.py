"""Every command of the README runs as it stands, on a new user's text; only lengths of time are cut."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import invent_documents

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def shorten(text: str) -> str:
    """Seconds instead of an hour, a vocabulary that invented text can fill, and a smaller model."""
    for long, short in (
        (r"(max[-_]minutes[ =:]+)\d+", r"\g<1>0.05"),
        (r"(vocab[-_]size[ :]+)8000", r"\g<1>600"),
        ("bert-mini", "bert-tiny"),
    ):
        text = re.sub(long, short, text)
    return text


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `texts/` and the README's recipe."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "texts").mkdir()
    for number, text in enumerate(invent_documents(count=60)):
        (folder / "texts" / f"{number}.txt").write_text(text.replace("\n", "\n\n"), encoding="utf-8")
    (folder / "my.yaml").write_text(shorten(blocks("yaml")[0]), encoding="utf-8")
    return folder


def test_commands_run_in_the_order_of_the_page(user: Path) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("bertpipe ")]
    assert len(commands) >= 9
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands:
        result = subprocess.run(
            ["bash", "-c", shorten(command)], cwd=user, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{command}\n{result.stderr}"
        assert result.stdout, command
    for block in blocks("python"):
        result = subprocess.run([sys.executable, "-c", block], cwd=user, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


def test_scripts_are_the_ones_that_are_named() -> None:
    named = [line.split()[0] for block in blocks("sh") for line in block.splitlines() if line.startswith("scripts/")]
    assert named == ["scripts/quickstart", "scripts/test"]
    for name in named:
        assert os.access(ROOT / name, os.X_OK)
        assert shutil.which("bash")


def test_the_file_map_names_what_there_is() -> None:
    page = README.split("## The files")[1]
    for path in [*(ROOT / "bert_pipeline").glob("*"), *(ROOT / "bert_pipeline").glob("*/*.py")]:
        if not path.name.startswith("__"):
            assert re.search(rf"\b{re.escape(path.stem)}\b", page), path
