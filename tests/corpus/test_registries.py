"""The registries of source kinds and cleaning steps: complete, documented and light to import."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from bert_pipeline.config import build_config
from bert_pipeline.corpus.cleaning.registry import CLEANING_STEPS, STEP_SETS
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.sources.registry import SOURCES, find_kind, is_hub
from bert_pipeline.errors import UsageError


@pytest.mark.parametrize("kind", SOURCES.values(), ids=lambda kind: kind.name)
def test_every_source_kind_has_a_module_and_is_in_the_help(kind):
    module = import_module(f"bert_pipeline.corpus.sources.{kind.module}")
    assert callable(module.open_source)
    assert f"`{kind.usage}`" in str(CorpusConfig.model_fields["source"].description).replace(
        "\n", " "
    )


@pytest.mark.parametrize("step", CLEANING_STEPS.values(), ids=lambda step: step.name)
def test_every_cleaning_step_has_a_function_and_is_in_the_help(step):
    if step.action != "deduplicate":
        module, _, function = step.function.partition(":")
        module = import_module(f"bert_pipeline.corpus.cleaning.{module}")
        assert callable(getattr(module, function))
    assert step.name in str(CorpusConfig.model_fields["clean"].description)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("python-docs", "python-docs"),
        ("wikitext-103", "wikitext-103"),
        ("oscar:fa", "oscar"),
        ("hub:me/data:config", "hub"),
        ("text:a:b/*.txt", "text"),
        ("python-docs:x", None),
        ("text", None),
        ("wikitext", None),
        ("", None),
    ],
)
def test_find_kind_of_source(spec: str, name: str | None):
    kind = find_kind(spec)
    assert (kind and kind.name) == name
    assert is_hub(spec) == (name in ("wikitext-103", "oscar", "hub"))


@pytest.mark.parametrize(
    ("clean", "expected"),
    [
        ("none", ()),
        ("basic", ("unicode", "control", "whitespace")),
        (["near,html", "basic"], ("html", "unicode", "control", "whitespace", "near")),
        ("web", tuple(name for name in CLEANING_STEPS if name not in ("nfkc", "c4", "fineweb"))),
    ],
)
def test_clean_option_accepts_sets_lists_and_commas(clean: object, expected: tuple[str, ...]):
    given = {"out": Path("x"), "source": "text:x", "clean": clean}
    assert build_config(CorpusConfig, given).clean == expected


def test_unknown_cleaning_step_lists_sets_and_steps():
    given = {"out": Path("x"), "source": "text:x", "clean": "basic,boat"}
    with pytest.raises(UsageError, match=r"boat is unknown\. Sets: none, basic, web\. Steps: moji"):
        build_config(CorpusConfig, given)
    assert set(STEP_SETS).isdisjoint(CLEANING_STEPS)


@pytest.mark.integration
def test_config_does_not_import_heavy_packages():
    code = (
        "import sys, bert_pipeline.corpus.config; "
        "print(sorted({'torch', 'pyarrow', 'datasets', 'numpy', 'datatrove'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
