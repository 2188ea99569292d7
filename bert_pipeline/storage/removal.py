"""Removal of what bertpipe wrote to a folder, and of nothing else."""

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from bert_pipeline.storage.atomic import checked_files, checksum_path
from bert_pipeline.storage.manifest import UNFINISHED

LEFTOVER = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
"""Names of the temporary files of `atomic`."""


def remove_written(folder: Path, working: Sequence[str], listed: Iterable[str] = ()) -> None:
    """Remove the `listed` files, files with a recorded hash, and `working` (globs).

    Other files stay, and so does the manifest: a removal that was killed can be repeated. Folders
    in which nothing is left are removed.
    """
    for name in listed:
        _remove(folder / name, folder)
    for file in checked_files(folder):
        _remove(file, folder)
        _remove(checksum_path(file), folder)
    for pattern in working:
        for path in list(folder.glob(pattern)):
            _remove(path, folder)
    remove_leftovers(folder)
    _remove(folder / UNFINISHED, folder)


def remove_checksums(folder: Path) -> None:
    """Remove the recorded hashes of the files in a folder, when its manifest has them."""
    for file in checked_files(folder):
        checksum_path(file).unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that a killed run left."""
    for pattern in (".*.tmp", "*/.*.tmp"):
        for path in list(folder.glob(pattern)):
            if path.is_dir() or LEFTOVER.fullmatch(path.name):
                _remove(path, folder)


def _remove(path: Path, folder: Path) -> None:
    """Remove a file or folder, and the folders up to `folder` that are then empty."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    parent = path.parent
    while parent.is_relative_to(folder) and parent.is_dir() and not any(parent.iterdir()):
        parent.rmdir()
        parent = parent.parent
