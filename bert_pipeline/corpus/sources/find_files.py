"""Finds the local files that match a pattern."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path


def find_files(pattern: str) -> list[Path]:
    """Files and folders that match, sorted.

    As `glob.glob`, but `**` enters each folder only once. `glob` follows symbolic links also in
    circles: two links to their own folder have 2 to the power of 40 paths.
    """
    return sorted(set(map(Path, _expand(pattern))))


def _expand(pattern: str) -> Iterator[str]:
    parts = Path(pattern).parts
    if "**" not in parts:
        # Not Path.glob: a pattern may be absolute, or a plain path without a wildcard.
        yield from glob.glob(pattern)  # noqa: PTH207
        return
    place = parts.index("**")
    rest = parts[place + 1 :] or ("*",)
    for start in glob.glob(str(Path(*parts[:place]))):  # noqa: PTH207
        for folder in _walk(start):
            yield from _expand(str(Path(glob.escape(folder), *rest)))


def _walk(start: str) -> Iterator[str]:
    """The folder and all below it, first those that need no symbolic link; hidden ones not."""
    entered: set[str] = set()
    pending = [start]
    for top in pending:  # grows
        for folder, names, _ in os.walk(top):
            real = os.path.realpath(folder)
            if real in entered:
                names.clear()
                continue
            entered.add(real)
            names[:] = sorted(name for name in names if not name.startswith("."))
            paths = [Path(folder, name) for name in names]
            pending += [str(path) for path in paths if path.is_symlink()]
            yield folder
