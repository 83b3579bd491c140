"""Time, storage and cost of embedding many images: arithmetic from measured rates, nothing is run."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.contract.errors import InputError, UsageError, one_line
from runtime.store.growing_parts import PART_ROWS

KEY_BYTES = 64
"""Bytes of a row besides its embedding: its path, of some 50 characters, and what parquet adds."""
DEFAULT_WIDTH = 768
_MAX_BENCH_BYTES = 1 << 20


@dataclass(frozen=True)
class Measured:
    """A device's rate, and where it was measured."""

    images_per_second: float
    width: int | None
    """C: elements of an embedding; None if it is not known."""
    batch: int | None
    """The batch size with this rate; None if it is not known."""


@dataclass(frozen=True)
class Plan:
    """Time, storage and cost; every figure is computed from the arguments of `plan`."""

    images: int
    devices: int
    images_per_second_and_device: float
    images_per_second: float
    """Images a second of all devices."""
    hours: float
    device_hours: float
    width: int
    store_bytes: int
    parts: int
    cost: float | None
    """In the currency of the price; None if there is no price."""
    decoding_cores: int | None
    """Cores that decode as fast as the devices embed; None if their rate is not known."""
    read_bytes_per_second: float | None
    """Bytes of images that are read in a second; None if the size of an image is not known."""


def read_bench(path: Path) -> Measured:
    """Read the output of `bench --json`: the batch size with the most images a second.

    Raises:
        InputError: the file can't be read, or is no such output.
    """
    try:
        with path.open("rb") as file:
            fields = json.loads(file.read(_MAX_BENCH_BYTES))
        best = max(fields["batches"], key=lambda one: float(one["images_per_s"]))
        width = fields.get("embedding_width")
        measured = Measured(float(best["images_per_s"]), None if width is None else int(width), int(best["batch"]))
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}; give the output of `bench --json`") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is no output of `bench --json` ({one_line(error)})") from error
    if not (measured.images_per_second > 0 and math.isfinite(measured.images_per_second)):
        raise InputError(f"{path}: {measured.images_per_second} images a second")
    return measured


def plan(
    images: int,
    rate: float,
    devices: int,
    width: int = DEFAULT_WIDTH,
    *,
    price_per_hour: float | None = None,
    decode_rate: float | None = None,
    image_bytes: int | None = None,
) -> Plan:
    """Compute what embedding `images` takes.

    Args:
        images: number of images.
        rate: images a second that one device embeds.
        devices: number of devices, all of which are always busy.
        width: C, elements of an embedding.
        price_per_hour: of a device.
        decode_rate: images a second that a core decodes.
        image_bytes: mean size of an image's file.

    Raises:
        UsageError: a number is not above 0.
    """
    given = {
        "--images": images,
        "--rate": rate,
        "--devices": devices,
        "--width": width,
        "--price-per-hour": price_per_hour,
        "--decode-rate": decode_rate,
        "--image-bytes": image_bytes,
    }
    for name, value in given.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UsageError(f"{name} {value:g}: must be above 0")
    together = rate * devices
    hours = images / together / 3600
    return Plan(
        images=images,
        devices=devices,
        images_per_second_and_device=rate,
        images_per_second=together,
        hours=hours,
        device_hours=hours * devices,
        width=width,
        store_bytes=images * (4 * width + KEY_BYTES),
        parts=-(-images // PART_ROWS),
        cost=None if price_per_hour is None else hours * devices * price_per_hour,
        decoding_cores=None if decode_rate is None else math.ceil(together / decode_rate),
        read_bytes_per_second=None if image_bytes is None else together * image_bytes,
    )


def as_json(made: Plan) -> dict[str, Any]:
    """The plan as data."""
    return asdict(made)


def as_text(made: Plan) -> str:
    """The plan as a table."""
    rows = {
        "images": f"{made.images:,}",
        "images a second": f"{made.images_per_second:,.0f} ({made.devices:,} x "
        f"{made.images_per_second_and_device:,.1f})",
        "time": _duration(made.hours),
        "device hours": f"{made.device_hours:,.1f}",
        "store": f"{_bytes(made.store_bytes)}, {made.parts:,} parts (width {made.width})",
    }
    if made.cost is not None:
        rows["cost"] = f"{made.cost:,.2f}"
    if made.decoding_cores is not None:
        rows["cores that decode"] = f"{made.decoding_cores:,}"
    if made.read_bytes_per_second is not None:
        rows["images are read at"] = f"{_bytes(made.read_bytes_per_second)} a second"
    longest = max(map(len, rows))
    return "\n".join(f"{name:<{longest}}  {value}" for name, value in rows.items())


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.1f} min"
    return f"{hours:.1f} h" if hours < 100 else f"{hours / 24:,.1f} days"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.2f} TB"
