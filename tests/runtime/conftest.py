"""A tiny model with ITAE's outputs, its manifest and golden sample, and a folder of pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from preprocessing import standard_preprocessing

from runtime.contract.comparison import LIMITS
from runtime.contract.golden import Golden, golden_bytes
from runtime.contract.manifest import (
    Backbone,
    Builder,
    Files,
    ItaeMethod,
    Manifest,
    Options,
    ParityReport,
    TensorInfo,
    Weights,
    manifest_path,
    parity_path,
    record_file,
)

SIDE, PATCH, HIDDEN, WIDTH = 42, 14, 8, 6
PATCHES = (SIDE // PATCH) ** 2
THRESHOLD = 8.0
"""Of a patch's norm: flags some of the golden sample's patches, not all (the fixtures assert it)."""
ALL = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")


@dataclass(frozen=True)
class Tiny:
    """The tiny model's weights, and what it computes, in float64: patch embedding, mean, projection."""

    kernel: np.ndarray  # (HIDDEN, 3, PATCH, PATCH)
    projection: np.ndarray  # (HIDDEN, WIDTH)

    def outputs(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Every output for pixels (B, 3, SIDE, SIDE), normalised."""
        grid = SIDE // PATCH
        patches = pixels.astype(np.float64).reshape(len(pixels), 3, grid, PATCH, grid, PATCH)
        tokens = np.einsum("bcyixj,hcij->byxh", patches, self.kernel).reshape(len(pixels), PATCHES, HIDDEN)
        norm = np.linalg.norm(tokens, axis=-1)[:, None]  # (B, 1, P)
        vectors = tokens @ self.projection
        return {
            "embedding": vectors.mean(axis=1).astype(np.float32),
            "patch_tokens": vectors.astype(np.float32),
            "artifact_norm": norm.astype(np.float32),
            "artifact_mask": norm > THRESHOLD,
        }


@pytest.fixture(scope="session")
def tiny_weights() -> Tiny:
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((HIDDEN, 3, PATCH, PATCH)).astype(np.float32) / 8
    return Tiny(kernel, rng.standard_normal((HIDDEN, WIDTH)).astype(np.float32))


MakeModel = Callable[..., Path]


@pytest.fixture(scope="session")
def make_model(tiny_weights: Tiny) -> MakeModel:
    """Write `folder/name` with manifest and golden sample, and give its path.

    `outputs`: of `ALL`; `dtype`: of the input; `nan`: the model gives NaN for images that are bright on
    average; `batch`: of an engine's profile; `builder`: other than onnx makes an "engine" of a few bytes; `factor`: of
    its embeddings, for another model of the same shape.
    """

    def make(
        folder: Path,
        name: str = "tiny.onnx",
        *,
        outputs: tuple[str, ...] = ("embedding",),
        dtype: str = "float32",
        nan: bool = False,
        batch: tuple[int, int, int] | None = None,
        builder: str = "onnx",
        factor: float = 1,
    ) -> Path:
        weights = replace(tiny_weights, projection=tiny_weights.projection * np.float32(factor))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.write_bytes(graph(weights, outputs, dtype, nan=nan) if builder == "onnx" else b"plan" * 99)
        parity_path(path).write_bytes(golden_bytes(golden_sample(weights, outputs, dtype)))
        manifest = describe(path, outputs, dtype, batch, builder)
        manifest_path(path).write_bytes(manifest.to_json())
        return path

    return make


def graph(weights: Tiny, outputs: tuple[str, ...], dtype: str, *, nan: bool = False) -> bytes:
    """The model as ONNX; the nodes are the same whatever is asked for, as dead ones do no harm."""
    shapes = {
        "embedding": (TensorProto.FLOAT, ["batch", WIDTH]),
        "patch_tokens": (TensorProto.FLOAT, ["batch", PATCHES, WIDTH]),
        "artifact_norm": (TensorProto.FLOAT, ["batch", 1, PATCHES]),
        "artifact_mask": (TensorProto.BOOL, ["batch", 1, PATCHES]),
    }
    how = standard_preprocessing((SIDE, SIDE), "uint8")
    constants = {
        "kernel": weights.kernel,
        "projection": weights.projection,
        "token_shape": np.array([0, HIDDEN, PATCHES], np.int64),
        "one": np.array([1], np.int64),
        "last": np.array([-1], np.int64),
        "pixel_axes": np.array([1, 2, 3], np.int64),
        "threshold": np.array(THRESHOLD, np.float32),
        "scale": np.array(how.scale, np.float32),
        "mean": np.array(how.mean, np.float32),
        "std": np.array(how.std, np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["pixel_values", "kernel"], ["grid"], strides=[PATCH, PATCH]),
        node("Reshape", ["grid", "token_shape"], ["channels"]),
        node("Transpose", ["channels"], ["tokens"], perm=[0, 2, 1]),
        node("MatMul", ["tokens", "projection"], ["patch_tokens"]),
        node("ReduceMean", ["patch_tokens", "one"], ["average"], keepdims=0),
        node("ReduceL2", ["tokens", "last"], ["norm"], keepdims=0),
        node("Unsqueeze", ["norm", "one"], ["artifact_norm"]),
        node("Greater", ["artifact_norm", "threshold"], ["artifact_mask"]),
    ]
    if nan:  # + log(-mean of the pixels), which is NaN where that is positive
        nodes += [
            node("ReduceMean", ["pixel_values", "pixel_axes"], ["brightness"], keepdims=0),
            node("Neg", ["brightness"], ["darkness"]),
            node("Log", ["darkness"], ["logarithm"]),
            node("Unsqueeze", ["logarithm", "one"], ["column"]),
            node("Add", ["average", "column"], ["embedding"]),
        ]
    else:
        nodes.append(node("Identity", ["average"], ["embedding"]))
    if dtype == "uint8":
        source = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])
        nodes[:0] = [
            node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            node("Mul", ["floats", "scale"], ["unit"]),
            node("Sub", ["unit", "mean"], ["centred"]),
            node("Div", ["centred", "std"], ["normal"]),
            node("Transpose", ["normal"], ["pixel_values"], perm=[0, 3, 1, 2]),
        ]
    else:
        source = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    named = [helper.make_tensor_value_info(name, *shapes[name]) for name in outputs]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    body = helper.make_graph(nodes, "tiny", [source], named, initializers)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def golden_sample(weights: Tiny, outputs: tuple[str, ...], dtype: str) -> Golden:
    """Four seeded images; some of their patches are artifacts, not all."""
    images = np.random.default_rng(7).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
    pixels = normalised(images)
    expected = weights.outputs(pixels)
    flags = expected["artifact_mask"]
    assert 0 < flags.sum() < flags.size
    norm = expected["artifact_norm"]
    return Golden(
        input=images if dtype == "uint8" else pixels,
        embedding=expected["embedding"],
        flags=flags,
        flag_distance=np.abs(norm - np.float32(THRESHOLD)) / norm,
        patch_tokens=expected["patch_tokens"] if "patch_tokens" in outputs else None,
        artifact_norm=norm if "artifact_norm" in outputs else None,
    )


def normalised(images: np.ndarray) -> np.ndarray:
    """(B, SIDE, SIDE, 3) uint8 as a float32 model takes it."""
    how = standard_preprocessing((SIDE, SIDE), "float32")
    values = (images / 255 - how.mean) / how.std
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)


def describe(
    path: Path, outputs: tuple[str, ...], dtype: str, batch: tuple[int, int, int] | None, builder: str
) -> Manifest:
    """The manifest of the files at `path`."""
    shapes = {
        "embedding": ("batch", WIDTH),
        "patch_tokens": ("batch", PATCHES, WIDTH),
        "artifact_norm": ("batch", 1, PATCHES),
        "artifact_mask": ("batch", 1, PATCHES),
    }
    is_float = dtype == "float32"
    source = TensorInfo(
        name="pixel_values" if is_float else "images",
        dtype=dtype,
        shape=("batch", 3, SIDE, SIDE) if is_float else ("batch", SIDE, SIDE, 3),
    )
    return Manifest(
        options=Options(
            size="vits14",
            weights="random:0",
            backend="none" if builder == "onnx" else builder,
            precision="fp32",
            image_size=(SIDE, SIDE),
            batch=batch,
            method=ItaeMethod(
                layers=(0,), source="key", threshold=f"absolute:{THRESHOLD}", side="high", attenuate="min"
            ),
            outputs=outputs,
            input=dtype,
            pos_embed="meta",
            workspace_mib=None,
            parity_samples=4,
        ),
        model=Backbone(
            size="vits14",
            registers=0,
            patch=PATCH,
            width=WIDTH,
            heads=1,
            depth=1,
            weights=Weights(kind="random", source="random:0", revision=None, sha256="0" * 64),
        ),
        inputs=(source,),
        outputs=tuple(
            TensorInfo(name=name, dtype="bool" if name == "artifact_mask" else "float32", shape=shapes[name])
            for name in outputs
        ),
        preprocessing=standard_preprocessing((SIDE, SIDE), dtype),
        builder=Builder(name=builder, version="0", platform="test"),
        parity=ParityReport(limits=LIMITS["fp32"], checks=()),
        files=Files(model=record_file(path), external_data=None, parity=record_file(parity_path(path))),
        versions={},
    )


@pytest.fixture
def tiny(tmp_path: Path, make_model: MakeModel) -> Path:
    """A model with `embedding` alone, float32."""
    return make_model(tmp_path / "model")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of eight good pictures of different sizes: `cats/*.png` and `dogs/deep/*.jpg`."""
    folder = tmp_path / "pictures"
    rng = np.random.default_rng(3)
    for number in range(8):
        sub, suffix = ("cats", "png") if number < 4 else ("dogs/deep", "jpg")
        (folder / sub).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (30 + 7 * number, 90 - 5 * number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / sub / f"{number}.{suffix}")
    return folder
