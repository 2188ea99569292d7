"""The documentation of the installed Python as a corpus: docstrings, and the language reference, without a download.

Any machine that runs this package holds megabytes of English about programming: the docstrings of the standard
library and of our dependencies, and the reference behind `help("topics")`. The sources are parsed, never imported.
A document is a module or a topic; `bert_pipeline.corpus.sources.python_docs.docstrings` says what of a docstring is kept.

The work is cut so that an engine can spread it over processes and still get the same corpus in the same order:

- `installed_packages` lists files, in corpus order, and opens none;
- `split_evenly` cuts a list of files into consecutive chunks of about equal bytes, since parsing costs by the byte;
- `harvest` is a pure function of the files of one chunk, for a worker process;
- `drop_repeated` sees all the documents in corpus order and keeps each paragraph where it occurs first,
  whatever its case.

The packages are a fixed list of what this project needs at run time, so a corpus never changes because a test tool
was installed; it does change with the versions, which is why `Package` carries them.
"""

from __future__ import annotations

import ast
import gc
import importlib.metadata
import importlib.util
import platform
import re
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bert_pipeline.corpus.sources.python_docs.docstrings import extract_paragraphs

# Distribution and top-level module: what bertpipe depends on, directly or not, that has prose to give.
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
SMALLEST_DOCUMENT = 200  # characters
LARGEST_FILE = 4_000_000  # bytes; larger sources are generated tables
TOPICS_MODULE = "pydoc_data.topics"

_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "testing", "idle_test", "_vendor", "_bundled", "site-packages"}
)
# transformers generates its model files from these, docstrings and all.
_SKIPPED_FILES = "modular_"
_DOC_NAME = re.compile(r"doc|description|intro|summary|notes?$|_args$|parse_kwargs", re.IGNORECASE)
_TRIPLE_QUOTES = (b'"""', b"'''")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class ModuleFile:
    """A source file, under the name its module is imported by."""

    module: str
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Package:
    """An installed distribution, or the standard library, and its source files sorted by module name."""

    name: str
    version: str
    files: tuple[ModuleFile, ...]


@dataclass(frozen=True, slots=True)
class ModuleProse:
    """A document: the paragraphs of one module or topic, each a single line."""

    id: str
    paragraphs: list[str]


@dataclass(frozen=True, slots=True)
class Harvest:
    """What a chunk of files gave: documents in the order of the files, and how many files gave none, by reason."""

    documents: list[ModuleProse] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def installed_packages() -> list[Package]:
    """List the standard library and those of `PACKAGES` that are installed; folders are read, files are not."""
    standard = Package("python", platform.python_version(), _list_standard_library())
    return [standard, *filter(None, (find_package(*names) for names in PACKAGES))]


def find_package(distribution: str, module: str) -> Package | None:
    """Find an installed package without importing it; `None` where it is not installed."""
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
    """Cut `files` into consecutive chunks that end with the file that brings them to `chunk_bytes`."""
    chunk: list[ModuleFile] = []
    size = 0
    for file in files:
        chunk.append(file)
        size += file.size
        if size >= chunk_bytes:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def harvest(files: Sequence[ModuleFile]) -> Harvest:
    """Read the prose of `files`: one document for a module, one for each topic of the language reference."""
    result = Harvest()
    collecting = gc.isenabled()
    # A syntax tree is a million small objects without cycles: the collector would only walk it again and again.
    gc.disable()
    try:
        for file in files:
            documents, reason = _read(file)
            result.documents.extend(documents)
            if reason:
                result.skipped[reason] += 1
    finally:
        if collecting:
            gc.enable()
    return result


def drop_repeated(documents: Iterable[ModuleProse]) -> Iterator[ModuleProse]:
    """Keep each paragraph where it occurs first; pass over documents that are left with next to nothing."""
    seen: set[str] = set()
    for document in documents:
        kept = []
        for paragraph in document.paragraphs:
            key = paragraph.casefold()
            if key not in seen:
                seen.add(key)
                kept.append(paragraph)
        if sum(map(len, kept)) >= SMALLEST_DOCUMENT:
            yield ModuleProse(document.id, kept)


def _list_standard_library() -> tuple[ModuleFile, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    files: list[ModuleFile] = []
    # By name, because the folder may hold anything else as well: the test suite, site-packages, leftovers.
    for name in sorted(sys.stdlib_module_names):
        if (root / name).is_dir():
            files.extend(_list_modules(root / name, name))
        elif (root / f"{name}.py").is_file():
            files.append(_describe(root / f"{name}.py", name))
    return _sort(files)


def _list_modules(folder: Path, package: str) -> Iterator[ModuleFile]:
    for path in folder.iterdir():
        name = f"{package}.{path.stem}"
        if path.suffix == ".py" and not path.name.startswith(_SKIPPED_FILES) and path.is_file():
            yield _describe(path, package if path.stem == "__init__" else name)
        elif path.is_dir() and path.name.isidentifier() and path.name not in _SKIPPED_FOLDERS:
            yield from _list_modules(path, name)


def _describe(path: Path, module: str) -> ModuleFile:
    return ModuleFile(module, str(path), path.stat().st_size)


def _sort(files: Iterable[ModuleFile]) -> tuple[ModuleFile, ...]:
    return tuple(sorted(files, key=lambda file: (file.module, file.path)))


def _read(file: ModuleFile) -> tuple[list[ModuleProse], str]:
    """Return the documents of a source file or, if there are none, the reason."""
    if file.size > LARGEST_FILE:
        return [], "too large"
    try:
        source = Path(file.path).read_bytes()
        # Parsing costs most, and a docstring that is not in triple quotes is rarely worth it.
        if not any(quotes in source for quotes in _TRIPLE_QUOTES) and file.module != TOPICS_MODULE:
            return [], "no docstring"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        if file.module == TOPICS_MODULE:
            return list(_read_topics(tree)), ""
        paragraphs = [line for text in _documentation(tree) for line in extract_paragraphs(text)]
    except OSError:
        return [], "unreadable"
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [], "not Python"  # wrong encodings among them, which are syntax errors, too
    return ([ModuleProse(file.module, paragraphs)], "") if paragraphs else ([], "no prose")


def _read_topics(tree: ast.Module) -> Iterator[ModuleProse]:
    """Yield the documents of the language reference, which is one assignment of a dictionary of texts."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(
            statement.value, ast.Dict
        ):
            for topic, text in sorted(ast.literal_eval(statement.value).items()):
                yield ModuleProse(f"{TOPICS_MODULE}.{topic}", extract_paragraphs(text))


def _documentation(tree: ast.Module) -> Iterator[str]:
    """Yield the docstrings of a module in source order, with the texts that its statements attach to other objects."""
    pending: list[ast.stmt] = list(reversed(tree.body))
    while pending:
        statement = pending.pop()
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            # The first one of a body is its docstring, one after an assignment documents the attribute.
            if isinstance(statement.value.value, str):
                yield statement.value.value
        elif isinstance(statement, (*_FUNCTIONS, ast.ClassDef)):
            for decorator in statement.decorator_list:
                yield from _attached_texts(decorator)
            if isinstance(statement, _FUNCTIONS):
                for argument in (
                    statement.args.posonlyargs + statement.args.args + statement.args.kwonlyargs
                ):
                    if argument.annotation is not None:
                        yield from _attached_texts(argument.annotation)
            pending.extend(reversed(_bodies(statement)))
        elif isinstance(statement, ast.If | ast.Try | ast.With | ast.For | ast.While):
            pending.extend(reversed(_bodies(statement)))
        elif isinstance(statement, ast.Expr | ast.Assign | ast.AnnAssign | ast.AugAssign):
            yield from _attached_texts(statement)


def _bodies(statement: ast.stmt) -> list[ast.stmt]:
    """Return the statements inside `statement` that may hold documentation."""
    if isinstance(statement, _FUNCTIONS):
        # Nothing that a function does when called documents anything but the functions it defines.
        first = [node for node in statement.body[:1] if isinstance(node, ast.Expr)]
        return first + [
            node for node in statement.body if isinstance(node, (*_FUNCTIONS, ast.ClassDef))
        ]
    found: list[ast.stmt] = []
    for name in ("body", "handlers", "orelse", "finalbody"):
        for node in getattr(statement, name, []):
            found.extend(node.body if isinstance(node, ast.ExceptHandler) else [node])
    return found


def _attached_texts(node: ast.AST, named: bool = False) -> Iterator[str]:
    """Yield the strings of several lines that a call, an assignment or a key presents as documentation by its name.

    Such are `add_docstr(f, "...")`, `@auto_docstring(intro="...")`, `Doc("...")` and `_doc["x"] = "..."`.
    """
    if getattr(node, "end_lineno", None) == getattr(node, "lineno", 0):
        return
    if isinstance(node, ast.Constant):
        if named and isinstance(node.value, str):
            yield node.value
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            yield from _attached_texts(value, named or _names_documentation(key))
    else:
        targets = [
            *getattr(node, "targets", []),
            *(getattr(node, name, None) for name in ("target", "func", "arg", "slice")),
        ]
        named = named or any(map(_names_documentation, targets))
        for child in ast.iter_child_nodes(node):
            yield from _attached_texts(child, named)


def _names_documentation(node: object) -> bool:
    """Whether an identifier, an attribute, a subscript or a key says that it holds documentation."""
    if isinstance(node, ast.Subscript):
        return _names_documentation(node.value) or _names_documentation(node.slice)
    if isinstance(node, ast.Name):
        node = node.id
    elif isinstance(node, ast.Attribute):
        node = node.attr
    elif isinstance(node, ast.Constant):
        node = node.value
    return isinstance(node, str) and bool(_DOC_NAME.search(node))
