"""File locks (flock), which end with their process."""

import errno
import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bert_pipeline.errors import BertpipeError

UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""Error numbers of file systems without locks."""


class LockFile:
    """A file to lock; the lock is held as long as this object is referenced."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")
        weakref.finalize(self, self._file.close)

    def lock(self, operation: int) -> bool:
        """Lock the file (`fcntl.flock`); False when that would have to wait (`LOCK_NB`).

        Raises `BertpipeError` when the file system has no locks.
        """
        try:
            fcntl.flock(self._file, operation)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            raise BertpipeError(
                f"{Path(self._file.name).parent}: its file system has no file locks (flock: "
                f"{os.strerror(error.errno)}). Use a folder on another file system, or mount this "
                "one with locks."
            ) from None
        return True

    def is_at(self, path: Path) -> bool:
        """Whether `path` is still this file."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), path.stat())
        except FileNotFoundError:
            return False


@contextmanager
def locked_folder(target: Path) -> Iterator[None]:
    """Keep other processes from writing `target`. Raises `BertpipeError` when one does."""
    path = target.with_name(f".{target.name}.lock")
    while True:
        file = LockFile(path)
        if not file.lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
            raise BertpipeError(
                f"{target}: another bertpipe process writes this folder. Wait for it or stop it."
            )
        if file.is_at(path):  # else the previous owner has just removed it
            break
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
