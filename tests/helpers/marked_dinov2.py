"""A small DINOv2 in which patches that hold a pattern of pixels become artifacts, by its weights alone.

The pattern raises two channels of the patch's token, with opposite signs, so far that nothing else is left of the token
after a LayerNorm. Those channels' keys lie in the direction of the CLS token's mean query.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from exporter.models import backbone, position, weights
from exporter.models.architecture import Architecture

# Models this small are slower on several threads than on one.
torch.set_num_threads(1)

PATCH = 14
TINY = Architecture("tiny", width=48, heads=3, depth=4)
TINY_REG = Architecture("tiny_reg", width=32, heads=2, depth=3, registers=4, swiglu=True)
GRID = (5, 6)
SIZE = (GRID[0] * PATCH, GRID[1] * PATCH)
STRENGTH = 16
"""Grey levels of the pattern."""
_PAIR = slice(0, 2)


def pattern() -> np.ndarray:
    """(14, 14, 3) of -1 and 1."""
    return np.random.default_rng(77).choice([-1.0, 1.0], (PATCH, PATCH, 3))


def pictures(masks: np.ndarray, seed: int = 0, grid: tuple[int, int] = GRID) -> np.ndarray:
    """(n, H, W, 3) uint8: coloured noise, the pattern in the patches of the masks (n, P)."""
    rng = np.random.default_rng(seed)
    height, width = grid[0] * PATCH, grid[1] * PATCH
    images = rng.uniform(60, 190, (len(masks), 1, 1, 3)) + rng.normal(0, 12, (len(masks), height, width, 3))
    for image, mask in zip(images, masks, strict=True):
        for place in np.flatnonzero(mask):
            y, x = (int(one) * PATCH for one in divmod(place, grid[1]))
            image[y : y + PATCH, x : x + PATCH] += STRENGTH * pattern()
    return np.clip(images, 0, 255).astype(np.uint8)


def save(images: np.ndarray, folder: Path, classes: int = 1) -> None:
    """Write PNG files, in folders by turns if there are several classes."""
    for number, image in enumerate(images):
        place = folder / f"class{number % classes}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:04}.png")


def some_masks(n: int, share: float = 1.0, most: int = 3, seed: int = 0, grid: tuple[int, int] = GRID) -> np.ndarray:
    """(n, P): 1 to `most` artifacts, in a share of the images."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, grid[0] * grid[1]), bool)
    for row in rng.permutation(n)[: round(share * n)]:
        masks[row, rng.choice(masks.shape[1], rng.integers(1, most + 1), replace=False)] = True
    return masks


def tensors(arch: Architecture = TINY, times: float = 30.0, seed: int = 1) -> backbone.Tensors:
    """A checkpoint in Meta's naming; marked tokens have about `times` the norm of others. 0: no pattern is seen."""
    made = weights.random_tensors(arch, seed)
    for name in ("cls_token", "pos_embed", "register_tokens"):
        if name in made:
            made[name][..., _PAIR] = 0
    made["patch_embed.proj.weight"][_PAIR] = 0
    made["patch_embed.proj.bias"][_PAIR] = 0
    for layer in range(arch.depth):
        for one in ("ls1", "ls2"):
            made[f"blocks.{layer}.{one}.gamma"][_PAIR] = 0
        for one in ("norm1", "norm2"):
            made[f"blocks.{layer}.{one}.weight"][_PAIR] = 1
            made[f"blocks.{layer}.{one}.bias"][_PAIR] = 0
        made[f"blocks.{layer}.attn.qkv.weight"][:, _PAIR] = 0
        made[f"blocks.{layer}.mlp.{'w12' if arch.swiglu else 'fc1'}.weight"][:, _PAIR] = 0
    made["norm.weight"][_PAIR] = 0
    made["norm.bias"][_PAIR] = 0
    if times:
        shape = torch.from_numpy(pattern().transpose(2, 0, 1)).float()
        seen = (STRENGTH / 255 / torch.tensor(arch.std)[:, None, None] * shape * shape).sum()
        typical = 0.8 * arch.width**0.5
        raised = shape / seen * times * typical / 2**0.5
        made["patch_embed.proj.weight"][0], made["patch_embed.proj.weight"][1] = raised, -raised
        for layer in range(arch.depth):
            qkv = made[f"blocks.{layer}.attn.qkv.weight"], made[f"blocks.{layer}.attn.qkv.bias"]
            query = qkv[1][: arch.width] + 0.2 * qkv[0][: arch.width].sum(1)
            query = query / query.norm() * 3 / arch.width**0.5
            made[f"blocks.{layer}.attn.qkv.weight"][arch.width : 2 * arch.width, 0] = query
            made[f"blocks.{layer}.attn.qkv.weight"][arch.width : 2 * arch.width, 1] = -query
    return made


def model(
    arch: Architecture = TINY, times: float = 30.0, grid: tuple[int, int] = GRID, seed: int = 1
) -> torch.nn.Module:
    """The model, its position embedding baked."""
    made = weights.build_model(arch, backbone.translate(tensors(arch, times, seed), arch, "marked").parameters)
    position.bake_position_embedding(made, grid, arch, "meta")
    return made
