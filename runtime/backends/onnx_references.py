"""Whether an ONNX file refers to other files, read from its bytes without a package for ONNX.

Given bytes, ONNX Runtime and OpenVINO look for external weights in the current folder, whoever put them there.
"""

from __future__ import annotations

from collections.abc import Iterator

_MESSAGES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""onnx.proto, as far as it leads to tensors: the fields of each message that are messages."""
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
"""Fields of a tensor whose values lie in another file."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf."""


def refers_to_other_files(content: bytes) -> bool:
    """Whether any tensor of an ONNX file has its values in another file.

    Raises:
        ValueError: the bytes are no ONNX file.
    """
    waiting = [("model", memoryview(content))]
    while waiting:
        kind, message = waiting.pop()
        for field, value in _fields(message):
            if isinstance(value, int):
                if kind == "tensor" and field == _DATA_LOCATION and value:
                    return True
            elif kind == "tensor" and field == _EXTERNAL_DATA:
                return True
            elif inner := _MESSAGES[kind].get(field):
                waiting.append((inner, value))
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: a varint as a number, whatever else as bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == _VARINT:
            number, at = _varint(message, at)
            yield key >> 3, number
            continue
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError("it is no ONNX file")
        if at + size > len(message):
            raise ValueError("it is no ONNX file, or was cut short")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, least first, and where it ends."""
    number = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
    raise ValueError("it is no ONNX file, or was cut short")
