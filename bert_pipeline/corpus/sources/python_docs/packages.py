"""Finds the Python files of the installed packages, without importing or opening them.

The packages are a fixed list of run-time dependencies of this project, so that the corpus does not
depend on other installed packages. It does depend on their versions, which `Package` has.
"""

import importlib.metadata
import importlib.util
import platform
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Distribution and top-level module of the direct and indirect dependencies that have documentation.
PACKAGES: tuple[tuple[str, str], ...] = (
    ("numpy", "numpy"),
    ("pandas", "pandas"),
    ("networkx", "networkx"),
    ("sympy", "sympy"),
    ("mpmath", "mpmath"),
    ("torch", "torch"),
    ("torch", "functorch"),
    ("transformers", "transformers"),
    ("tokenizers", "tokenizers"),
    ("datasets", "datasets"),
    ("accelerate", "accelerate"),
    ("huggingface_hub", "huggingface_hub"),
    ("safetensors", "safetensors"),
    ("pyarrow", "pyarrow"),
    ("pydantic", "pydantic"),
    ("pydantic_core", "pydantic_core"),
    ("typer", "typer"),
    ("rich", "rich"),
    ("pygments", "pygments"),
    ("markdown-it-py", "markdown_it"),
    ("Jinja2", "jinja2"),
    ("fsspec", "fsspec"),
    ("filelock", "filelock"),
    ("packaging", "packaging"),
    ("setuptools", "setuptools"),
    ("regex", "regex"),
    ("tqdm", "tqdm"),
    ("psutil", "psutil"),
    ("dill", "dill"),
    ("python-dateutil", "dateutil"),
    ("PyYAML", "yaml"),
)

_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "testing", "idle_test", "_vendor", "_bundled", "site-packages"}
)
_SKIPPED_PREFIX = "modular_"
"""transformers generates its model files from these, including the docstrings."""


@dataclass(frozen=True, slots=True)
class ModuleFile:
    """A source file and the name of its module."""

    module: str
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Package:
    """An installed distribution or the standard library; its files are sorted by module name."""

    name: str
    version: str
    files: tuple[ModuleFile, ...]


def installed_packages() -> list[Package]:
    """The standard library and those of `PACKAGES` that are installed, in corpus order."""
    standard = Package("python", platform.python_version(), _list_standard_library())
    return [standard, *filter(None, (find_package(*names) for names in PACKAGES))]


def find_package(distribution: str, module: str) -> Package | None:
    """An installed package; None when it is not installed."""
    try:
        version = importlib.metadata.version(distribution)
        spec = importlib.util.find_spec(module)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    folders = sorted((spec.submodule_search_locations or []) if spec else [])
    files = [file for folder in folders for file in _list_modules(Path(folder), module)]
    return Package(module, version, _sort(files))


def split_evenly(
    files: Iterable[ModuleFile], chunk_bytes: int = 2_000_000
) -> Iterator[list[ModuleFile]]:
    """Split files into consecutive chunks of at least `chunk_bytes`: parsing time is per byte."""
    chunk: list[ModuleFile] = []
    size = 0
    for file in files:
        chunk.append(file)
        size += file.size
        if size >= chunk_bytes:
            yield chunk
            chunk = []
            size = 0
    if chunk:
        yield chunk


def _list_standard_library() -> tuple[ModuleFile, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    files: list[ModuleFile] = []
    # By name, because the folder has other files too: the test suite, site-packages.
    for name in sorted(sys.stdlib_module_names):
        if (root / name).is_dir():
            files.extend(_list_modules(root / name, name))
        elif (root / f"{name}.py").is_file():
            files.append(_describe(root / f"{name}.py", name))
    return _sort(files)


def _list_modules(folder: Path, package: str) -> Iterator[ModuleFile]:
    for path in folder.iterdir():
        name = f"{package}.{path.stem}"
        if path.suffix == ".py" and not path.name.startswith(_SKIPPED_PREFIX) and path.is_file():
            yield _describe(path, package if path.stem == "__init__" else name)
        elif path.is_dir() and path.name.isidentifier() and path.name not in _SKIPPED_FOLDERS:
            yield from _list_modules(path, name)


def _describe(path: Path, module: str) -> ModuleFile:
    return ModuleFile(module, str(path), path.stat().st_size)


def _sort(files: Iterable[ModuleFile]) -> tuple[ModuleFile, ...]:
    return tuple(sorted(files, key=lambda file: (file.module, file.path)))
