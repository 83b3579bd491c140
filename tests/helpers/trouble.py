"""Random DINOv2 weights with planted properties of the real ones that are hard for half precision.

Meta's models have a residual channel of thousands at some tokens, and keys far from zero. These are planted in the
weights, so that everything downstream (LayerNorm, the norms, the softmax) meets them as in the real models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from exporter.models import backbone, position, weights
from exporter.models.architecture import Architecture
from exporter.options import ExportSpec

CHANNEL = 7
"""The residual channel that is large."""
RESIDUAL = 6000.0
REST = 2.0
"""About the root mean square of all other channels, at any depth of a random model."""
KINDS = ("residual", "norms", "logits")
FLOAT16_MAX = 65504.0


def plant(tensors: backbone.Tensors, arch: Architecture, kinds: tuple[str, ...]) -> None:
    """Change a checkpoint in Meta's naming in place."""
    if "residual" in kinds:
        _plant_residual(tensors, arch)
    half, last = arch.depth // 2, arch.depth - 1
    for layer in (half, last):
        query, key, _ = tensors[f"blocks.{layer}.attn.qkv.weight"].chunk(3)
        query_bias, key_bias, _ = tensors[f"blocks.{layer}.attn.qkv.bias"].chunk(3)
        if "norms" in kinds:  # the logits stay as they are
            for tensor, factor in ((key, 32.0), (key_bias, 32.0), (query, 1 / 32), (query_bias, 1 / 32)):
                tensor.mul_(factor)
        if "logits" in kinds:
            for tensor in (query, query_bias):
                tensor.mul_(24.0)


def _plant_residual(tensors: backbone.Tensors, arch: Architecture) -> None:
    """Thousands in two channels of every token from the start, and in two others from a block on.

    In pairs of opposite sign, and with LayerNorm weights that make up for its division, as trained ones do: else
    nothing but the large channels would be left of the tokens, and no comparison could see an error.
    """
    first, second = slice(CHANNEL, CHANNEL + 2), slice(CHANNEL + 2, CHANNEL + 4)
    pair = torch.tensor([1.0, -1.0])
    strength = torch.ones(arch.trained_grid, arch.trained_grid)
    strength[10:16, 12:18], strength[24:28, 3:9] = 0.7, 1.3  # artifacts: their keys are longer, or shorter
    tensors["pos_embed"][0, 1:, first] = RESIDUAL * strength.flatten()[:, None] * pair
    tensors["pos_embed"][0, 0, first] = 0
    tensors["cls_token"][..., first] = RESIDUAL * pair
    if arch.registers:
        tensors["register_tokens"][..., first] = RESIDUAL * pair
    block = f"blocks.{arch.depth // 3}"
    tensors[f"{block}.ls2.gamma"][second] = 0.2
    tensors[f"{block}.mlp.{'w3' if arch.swiglu else 'fc2'}.bias"][second] = RESIDUAL / 2 / 0.2 * pair
    for name, tensor in tensors.items():
        if "norm" in name and name.endswith("weight"):
            tensor *= RESIDUAL * (2 / arch.width) ** 0.5 / REST
            tensor[first] = tensor[second] = 0.02


def troubled(spec: ExportSpec, seed: int, kinds: tuple[str, ...]) -> torch.nn.Module:
    """A model of `spec` with random weights and this trouble in it, its position embedding baked."""
    arch = spec.backbone
    tensors = weights.random_tensors(arch, seed)
    plant(tensors, arch, kinds)
    model = weights.build_model(arch, backbone.translate(tensors, arch, "trouble").parameters)
    position.bake_position_embedding(model, spec.facts.grid, arch, spec.pos_embed)
    return model


@dataclass(frozen=True)
class Seen:
    """What an eager model's insides reach on some images, over all layers."""

    residual: float
    """Largest magnitude in the residual stream."""
    norm: float
    """Largest L2 norm of a key, over heads and channels."""
    logits: float
    """Largest magnitude of a logit."""
    hidden: float
    """Largest magnitude of what goes into the MLP's last projection."""
    update: float
    """Largest magnitude of what an attention's or MLP's last projection gives, before LayerScale."""


@torch.inference_mode()
def look_inside(model: torch.nn.Module, images: torch.Tensor) -> Seen:
    """Run a model of transformers on normalised images (B, 3, H, W), and measure."""
    seen = dict.fromkeys(Seen.__dataclass_fields__, 0.0)

    def note(name: str, tensor: torch.Tensor) -> None:
        seen[name] = max(seen[name], float(tensor.abs().max()))

    def on_block(_, inputs, output) -> None:
        note("residual", inputs[0])
        note("residual", output[0] if isinstance(output, tuple) else output)

    def on_attention(module, args, kwargs) -> None:
        (x,) = args or (kwargs["hidden_states"],)
        query, key = module.q_proj(x), module.k_proj(x)
        seen["norm"] = max(seen["norm"], float(key.norm(dim=-1).max()))
        heads = model.config.num_attention_heads
        by_head = [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key)]
        note("logits", by_head[0] @ by_head[1].transpose(2, 3) * by_head[0].shape[-1] ** -0.5)

    hooks = []
    for layer in model.encoder.layer:
        hooks.append(layer.register_forward_hook(on_block))
        hooks.append(layer.attention.register_forward_pre_hook(on_attention, with_kwargs=True))
        down = layer.mlp.down_proj if hasattr(layer.mlp, "down_proj") else layer.mlp.fc2
        hooks.append(down.register_forward_pre_hook(lambda _, args: note("hidden", args[0])))
        hooks += [
            projection.register_forward_hook(lambda _m, _i, output: note("update", output))
            for projection in (down, layer.attention.o_proj)
        ]
    model(images)
    for hook in hooks:
        hook.remove()
    return Seen(**seen)
