"""The gate: no ONNX file passes to parity, a builder or a user that a strict reader would refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from exporter.spec import ExportSpec
from runtime.errors import CheckError

ORT_TYPES = {"float32": "tensor(float)", "uint8": "tensor(uint8)", "bool": "tensor(bool)"}
ERRORS_ONLY = 3


def open_checked(path: Path, spec: ExportSpec) -> Any:  # noqa: ANN401  # onnxruntime ships no types
    """Check an ONNX file in full and load it: checker, strict shape inference, ONNX Runtime, interface.

    Returns:
        The `onnxruntime.InferenceSession` on the CPU.

    Raises:
        CheckError: one of them refuses the file.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckError(f"the exported graph does not pass onnx.checker: {_first_line(error)}") from error
    session = _open(path)
    inputs = [(one.name, one.type, list(one.shape)) for one in session.get_inputs()]
    outputs = [(one.name, one.type, list(one.shape)) for one in session.get_outputs()]
    wanted_inputs, wanted_outputs = (
        [(info.name, ORT_TYPES[info.dtype], list(info.shape)) for info in infos]
        for infos in ([spec.input_info()], [spec.output_info(name) for name in spec.outputs])
    )
    if inputs != wanted_inputs or outputs != wanted_outputs:
        raise CheckError(
            f"the exported graph has inputs {inputs} and outputs {outputs}, "
            f"expected {wanted_inputs} and {wanted_outputs}"
        )
    return session


def _open(path: Path) -> Any:  # noqa: ANN401
    """Load a file into ONNX Runtime on the CPU: by its path, since bytes would seek their weights elsewhere.

    Raises:
        CheckError: ONNX Runtime refuses it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class of their own
        raise CheckError(f"ONNX Runtime can't load the exported graph: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
