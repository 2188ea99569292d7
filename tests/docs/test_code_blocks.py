"""Every command of the README runs as it stands, on a new user's text; only lengths of time are cut."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import invent_documents, zstd
from tests.helpers.local_hub import LocalHub

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, page: str = README) -> list[str]:
    """A page's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)


def shorten(text: str) -> str:
    """Seconds instead of an hour, a vocabulary that invented text can fill, and a smaller model."""
    for long, short in (
        (r"(max[-_]minutes[ =:]+)\d+", r"\g<1>0.05"),
        (r"(vocab[-_]size[ :]+)8000", r"\g<1>600"),
        ("bert-mini", "bert-tiny"),
    ):
        text = re.sub(long, short, text)
    return text


PERSIAN = (
    "در این شهر مردم هر روز به بازار می\u200cروند و با دوستان خود درباره کار زندگی کتاب باران مدرسه خانه پدر مادر "
    "کودک درخت رودخانه کوه آسمان تاریخ هنر دانشگاه استاد دانشجو سفر راه جاده ماشین غذا نان آب چای سخن می\u200cگویند"
)


def persian_text(seed: int) -> str:
    """A made-up web page that is long enough to be kept."""
    draw = Random(seed)
    return "\n".join(
        " ".join(draw.choices(PERSIAN.split(), k=draw.randint(12, 30))) + "." for _ in range(8)
    )


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A hub with the data sets that the page names, laid out as they are."""
    lines = ["", " = A Title = ", "", " Text . ", " More text . "] * 3
    table = BytesIO()
    pq.write_table(pa.table({"text": [line + "\n" for line in lines]}), table)
    rows = "".join(json.dumps({"content": persian_text(n)}) + "\n" for n in range(20))
    shards = "data_files: [{split: train, path: wikitext-2-raw-v1/train-*}]"
    card = f"---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  {shards}\n---\n"
    with LocalHub(tmp_path_factory.mktemp("hub")) as server:
        shard = "wikitext-2-raw-v1/train-00000-of-00001.parquet"
        server.add("Salesforce/wikitext", {"README.md": card, shard: table.getvalue()})
        server.add(
            "oscar-corpus/OSCAR-2301",
            {"fa_meta/fa_meta_part_1.jsonl.zst": zstd.compress(rows.encode())},
        )
        yield server


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `texts/` and the README's recipe."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "texts").mkdir()
    for number, text in enumerate(invent_documents(count=60)):
        (folder / "texts" / f"{number}.txt").write_text(
            text.replace("\n", "\n\n"), encoding="utf-8"
        )
    (folder / "my.yaml").write_text(shorten(blocks("yaml")[0]), encoding="utf-8")
    return folder


def test_commands_run_in_the_order_of_the_page(user: Path, hub: LocalHub) -> None:
    commands = [
        line
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("bertpipe ")
    ]
    assert len(commands) >= 9
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **{"HF_ENDPOINT": hub.url, "HF_HOME": str(user / "hf"), "HF_HUB_DISABLE_XET": "1"},
    }
    for command in commands:
        result = subprocess.run(
            ["bash", "-c", shorten(command)],
            cwd=user,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{command}\n{result.stderr}"
        assert result.stdout, command
    for block in blocks("python"):
        result = subprocess.run(
            [sys.executable, "-c", block], cwd=user, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr


def test_the_plain_loop_learns_from_the_examples(
    tmp_path: Path, corpus_folder: Path, wordpiece_folder: Path
) -> None:
    page = (ROOT / "docs" / "plain-pytorch.md").read_text(encoding="utf-8")
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "corpus").symlink_to(corpus_folder)
    (tmp_path / "my" / "tokenizer").symlink_to(wordpiece_folder)
    commands = [
        block.replace("bertpipe ", f"{sys.executable} -m bert_pipeline ", 1)
        for block in blocks("sh", page)
    ]
    make, fill, pad = commands
    loop = tmp_path / "loop.py"
    loop.write_text("\n".join(blocks("python", page)), encoding="utf-8")
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    printed = ""
    for command in (make, pad, f"{sys.executable} {loop}", fill):
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{command}\n{result.stderr}"
        printed += result.stdout
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", printed)]
    assert len(losses) >= 4
    assert losses[-2] < losses[0] - 0.5, "the loop learns nothing"
    assert losses[-1] < losses[0] - 0.5, "rows that were padded beforehand are read otherwise"


def test_scripts_are_the_ones_that_are_named() -> None:
    named = [
        line.split()[0]
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("scripts/")
    ]
    assert named == ["scripts/quickstart", "scripts/test"]
    for name in named:
        assert os.access(ROOT / name, os.X_OK)
        assert shutil.which("bash")


def test_the_file_map_names_what_there_is() -> None:
    page = README.split("## The files")[1]
    for path in [*(ROOT / "bert_pipeline").glob("*"), *(ROOT / "bert_pipeline").glob("*/*.py")]:
        if not path.name.startswith("__"):
            assert re.search(rf"\b{re.escape(path.stem)}\b", page), path
