"""Atomic writing of files and folders, and hashes.

A resumed run uses what an earlier one wrote only if it has not changed since: `checked` leaves the
hash of a working file beside it, until the artifact is finished and has a manifest.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_pipeline.errors import BertpipeError

if TYPE_CHECKING:
    import numpy.typing as npt

CHECKSUM = ".sha256"
"""Suffix of the files that have the hash of a working file."""
HASH = re.compile("[0-9a-f]{64}")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exceeded quota, and a too large file."""


def hash_json(value: object) -> str:
    """A hexadecimal SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """A hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_path(path: Path) -> Path:
    """The hidden file beside a working file that has its hash."""
    return path.with_name(f".{path.name}{CHECKSUM}")


def recorded_hash(path: Path) -> str | None:
    """The hash that `checked` recorded for a file; None without one."""
    try:
        recorded = checksum_path(path).read_text(encoding="ascii")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return recorded if HASH.fullmatch(recorded) else None


def is_intact(path: Path) -> bool:
    """Whether a working file exists and is as `checked` wrote it."""
    recorded = recorded_hash(path)
    return recorded is not None and path.is_file() and hash_file(path) == recorded


@contextmanager
def checked(path: Path) -> Iterator[Path]:
    """Like `atomic`, and records the hash of the file for `is_intact`."""
    with atomic(path) as temporary:
        yield temporary
        _record_hash(path, hash_file(temporary))


def checked_files(folder: Path, below: str = "") -> Iterator[Path]:
    """The files in a folder that have a recorded hash; with `**/` also in folders below."""
    for path in list(folder.glob(f"{below}.*{CHECKSUM}")):
        file = path.with_name(path.name[1 : -len(CHECKSUM)])
        if file.exists() and recorded_hash(file) is not None:
            yield file


def rename_checked(path: Path, target: Path) -> None:
    """Rename a working file, so that it is intact at every moment under one of the names."""
    if (recorded := recorded_hash(path)) is not None:
        _record_hash(target, recorded)
    path.replace(target)
    checksum_path(path).unlink(missing_ok=True)


def _record_hash(path: Path, value: str) -> None:
    with atomic(checksum_path(path)) as temporary:
        temporary.write_text(value, encoding="ascii")


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

    It is synced to disk first, and its files get the modes that new files have: some libraries
    write files that only their owner can read. After an error it is removed and `path` is
    unchanged. Only one writer at a time: the temporary name is fixed, so that the next run removes
    what a killed run left.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with explain_full_disk(path):
            yield temporary
            mode = temporary.stat().st_mode & 0o666  # the process's umask is not read safely
            for written in (*temporary.rglob("*"), temporary):
                if written.is_file():
                    written.chmod(mode)
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
    """Write an array in `.npy` format, atomically and with its hash (`checked`)."""
    import numpy as np

    with checked(path) as temporary, temporary.open("wb") as file:
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


def write_checked_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON mapping atomically, with its own hash under `sha256`."""
    write_json(path, {**value, "sha256": hash_json(value)})


def read_checked_json(path: Path) -> dict[str, Any]:
    """Read a mapping of `write_checked_json`; raises `ValueError` when it is damaged."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict) or value.pop("sha256", None) != hash_json(value):
        raise ValueError("its hash does not match")
    return value


def read_record(path: Path) -> dict[str, Any]:
    """Read a mapping of `write_checked_json`; empty when there is none, or it is damaged."""
    try:
        return read_checked_json(path) if path.is_file() else {}
    except ValueError:
        return {}


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
        )
