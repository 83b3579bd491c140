"""Small models in DINOv2's true architecture: traced once, operated on many times."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from exporter import pipeline
from exporter.methods.itae import reference
from exporter.methods.itae.options import ItaeConfig
from exporter.models.architecture import Architecture
from exporter.options import ExportSpec

PATCH = 14

# Models this small are slower on several threads than on one.
torch.set_num_threads(1)

EVERYTHING = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")


@dataclass(frozen=True)
class TinyDinov2:
    """A random model, its float64 copy, and its trace."""

    spec: ExportSpec
    model: torch.nn.Module
    float64: torch.nn.Module
    traced: Path

    @property
    def prefix(self) -> int:
        return self.spec.backbone.prefix

    def images(self, batch: int, seed: int) -> np.ndarray:
        """(B, 3, H, W) float32; every second one flat but for two loud patches, so that norms differ much."""
        rng = np.random.default_rng(seed)
        images = rng.standard_normal((batch, 3, self.spec.height, self.spec.width), dtype=np.float32)
        for image in images[::2]:
            quiet = image * 0.05
            quiet[:, :PATCH, :PATCH] = image[:, :PATCH, :PATCH] * 3
            quiet[:, -PATCH:, -PATCH:] = image[:, -PATCH:, -PATCH:] * 2
            image[:] = quiet
        return images

    def export(self, itae: ItaeConfig | None, folder: Path, **options) -> Path:
        """The operated graph as an ONNX file with every output that it can have."""
        options.setdefault("outputs", EVERYTHING if itae else EVERYTHING[:2])
        spec = dataclasses.replace(self.spec, itae=itae, **options)
        return pipeline.operate(spec, self.traced, folder).model

    def run(self, itae: ItaeConfig | None, images: np.ndarray, folder: Path, **options) -> dict[str, np.ndarray]:
        """What ONNX Runtime makes of the operated graph, by output."""
        return run(self.export(itae, folder, **options), images)

    def eager(self, itae: ItaeConfig | None, images: np.ndarray, pooling="cls", **options) -> reference.Eager:
        """What eager PyTorch makes of it in float64."""
        return reference.embed(self.float64, torch.from_numpy(images).double(), itae, pooling, **options)


def open_session(path: Path, *, optimize: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path: Path, images: np.ndarray, *, optimize: bool = True) -> dict[str, np.ndarray]:
    session = open_session(path, optimize=optimize)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: images}), strict=True))


MODELS = {
    # P = 20, even: the median is the mean of two
    "mlp": (Architecture("tiny", width=48, heads=3, depth=3), (4 * PATCH, 5 * PATCH)),
    # P = 15, odd; registers and SwiGLU, and the position embedding of models with registers
    "swiglu-reg": (
        Architecture("tiny_reg", width=32, heads=2, depth=3, registers=4, swiglu=True),
        (3 * PATCH, 5 * PATCH),
    ),
}


def make_tiny(arch: Architecture, size: tuple[int, int], folder: Path, pos_embed="meta") -> TinyDinov2:
    spec = ExportSpec("unused.onnx", size=arch, image_size=size, weights="random:1", pos_embed=pos_embed)
    loaded, traced = pipeline.load_and_trace(spec, folder)
    return TinyDinov2(spec, loaded.model, copy.deepcopy(loaded.model).double(), traced)
