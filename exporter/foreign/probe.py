"""Runs of a foreign graph that look at tensors inside it, or put others in their places."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # looked at by the next import, which writes to the home folder

import onnxruntime

from exporter.foreign.onnx_file import OnnxFile
from runtime.contract.errors import InputError, one_line
from runtime.contract.machine import thread_limit

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
SHAPE_OF = "itae/shape_of/"
_ERRORS_ONLY = 4
_DTYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(bool)": np.bool_,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32,
}  # fmt: skip


class Probe:
    """An ONNX file that can be run with some of its tensors as outputs, and some given in place of computed ones.

    ONNX Runtime's optimisers are off: what is seen is what the graph says, operator by operator.
    """

    def __init__(self, file: OnnxFile, folder: Path) -> None:
        """Use `folder`, a work folder, for variants of the model; external data is linked into it.

        Raises:
            InputError: external data can't be linked or copied.
        """
        self._model = file.model
        self._path = file.path
        self._folder = folder
        self._made = 0
        for one in file.data:
            place = folder / one.relative_to(file.path.parent.resolve())
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists():
                continue
            try:
                os.link(one, place)
            except OSError:  # another file system
                try:
                    shutil.copyfile(one, place)
                except OSError as error:
                    raise InputError(f"can't copy {one} to {folder}: {error.strerror}") from error

    def run(
        self, feeds: Mapping[str, Array], wanted: Sequence[str], given: Mapping[str, Array] | None = None
    ) -> Arrays:
        """The tensors `wanted`, by name; `given` replaces what the graph computes.

        Raises:
            InputError: ONNX Runtime can't run the graph so.
        """
        session = open_session(self.variant(wanted, given or {}), self._path)
        names = {one.name for one in session.get_inputs()}
        everything = {**feeds, **(given or {})}
        try:
            found = session.run(list(wanted), {name: one for name, one in everything.items() if name in names})
        except Exception as error:  # its exceptions share no base class of their own
            raise InputError(f"ONNX Runtime can't run {self._path}: {one_line(error)}") from error
        return dict(zip(wanted, found, strict=True))

    def shapes(self, feeds: Mapping[str, Array], tensors: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """The shapes of tensors inside, by name; the tensors themselves are not kept."""
        found = self.run(feeds, [f"{SHAPE_OF}{name}" for name in dict.fromkeys(tensors)])
        return {name.removeprefix(SHAPE_OF): tuple(map(int, shape)) for name, shape in found.items()}

    def dtypes(self, tensors: Sequence[str]) -> dict[str, np.dtype[Any]]:
        """The data types of tensors inside, by name, as ONNX Runtime infers them.

        Raises:
            InputError: ONNX Runtime can't load the graph so, or one is no tensor of a type that is known here.
        """
        found = self.types(tensors)
        if (unknown := next((name for name in tensors if name not in found), None)) is not None:
            raise InputError(f"{self._path}: {unknown!r} is of a type that can't be operated on")
        return found

    def types(self, tensors: Sequence[str]) -> dict[str, np.dtype[Any]]:
        """As `dtypes`, without what is no tensor of a known type.

        Raises:
            InputError: ONNX Runtime can't load the graph so.
        """
        found = open_session(self.variant([*dict.fromkeys(tensors)], {}), self._path).get_outputs()
        return {one.name: np.dtype(_DTYPES[one.type]) for one in found if one.type in _DTYPES}

    def variant(self, wanted: Sequence[str], given: Mapping[str, Array]) -> Path:
        """Write the model with these outputs alone, the tensors `given` being inputs."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        graph = model.graph
        for node in graph.node:
            for index, name in enumerate(node.output):
                if name in given:
                    node.output[index] = f"{name}/replaced"
        graph.input.extend(
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in given.items()
        )
        graph.node.extend(
            helper.make_node("Shape", [name.removeprefix(SHAPE_OF)], [name], name)
            for name in wanted
            if name.startswith(SHAPE_OF)
        )
        kept = {one.name: one for one in graph.output}
        chosen = [kept.get(name, onnx.ValueInfoProto(name=name)) for name in wanted]
        del graph.output[:]
        graph.output.extend(chosen)
        self._made += 1
        path = self._folder / f"variant{self._made}.onnx"
        onnx.save(model, path)
        return path


def open_session(path: Path, called: Path, *, optimize: bool = False) -> Any:  # noqa: ANN401  # onnxruntime ships no types
    """Load a file into ONNX Runtime on the CPU.

    Raises:
        InputError: ONNX Runtime refuses it; the message calls it `called`.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = thread_limit() or 0
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class of their own
        raise InputError(f"ONNX Runtime can't load {called}: {one_line(error)}") from error


def number(array: Array) -> float | None:
    """The number in an array of one element; None if it has several."""
    return float(np.asarray(array, np.float64).item()) if array.size == 1 else None
