"""Reads the documentation in Python files, by parsing them; nothing is imported or executed.

A document is a module, or a topic of the language reference (`help("topics")`).
"""

import ast
import gc
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bert_pipeline.corpus.sources.python_docs.docstrings import extract_paragraphs
from bert_pipeline.corpus.sources.python_docs.packages import ModuleFile

MIN_DOCUMENT_CHARS = 200
MAX_FILE_BYTES = 4_000_000
"""Larger source files are generated tables."""
TOPICS_MODULE = "pydoc_data.topics"

_DOC_NAME = re.compile(r"doc|description|intro|summary|notes?$|_args$|parse_kwargs", re.IGNORECASE)
_TRIPLE_QUOTES = (b'"""', b"'''")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class ModuleProse:
    """A document: the paragraphs of one module or topic, each on one line."""

    id: str
    paragraphs: list[str]


@dataclass(frozen=True, slots=True)
class Harvest:
    """The documents in a chunk of files, in order, and the number of other files by reason."""

    documents: list[ModuleProse] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def harvest(files: Sequence[ModuleFile]) -> Harvest:
    """Read the documents in some files; a pure function, for worker processes."""
    result = Harvest()
    collecting = gc.isenabled()
    # A syntax tree is a million small objects without cycles, which would slow the collector down.
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
    """Keep the first occurrence of each paragraph, ignoring case; skip documents that get short."""
    seen: set[str] = set()
    for document in documents:
        kept = []
        for paragraph in document.paragraphs:
            key = paragraph.casefold()
            if key not in seen:
                seen.add(key)
                kept.append(paragraph)
        if sum(map(len, kept)) >= MIN_DOCUMENT_CHARS:
            yield ModuleProse(document.id, kept)


def _read(file: ModuleFile) -> tuple[list[ModuleProse], str]:
    """The documents in a source file, or the reason why there are none."""
    if file.size > MAX_FILE_BYTES:
        return [], "too large"
    try:
        source = Path(file.path).read_bytes()
        # Parsing is slow, and docstrings without triple quotes are rarely useful.
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
        return [], "not Python"  # also wrong encodings, which are syntax errors
    return ([ModuleProse(file.module, paragraphs)], "") if paragraphs else ([], "no prose")


def _read_topics(tree: ast.Module) -> Iterator[ModuleProse]:
    """The documents of the language reference, which is a dictionary of texts."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(
            statement.value, ast.Dict
        ):
            for topic, text in sorted(ast.literal_eval(statement.value).items()):
                yield ModuleProse(f"{TOPICS_MODULE}.{topic}", extract_paragraphs(text))


def _documentation(tree: ast.Module) -> Iterator[str]:
    """The docstrings of a module, and texts that it attaches to other objects, in source order."""
    pending: list[ast.stmt] = list(reversed(tree.body))
    while pending:
        statement = pending.pop()
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            # The first of a body is its docstring, one after an assignment documents the attribute.
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
    """The statements inside a statement that may have documentation."""
    if isinstance(statement, _FUNCTIONS):
        # In the body of a function, only its docstring and the functions in it are documentation.
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
    """Multi-line strings that a call, an assignment or a key names as documentation.

    Such as `add_docstr(f, "...")`, `@auto_docstring(intro="...")`, `Doc("...")` and
    `_doc["x"] = "..."`.
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
    """Whether an identifier, attribute, subscript or key is named like documentation."""
    if isinstance(node, ast.Subscript):
        return _names_documentation(node.value) or _names_documentation(node.slice)
    if isinstance(node, ast.Name):
        node = node.id
    elif isinstance(node, ast.Attribute):
        node = node.attr
    elif isinstance(node, ast.Constant):
        node = node.value
    return isinstance(node, str) and bool(_DOC_NAME.search(node))
