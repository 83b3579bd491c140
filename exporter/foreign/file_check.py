"""The gate of a foreign graph: what a strict reader, or a program that used the old file, would refuse."""

from __future__ import annotations

from pathlib import Path

import onnx

from exporter.foreign.onnx_file import OnnxFile
from exporter.foreign.probe import open_session
from exporter.foreign.survey import Survey
from runtime.contract.errors import CheckError, InputError, one_line


def check_written(path: Path, found: Survey) -> None:
    """The gate: no file passes that a strict reader refuses, or that has other inputs and outputs than before.

    Raises:
        CheckError: it is refused.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        if _passes(found.file):
            raise CheckError(f"the new graph does not pass onnx.checker: {one_line(error)}") from error
    before, after = found.file.model.graph, onnx.load(path, load_external_data=False).graph
    for old, new in ((before.input, after.input), (before.output, after.output)):
        if [one.SerializeToString() for one in old] != [one.SerializeToString() for one in new]:
            raise CheckError("the new graph has other inputs or outputs than the old one")
    try:
        open_session(path, path, optimize=True)
    except InputError as error:
        raise CheckError(str(error)) from error


def _passes(file: OnnxFile) -> bool:
    """Whether the file itself passes the checker: one with operators of another domain may not."""
    try:
        onnx.checker.check_model(str(file.path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True
