"""Small seeded models of transformers, exported as others export them; each file is made once in a session."""

from __future__ import annotations

import copy
import functools
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import transformers

from exporter.__main__ import main

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 16, "image_size": 64}
CONFIGS = {
    "dinov2": (transformers.Dinov2Model, transformers.Dinov2Config, {"mlp_ratio": 2}),
    "registers": (transformers.Dinov2WithRegistersModel, transformers.Dinov2WithRegistersConfig, {"mlp_ratio": 2}),
    "dinov3": (
        transformers.DINOv3ViTModel, transformers.DINOv3ViTConfig, {"num_register_tokens": 4, "intermediate_size": 64},
    ),
    "vit": (transformers.ViTModel, transformers.ViTConfig, {"intermediate_size": 64}),
    "wide": (
        transformers.ViTModel, transformers.ViTConfig,
        {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 64},
    ),
    # 33 channels between blocks, 32 in the heads
    "uneven": (transformers.ViTModel, transformers.ViTConfig, {"hidden_size": 33, "intermediate_size": 64}),
    "deit": (transformers.DeiTModel, transformers.DeiTConfig, {"intermediate_size": 64}),
    "beit": (
        transformers.BeitModel, transformers.BeitConfig,
        {"intermediate_size": 64, "use_relative_position_bias": True},
    ),
    "clip": (transformers.CLIPVisionModel, transformers.CLIPVisionConfig, {"intermediate_size": 64}),
    "siglip": (transformers.SiglipVisionModel, transformers.SiglipVisionConfig, {"intermediate_size": 64}),
}  # fmt: skip
"""By name: the model, its configuration, and what it needs beside `SIZES`."""
SWIN = transformers.SwinConfig(
    image_size=64, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4
)


class _Named(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(pixel_values)
        return found.last_hidden_state, found.pooler_output


@functools.cache
def model_of(family: str, attention: str) -> torch.nn.Module:
    """A model with weights that are no defaults, in eval mode."""
    if family == "swin":
        kind, config = transformers.SwinModel, SWIN
    else:
        kind, make, more = CONFIGS[family]
        config = make(**{**SIZES, **more})
    torch.manual_seed(0)
    model = kind._from_config(config, attn_implementation=attention).eval()
    seed = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(torch.randn(one.shape, generator=seed) * 0.15)
    return model


def export(folder: Path, family: str, attention: str, how: str) -> Path:
    """The model as ONNX with a dynamic batch; `how` is `ts17` (TorchScript, opset 17), `dynamo20` or alike.

    With `-half` behind it, weights and pictures are float16.
    """
    path = folder / f"{family}-{attention}-{how}.onnx"
    if path.exists():
        return path
    model, images = _Named(model_of(family, attention)), torch.zeros(2, 3, 64, 64)
    if how.endswith("-half"):
        how, model, images = how.removesuffix("-half"), copy.deepcopy(model).half(), images.half()
    names = {"input_names": ["pixel_values"], "output_names": ["last_hidden_state", "pooler_output"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how.startswith("ts"):
            axes = {name: {0: "batch"} for name in (*names["input_names"], *names["output_names"])}
            torch.onnx.export(
                model, (images,), path, dynamo=False, opset_version=int(how[2:]), dynamic_axes=axes, **names
            )
        else:
            batch = {0: torch.export.Dim("batch")}
            torch.onnx.export(
                model, (images,), path, dynamo=True, opset_version=int(how[6:]), dynamic_shapes=(batch,),
                external_data=False, verbose=False, **names,
            )  # fmt: skip
    return path


def _ts(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], path: Path, names: list[str], axes: dict) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, inputs, path, dynamo=False, opset_version=17, input_names=names,
            output_names=["last_hidden_state", "pooler_output"], dynamic_axes=axes,
        )  # fmt: skip


def export_open_size(path: Path) -> None:
    """A DINOv2 with dynamic batch, height and width."""
    sizes = {"pixel_values": {0: "batch", 2: "height", 3: "width"}, "last_hidden_state": {0: "batch", 1: "tokens"}}
    model = _Named(model_of("dinov2", "eager"))
    _ts(model, (torch.zeros(2, 3, 48, 64),), path, ["pixel_values"], {**sizes, "pooler_output": {0: "batch"}})


def export_fixed_batch(path: Path, batch: int) -> None:
    """A ViT without a dynamic size."""
    _ts(_Named(model_of("vit", "eager")), (torch.zeros(batch, 3, 64, 64),), path, ["pixel_values"], {})


class _Factor(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, factor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(pixel_values)
        return found.last_hidden_state * factor, found.pooler_output * factor


def export_with_factor(path: Path) -> None:
    """A ViT with a second input that its outputs are multiplied by."""
    axes = {name: {0: "batch"} for name in ("pixel_values", "last_hidden_state", "pooler_output")}
    inputs = (torch.zeros(2, 3, 64, 64), torch.ones(1))
    _ts(_Factor(model_of("vit", "eager")), inputs, path, ["pixel_values", "factor"], axes)


class _Heads(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        width = SIZES["hidden_size"]
        self.classify, self.box = torch.nn.Linear(width, 5), torch.nn.Linear(width, 4)
        self.upsample, self.map = torch.nn.ConvTranspose2d(width, 8, 4, 4), torch.nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(pixel_values)
        patches = found.last_hidden_state[:, 1:]
        whole = patches.transpose(1, 2).unflatten(2, (4, 4))
        logits = self.classify(found.pooler_output)
        depth = 1e-3 * self.map(torch.relu(self.upsample(whole)))
        return logits, depth, torch.sigmoid(self.box(patches)), logits.argmax(1)


HEADS = ("logits", "depth", "patch_tokens", "label")
"""Outputs of a model with heads: boxes (B, P, 4) have the name of what they are not."""


def export_with_heads(path: Path, batch: int | None = None) -> None:
    """A DINOv2 with a classifier, a convolutional decoder and boxes behind it, and no embedding; `batch` is fixed."""
    torch.manual_seed(2)
    model = _Heads(model_of("dinov2", "eager")).eval()
    axes = {} if batch else {name: {0: "batch"} for name in ("pixel_values", *HEADS)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.zeros(batch or 2, 3, 64, 64),), path, dynamo=False, opset_version=17,
            input_names=["pixel_values"], output_names=list(HEADS), dynamic_axes=axes,
        )  # fmt: skip


def put_in(source: Path, out: Path, *options: str) -> int:
    """Run the command; gives its exit code."""
    return main(["--onnx", str(source), "--out", str(out), "--quiet", *options])


def session(path: Path, *, optimize: bool = False) -> onnxruntime.InferenceSession:
    """ONNX Runtime's session of a file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def results(path: Path, images: np.ndarray, **options: bool) -> list[np.ndarray]:
    """The outputs of a file for pictures, in its order."""
    one = session(path, **options)
    return one.run(None, {one.get_inputs()[0].name: images})


def images(seed: int, batch: int = 3) -> np.ndarray:
    """Pictures of which some places are loud, so that norms differ."""
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((batch, 3, 64, 64)).astype(np.float32) * 0.05
    found[:, :, :16, 16:32] *= 40
    found[0, :, 48:, 48:] *= 30
    return found
