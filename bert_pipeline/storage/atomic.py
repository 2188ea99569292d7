"""Atomic writing of files and folders, and hashes."""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_pipeline.errors import BertpipeError

if TYPE_CHECKING:
    import numpy.typing as npt

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exceeded quota, and a too large file."""


def hash_json(value: object) -> str:
    """A hexadecimal SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """A hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is renamed to `path` when the block succeeds.

    It is synced to disk first. After an error it is removed.
    """
    # Not by process id, which is not unique between machines.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with explain_full_disk(path):
            yield temporary
            sync(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which replaces `path` when the block succeeds.

    It is synced to disk first. After an error it is removed and `path` is unchanged. Only one
    writer at a time: the temporary name is fixed, so that the next run removes what a killed run
    left.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with explain_full_disk(path):
            yield temporary
            for written in (*temporary.rglob("*"), temporary):
                sync(written)
            if path.exists():
                shutil.rmtree(path)
            temporary.rename(path)
            sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file or folder to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_array(path: Path, array: "npt.NDArray[Any]") -> None:
    """Write an array in `.npy` format, atomically."""
    import numpy as np

    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Convert the errors of all libraries for a full disk to one `BertpipeError`."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) in DISK_FULL or any(
            os.strerror(number) in str(error) for number in DISK_FULL
        ):
            raise BertpipeError(
                f"{path}: the disk is full. Free some space, and rerun the same command to resume; "
                "finished parts are kept."
            ) from None
        raise


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
        )
