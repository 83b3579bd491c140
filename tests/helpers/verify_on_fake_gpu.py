"""`python -m runtime`, with engines that run on the stand-in for a GPU, by the ONNX file that they were built from.

The environment's SPOILT names a way to be wrong, as broken kernels are.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import onnxruntime
from fake_gpu import FakeGpu, FakeProgram

from runtime.__main__ import main
from runtime.backends import trt
from runtime.backends.gpu_session import GpuSession
from runtime.contract.errors import BackendError


def spoil(how: str, embedding: np.ndarray) -> np.ndarray:
    """The embeddings (B, C) of a batch as an engine gives them that is wrong in one way."""
    wrong = np.roll(embedding, 1, axis=1)
    match how:
        case "off":
            return wrong
        case "nan":
            return embedding * np.float32("nan")
        case "later rows":
            return np.concatenate([embedding[:1], wrong[1:]])
        case "largest batch":
            return wrong if len(embedding) == 4 else embedding
        case "odd batch":
            return wrong if len(embedding) == 3 else embedding
        case "crash":
            os.abort()
    return embedding


def open_engine(model, device=0):
    how = os.environ["SPOILT"]
    if how == "refused":
        raise BackendError(f"TensorRT can't load {model.path}: it said so")
    session = onnxruntime.InferenceSession(model.path.parent / "model" / "model.onnx")
    source, gpu = model.manifest.input.name, FakeGpu()

    def compute(batch: np.ndarray) -> dict[str, np.ndarray]:
        names = [one.name for one in session.get_outputs()]
        results = dict(zip(names, session.run(names, {source: batch}), strict=True))
        return results | {"embedding": spoil(how, results["embedding"])}

    return GpuSession(model.manifest, gpu, lambda _: FakeProgram(gpu, model.manifest, compute))


if __name__ == "__main__":
    trt.open_engine = open_engine
    sys.exit(main(sys.argv[1:]))
