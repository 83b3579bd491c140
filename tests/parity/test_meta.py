"""The figures of Meta's own code: facebookresearch/dinov2, float32, on weights and images made from numbers alone.

`data/meta_golden.npz` holds, by size and image size, the CLS embedding after the final norm (2, 384) and the first
patch token after it. The recipe of the checkpoint is written out here once more, apart from `exporter.models.weights`.
"""

import zlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from exporter import pipeline
from exporter.methods.itae import reference
from exporter.models import weights
from exporter.models.architecture import architecture
from exporter.options import ExportSpec

GOLDEN = Path(__file__).parents[1] / "data" / "meta_golden.npz"
ATOL = 1e-4
"""What the exporter promises in float32; seen: 3e-6."""
IMAGE_SIZES = [(224, 224), (224, 448), (518, 518)]


def meta_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    x = np.random.default_rng([3, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
    if name.endswith(("norm1.weight", "norm2.weight", "norm.weight")):
        return 1 + 0.2 * x
    if name.endswith("gamma"):
        return 0.3 + 0.1 * x
    if name.endswith(".bias"):
        return 0.05 * x
    if len(shape) == 2 and name.endswith(".weight"):
        return x * 1.2 / np.sqrt(shape[1])
    if len(shape) == 4:
        return x / np.sqrt(np.prod(shape[1:]))
    return 0.2 * x


def meta_checkpoint(registers: int) -> dict[str, torch.Tensor]:
    C, shapes = 384, {}
    shapes |= {"cls_token": (1, 1, C), "pos_embed": (1, 1370, C), "mask_token": (1, C)}
    if registers:
        shapes["register_tokens"] = (1, registers, C)
    shapes |= {"patch_embed.proj.weight": (C, 3, 14, 14), "patch_embed.proj.bias": (C,)}
    for block in (f"blocks.{i}." for i in range(12)):
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (C,), f"{block}{norm}.bias": (C,)}
        for name, rows, columns in [
            ("attn.qkv", 3 * C, C),
            ("attn.proj", C, C),
            ("mlp.fc1", 4 * C, C),
            ("mlp.fc2", C, 4 * C),
        ]:
            shapes |= {f"{block}{name}.weight": (rows, columns), f"{block}{name}.bias": (rows,)}
        shapes |= {f"{block}ls1.gamma": (C,), f"{block}ls2.gamma": (C,)}
    shapes |= {"norm.weight": (C,), "norm.bias": (C,)}
    return {name: torch.from_numpy(meta_tensor(name, shape).astype(np.float32)) for name, shape in shapes.items()}


@pytest.fixture(scope="module", params=["vits14", "vits14_reg"])
def meta(request, tmp_path_factory):
    """A checkpoint file in Meta's naming, and its size."""
    path = tmp_path_factory.mktemp("meta") / f"dinov2_{request.param}.pth"
    torch.save(meta_checkpoint(4 if request.param.endswith("_reg") else 0), path)
    return request.param, path


def spec_of(size: str, path: Path, image_size: tuple[int, int], pos_embed: str = "meta") -> ExportSpec:
    options = {"image_size": image_size, "pos_embed": pos_embed, "itae": None}
    return ExportSpec("unused.onnx", size=size, weights=str(path), **options)


def images(height: int, width: int) -> np.ndarray:
    return np.random.default_rng([11, height, width]).standard_normal((2, 3, height, width), dtype=np.float32)


@pytest.mark.parametrize("image_size", IMAGE_SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_eager_embeddings_equal_metas(meta, image_size):
    size, path = meta
    model = pipeline.load(spec_of(size, path, image_size)).model
    eager = reference.embed(model, torch.from_numpy(images(*image_size)), None)
    with np.load(GOLDEN) as golden:
        key = f"{size}_{image_size[0]}x{image_size[1]}"
        np.testing.assert_allclose(eager.embedding, golden[key], rtol=0, atol=ATOL)
        np.testing.assert_allclose(eager.patch_tokens[:, 0], golden[f"{key}_patch0"], rtol=0, atol=ATOL)


QUICK_GRAPHS = {("vits14", (518, 518)), ("vits14", (224, 448)), ("vits14_reg", (224, 224))}
"""Each model and each image size once; the eager test, to whose numbers graphs are held elsewhere, runs over all."""


@pytest.mark.parametrize(
    ("meta", "image_size"),
    [
        pytest.param(
            size,
            image_size,
            id=f"{size}-{image_size[0]}x{image_size[1]}",
            marks=[] if (size, image_size) in QUICK_GRAPHS else [pytest.mark.slow],
        )
        for size in ("vits14", "vits14_reg")
        for image_size in IMAGE_SIZES
    ],
    indirect=["meta"],
    scope="module",
)
def test_graph_embeddings_equal_metas(meta, image_size, tmp_path):
    size, path = meta
    spec = spec_of(size, path, image_size)
    _, traced = pipeline.load_and_trace(spec, tmp_path)
    model = pipeline.operate(spec, traced, tmp_path).model
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (embedding,) = session.run(None, {"pixel_values": images(*image_size)})
    with np.load(GOLDEN) as golden:
        key = f"{size}_{image_size[0]}x{image_size[1]}"
        np.testing.assert_allclose(embedding, golden[key], rtol=0, atol=ATOL)


def test_position_embedding_of_the_port_differs_without_registers_only(meta):
    size, path = meta
    model = pipeline.load(spec_of(size, path, (224, 224), pos_embed="hf")).model
    eager = reference.embed(model, torch.from_numpy(images(224, 224)), None)
    with np.load(GOLDEN) as golden:
        off = np.abs(eager.embedding.numpy() - golden[f"{size}_224x224"]).max()
    # So the tests above can fail: the port's way of resizing is seen.
    assert off < ATOL if size.endswith("_reg") else off > 10 * ATOL


def test_seed_3_of_random_weights_is_the_recipe_of_the_golden_figures(meta):
    size, path = meta
    ours = weights.random_tensors(architecture(size), 3)
    theirs = torch.load(path, weights_only=True)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-6, atol=1e-7)


def test_position_embedding_of_the_port_gives_the_ports_embeddings(meta):
    size, path = meta
    spec = spec_of(size, path, (224, 448), pos_embed="hf")
    baked = pipeline.load(spec).model
    untouched = weights.load(spec.backbone, spec.weights).model
    pixels = torch.from_numpy(images(224, 448))
    with torch.inference_mode():
        want = untouched(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(reference.embed(baked, pixels, None).embedding, want, rtol=0, atol=1e-5)
