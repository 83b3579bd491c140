"""Files packed by Zstandard, unpacked by pyarrow, since Python's own library has no Zstandard before 3.14."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

_PIECE = 1 << 16
"""Bytes unpacked at a time; of a file that is cut short, what lies in the last piece is lost."""


def open_zstd(file: BinaryIO) -> io.BufferedReader:
    """Open a packed file for reading; seeking back unpacks it anew from its beginning. `file` stays open."""
    return io.BufferedReader(_Unpacked(file), _PIECE)


class _Unpacked(io.RawIOBase):
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._begin()

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  # of any type that has a memory
        """Unpack the next bytes; raises OSError if the file is damaged or ends within."""
        data = self._stream.read(min(len(buffer), _PIECE))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place counted from the beginning or from here."""
        target = offset + (self._position if whence == io.SEEK_CUR else 0)
        if whence == io.SEEK_END or target < 0:
            raise io.UnsupportedOperation("the size of the unpacked file is not known")
        if target < self._position:
            self._begin()
        while self._position < target and (skipped := self._stream.read(min(target - self._position, _PIECE))):
            self._position += len(skipped)
        return self._position

    def tell(self) -> int:
        """The place in the unpacked file."""
        return self._position

    def _begin(self) -> None:
        import pyarrow as pa

        self._file.seek(0)
        self._position = 0
        self._stream = pa.CompressedInputStream(pa.PythonFile(_KeptOpen(self._file), mode="r"), "zstd")


class _KeptOpen:
    """A file that stays open when pyarrow drops a stream of it."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read

    def close(self) -> None:
        """Do nothing."""
