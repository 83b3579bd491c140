"""The gate: no ONNX file passes to parity, a builder or a user that a strict reader would refuse."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # looked at by the next import, which writes to the home folder

import onnxruntime

from exporter.options import ExportSpec
from runtime.contract.errors import CheckError
from runtime.contract.machine import thread_limit

TYPES = {"float32": onnx.TensorProto.FLOAT, "uint8": onnx.TensorProto.UINT8, "bool": onnx.TensorProto.BOOL}
RUNNABLE = ("fp32", "fp16", "int8")
"""Precisions for which ONNX Runtime's CPU has kernels: none in bfloat16."""
ERRORS_ONLY = 3


def check_file(path: Path, spec: ExportSpec) -> None:
    """Check an ONNX file in full without running it: checker, strict shape and type inference, interface.

    Raises:
        CheckError: one of them refuses the file.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckError(f"the exported graph does not pass onnx.checker: {_first_line(error)}") from error
    graph = onnx.load(path, load_external_data=False).graph
    found = [_declared(one) for one in (*graph.input, *graph.output)]
    infos = (spec.input_info(), *(spec.output_info(name) for name in spec.outputs))
    wanted = [(info.name, TYPES[info.dtype], list(info.shape)) for info in infos]
    if found != wanted:
        raise CheckError(f"the exported graph has inputs and outputs {found}, expected {wanted}")


def open_checked(path: Path, spec: ExportSpec) -> Any:  # noqa: ANN401  # onnxruntime ships no types
    """Check an ONNX file in full and load it into ONNX Runtime on the CPU.

    Returns:
        The `onnxruntime.InferenceSession`.

    Raises:
        CheckError: the file is refused.
    """
    check_file(path, spec)
    return open_model(path)


def _declared(value: onnx.ValueInfoProto) -> tuple[str, int, list[int | str]]:
    """Name, data type and shape of an input or output."""
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, [size.dim_param or size.dim_value for size in tensor.shape.dim]


def open_model(path: Path) -> Any:  # noqa: ANN401
    """Load a file into ONNX Runtime on the CPU: by its path, since bytes would seek their weights elsewhere.

    Raises:
        CheckError: ONNX Runtime refuses it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = thread_limit() or 0  # 0: its own choice
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class of their own
        raise CheckError(f"ONNX Runtime can't load the exported graph: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
