"""Files of the Hub that are read as a stream, and whose hash is compared at their end.

The Hub gives one hash of the complete file. Rows have been passed on by then, so who catches
`ChangedOnTheWay` must discard them.
"""

import io
import tempfile
from typing import TYPE_CHECKING, Any

from bert_pipeline.errors import BertpipeError
from bert_pipeline.hub.responses import start_digest

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_CHUNK_BYTES = 1 << 20


class ChangedOnTheWay(BertpipeError):
    """The bytes of a file are not those that the Hub has."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name}: the bytes received differ from the hash that the Hub gives for the file, so "
            "they were changed on the way. What was read of it is discarded. Rerun the same "
            "command to read it again."
        )

    def __reduce__(self) -> tuple[type, tuple[str]]:
        """For worker processes: made again from the name."""
        return type(self), (str(self).partition(": the bytes received")[0],)


class CheckedFile(io.RawIOBase):
    """A file on the Hub, read from its start to its end."""

    def __init__(self, file: Any, name: str) -> None:
        """`file` is opened by `HfFileSystem`; `name` is for messages."""
        super().__init__()
        self._file = file
        self._name = name
        facts = file.details
        self.size: int = facts["size"]
        self._hash: str = facts["lfs"].sha256 if facts["lfs"] else facts["blob_id"]
        self._digest = start_digest(self._hash, self.size)

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Read the next bytes."""
        view = memoryview(buffer).cast("B")
        chunk = self._file.read(len(view))
        view[: len(chunk)] = chunk
        if self._digest:
            self._digest.update(chunk)
        return len(chunk)

    def check(self) -> None:
        """Read what is left; raises `ChangedOnTheWay` when the content differs from its hash."""
        if self._digest is None:
            return
        while self.read(_CHUNK_BYTES):
            pass
        if self._digest.hexdigest() != self._hash:
            raise ChangedOnTheWay(self._name)


class SpooledFile(io.RawIOBase):
    """The same with random access: what is before the place that is read is kept on disk."""

    def __init__(self, file: CheckedFile) -> None:
        super().__init__()
        self._file = file
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self._place = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The place of the next byte."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the place of the next byte."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.size}[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Read from the disk, after what is missing has been downloaded."""
        view = memoryview(buffer).cast("B")
        end = min(self._place + len(view), self._file.size)
        self._download(end)
        self._spool.seek(self._place)
        size = self._spool.readinto(view[: max(end - self._place, 0)])
        self._place += size
        return size

    def complete(self) -> None:
        """Download what is left."""
        self._download(self._file.size)

    def _download(self, end: int) -> None:
        written = self._spool.seek(0, io.SEEK_END)
        while written < end and (chunk := self._file.read(max(end - written, _CHUNK_BYTES))):
            written += self._spool.write(chunk)

    def close(self) -> None:
        """Remove the file on disk."""
        self._spool.close()
        super().close()
