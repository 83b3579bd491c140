"""The model of a repository that takes the model's own input: `runtime.load` in Triton's Python backend."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

import runtime
from runtime.contract.comparison import compare, limits_in
from runtime.contract.errors import CheckError, InputError
from runtime.contract.golden import read_golden
from runtime.contract.machine import usable_cores
from runtime.serving.model_config import COMPUTE, PROVIDER, THREADS
from runtime.serving.stub import Arguments, Array, Asked, BatchedModel, version_folder

MODEL_FILE = {"onnx": "model.onnx", "tensorrt": "model.plan"}
"""Name of the model in a version's folder, by what built it."""


class TritonPythonModel(BatchedModel):
    """A version of the model."""

    def initialize(self, arguments: Arguments) -> None:
        """Load the model of a version, and compare its golden sample.

        Raises:
            CheckError: the golden sample's results are not as they should be.
            ItaeError: the model can't be loaded.
        """
        path = version_folder(arguments) / MODEL_FILE["onnx"]
        self._model = runtime.load(path, **_settings(arguments["model_config"]))
        manifest = self._model.manifest
        own = manifest.options.precision
        limits = limits_in(manifest, own if own == "int8" else self._model.session.compute)  # int8 is less than bf16
        golden = read_golden(path, manifest)
        try:
            found = self._model.run_inputs(golden.input)
        except CheckError as error:
            raise CheckError(f"{path}: the golden sample is off: {error}") from error
        stored = {name: found[name] for name in golden.outputs() if name in found}
        parity = compare(stored, golden, limits)
        if not parity.passed:
            raise CheckError(f"{path}: the golden sample is off: {'; '.join(parity.failures)}")

    def read(self, request: Any) -> Asked:  # noqa: ANN401
        """The inputs of a request; see `BatchedModel.read`."""
        manifest = self._model.manifest
        inputs = self.utils.get_input_tensor_by_name(request, manifest.input.name).as_numpy()
        if not len(inputs):
            raise InputError("a request of no image: send one or more")
        if inputs.dtype == np.float32 and not np.isfinite(inputs).all():
            raise InputError(f"`{manifest.input.name}` holds NaN or infinity")
        wanted = set(request.requested_output_names())
        return Asked(tuple(name for name in manifest.output_names() if name in wanted), inputs)

    def compute(self, inputs: Array, names: Sequence[str]) -> dict[str, Array]:
        """Run the model; see `BatchedModel.compute`."""
        return self._model.run_inputs(inputs, names)

    def finalize(self) -> None:
        """Release the model."""
        self._model.close()


def _settings(config: str) -> dict[str, Any]:
    """The arguments of `runtime.load` in a model's configuration; several instances share the cores."""
    fields = json.loads(config)
    given = {name: one["string_value"] for name, one in fields.get("parameters", {}).items()}
    instances = sum(int(one["count"]) for one in fields["instance_group"])
    shared = None if instances == 1 else max(1, usable_cores() // instances)
    threads = int(given[THREADS]) if THREADS in given else shared
    return {"provider": given.get(PROVIDER, "cpu"), "compute": given.get(COMPUTE), "threads": threads}
