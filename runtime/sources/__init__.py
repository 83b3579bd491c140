"""Where images come from: files, folders, lists, tars, parquet, remote paths."""

from pathlib import Path

from runtime.errors import InputError
from runtime.images import MAX_PIXELS, find_images, load_image
from runtime.sources.item import Item, Unreadable


class Sources:
    def __init__(self, found):
        self._found = found
        self.total = len(found.files) + len(found.unreadable)

    def items(self, is_wanted=lambda root, path: True):
        for u in self._found.unreadable:
            yield Unreadable(u.root, u.path, u.error)
        for f in self._found.files:
            if is_wanted(f.root, f.path):
                yield Item(f.root, f.path)


def open_sources(arguments, **rest):
    return Sources(find_images([Path(a) for a in arguments]))


def load_item(item, max_pixels=MAX_PIXELS):
    try:
        return load_image(Path(item.root, item.path))
    except InputError as error:
        raise InputError(str(error).removeprefix(f"{item.root}/{item.path}: ")) from error


def location(root, path):
    return f"{root}/{path}"
