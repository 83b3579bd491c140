"""The matrix products of a model and nothing else, by OpenVINO: how fast this machine can be at the model's shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from exporter.models.architecture import Architecture
from runtime.backends.openvino import BF16, SETTINGS, compute_of, import_openvino
from scripts.benchmark.prepare import IMAGE_SIZE
from scripts.benchmark.worker import Refused

Float32 = npt.NDArray[np.float32]


class Products:
    """A chain of the products with weights (k, n) that our model does for a batch: a contestant without embeddings.

    A block has four of (C, C), one of (C, 4 C) and one of (4 C, C); the last block has keys and values alone, since the
    rest is of one token. The products of attention, a twentieth of all operations, are left out.
    """

    def __init__(self, arch: Architecture, precision: str) -> None:
        """Compile the chain in `fp32`, `bf16` or `int8`.

        Raises:
            Refused: OpenVINO computes in another type here.
        """
        openvino = import_openvino()
        facts = arch.facts((IMAGE_SIZE, IMAGE_SIZE))
        self._tokens, self._width = facts.patches + facts.prefix, arch.width
        settings = {**SETTINGS, **BF16} if precision == "bf16" else SETTINGS
        compiled = openvino.Core().compile_model(_chain(arch, quantized=precision == "int8"), "CPU", settings)
        if (found := compute_of(compiled)) != precision:
            raise Refused(f"OpenVINO computes the products in {found} here, not in {precision}")
        self._request: Any = compiled.create_infer_request()
        self.version = f"OpenVINO {openvino.get_version().partition('-')[0]}"

    def put(self, batch: Float32) -> None:  # noqa: D102
        rows = len(batch) * self._tokens
        self._rows = np.random.default_rng(0).standard_normal((rows, self._width), dtype=np.float32)

    def run(self) -> None:  # noqa: D102
        self._request.infer({0: self._rows}, share_inputs=True)

    def get(self) -> Float32:  # noqa: D102
        return np.array(self._request.get_tensor(self._request.model_outputs[0]).data)


def shapes(arch: Architecture) -> list[tuple[int, int]]:
    """(k, n) of each weight of the products that the chain does."""
    C = arch.width
    return [*[(C, C)] * 4, (C, 4 * C), (4 * C, C)] * (arch.depth - 1) + [(C, C)] * 2


def _chain(arch: Architecture, *, quantized: bool) -> Any:  # noqa: ANN401
    """The chain as a model of OpenVINO, float32 or with both sides of each product quantized to 8 bits."""
    import openvino.opset13 as operators

    generator = np.random.default_rng(0)

    def rounded(tensor: Any, limit: float, levels: int) -> Any:  # noqa: ANN401
        edges = [operators.constant(np.float32(sign * limit)) for sign in (-1, 1)]
        return operators.fake_quantize(tensor, *edges, *edges, levels) if quantized else tensor

    first = operators.parameter([-1, arch.width], np.float32)
    last = first
    for k, n in shapes(arch):
        numbers = generator.standard_normal((k, n), dtype=np.float32) / np.float32(np.sqrt(k))
        weight = rounded(operators.constant(numbers), 4 / np.sqrt(k), 255)
        last = operators.matmul(rounded(last, 4, 256), weight, transpose_a=False, transpose_b=False)
    return import_openvino().Model([operators.result(last)], [first])
