"""Reading one image by its key: a file, a member of a tar, a row of a parquet file, local or remote."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from runtime.contract.errors import BackendError, InputError, UsageError
from runtime.images.decode import MAX_PIXELS, OnNote, Wanted, decode_file, decode_image, max_bytes, no_note
from runtime.sources.item import Item
from runtime.sources.names import TAR_SUFFIXES, check_inside, is_remote
from runtime.sources.parquet_images import read_row
from runtime.sources.remote import is_folder, read_file
from runtime.sources.tars import read_member


def load_item(
    item: Item,
    max_pixels: int = MAX_PIXELS,
    sixteen_bit: str = "full",
    on_note: OnNote = no_note,
    draft: Wanted | None = None,
) -> Image.Image:
    """Decode an item as `decode_image` does; raises InputError, whose message does not name the image."""
    if item.data is not None:
        return decode_image(item.data, max_pixels, sixteen_bit, on_note, draft)
    if item.place is not None:
        try:
            return _read_file(*item.place, max_pixels, sixteen_bit, on_note, draft)
        except (InputError, BackendError, UsageError) as error:
            raise InputError(f"holds no bytes (null), and its path can't be read: {error}") from error
    return read_image(item.root, item.path, max_pixels, sixteen_bit, on_note, draft)


def read_image(
    root: str,
    path: str,
    max_pixels: int = MAX_PIXELS,
    sixteen_bit: str = "full",
    on_note: OnNote = no_note,
    draft: Wanted | None = None,
) -> Image.Image:
    """Decode the image of a key of the store: a file, a member of a tar, a row of a parquet file, local or remote.

    A member of a packed tar is unpacked from the tar's beginning on.

    Raises:
        InputError: the image can't be read or decoded, or `path` leads out of `root`. The message doesn't name it.
    """
    limit = max_bytes(max_pixels)
    kind = container(root)
    if kind == "tar":
        return decode_image(read_member(root, path, limit), max_pixels, sixteen_bit, on_note, draft)
    if kind == "parquet":
        return load_item(read_row(root, path, limit), max_pixels, sixteen_bit, on_note, draft)
    check_inside(path)
    return _read_file(root, path, max_pixels, sixteen_bit, on_note, draft)


def _read_file(
    root: str, path: str, max_pixels: int, sixteen_bit: str, on_note: OnNote, draft: Wanted | None
) -> Image.Image:
    if is_remote(root):
        return decode_image(read_file(root, path, max_bytes(max_pixels)), max_pixels, sixteen_bit, on_note, draft)
    return decode_file(Path(root, path), max_pixels, sixteen_bit, on_note, draft)


def container(root: str) -> str | None:
    """Return `tar` or `parquet` if the root is such a file; None for a folder, also of such a name."""
    lower = root.lower()
    kind = "tar" if lower.endswith(TAR_SUFFIXES) else "parquet" if lower.endswith(".parquet") else None
    if kind is None or not is_remote(root):
        return None if kind is None or Path(root).is_dir() else kind
    try:
        return None if is_folder(root) else kind
    except InputError:
        return kind
