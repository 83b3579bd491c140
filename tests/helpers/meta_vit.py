"""A small DINOv2 written as Meta's code has it, for exports that lightly-train, depth models and others make of it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn
from torch.nn import functional

WIDTH, HEADS, DEPTH, PATCH = 32, 4, 3, 14
SIZE = (56, 70)


class _Attention(nn.Module):
    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, N, C = x.shape
        if self.fused:
            q, k, v = (one.transpose(1, 2) for one in torch.unbind(self.qkv(x).reshape(B, N, 3, HEADS, C // HEADS), 2))
            mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        else:
            qkv = self.qkv(x).reshape(B, N, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
            q, k, v = qkv[0] * (C // HEADS) ** -0.5, qkv[1], qkv[2]
            mixed = ((q @ k.transpose(-2, -1)).softmax(dim=-1) @ v).transpose(1, 2)
        joined: torch.Tensor = self.proj(mixed.reshape(B, N, C))
        return joined


class _Block(nn.Module):
    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = _Attention(fused=fused)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))
        self.ls1, self.ls2 = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1 * self.attn(self.norm1(x))
        return x + self.ls2 * self.mlp(self.norm2(x))


class MetaVit(nn.Module):
    """Patches of 14, a CLS token, learned positions; `masks` hides patches as in training, if it is given."""

    def __init__(self, *, fused: bool, patch: tuple[int, int] = (PATCH, PATCH)) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, patch, patch)
        self.cls_token, self.mask_token = nn.Parameter(torch.zeros(1, 1, WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        grid = (SIZE[0] // patch[0]) * (SIZE[1] // patch[1])
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid, WIDTH))
        self.blocks = nn.ModuleList(_Block(fused=fused) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)

    def tokens(self, x: torch.Tensor, masks: torch.Tensor | None = None) -> torch.Tensor:
        """All tokens, normalised: (B, N, C)."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        if masks is not None:
            x = torch.where(masks.unsqueeze(-1), self.mask_token.to(x.dtype).unsqueeze(0), x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        tokens: torch.Tensor = self.norm(x)
        return tokens

    def forward(self, x: torch.Tensor, masks: torch.Tensor | None = None) -> torch.Tensor:
        """The CLS token: (B, C)."""
        return self.tokens(x, masks)[:, 0]


class Depth(nn.Module):
    """A backbone whose patch tokens go through a convolutional decoder; one output, a map (B, 1, H, W)."""

    def __init__(self, backbone: MetaVit) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(WIDTH, 16, 2, 2), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(),
            nn.Upsample(scale_factor=7, mode="bilinear", align_corners=True), nn.Conv2d(8, 1, 1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The map."""
        height, width = x.shape[2] // PATCH, x.shape[3] // PATCH
        patches = self.backbone.tokens(x)[:, 1:]
        found: torch.Tensor = self.decoder(patches.permute(0, 2, 1).reshape(x.shape[0], WIDTH, height, width))
        return found


def seeded(model: nn.Module) -> nn.Module:
    """The model in eval mode with weights that are no defaults."""
    seed = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(torch.randn(one.shape, generator=seed) * 0.15)
    return model.eval()


def export(model: nn.Module, path: Path, how: str, *others: torch.Tensor, fixed: bool = False) -> None:
    """The model as ONNX; `how` is `ts14` (TorchScript, opset 14) or `dynamo20` or alike."""
    inputs = (torch.zeros(2, 3, *SIZE), *others)
    names = ["image", "masks"][: len(inputs)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how.startswith("ts"):
            axes = {} if fixed else {name: {0: "batch"} for name in (*names, "out")}
            torch.onnx.export(
                model, inputs, path, dynamo=False, opset_version=int(how[2:]), input_names=names, output_names=["out"],
                dynamic_axes=axes,
            )  # fmt: skip
        else:
            batch = torch.export.Dim("batch")
            torch.onnx.export(
                model, inputs, path, dynamo=True, opset_version=int(how[6:]), input_names=names, output_names=["out"],
                dynamic_shapes=tuple({0: batch} for _ in inputs), external_data=False, verbose=False,
            )  # fmt: skip


def with_sequences(source: Path, path: Path) -> int:
    """Write `source` with its Splits as SplitToSequence and SequenceAt, as torch writes `chunk` of unknown sizes; gives
    their number.
    """
    model = onnx.load(source)
    nodes, count = [], 0
    for node in model.graph.node:
        if node.op_type != "Split":
            nodes.append(node)
            continue
        count += 1
        axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
        one = f"{node.name}/one"
        model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), one))
        sequence = f"{node.name}/sequence"
        nodes.append(helper.make_node("SplitToSequence", [node.input[0], one], [sequence], axis=axis, keepdims=1))
        for index, output in enumerate(node.output):
            place = f"{node.name}/place{index}"
            model.graph.initializer.append(numpy_helper.from_array(np.array(index, np.int64), place))
            nodes.append(helper.make_node("SequenceAt", [sequence, place], [output], f"{node.name}/at{index}"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    return count
