"""How a library makes a picture a model's input: what an image processor of transformers says, as data."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from runtime.contract.errors import InputError, one_line

ResizeFilter = Literal["bicubic", "bilinear"]
"""Filters of the runtime."""

Three = tuple[float, float, float]
"""A number for each of red, green and blue."""
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Files of transformers that say how a picture becomes the input; the first that is there is read."""
MAX_CONFIG_BYTES = 1 << 20
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters by their numbers."""
IMAGENET: tuple[Three, Three] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""The mean and standard deviation that most models were trained with."""


@dataclass(frozen=True)
class Pictures:
    """How the library's own configuration makes a picture the model's input."""

    mean: Three
    std: Three
    fit: Literal["crop", "squash"]
    cover: tuple[int, int] | None
    """H, W that the resized picture covers, before its centre is cut out; None with `squash`."""
    interpolation: ResizeFilter
    notes: tuple[str, ...] = ()
    """The differences between the runtime and the library, in words."""


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: it can't be read, or holds something else.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise InputError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes: no configuration")
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"can't read {path}: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is no configuration: it holds {type(found).__name__}")
    return found


def pair_of(size: Any) -> tuple[int, int] | None:  # noqa: ANN401
    """A size as (H, W); None if it is none."""
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) and len(size) == 2 else None


def processor_in(folder: Path) -> dict[str, Any] | None:
    """The image processor in a folder; None if there is none."""
    found = (_processor(read_object(folder / file)) for file in PROCESSORS if (folder / file).is_file())
    return next((one for one in found if one is not None), None)


def read_processor(path: Path) -> dict[str, Any]:
    """The image processor in a `preprocessor_config.json` or a `processor_config.json`.

    Raises:
        InputError: it can't be read, or holds something else.
    """
    found = _processor(read_object(path))
    if found is None:
        raise InputError(f"{path} is no preprocessor_config.json: it has no image_mean, image_std or size")
    return found


def _processor(held: dict[str, Any]) -> dict[str, Any] | None:
    """The image processor in a file's object, without its null fields; None if there is none."""
    found = held.get("image_processor") or held
    if not isinstance(found, dict) or not found.keys() & {"image_mean", "image_std", "size", "do_normalize"}:
        return None
    return {name: value for name, value in found.items() if value is not None}


def supported(interpolation: str, library: str) -> tuple[ResizeFilter, tuple[str, ...]]:
    """The runtime's filter for one of `library`, and notes on the difference."""
    if interpolation in ("bicubic", "bilinear"):
        return interpolation, ()  # type: ignore[return-value]  # one of the two
    return "bicubic", (f"{library} resizes pictures by {interpolation}, here bicubic: embeddings differ a little",)


_SQUARE = ("ViT", "DeiT", "Beit", "Data2Vec", "Siglip", "DINOv3")
"""Beginnings of the names of transformers' processors to which a size of one number is a square; to the rest it is the
shortest edge, if they cut."""


def _is_square(held: dict[str, Any]) -> bool:
    """Whether a size of one number is a square, not the shortest edge, as the processor's class reads it."""
    if isinstance(told := held.get("default_to_square"), bool):
        return told
    kind = str(held.get("image_processor_type") or held.get("feature_extractor_type") or "")
    return kind.startswith(_SQUARE) or not held.get("do_center_crop")


def _sides(size: Any, *, square: bool) -> tuple[tuple[int, int], bool] | None:  # noqa: ANN401
    """A size of a processor as (H, W), and whether it is the shortest edge alone; None if it is no size."""
    if isinstance(size, int):
        return (size, size), not square
    if isinstance(size, dict) and isinstance(size.get("shortest_edge"), int) and size.get("longest_edge") is None:
        return (size["shortest_edge"],) * 2, True
    if isinstance(size, dict) and isinstance(size.get("height"), int) and isinstance(size.get("width"), int):
        return (size["height"], size["width"]), False
    pair = pair_of(size)
    return None if pair is None else (pair, False)


def input_size(processor: dict[str, Any]) -> tuple[int, int] | None:
    """H, W of the input, as the processor cuts or resizes pictures; None if it does not say."""
    own = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    found = _sides(own, square=True)
    return None if found is None else found[0]


def pictures_of(held: dict[str, Any], size: tuple[int, int], called: str) -> Pictures:
    """How an image processor makes an input of H, W; `called` names it in messages.

    Raises:
        InputError: its numbers are none.
    """
    try:
        mean, std = (
            tuple(map(float, held.get(key) or usual))
            for key, usual in zip(("image_mean", "image_std"), IMAGENET, strict=True)
        )
        scale = float(held.get("rescale_factor") or 1 / 255) if held.get("do_rescale", True) else 1.0
        resample = int(3 if (number := held.get("resample")) is None else number)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{called}: the image processor has no usable numbers: {one_line(error)}") from error
    if held.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if len(mean) != 3 or len(std) != 3 or not all(one > 0 for one in std) or not 0 <= resample < len(FILTERS):
        raise InputError(f"{called}: image_mean and image_std must be three numbers each, resample one from 0 to 5")
    if not 0 < scale < math.inf:
        raise InputError(f"{called}: rescale_factor must be a number above 0")
    if held.get("do_flip_channel_order"):
        raise InputError(
            f"{called}: its pictures are blue, green, red (do_flip_channel_order), which the runtime's are not"
        )
    # The runtime multiplies by 1/255.
    mean, std = (tuple(one / (255 * scale) for one in numbers) for numbers in (mean, std))
    by, notes = supported(FILTERS[resample], "transformers")
    if held.get("do_resize") is False:
        notes += ("transformers does not resize pictures; here they are resized",)
    if held.get("do_normalize") is not False and not (held.get("image_mean") and held.get("image_std")):
        notes += ("the image processor has no image_mean or no image_std: ImageNet's are taken",)
    crops = bool(held.get("do_center_crop"))
    found = Pictures(mean, std, "squash", None, by, notes)  # type: ignore[arg-type]  # three numbers
    if held.get("size") is None:
        return found
    sides = _sides(held["size"], square=_is_square(held))
    cut = _sides(held.get("crop_size", held["size"]), square=True) if crops else sides
    if sides is None or cut is None or min(*sides[0], *cut[0]) < 1:
        told = held["size"] if sides is None or min(sides[0]) < 1 else held["crop_size"]
        raise InputError(
            f"{called}: resizes to {json.dumps(told)[:80]}, which the runtime does not: say --mean, --std, --resize-to "
            "and --fit"
        )
    (height, width), is_edge = sides
    if not is_edge and not crops:
        return found
    if not is_edge:
        notes += (
            f"transformers resizes pictures to {height}x{width} whatever their aspect before it cuts; here they "
            "keep it",
        )
    cover = tuple(max(n, round(n * edge / one)) for n, edge, one in zip(size, sides[0], cut[0], strict=True))
    return replace(found, fit="crop", cover=(cover[0], cover[1]), notes=notes)
