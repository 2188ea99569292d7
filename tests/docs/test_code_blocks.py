"""Every code block of the README and of docs/ runs as written; only the sizes of runs are reduced.

The blocks of a page run in order, in one folder with sample text:

- `sh`: commands. Those of bertpipe run in this process where they can, because starting Python and
  importing torch takes longer than most of them. Those that need the Hub get a local one.
- `python`: run in one namespace per page.
- `yaml`: a file, whose name is in the comment on its first line.
- `text`: not run. Output, or commands that need a cluster, a GPU or a network.
"""

import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bert_pipeline.cli import app
from tests.helpers.languages import SENTENCES, invent_persian, write_documents
from tests.helpers.local_hub import LocalHub
from tests.helpers.text import invent_documents, write_jsonl, zstd
from tests.helpers.training_runs import reset_accelerate

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]
START_FROM_TEXT = ("README.md", "docs/own-language.md")
"""Pages that build `my/`; the others use the folders that these leave."""
PLAIN_LOOP = "docs/plain-pytorch.md"
"""Has a test that also looks at what it prints."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
RUN = ("sh", "python", "yaml")
NOT_RUN = ("text",)
IN_PROCESS_OF_ITS_OWN = ("wikitext", "oscar:", "hub:", "--num-processes", "--engine ray")
"""Commands with one of these read environment variables when they start, or start processes."""
NEEDS_SHELL = re.compile(r"[|<>;&$`]|\s\*")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, text[: match.start()].count("\n") + 1, match[1], match[2])
        for match in FENCE.finditer(text)
    ]


def shorten(text: str) -> str:
    """Reduce a run to a few steps of a tiny model, and a vocabulary to what invented text fills."""
    for long, short in (
        (r"(vocab[-_]size\s*[ :=]\s*)\d{4,}", r"\g<1>600"),
        (r"max([-_])minutes(\s*[ :=]\s*)\d+", r"max\1steps\g<2>5"),
        (r"(max[-_]steps\s*[ :=]\s*)\d+", r"\g<1>5"),
        (r"(max[-_]tokens\s*[ :=]\s*)\d+", r"\g<1>4000"),
        (r"\bbert-(mini|small|medium|base)\b(?!-)", "bert-tiny"),
    ):
        text = re.sub(long, short, text)
    return text


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A hub with the data sets that the pages name, laid out as on the real one."""
    lines = ["", " = A Title = ", "", " Text . ", " More text . "] * 3
    table = BytesIO()
    pq.write_table(pa.table({"text": [line + "\n" for line in lines]}), table)
    rows = "".join(json.dumps({"content": invent_persian(n)}) + "\n" for n in range(20))
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


def write_samples(folder: Path) -> None:
    """What a reader of the pages has: text files in `texts/`, other formats in `data/`.

    `texts/LANGUAGE/` has text in that language.
    """
    (folder / "texts").mkdir(parents=True)
    documents = invent_documents(count=60)
    for number, text in enumerate(documents):
        page = text.replace("\n", "\n\n")
        (folder / "texts" / f"{number}.txt").write_text(page, encoding="utf-8")
    for language in SENTENCES:
        write_documents(folder / "texts" / language, language)
    write_jsonl(folder / "data" / "articles.jsonl", documents)
    sentences = [line for text in documents for line in text.splitlines() if line][:40]
    (folder / "data" / "sentences.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    labelled = [f"{text}\t{number % 2}" for number, text in enumerate(sentences)]
    table = "\n".join(["sentence\tlabel", *labelled])
    (folder / "data" / "labelled.tsv").write_text(table + "\n", encoding="utf-8")
    tagged = [f"{word}\t{'B-X' if word.istitle() else 'O'}" for word in sentences[0].split()]
    (folder / "data" / "entities.conll").write_text("\n\n".join(["\n".join(tagged)] * 4) + "\n")
    pq.write_table(pa.table({"body": documents}), folder / "data" / "pages.parquet")


class Reader:
    """Somebody who runs the blocks of a page in a folder."""

    def __init__(self, folder: Path, hub_url: str) -> None:
        self.folder = folder
        self._namespace: dict[str, Any] = {"__name__": "__main__"}
        self._environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HF_ENDPOINT": hub_url,
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_XET": "1",
        }

    def run(self, block: Block) -> None:
        """Run a block; what it raises names it."""
        text = shorten(block.text)
        try:
            if block.language == "sh":
                for command in text.replace("\\\n", " ").splitlines():
                    self._run_command(command.strip())
            elif block.language == "python":
                self._run_python(block, text)
            elif block.language == "yaml":
                name = text.partition("\n")[0].removeprefix("# ")
                assert name.endswith(".yaml"), f"{block}: its first line is no comment with a name"
                (self.folder / name).write_text(text, encoding="utf-8")
        except BaseException as error:
            error.add_note(f"in the block at {block}")
            raise

    def _run_command(self, command: str) -> None:
        if not command or command.startswith("#"):
            return
        if command.startswith("scripts/"):
            script = ROOT / shlex.split(command)[0]
            assert os.access(script, os.X_OK), f"{script} is not executable"
        elif (
            command.startswith("bertpipe ")
            and not NEEDS_SHELL.search(command)
            and not any(part in command for part in IN_PROCESS_OF_ITS_OWN)
        ):
            self._run_bertpipe(command)
        else:
            result = subprocess.run(
                ["bash", "-c", command],
                cwd=self.folder,
                env=self._environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert result.returncode == 0, f"{command}\n{result.stderr}"

    def _run_bertpipe(self, command: str) -> None:
        arguments = shlex.split(command, comments=True)[1:]
        if arguments[0] in ("corpus", "examples") and "--workers" not in arguments:
            arguments += ["--workers", "1"]  # new processes would take most of the time
        reset_accelerate()
        app(arguments, standalone_mode=False)

    def _run_python(self, block: Block, text: str) -> None:
        reset_accelerate()
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            exec(compile(text, str(block), "exec"), self._namespace)


@pytest.fixture
def reader(tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """A reader in an empty folder with sample text."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    write_samples(tmp_path / "reader")
    monkeypatch.chdir(tmp_path / "reader")
    return Reader(tmp_path / "reader", hub.url)


@pytest.fixture
def tutorial(artifacts: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `my/` that the four commands of the README leave, built once."""
    folder = artifacts / "tutorial"
    with folder.with_name(".tutorial.building").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            write_samples(folder)
            with monkeypatch.context() as patch:
                patch.chdir(folder)
                block = next(b for b in read_blocks("README.md") if "bertpipe corpus" in b.text)
                Reader(folder, hub.url).run(block)
            (folder / "done").touch()
    return folder / "my"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[] if page in START_FROM_TEXT else pytest.mark.slow)
        for page in PAGES
        if page != PLAIN_LOOP and any(block.language in RUN for block in read_blocks(page))
    ],
)
def test_blocks_of_page_run_in_order(
    page: str, reader: Reader, request: pytest.FixtureRequest
) -> None:
    if page not in START_FROM_TEXT:
        shutil.copytree(request.getfixturevalue("tutorial"), reader.folder / "my")
    for block in read_blocks(page):
        reader.run(block)


def test_every_block_is_run_or_marked_as_text() -> None:
    for page in PAGES:
        for block in read_blocks(page):
            assert block.language in RUN + NOT_RUN, f"{block}: {block.language!r}"


@pytest.mark.slow
def test_plain_pytorch_loop_learns_from_examples(
    reader: Reader,
    corpus_folder: Path,
    wordpiece_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (reader.folder / "my").mkdir()
    (reader.folder / "my" / "corpus").symlink_to(corpus_folder)
    (reader.folder / "my" / "tokenizer").symlink_to(wordpiece_folder)
    for block in read_blocks(PLAIN_LOOP):
        reader.run(block)
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", capsys.readouterr().out)]
    assert len(losses) >= 4
    assert losses[-2] < losses[0] - 0.5, "the loop does not learn"
    assert losses[-1] < losses[0] - 0.5, "rows padded by --pad are read differently"
