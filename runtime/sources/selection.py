"""Which files of a folder or a tar are pictures to read, and why the others are passed over."""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from runtime.contract.argument_types import as_flag, as_names
from runtime.contract.errors import UsageError
from runtime.images.formats import format_of, other_format
from runtime.sources.names import PARQUET_SUFFIX, is_image, printable

SYSTEM = "system or hidden"
EXCLUDED = "excluded"
NOT_INCLUDED = "not included"
LINK = "link to a folder"
SEARCHED = "folder that is searched already"
EMPTY = "empty"
UNKNOWN = "unknown format"
SAME_NAME = "same name again"
_HINTS = {LINK: "--follow-links reads them"}

_SYSTEM_NAMES = frozenset(
    {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "zbthumbnail.info", "icon\r"}
    | {"__macosx", "__pycache__", "lost+found", "$recycle.bin", "recycler", "system volume information"}
    | {"@eadir", "@sharebin", "#recycle", "@recycle", "#snapshot", "~snapshot", "@recently-snapshot"}
    | {"temporary items", "network trash folder"}
)
"""Files and folders that operating systems, network drives and tools put beside pictures, in lower case."""

_OTHER_SUFFIXES = {
    "text": "txt md rst csv tsv json jsonl xml xmp aae yaml yml toml html htm css js log py ipynb cls url srt",
    "video": "mp4 m4v mov qt avi mkv webm 3gp mpg mpeg mts m2ts wmv flv",
    "sound": "mp3 wav m4a flac ogg aac opus",
    "raw file of a camera": "dng cr2 cr3 crw nef nrw arw sr2 srf orf rw2 rwl pef raf srw 3fr iiq x3f erf mrw",
    "archive": "zip tar gz tgz bz2 xz zst 7z rar",
    "data": "npy npz parquet arrow feather pkl pickle pt pth ckpt safetensors onnx h5 hdf5 mat db sqlite tfrecord mdb",
    "document": "pdf doc docx xls xlsx ppt pptx odt ods odp",
}
PARQUET_KIND = "data"
"""The kind of parquet files, which are read where they are named, or where a folder holds nothing else."""
_KINDS = {f".{suffix}": kind for kind, suffixes in _OTHER_SUFFIXES.items() for suffix in suffixes.split()}


@dataclass(frozen=True)
class Selection:
    """The files of folders and tars that a user wants; files that are named themselves are always read.

    A pattern is as in a shell, but `*` also stands for slashes; case counts. Without a slash it is compared with the
    name of the file and of each folder above it; with a slash, with the path below the argument and the paths of the
    folders above. With a slash at its end it is compared with folders only.
    """

    include: Sequence[str] = ()
    """If there are any, only files that match one are read."""
    exclude: Sequence[str] = ()
    follow_links: bool = False
    """Whether links to folders are searched too, each folder once."""

    def __post_init__(self) -> None:
        """Check the patterns; raises UsageError."""
        as_flag(self.follow_links, "--follow-links")
        for option, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            for pattern in as_names(patterns, option):
                if not _without_slashes(pattern):
                    raise UsageError(
                        f"{option} {printable(pattern)!r}: names nothing; give a pattern as '*.jpg' or 'thumbs/'"
                    )

    def passed_over(self, path: str, *, is_folder: bool = False) -> str | None:
        """Why a file or folder below a root is not looked at; None if it is, or may be by its content."""
        if any(is_system(name) for name in path.split("/")):
            return SYSTEM
        if self.exclude and _matches(self._excluded, path, is_folder=is_folder):
            return EXCLUDED
        if self.include and not is_folder and not _matches(self._included, path, is_folder=False):
            return NOT_INCLUDED
        return None

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Selection:
        """Return what the options of `add_selection` choose; raises UsageError for a pattern that names nothing."""
        include, exclude = tuple(arguments.include or ()), tuple(arguments.exclude or ())
        return cls(include, exclude, follow_links=bool(arguments.follow_links))

    @cached_property
    def _included(self) -> _Patterns:
        return _Patterns.of(self.include)

    @cached_property
    def _excluded(self) -> _Patterns:
        return _Patterns.of(self.exclude)


ALL = Selection()
"""Everything but what systems and tools make; links to folders are not followed."""


@dataclass(frozen=True)
class _Patterns:
    """Compiled patterns: for names or paths, of folders alone or of anything."""

    name: re.Pattern[str]
    path: re.Pattern[str]
    folder_name: re.Pattern[str]
    folder_path: re.Pattern[str]

    @classmethod
    def of(cls, patterns: Sequence[str]) -> _Patterns:
        found: dict[tuple[bool, bool], list[str]] = {(a, b): [] for a in (False, True) for b in (False, True)}
        for pattern in patterns:
            bare = _without_slashes(pattern)
            found[pattern.endswith("/"), "/" in pattern.rstrip("/")].append(fnmatch.translate(bare))
        any_name, any_path = found[False, False], found[False, True]
        folder_name, folder_path = any_name + found[True, False], any_path + found[True, True]
        return cls(*(re.compile("|".join(one) or r"(?!)") for one in (any_name, any_path, folder_name, folder_path)))


def _without_slashes(pattern: str) -> str:
    while pattern.startswith("./"):
        pattern = pattern[2:]
    return pattern.strip("/")


def _matches(patterns: _Patterns, path: str, *, is_folder: bool) -> bool:
    path = path.removeprefix("./")
    folder, _, name = path.rpartition("/")
    if is_folder:
        folder, name = path, ""
    elif patterns.name.match(name) or patterns.path.match(path):
        return True
    return any(
        patterns.folder_name.match(above.rpartition("/")[2]) or patterns.folder_path.match(above)
        for above in _beginnings(folder)
    )


def _beginnings(folder: str) -> Iterator[str]:
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]


def is_system(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one that operating systems and tools make for themselves."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in _SYSTEM_NAMES


def kind_by_suffix(name: str) -> str | None:
    """The kind of a file that is no picture by its name; None if the name doesn't say what it is, or is a picture's."""
    return _KINDS.get(os.path.splitext(name)[1].lower())  # noqa: PTH122  # a Path takes ten times as long


def kind_by_content(start: bytes) -> str | None:
    """The kind of a file by its first `formats.HEAD` bytes; None if it is a picture that is read."""
    if format_of(start) is not None:
        return None
    if not start:
        return EMPTY
    other = other_format(start) or UNKNOWN
    return other.removeprefix("a ").removeprefix("an ")


def needs_a_look(name: str) -> bool:
    """Whether the name of a file doesn't say whether it is a picture."""
    return not is_image(name) and kind_by_suffix(name) is None


def is_part(path: str) -> bool:
    """Whether a file is a part of a data set of parquet files, by its path below the data set's folder."""
    return path.lower().endswith(PARQUET_SUFFIX) and not any(name.startswith("_") for name in path.split("/"))


def take_back(skipped: Counter[str], why: str, count: int) -> None:
    """Count some files as passed over no longer."""
    skipped[why] -= count
    if skipped[why] <= 0:
        del skipped[why]


def as_line(skipped: Mapping[str, int]) -> str:
    """A line for the user on what was passed over: `7 files: 4 video, 3 system or hidden`."""
    parts = [
        f"{count:,} {reason}{f' ({_HINTS[reason]})' if reason in _HINTS else ''}"
        for reason, count in Counter(skipped).most_common()
    ]
    total = sum(skipped.values())
    return f"{total:,} file{'s' if total != 1 else ''} passed over: {', '.join(parts)}"
