"""The members of a tar, from its headers, one after the other, in bounded memory; damage is found and reported.

Headers are parsed by `tarfile.TarInfo`; `tarfile.open` is not used, since it takes a damaged header for the end of
the tar, keeps every member in memory and reads an extended header of any size that the file claims.
Source: POSIX pax, "ustar Interchange Format"; GNU tar's manual, "Basic Tar Format".
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from runtime.contract.errors import InputError
from runtime.sources.zstd import open_zstd

BLOCK = tarfile.BLOCKSIZE
_MAX_EXTENSION = 1 << 20
"""Largest number of bytes of an extended header, such as a long name; a hostile tar may claim any size."""
_PIECE = 1 << 20
_PACKED: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZ": bz2.open,
    b"\xfd7": lzma.open,
    b"\x28\xb5": open_zstd,
    b"\x50\x2a": open_zstd,  # pzstd begins with a frame to skip
}
_NO_FILE = {
    tarfile.SYMTYPE: "is a symbolic link to `{}` inside a tar, not a file",
    tarfile.LNKTYPE: "is a hard link to `{}` inside a tar, not a file",
    tarfile.CHRTYPE: "is a device, not a file",
    tarfile.BLKTYPE: "is a device, not a file",
    tarfile.FIFOTYPE: "is a named pipe, not a file",
}


@dataclass(frozen=True, slots=True)
class Member:
    """A member that is no folder."""

    name: str
    """The name as in the tar: no path, whatever `/` and `..` it holds; bytes that are not UTF-8 as surrogates."""
    offset: int
    """Where the data begin in the unpacked tar."""
    size: int
    problem: str | None
    """Why the member is not a file; None: it is one."""


def unpacked(file: BinaryIO) -> BinaryIO:
    """Return the tar in a file that may be packed by gzip, bzip2, xz or Zstandard."""
    magic = file.read(2)
    file.seek(0)
    opener = _PACKED.get(magic)
    return file if opener is None else cast("BinaryIO", opener(file))


def members(file: BinaryIO) -> Iterator[Member]:
    """Walk through the members of an unpacked tar; between two of them the caller may read and seek.

    Raises:
        InputError: the tar is damaged or cut short; the members before are good.
        Exception: any other error of a packed or remote file: OSError, EOFError, zlib.error.
    """
    position = 0
    extended: dict[str, str] = {}
    while (header := _header(file, position)) is not None:
        data = position + BLOCK
        if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            extended |= _parse_pax(_extension(file, data, header.size), position)
        elif header.type == tarfile.GNUTYPE_LONGNAME:
            extended["path"] = _text(_extension(file, data, header.size).split(b"\0")[0])
        elif header.type == tarfile.GNUTYPE_LONGLINK:
            extended["linkpath"] = _text(_extension(file, data, header.size).split(b"\0")[0])
        if header.type in (*_EXTENSIONS, tarfile.XGLTYPE):
            position = data + _padded(header.size)
            continue
        if header.type == tarfile.GNUTYPE_SPARSE:
            data = _after_sparse_headers(file, data)
        size = _size(header, extended, position)
        if header.type != tarfile.DIRTYPE:
            name = extended.get("path", header.name)
            yield Member(name, data, size, _problem(header, extended))
        position = data + (0 if header.type in _NO_FILE or header.type == tarfile.DIRTYPE else _padded(size))
        extended = {}
    if file.read(_MAX_EXTENSION).strip(b"\0"):
        raise InputError("goes on behind its end mark: tars that were joined are to be named one by one")


def read_start(tar: BinaryIO, member: Member, size: int) -> bytes:
    """Read the first bytes of a member, `size` at most; raises as `members`."""
    tar.seek(member.offset)
    return tar.read(min(member.size, size))


def read_data(tar: BinaryIO, member: Member) -> bytes:
    """Read the data of a member of an unpacked tar; a size that is only claimed takes no memory.

    Raises:
        InputError: the tar ends before.
        Exception: as `members`.
    """
    tar.seek(member.offset)
    pieces, left = [], member.size
    while left and (piece := tar.read(min(left, _PIECE))):
        pieces.append(piece)
        left -= len(piece)
    if left:
        raise InputError(f"is cut short, {member.size - left:,} of {member.size:,} bytes are there")
    return b"".join(pieces)


_EXTENSIONS = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def _header(file: BinaryIO, position: int) -> tarfile.TarInfo | None:
    """The header at `position`; None at the end mark."""
    file.seek(position)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise InputError(f"is cut short: it ends without an end mark, {position + len(block):,} bytes in or before")
    if block.count(0) == BLOCK:
        return None
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise InputError(f"is no tar, or damaged {position:,} bytes in ({error})") from error
    if header.size < 0:
        raise InputError(f"is damaged {position:,} bytes in (a member of {header.size} bytes)")
    return header


def _extension(file: BinaryIO, offset: int, size: int) -> bytes:
    if size > _MAX_EXTENSION:
        raise InputError(f"is damaged {offset:,} bytes in (an extended header of {size:,} bytes)")
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise InputError(f"is cut short in a header, {offset:,} bytes in")
    return data


def _parse_pax(data: bytes, position: int) -> dict[str, str]:
    """Parse records `LENGTH KEY=VALUE`, each with a newline, where LENGTH is that of the whole record."""
    records: dict[str, str] = {}
    start = 0
    while start < len(data) and data[start] != 0:
        length, space, _ = data[start : start + 20].partition(b" ")
        end = start + int(length) if space and length.isdigit() else 0
        key, equals, value = data[start + len(length) + 1 : max(end - 1, 0)].partition(b"=")
        if not equals or end > len(data):
            raise InputError(f"is damaged {position:,} bytes in (an extended header that is none)")
        records[_text(key)] = _text(value)
        start = end
    return records


def _after_sparse_headers(file: BinaryIO, offset: int) -> int:
    """Where the data of a sparse member of GNU's old form begins, behind the rest of its map."""
    file.seek(offset - BLOCK)
    goes_on = file.read(BLOCK)[482:483]
    while goes_on not in (b"", b"\0"):
        goes_on = file.read(BLOCK)[504:505]
        offset += BLOCK
    return offset


def _size(header: tarfile.TarInfo, extended: dict[str, str], position: int) -> int:
    size = extended.get("size", str(header.size))
    if not (size.isascii() and size.isdigit() and len(size) < 20):
        raise InputError(f"is damaged {position:,} bytes in (a member of `{size[:40]}` bytes)")
    return int(size)


def _problem(header: tarfile.TarInfo, extended: dict[str, str]) -> str | None:
    if header.type in _NO_FILE:
        return _NO_FILE[header.type].format(extended.get("linkpath", header.linkname))
    if header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in extended):
        return "is stored with holes (sparse) inside a tar, which isn't read"
    return None


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
