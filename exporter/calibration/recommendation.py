"""The file that `calibrate` writes and `--config` reads: options of ITAE, or null, and the figures they rest on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from exporter.declaration import declared
from exporter.methods.itae.options import ItaeConfig
from runtime.contract.atomic import cannot_write
from runtime.contract.errors import OutputFileError, UsageError, first_fault, one_line
from runtime.contract.hashed_json import HashedJson, parse_strictly, read_at_most
from runtime.contract.manifest import Calibration

CALIBRATION_FILE = HashedJson("calibration", UsageError, 1, format="itae-calibration")
NOTHING = "no artifacts in these images: ITAE would change nothing here"


@dataclass(frozen=True)
class Recommendation:
    """The part of the file that an export takes."""

    options: Mapping[str, Any] | None
    """Options of `ItaeConfig` by name, which make one; None if there is nothing to attenuate."""
    size: str
    """The model's `--size`."""
    image_size: tuple[int, int]
    """(H, W) in pixels."""
    record: Calibration
    """As the manifest of the export has it."""

    def merged(self, options: Mapping[str, Any]) -> ItaeConfig | None:
        """The options of the file with those that were given in place of them; None for the plain model."""
        if self.options is None and not options:
            return None
        base = dict(self.options or {})
        if options.get("threshold", "").startswith("positions:"):  # looks at no norm
            base = {name: value for name, value in base.items() if name not in ("source", "side", "detect_layer")}
        return ItaeConfig(**{**base, **options})


def to_json(content: Mapping[str, Any]) -> bytes:
    """The bytes of the file; `sha256` is added."""
    return CALIBRATION_FILE.to_bytes(content, indent=1)


def check_target(path: Path) -> None:
    """Refuse to write over a file that is no calibration, such as the manifest of a model.

    Raises:
        OutputFileError: the file is there and is something else, or can't be read, or is a folder.
    """
    try:
        if not path.exists():
            return
        if path.is_dir():
            raise OutputFileError(f"can't write {path}: it is a folder")
        fields = parse_strictly(read_at_most(path, CALIBRATION_FILE.max_bytes))
    except OSError as error:
        raise cannot_write(path, error) from error
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or fields.get("format") != CALIBRATION_FILE.format:
        raise OutputFileError(f"{path} is there already and is no calibration: choose another name, or remove it")


def read(path: Path) -> Recommendation:
    """Read and check a file of `calibrate`.

    Raises:
        UsageError: it can't be read, is no such file, was altered, or holds an option that means nothing.
    """
    again = "make one with `python -m exporter calibrate`; other options on the command line win over the file's"
    try:
        fields = CALIBRATION_FILE.read(path, again, "--config")
    except FileNotFoundError as error:
        raise UsageError(f"--config {path}: there is no such file; {again}") from error
    try:
        return _recommendation(fields)
    except KeyError as error:
        raise UsageError(f"--config {path}: has no {error.args[0]}; {again}") from error
    except pydantic.ValidationError as error:
        raise UsageError(f"--config {path}: {first_fault(error)}; {again}") from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"--config {path}: {one_line(error)}; {again}") from error
    except UsageError as error:
        raise UsageError(f"--config {path}: {error}") from error


def _recommendation(fields: Mapping[str, Any]) -> Recommendation:
    options = fields["itae"]
    if options is not None:
        if not isinstance(options, dict):
            raise TypeError("itae must be an object or null")
        if foreign := sorted(options.keys() - declared(ItaeConfig).keys()):
            raise UsageError(f"itae has {foreign[0]!r}, which is no option of this version")
        options = {name: value for name, value in options.items() if value is not None}
        ItaeConfig(**options)
    model = fields["model"]
    height, width = model["image_size"]
    if not (type(height) is type(width) is int and isinstance(model["size"], str)):
        raise TypeError("model must have its size and image_size")
    record = Calibration(
        sha256=fields["sha256"],
        reason=fields["reason"],
        weights_sha256=model["sha256"],
        images=sum(fields["images"][half] for half in ("choosing", "reporting")),
        figures=fields["figures"],
    )
    return Recommendation(options, model["size"], (height, width), record)
