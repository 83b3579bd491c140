"""The gate of a foreign graph: what a strict reader, or a program that used the old file, would refuse."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx

from exporter.foreign.onnx_file import OnnxFile
from exporter.foreign.probe import open_session
from exporter.foreign.survey import Survey
from runtime.contract.errors import CheckError, InputError, one_line


def check_written(path: Path, found: Survey, added: Sequence[str] = (), new_input: str | None = None) -> None:
    """The gate: no file passes that a strict reader refuses, or that has other inputs and outputs than it should.

    Args:
        path: the new file.
        found: the survey of the old one.
        added: outputs behind the old ones.
        new_input: the only input, if it is not the old one.

    Raises:
        CheckError: it is refused.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        if _passes(found.file):
            raise CheckError(f"the new graph does not pass onnx.checker: {one_line(error)}") from error
    before, after = found.file.model.graph, onnx.load(path, load_external_data=False).graph
    kept = len(after.output) - len(added)
    is_as_before = _as_text(before.output) == _as_text(after.output[:kept])
    if new_input is None:
        is_as_before &= _as_text(before.input) == _as_text(after.input)
    else:
        is_as_before &= [one.name for one in after.input] == [new_input]
    if not is_as_before or [one.name for one in after.output[kept:]] != [*added]:
        raise CheckError("the new graph has other inputs or outputs than it should")
    try:
        open_session(path, path, optimize=True)
    except InputError as error:
        raise CheckError(str(error)) from error


def _as_text(values: Iterable[onnx.ValueInfoProto]) -> list[bytes]:
    return [one.SerializeToString() for one in values]


def _passes(file: OnnxFile) -> bool:
    """Whether the file itself passes the checker: one with operators of another domain may not."""
    try:
        onnx.checker.check_model(str(file.path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True
