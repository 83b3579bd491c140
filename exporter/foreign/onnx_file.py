"""An ONNX file of unknown origin, opened with care: nothing is believed before it is checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError

from exporter.foreign.training import take_out
from runtime.contract.errors import InputError, one_line

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Domains whose operators ONNX Runtime has; others may be declared, but not used."""
MAX_PROTOBUF = 2 << 30


@dataclass(frozen=True)
class OnnxFile:
    """A file that is an ONNX model, its own functions written out."""

    path: Path
    model: onnx.ModelProto
    """Weights in external data are not loaded."""
    data: tuple[Path, ...]
    """The files of external data, all in the model's folder."""
    bytes: int
    """Bytes of all files."""
    sha256: str
    """SHA-256 over the model and its files of external data, in the order of their names."""
    taken_out: tuple[str, ...] = ()
    """The parts of training that were in the file and are not in `model`, in clauses."""

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return next((one.version for one in self.model.opset_import if one.domain in ("", "ai.onnx")), 0)

    @property
    def producer(self) -> str:
        """The program that wrote it, as it says itself."""
        return f"{self.model.producer_name} {self.model.producer_version}".strip() or "unknown"


def open_onnx(path: Path) -> OnnxFile:
    """Open an ONNX file.

    Raises:
        InputError: it is missing, damaged, no ONNX, has operators of an unknown domain, or external data that is
            missing, too short or outside its folder.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder: name the .onnx file in it")
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise InputError(f"{path} is no regular file: write the model into one")
        size = path.stat().st_size
        if size >= MAX_PROTOBUF:
            raise InputError(f"{path} has {size} bytes, more than a protobuf file can have: it is no ONNX file")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise InputError(f"{path} is damaged or no ONNX file ({one_line(error)}): get it or export it again") from error
    if not model.graph.node or not model.opset_import or not model.graph.output:
        raise InputError(f"{path} is no ONNX model: it has no nodes, no outputs or no opset; export it again")
    data = _external_data(path, model)
    digest = hashlib.sha256(content)
    for one in data:
        with one.open("rb") as file:
            while piece := file.read(1 << 24):
                digest.update(piece)
    if model.functions:
        try:
            model = onnx.inliner.inline_local_functions(model)
        except Exception as error:  # a C++ extension that raises what it likes
            raise InputError(f"{path}: its functions can't be written out ({one_line(error)})") from error
    for node in all_nodes(model.graph):
        if node.domain not in DOMAINS:
            raise InputError(
                f"{path}: {node.op_type} {node.name!r} is of the domain {node.domain!r}, which is unknown here: export "
                "the model without operators of its own"
            )
    taken_out = tuple(take_out(model))
    return OnnxFile(
        path, model, data, len(content) + sum(one.stat().st_size for one in data), digest.hexdigest(), taken_out
    )


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the graphs inside them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from all_nodes(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(inner)


def _external_data(path: Path, model: onnx.ModelProto) -> tuple[Path, ...]:
    """The files of external data, each checked to be a file in the model's folder that is long enough.

    Raises:
        InputError: one is not.
    """
    folder = path.parent.resolve()
    needed: dict[Path, int] = {}
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        place = folder / location.replace("\0", "")
        if (
            not location
            or "\0" in location
            or Path(location).is_absolute()
            or not place.resolve().is_relative_to(folder)
        ):
            raise InputError(
                f"{path}: the weight {tensor.name!r} lies in {location!r}, outside the model's folder: put its data "
                "beside the model"
            )
        try:
            begin, size = int(entries.get("offset", "0")), int(entries.get("length", "0"))
        except ValueError as error:
            raise InputError(f"{path}: the place of the weight {tensor.name!r} is damaged: export it again") from error
        if min(begin, size) < 0:
            raise InputError(f"{path}: the place of the weight {tensor.name!r} is damaged: export it again")
        needed[place] = max(needed.get(place, 0), begin + size)
    for place, size in needed.items():
        try:
            if place.exists() and not place.is_file():
                raise InputError(f"{path}: its external data {place.name} is no regular file: copy it again")
            found = place.stat().st_size
        except OSError as error:
            raise InputError(f"{path}: its external data {place.name} can't be read: {error.strerror}") from error
        if found < size:
            raise InputError(
                f"{path}: its external data {place.name} has {found} bytes, {size} are needed: copy it again"
            )
    return tuple(sorted(needed))
