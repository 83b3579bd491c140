"""How a library makes a picture a model's input: what an image processor of transformers says, as data."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from runtime.contract.errors import InputError, one_line

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
    interpolation: str
    """The filter's name."""
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
    for file in PROCESSORS:
        if (folder / file).is_file():
            held = read_object(folder / file)
            found = held.get("image_processor", held)
            if isinstance(found, dict) and ("image_mean" in found or "size" in found):
                return found
    return None


def _sides(size: Any, *, square: bool) -> tuple[tuple[int, int], bool] | None:  # noqa: ANN401
    """A size of a processor as (H, W), and whether it is the shortest edge alone; None if it is no size."""
    if isinstance(size, int):
        return (size, size), not square
    if isinstance(size, dict) and isinstance(size.get("shortest_edge"), int):
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
    except (TypeError, ValueError) as error:
        raise InputError(f"{called}: the image processor has no usable numbers: {one_line(error)}") from error
    if held.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if len(mean) != 3 or len(std) != 3 or not all(one > 0 for one in std) or not 0 <= resample < len(FILTERS):
        raise InputError(f"{called}: the image processor has no mean and std of three channels, or an unknown filter")
    # The runtime multiplies by 1/255.
    mean, std = (tuple(one / (255 * scale) for one in numbers) for numbers in (mean, std))
    crops = bool(held.get("do_center_crop"))
    sides = _sides(held.get("size"), square=not crops)
    found = Pictures(mean, std, "squash", None, FILTERS[resample])  # type: ignore[arg-type]  # three numbers
    if sides is None or (not sides[1] and not crops):
        return found
    (height, width), is_edge = sides
    cut = _sides(held.get("crop_size"), square=True) if crops else None
    (cut_height, cut_width) = cut[0] if cut is not None else (height, width)
    cover = (max(size[0], round(size[0] * height / cut_height)), max(size[1], round(size[1] * width / cut_width)))
    notes = () if is_edge else (
        f"transformers resizes pictures to {height}x{width} whatever their aspect before it cuts; here they keep it",
    )  # fmt: skip
    return replace(found, fit="crop", cover=cover, notes=notes)
