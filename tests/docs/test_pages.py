"""The README and docs/ agree with the code: links, file map, options, length."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of a page."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(text))
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name}: {target}"


def test_index_links_to_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = set(LINK.findall(index))
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or page.name in linked, page.name


def test_readme_is_short_and_fits_the_terminal() -> None:
    assert len(README.splitlines()) <= 150
    for block in re.findall(r"^```text\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            assert len(line) <= 80, line


def test_readme_names_quickstart_and_test_scripts() -> None:
    commands = re.findall(r"^scripts/\w+", README, flags=re.MULTILINE)
    assert commands == ["scripts/quickstart", "scripts/test"]


def test_options_page_is_generated_from_the_configs() -> None:
    generator = runpy.run_path(str(ROOT / "scripts" / "generate_options.py"))
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert page == generator["render"](), "run .venv/bin/python scripts/generate_options.py"


def test_architecture_page_names_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    file_map = page.split("## File map")[1].split("\n## ")[0]
    package = ROOT / "bert_pipeline"
    for path in package.rglob("*.py"):
        if not path.name.startswith("__"):
            assert re.search(rf"\b{re.escape(path.stem)}\b", file_map), path.relative_to(ROOT)


@pytest.mark.parametrize(
    "path",
    [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"],
    ids=lambda path: path.name,
)
def test_project_file_is_valid_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)
