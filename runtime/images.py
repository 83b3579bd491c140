"""Pictures from files: which there are, and each decoded to RGB, whatever is in the file."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from runtime.errors import InputError, one_line

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""What is decoded, by content; Pillow reads many more, each one a parser that could be attacked."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
"""Which files of a folder count as pictures, in any case; a file that is named itself needs none of these."""
MAX_PIXELS = 178_956_970
"""Larger pictures are refused before they are decoded: Pillow's own limit, 680 MiB as it holds them."""

_WITH_ALPHA = frozenset({"LA", "PA", "RGBA", "RGBa"})
_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of EXIF's orientation tag."""


@dataclass(frozen=True)
class ImageFile:
    """A picture as the store names it."""

    root: str
    """The folder that was searched, or that of a single file; absolute, links resolved."""
    path: str
    """Relative to `root`, with slashes."""

    @property
    def location(self) -> Path:
        """Where the file is."""
        return Path(self.root, self.path)


@dataclass(frozen=True)
class Unreadable:
    """A file or folder that can't be used, and why: a line of `errors.jsonl`."""

    root: str
    path: str
    error: str


@dataclass(frozen=True)
class Found:
    """What `find_images` found: the pictures, and the folders and names that it could not use."""

    files: tuple[ImageFile, ...]
    unreadable: tuple[Unreadable, ...]


def load_image(path: Path) -> Image.Image:
    """Decode a picture (its first frame) as 8-bit RGB, upright by its EXIF orientation.

    Raises:
        InputError: it is missing, empty, truncated, too large, no regular file, or of no format in `FORMATS`.
    """
    try:
        reason = _not_a_file(path)
        if reason is None:
            return _decode(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise InputError(f"{path}: does not exist, or is a link to what does not") from error
    except Exception as error:
        raise InputError(f"{path}: can't be decoded ({_reason(error)})") from error
    raise InputError(f"{path}: {reason}")


def decode_image(data: bytes) -> Image.Image:
    """Decode the content of a picture's file, as `load_image` does.

    Raises:
        InputError: it is empty, truncated, too large, or of no format in `FORMATS`; the message names no file.
    """
    if not data:
        raise InputError("is empty (0 bytes)")
    return _decode(io.BytesIO(data))


def _decode(source: Path | io.BytesIO) -> Image.Image:
    """Decode a file; raises InputError without its name, or OSError of one that can't be opened."""
    try:
        with Image.open(source, formats=FORMATS) as image:
            if (pixels := image.width * image.height) <= MAX_PIXELS:
                return to_rgb(image)
            reason = f"has {pixels:,} pixels ({image.width} x {image.height}), more than {MAX_PIXELS:,}"
    except (InputError, FileNotFoundError):
        raise
    except Image.DecompressionBombError as error:  # Pillow's own check, on opening: the same limit as ours
        raise InputError(f"has more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise InputError(f"is damaged, or none of {', '.join(FORMATS)}") from error
    except Exception as error:  # a decoder fed a hostile file raises anything: KeyError, struct.error, MemoryError
        raise InputError(f"can't be decoded ({_reason(error)})") from error
    raise InputError(reason)


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as 8-bit RGB, upright by its EXIF orientation, what is transparent blended over white.

    16-bit grey is divided by 257 and rounded, where Pillow's own conversion would clip it at 255.

    Raises:
        InputError: its values have no known range (32-bit grey), or Pillow can't convert its mode.
    """
    image.load()  # TIFF turns itself upright here, and drops the tag
    turn = _TRANSPOSE.get(_orientation(image))
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise InputError(f"has 32-bit grey values (Pillow's mode {image.mode}), whose range is not known")
    try:
        if image.mode in _WITH_ALPHA or image.info.get("transparency") is not None:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        rgb = image.convert("RGB")  # a copy, also of RGB
    except ValueError as error:
        raise InputError(f"can't be converted from {image.mode} to RGB") from error
    upright = rgb if turn is None else rgb.transpose(turn)
    upright.info.clear()  # EXIF among it: the next reader must not turn the picture again
    return upright


def _not_a_file(path: Path) -> str | None:
    """Why a file can't be a picture, before it is opened; raises OSError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
        return "is a folder or a device, not a file"
    return "is empty (0 bytes)" if status.st_size == 0 else None


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF: the picture is shown as it lies, as viewers do
        return 1
    return value if isinstance(value, int) else 1


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return text if type(error) is OSError else f"{type(error).__name__}: {text}"


def find_images(arguments: Sequence[str | os.PathLike[str]]) -> Found:
    """List pictures: each argument a file, whatever its name, or a folder, searched through by `SUFFIXES`.

    Folders that are links are not entered, unless named as an argument. In the order of the arguments, below
    each sorted by path; what two arguments lead to under one root and path is listed once.

    Raises:
        InputError: an argument does not exist, or there is no picture at all.
    """
    files: dict[ImageFile, None] = {}
    unreadable: dict[Unreadable, None] = {}
    for argument in map(Path, arguments):
        try:
            is_folder = stat.S_ISDIR(argument.stat().st_mode)
            root = (argument if is_folder else argument.parent).resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
            raise InputError(f"{_printable(str(argument))}: {reason}; give image files or folders") from error
        paths = _search(root, unreadable) if is_folder else [argument.name]
        for path in sorted(paths):
            if _printable(str(root)) == str(root) and _printable(path) == path:
                files[ImageFile(str(root), path)] = None
            else:  # the store's strings are UTF-8
                reason = "its name is not UTF-8: rename it"
                unreadable[Unreadable(_printable(str(root)), _printable(path), reason)] = None
    if not files and not unreadable:
        what = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise InputError(f"no image in {', '.join(map(str, arguments))}: looked for files that end in {what}")
    return Found(tuple(files), tuple(unreadable))


def _search(root: Path, unreadable: dict[Unreadable, None]) -> list[str]:
    """Relative paths below `root` of the files that `SUFFIXES` takes; unlistable folders are recorded."""

    def cannot_list(error: OSError) -> None:
        path = Path(error.filename).relative_to(root).as_posix()
        entry = Unreadable(_printable(str(root)), _printable(path), f"folder can't be listed: {error.strerror}")
        unreadable[entry] = None

    paths: list[str] = []
    for folder, _, names in os.walk(root, onerror=cannot_list, followlinks=False):
        relative = Path(folder).relative_to(root)
        paths += [(relative / name).as_posix() for name in names if Path(name).suffix.lower() in SUFFIXES]
    return paths


def _printable(text: str) -> str:
    """The text, with the bytes of a file name that are not UTF-8 written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
