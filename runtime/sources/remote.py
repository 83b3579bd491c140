"""Remote files and folders through fsspec; any `SCHEME://`."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from runtime.contract.errors import BackendError, InputError, UsageError, one_line
from runtime.contract.keys import Key, location
from runtime.images.formats import HEAD
from runtime.sources.files import entry
from runtime.sources.item import Entry, IsWanted, reason
from runtime.sources.names import is_remote
from runtime.sources.selection import (
    PARQUET_KIND,
    UNKNOWN,
    Selection,
    is_part,
    is_system,
    kind_by_content,
    kind_by_suffix,
    needs_a_look,
    take_back,
)

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
_PACKAGES |= {"http": "aiohttp", "https": "aiohttp", "abfs": "adlfs", "az": "adlfs"}
_HEADS = 1000
"""Number of files whose first bytes are asked for together."""
_WAITS = (0.5, 2.0)
"""Seconds before the second and the third attempt at a file; fsspec's own file systems repeat requests too."""


@functools.lru_cache(maxsize=1024)
def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the URL's path in it."""
    scheme = url.partition("://")[0]
    if "::" in url:
        raise UsageError(f"{url}: chains of file systems (`::`) are not read; give a single one")
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise BackendError(f"{url} needs fsspec: pip install 'itae[remote]'") from error
    try:
        file_system, path = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        what = f"pip install {package}" if package else one_line(error)
        raise BackendError(f"{url}: fsspec lacks what reads {scheme}:// ({what})") from error
    except ValueError as error:
        raise UsageError(f"{url}: {one_line(error)}; give s3://, gs://, hf://, file:// or another of fsspec") from error
    return file_system, path


def canonical(url: str) -> str:
    """Return a URL as a root: without a slash at its end, absolute if it names local files."""
    scheme, _, rest = url.partition("://")
    if scheme in ("file", "local"):
        file_system, path = _file_system(url)
        return f"file://{file_system._strip_protocol(path)}"
    return f"{scheme}://{rest.strip('/')}"


def split(url: str) -> Key:
    """Return root and name of a remote file."""
    scheme, _, rest = canonical(url).partition("://")
    folder, _, name = rest.rpartition("/")
    return f"{scheme}://{folder}", name


def matches(url: str) -> list[str]:
    """Expand a URL with a `*`, since no shell does, to sorted URLs; any other URL stays as it is.

    Raises:
        InputError: nothing matches, or the remote system does not answer.
    """
    if "*" not in url:
        return [url]
    file_system, path = _file_system(url)
    try:
        found = sorted(file_system.glob(path))
    except Exception as error:
        raise cannot(url, error) from error
    if not path.rpartition("/")[2].startswith("."):  # `*` stands for no hidden file in a shell either
        found = [one for one in found if not is_system(one.rstrip("/").rpartition("/")[2])]
    if not found:
        raise InputError(f"{url}: nothing there matches; give remote files or folders")
    return [_url_of(url, file_system, one) for one in found]


def is_folder(url: str) -> bool:
    """Whether a URL is a folder; raises InputError if nothing is there or the remote system does not answer."""
    file_system, path = _file_system(url)
    try:
        return bool(file_system.info(path)["type"] == "directory")
    except Exception as error:
        raise cannot(url, error) from error


def open_binary(where: str) -> BinaryIO:
    """Open a local path or URL to be read; raises what the file system raises."""
    if not is_remote(where):
        return Path(where).open("rb", buffering=1 << 16)
    file_system, path = _file_system(where)
    return cast("BinaryIO", file_system.open(path, "rb"))


def read_file(root: str, path: str, max_bytes: int) -> bytes:
    """Return a remote file's content; tries three times, unless the file is missing or access is denied.

    Raises:
        InputError: it can't be read, or has more than `max_bytes`.
    """
    for wait in (*_WAITS, None):
        try:
            with open_binary(location(root, path)) as file:
                data = file.read(max_bytes + 1)
            break
        except (BackendError, UsageError):
            raise
        except Exception as error:  # each file system has its own
            if wait is None or isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
                raise InputError(reason(error)) from error
            time.sleep(wait)
    if len(data) > max_bytes:
        raise InputError(f"has more than {max_bytes:,} bytes")
    return data


class RemoteFolder:
    """A remote folder, searched through and sorted by path; which files are pictures is found as in a local one.

    Raises:
        InputError: it can't be listed.
    """

    may_repeat = False

    def __init__(self, url: str, selection: Selection) -> None:
        root = canonical(url)
        self.roots = (root,)
        file_system, path = _file_system(root)
        try:
            found = file_system.find(path)
        except Exception as error:
            raise cannot(url, error) from error
        start = path.rstrip("/") + "/"
        self.skipped: Counter[str] = Counter()
        self._paths: list[str] = []
        self._parquet: list[str] = []
        looked_into: dict[str, str] = {}  # path in the file system, path below the root
        for name in found:
            if not (below := name.removeprefix(start).lstrip("/")):
                continue
            if why := selection.passed_over(below):
                self.skipped[why] += 1
            elif needs_a_look(below):
                looked_into[name] = below
            elif why := kind_by_suffix(below):
                self.skipped[why] += 1
                if why == PARQUET_KIND and is_part(below):
                    self._parquet.append(below)
            else:
                self._paths.append(below)
        for name, why in _why_not(root, file_system, list(looked_into)):
            if why is None:
                self._paths.append(looked_into[name])
            else:
                self.skipped[why] += 1
        self._paths.sort()

    def take_parquet(self) -> list[str]:
        """Return the parquet files of a folder without pictures; as `Folder.take_parquet`."""
        if self._paths:
            return []
        take_back(self.skipped, PARQUET_KIND, len(self._parquet))
        return [f"{self.roots[0].rstrip('/')}/{path}" for path in sorted(self._parquet)]

    def count(self) -> int:
        """Number of images."""
        return len(self._paths)

    def items(self, is_wanted: IsWanted) -> Iterator[Entry]:
        """The images."""
        for path in self._paths:
            if one := entry(self.roots[0], path, is_wanted):
                yield one


def _why_not(root: str, file_system: Any, paths: Sequence[str]) -> Iterator[tuple[str, str | None]]:  # noqa: ANN401
    """Each path, and why its file is no picture, by its first bytes; None if it is one."""
    if root.startswith(("http://", "https://")):  # a server may send the whole file
        yield from ((path, UNKNOWN) for path in paths)
        return
    for first in range(0, len(paths), _HEADS):
        some = list(paths[first : first + _HEADS])
        try:
            heads = file_system.cat_ranges(some, 0, HEAD, on_error="return")
        except Exception as error:
            raise cannot(root, error) from error
        for path, head in zip(some, heads, strict=True):
            yield path, kind_by_content(head) if isinstance(head, bytes) else "can't be opened"


def cannot(url: str, error: Exception) -> InputError:
    """The error to raise if an argument can't be found or listed."""
    hint = "; give remote files or folders" if isinstance(error, FileNotFoundError) else ""
    return InputError(f"{url}: {reason(error)}{hint}")


def _url_of(url: str, file_system: Any, path: str) -> str:  # noqa: ANN401  # fsspec ships no types
    scheme = url.partition("://")[0]
    return path if is_remote(path) else canonical(f"{scheme}://{path}")
