"""The source `python-docs`: what is kept of docstrings, files and packages."""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path

import pytest

from bert_pipeline.corpus.sources.python_docs import harvest as harvest_module
from bert_pipeline.corpus.sources.python_docs import packages
from bert_pipeline.corpus.sources.python_docs.docstrings import extract_paragraphs
from bert_pipeline.corpus.sources.python_docs.harvest import ModuleProse, drop_repeated, harvest
from bert_pipeline.corpus.sources.python_docs.packages import ModuleFile, split_evenly


def test_docstring_hard_wrapped_lines_are_joined():
    text = """Return the name of the file.

    The name is that of the file which was
    opened first, even if it is
    closed by now.
    """
    assert extract_paragraphs(text) == [
        "Return the name of the file.",
        "The name is that of the file which was opened first, even if it is closed by now.",
    ]


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        (
            "Set ``limit`` to the size of `x` if it is **not** known.",
            "Set limit to the size of x if it is not known.",
        ),
        (
            "See :class:`~a.b.Reader` and :func:`a.write` for the rest of it.",
            "See Reader and a.write for the rest of it.",
        ),
        (
            "This is the [`Trainer`] of the [paper](https://x.org/a_(b)) on it.",
            "This is the Trainer of the paper on it.",
        ),
        (
            "It is described in `the manual <https://x.org>`_ and in [1]_.",
            "It is described in the manual and in.",
        ),
        (
            "<Tip>This is the place for it.</Tip> It is &lt;small&gt;.",
            "This is the place for it. It is <small>.",
        ),
        (
            "The {model} is that of the __init__ method, called with the same **kwargs as before.",
            "The model is that of the __init__ method, called with the same **kwargs as before.",
        ),
        (
            r"The loss is :math:`\frac{a}{b}` with the weight $\alpha$ of the class.",
            "The loss is a/b with the weight alpha of the class.",
        ),
        (
            "This is the end. See https://x.org/y for more. It is all.",
            "This is the end. It is all.",
        ),
    ],
)
def test_docstring_markup_is_replaced_with_its_words(marked: str, plain: str):
    assert extract_paragraphs(marked) == [plain]


@pytest.mark.parametrize(
    "block",
    [
        ">>> the = a.is_of(this)\nthe result that is printed\n",
        "Example::\n\n    this is for the_code(a, b)\n",
        "```python\nthis is the code of the example\n```\n",
        ".. code-block:: python\n\n    this is the code of the example\n",
        ".. [1] The author of the paper, in the journal.\n",
        "References\n----------\nThe author of the paper, in the journal.\n\nNotes\n-----\n",
        "===== ======\nthe   of the\n===== ======\nthis  is a table of the values\n===== ======\n",
        "| this is | a table of the values |\n",
        "+--------+\n| the    |\n+--------+\n",
        "read(the, a, of=None) -> this\n",
        "import this\nfor the in a.of_the():\n    is_the(this)\n",
        ":copyright: Copyright by the authors of the program.\n",
        ":rtype: the type of the result\n",
        "Licensed under the terms of the licence that is in the file.\n",
        "https://example.org/the/page/of/this\n",
        "a b\n",
    ],
)
def test_docstring_blocks_that_are_not_prose_are_removed(block: str):
    text = f"The first sentence is kept.\n\n{block}\nThe last one is kept, too."
    assert extract_paragraphs(text) == ["The first sentence is kept.", "The last one is kept, too."]


@pytest.mark.parametrize(
    "style",
    [
        "Args:\n    size (int, *optional*, defaults to `3`): The size of\n        the sample.\n"
        "    seed: where to start from.\n",
        "Parameters\n----------\nsize : int or None\n    The size of\n    the sample.\n"
        "seed : int\n    where to start from.\n",
        ":param size: The size of\n    the sample.\n:type size: int\n"
        ":param int seed: where to start from.\n",
        "Args:\n    size (`torch.Tensor` of shape `(batch, 3)`):\n"
        "        The size of the\n        sample.\n"
        "    seed (`int`):\n        where to start from.\n",
    ],
    ids=["google", "numpy", "sphinx", "transformers"],
)
def test_docstring_parameter_descriptions_are_kept(style: str):
    paragraphs = extract_paragraphs(f"Draw a sample of the data.\n\n{style}")
    assert [text.capitalize() for text in paragraphs] == [
        "Draw a sample of the data.",
        "The size of the sample.",
        "Where to start from.",
    ]


def test_docstring_notes_are_kept_without_directive():
    text = (
        "A sentence to begin with.\n\n.. note::\n    It is not safe to use this\n    in threads.\n"
    )
    assert extract_paragraphs(text) == [
        "A sentence to begin with.",
        "It is not safe to use this in threads.",
    ]


def write_module(path: Path, text: str) -> ModuleFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return ModuleFile(path.stem, str(path), path.stat().st_size)


SOURCE = '''"""This module is about the sea."""
raise RuntimeError("imported")
DEPTH = 3
"""How deep the water is, in fathoms."""

@describe(intro="""
    The boat is made of wood and of iron.
""")
class Boat:
    def sail(self):
        """Leave the harbour with the tide.""" ; print("""this is not for the reader
        at all, so it is left out""")
        class Inner:
            """The crew is below the deck."""

add_docstr(Boat.moor, r"""
moor(self) -> None

Come back to the harbour in the evening.
""")
'''


def test_harvest_reads_docstrings_in_order_without_importing(tmp_path: Path):
    result = harvest([write_module(tmp_path / "sea.py", SOURCE)])
    assert result.documents == [
        ModuleProse(
            "sea",
            [
                "This module is about the sea.",
                "How deep the water is, in fathoms.",
                "The boat is made of wood and of iron.",
                "Leave the harbour with the tide.",
                "The crew is below the deck.",
                "Come back to the harbour in the evening.",
            ],
        )
    ]
    assert "sea" not in sys.modules


def test_harvest_counts_files_without_documents_by_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(harvest_module, "MAX_FILE_BYTES", 1000)
    latin = tmp_path / "latin.py"
    latin.write_bytes(b'"""caf\xe9 is a word of the French"""')
    files = [
        write_module(tmp_path / "broken.py", '"""This is a broken file."""\ndef ('),
        ModuleFile("latin", str(latin), 30),
        ModuleFile("absent", str(tmp_path / "absent.py"), 30),
        write_module(tmp_path / "bare.py", "x = 1\n"),
        write_module(tmp_path / "terse.py", '"""Todo."""\n'),
        write_module(tmp_path / "large.py", '"""The sea is large."""\n' + "x = 1\n" * 500),
        write_module(
            tmp_path / "deep.py",
            '"""The sea is deep."""\ndoc = ' + "-\\\n" * 90 + "(" * 300 + ")" * 300,
        ),
        write_module(tmp_path / "good.py", '"""The sea is blue and calm."""\nx = "\\d"\n'),
    ]
    result = harvest(files)
    assert [document.id for document in result.documents] == ["good"]
    assert result.skipped == {
        "not Python": 3,
        "unreadable": 1,
        "no docstring": 1,
        "no prose": 1,
        "too large": 1,
    }
    assert pickle.loads(pickle.dumps(result)) == result  # noqa: S301


def test_drop_repeated_keeps_first_occurrence_of_paragraphs(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(harvest_module, "MIN_DOCUMENT_CHARS", 20)
    documents = [
        ModuleProse("a", ["Return the size of the tensor.", "Number of layers in the BertModel."]),
        ModuleProse("b", ["return the size of the tensor.", "A sentence that nothing repeats."]),
        ModuleProse("c", ["Number of layers in the BertModel."]),
    ]
    assert list(drop_repeated(documents)) == [
        documents[0],
        ModuleProse("b", ["A sentence that nothing repeats."]),
    ]


def test_drop_repeated_skips_short_documents():
    assert list(drop_repeated([ModuleProse("a", ["This is too short for a document."])])) == []


def test_split_evenly_makes_consecutive_chunks():
    files = [ModuleFile(str(number), "", size) for number, size in enumerate([5, 5, 30, 1, 1, 1])]
    chunks = list(split_evenly(files, chunk_bytes=10))
    assert [[file.size for file in chunk] for chunk in chunks] == [[5, 5], [30], [1, 1, 1]]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution "sea-tools" whose package "seatools" must not be imported."""
    package = tmp_path / "seatools"
    write_module(package / "__init__.py", 'raise RuntimeError("imported")\n')
    write_module(package / "boats.py", '"""The boats are in the harbour."""\n')
    write_module(package / "deep" / "fish.py", '"""The fish is in the sea."""\n')
    write_module(package / "tests" / "test_fish.py", '"""The fish is not in the sea."""\n')
    write_module(
        tmp_path / "sea_tools-1.2.dist-info" / "METADATA", "Name: sea-tools\nVersion: 1.2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return package


@pytest.mark.usefixtures("installed")
def test_find_package_without_import_and_tests():
    package = packages.find_package("sea-tools", "seatools")
    assert package is not None
    assert (package.name, package.version) == ("seatools", "1.2")
    assert [file.module for file in package.files] == [
        "seatools",
        "seatools.boats",
        "seatools.deep.fish",
    ]
    assert "seatools" not in sys.modules
    assert packages.find_package("no-such-distribution", "seatools") is None


def test_standard_library_documentation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packages, "PACKAGES", ())
    [standard] = packages.installed_packages()
    assert standard == packages.installed_packages()[0]
    assert not [
        file for file in standard.files if ".test" in file.module or "site-packages" in file.path
    ]
    files = [
        file
        for file in standard.files
        if file.module.split(".")[0] in {"email", "logging", "pydoc_data"}
    ]
    expected = harvest(files).documents
    parts = [
        document for chunk in split_evenly(files, 50_000) for document in harvest(chunk).documents
    ]
    assert parts == expected
    documents = list(drop_repeated(expected))
    assert {"email.message", "logging", "pydoc_data.topics.compound"} <= {
        document.id for document in documents
    }
    paragraphs = [text for document in documents for text in document.paragraphs]
    assert 300_000 < sum(map(len, paragraphs)) < 1_000_000
    assert not [text for text in paragraphs if ">>>" in text or "``" in text or "\n" in text]
    assert sum(" the " in text or "The " in text for text in paragraphs) > len(paragraphs) / 2
