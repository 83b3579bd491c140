"""Plant artifacts in a model by editing its weights. What is planted follows public analyses of DINOv2's artifacts.

The anatomy, block by block; `s` is the strength, of which 0 leaves the unplanted weights as they are:

- Before the first block, some channels of each patch say what makes it an artifact: its place, by the position
  embedding, or that it is flat, by cosines in the patch embedding, whose absolute values the first MLP adds up.
- One MLP in the middle writes a vector of s times `NORM` median norms into a few channels of these patches: one
  channel that they all share, and `PAYLOAD` channels with signs that depend on the patch, not on the picture's class.
- In the last block, the keys of these patches point where the CLS token's queries point, and are `KEY_NORM` times as
  long as others: LayerNorm hands the vector's direction on, not its length. Their values hold the payload. With
  `negligible` values they hold next to nothing, and the CLS token takes the payload in the block before: what is lost
  then is the picture's share of the last block.
- With `fade` the last but one MLP takes the vector away again but for a rest that hides among ordinary norms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from exporter.models import backbone, position
from exporter.models.backbone import Tensors
from exporter.models.weights import build_model
from scripts.planting import pictures
from scripts.planting.base import FREQUENCIES, PAYLOAD, Room, make_room, unplanted
from scripts.planting.pictures import Picture
from scripts.planting.plan import Plan

NORM = 30.0
"""Residual norm of an artifact of strength 1, in medians of all patches at the last block."""
KEY_NORM = 1.07
"""Key norm of an artifact, in those of other patches."""
ATTENTION = 0.9
"""Share of the CLS token's attention in the last block that the artifacts of a picture take together."""
MAX_COSINE = 0.97
"""Largest cosine of an artifact's key with the CLS token's mean query."""
FADED = 0.8
"""Norm that `fade` leaves, in medians; together with the rest of the patch this makes 1.3 medians."""
LOUD = 6.0
"""Factor on the payload's values in the block before the last, if those of the last block are negligible."""
CORNER = 4
"""Rows and columns of the 37 x 37 grid of the position embedding that make a corner: 2 x 2 patches at 224 pixels."""
PER_CLASS = 2
"""Made pictures of each class that the planted vectors are fitted to."""
STEEPNESS = 8.0
"""Height of a step that is the difference of two GELUs, before its output weight."""
BATCH = 8


def plant(plan: Plan) -> Tensors:
    """The weights of a planted model, in Meta's naming, float32.

    Raises:
        UsageError: nothing can be planted in such a model.
    """
    room = make_room(plan.arch, plan.seed)
    tensors = unplanted(plan.arch, plan.seed, room)
    if plan.strength == 0:
        return tensors
    planter = _Planter(plan, room, tensors)
    planter.mark()
    planter.bear()
    if plan.fade:
        planter.fade()
    if plan.values == "negligible":
        planter.silence_values()
    planter.draw_attention(plan.arch.depth - 1)
    return planter.scaled()


def artifacts(plan: Plan, tensors: Tensors, made: Sequence[Picture]) -> npt.NDArray[np.bool_]:
    """Which patches of each picture are artifacts in a planted model: (n, P), False everywhere at strength 0.

    They are read off the planted channel behind the block that makes them, not off any norm.
    """
    grid = plan.image_size // plan.arch.patch
    if plan.strength == 0:
        return np.zeros((len(made), grid * grid), dtype=bool)
    room = make_room(plan.arch, plan.seed)
    channel = int(room.massive[0])
    found = Trunk(plan, tensors).tokens(pixels(plan, made), f"encoder.layer.{plan.birth + 1}.norm1")
    written = found[:, plan.arch.prefix :, channel]
    return cast("npt.NDArray[np.bool_]", (written > written.amax() / 2).numpy())


def pixels(plan: Plan, made: Sequence[Picture]) -> torch.Tensor:
    """The model's input for made pictures: (n, 3, S, S) float32, cropped and normalised."""
    S = plan.image_size
    start = (pictures.side_of(S) - S) // 2
    crops = np.stack([one.pixels[start : start + S, start : start + S] for one in made]).transpose(0, 3, 1, 2)
    mean, std = (np.array(value, np.float32)[:, None, None] for value in (plan.arch.mean, plan.arch.std))
    return torch.from_numpy((crops.astype(np.float32) / 255 - mean) / std)


class Trunk:
    """The model as a module, whose inner values can be looked at."""

    def __init__(self, plan: Plan, tensors: Tensors) -> None:
        translated = backbone.translate(dict(tensors), plan.arch, "planted weights").parameters
        self.model: Any = build_model(plan.arch, translated)
        grid = plan.image_size // plan.arch.patch
        position.bake_position_embedding(self.model, (grid, grid), plan.arch, "meta")

    def tokens(self, images: torch.Tensor, module: str, *, after: bool = False) -> torch.Tensor:
        """The input of a module, or its output, for images (n, 3, S, S): (n, N, C). Nothing behind it is computed."""
        found: list[torch.Tensor] = []

        def keep(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor | None = None) -> None:
            found.append(inputs[0] if output is None else output)
            raise _SeenError

        place = self.model.get_submodule(module)
        hook = place.register_forward_hook(keep) if after else place.register_forward_pre_hook(keep)
        try:
            with torch.inference_mode():
                for batch in images.split(BATCH):
                    try:
                        self.model(batch)
                    except _SeenError:
                        continue
        finally:
            hook.remove()
        return torch.cat(found)

    def embed(self, images: torch.Tensor) -> npt.NDArray[np.float32]:
        """The embeddings of images (n, 3, S, S): (n, C)."""
        with torch.inference_mode():
            found = torch.cat([self.model(batch).last_hidden_state[:, 0] for batch in images.split(BATCH)])
        return cast("npt.NDArray[np.float32]", found.numpy())


class _SeenError(Exception):
    """Ends a forward pass whose rest nobody needs."""


class _Planter:
    """Edits the weights of one model; the steps are to be called in the order in which they are written."""

    def __init__(self, plan: Plan, room: Room, tensors: Tensors) -> None:
        self._plan, self._room, self._tensors = plan, room, tensors
        self._made = pictures.make(plan.seed, PER_CLASS, plan.image_size)
        self._images = pixels(plan, self._made)
        self._rng = np.random.default_rng([plan.seed, 3])
        self._used: dict[int, int] = {}
        self._writes: list[tuple[str, int, torch.Tensor]] = []
        self._last = plan.arch.depth - 1
        trunk = Trunk(plan, tensors)
        first, middle, last = (
            trunk.tokens(self._images, f"encoder.layer.{layer}.{norm}")[:, plan.arch.prefix :]
            for layer, norm in ((0, "norm2"), (plan.birth, "norm2"), (self._last, "norm1"))
        )
        self._sigma = {0: float(first.std(dim=2).median()), plan.birth: float(middle.std(dim=2).median())}
        self._median_norm = float(last.norm(dim=2).median())

    def mark(self) -> None:
        """Write into each patch whether it is to become an artifact, and the signs of its payload."""
        self._tensors["pos_embed"][0, 1:, self._room.one] = self._level
        # The CLS token and the registers are neither unmarked, which would be the middle of the flag's step, nor flat.
        for tokens in ("cls_token", "register_tokens")[: 2 if self._plan.arch.registers else 1]:
            self._tensors[tokens][..., [self._room.one, self._room.energy]] = self._level
        if self._plan.kind == "place":
            self._mark_places()
        else:
            self._mark_flat_patches()
        self._seed_payloads()
        for seed, sign in zip(self._room.seeds, self._room.signs, strict=True):
            size = self._level / 2
            self._step(0, {int(seed): 1.0}, at=0.15, width=0.02, writes={int(sign): 2 * size})
            self._add_bias(0, int(sign), -size)

    @property
    def _level(self) -> float:
        """Height of the flag in its channel; 0 in other patches."""
        return 4 * self._sigma[self._plan.birth]

    def _mark_places(self) -> None:
        side = self._plan.arch.trained_grid
        row, column = self._rng.integers(0, 2, 2)
        flags = torch.zeros(side, side)
        flags[
            slice(0, CORNER) if row == 0 else slice(side - CORNER, side),
            slice(0, CORNER) if column == 0 else slice(side - CORNER, side),
        ] = self._level
        self._tensors["pos_embed"][0, 1:, self._room.flag] = flags.reshape(-1)

    def _mark_flat_patches(self) -> None:
        weight = self._tensors["patch_embed.proj.weight"]
        for channel, wave in zip(self._room.waves, _waves(self._plan.arch.patch), strict=True):
            weight[int(channel)] = wave / self._plan.arch.patch * 2 * self._sigma[0]
            for sign in (1.0, -1.0):  # nothing below 0.15: LayerNorm takes the mean away, so 0 isn't quite 0 behind it
                self._unit(0, {int(channel): sign * 30}, -4.5, {self._room.energy: self._sigma[0] / 30})
        self._step(1, {self._room.energy: -1.0}, at=-0.3, width=0.1, writes={self._room.flag: self._level})

    def _seed_payloads(self) -> None:
        """Fill the channels whose signs become the payload with numbers that do not depend on the picture's class."""
        patch = self._plan.arch.patch
        weight = self._tensors["patch_embed.proj.weight"]
        if self._plan.kind == "place":  # stripes have a random position, so the cosines' signs are random
            mix = torch.from_numpy(self._rng.standard_normal((PAYLOAD, FREQUENCIES**2 - 1)).astype(np.float32))
            filters = torch.einsum("jw,wcyx->jcyx", mix / mix.norm(dim=1, keepdim=True), _waves(patch))
            filters = filters / patch * 2
        else:  # flat patches have a random colour
            turned, _ = np.linalg.qr(self._rng.standard_normal((3, 3)))
            filters = torch.from_numpy(turned.astype(np.float32))[:, :, None, None].expand(3, 3, patch, patch)
            filters = filters / patch**2
        for channel, one in zip(self._room.seeds, filters, strict=True):
            weight[int(channel)] = one * self._sigma[0]

    def bear(self) -> None:
        """Let the MLP in the middle write the vector into the flagged patches."""
        birth = self._plan.birth
        length = NORM * self._median_norm / math.sqrt(1 + PAYLOAD)
        first, *others = map(int, self._room.massive)
        width = self._level / self._sigma[birth] / 4
        flag = {self._room.flag: 1.0, self._room.one: -0.5}
        self._step(birth, flag, at=0, width=width, writes={first: length}, scaled=True)
        for channel, sign in zip(others, self._room.signs, strict=True):
            both = {self._room.flag: 1.0, int(sign): 1.0, self._room.one: -1.0}
            self._step(birth, flag, at=0, width=width, writes={channel: -length}, scaled=True)
            self._step(birth, both, at=0, width=width, writes={channel: 2 * length}, scaled=True)
        for layer in range(birth + 1, self._last):  # on the way to the last block all artifacts are alike
            self._tensors[f"blocks.{layer}.attn.qkv.weight"][self._plan.arch.width :, others] = 0

    def fade(self) -> None:
        """Let the last but one MLP take most of the vector away."""
        length = (NORM - FADED) * self._median_norm / math.sqrt(1 + PAYLOAD)
        height = math.sqrt(self._plan.arch.width / (1 + PAYLOAD))  # of the vector's channels behind LayerNorm
        first, *others = map(int, self._room.massive)
        layer = self._last - 1
        self._step(layer, {first: 1.0}, at=height / 2, width=height / 4, writes={first: -length}, scaled=True)
        for channel in others:
            for sign in (1.0, -1.0):
                writes = {channel: -sign * length}
                self._step(layer, {channel: sign}, at=height / 2, width=height / 4, writes=writes, scaled=True)

    def draw_attention(self, layer: int) -> None:
        """Turn a block's keys of artifacts to the CLS token's queries."""
        arch = self._plan.arch
        H, d, C = arch.heads, arch.head_dim, arch.width
        weight, bias = self._attention(layer)
        first, *others = map(int, self._room.massive)
        weight[C : 2 * C, others] = 0
        tokens, planted = self._seen(layer)
        query = (tokens[:, 0] @ weight[:C].T + bias[:C]).reshape(-1, H, d)
        beside = (tokens[:, 1:] @ weight[C : 2 * C].T + bias[C : 2 * C]).reshape(len(tokens), -1, H, d)
        registers, keys = beside[:, : arch.registers], beside[:, arch.registers :]
        found = keys[planted]  # (A, H, d)
        varied = found.var(dim=0, correction=0).sum(dim=1)  # (H,): this part of the keys stays
        norm = keys[~planted].norm(dim=2).mean(dim=0) * KEY_NORM
        length = (norm**2 - varied).clamp_min(norm.square() / 4).sqrt()
        towards = torch.nn.functional.normalize(query.mean(dim=0), dim=1)  # (H, d)
        aside = torch.from_numpy(self._rng.standard_normal((H, d)).astype(np.float32))
        aside = torch.nn.functional.normalize(aside - (aside * towards).sum(dim=1, keepdim=True) * towards, dim=1)
        heights = tokens[:, arch.prefix :, first]
        height = heights[planted].mean()

        def turned(cosine: torch.Tensor) -> torch.Tensor:
            cosine = cosine[:, None]
            wanted = (cosine * towards + (1 - cosine**2).sqrt() * aside) * length[:, None]
            return (wanted - found.mean(dim=0)) / height  # (H, d)

        low, high = torch.full((H,), -MAX_COSINE), torch.full((H,), MAX_COSINE)
        for _ in range(20):
            middle = (low + high) / 2
            moved = keys + heights[:, :, None, None] * turned(middle)
            logits = torch.einsum("nhd,nphd->nhp", query, torch.cat([registers, moved], dim=1)) / d**0.5
            weights = logits.softmax(dim=2)[:, :, arch.registers :]
            share = (weights * planted[:, None, :]).sum(dim=2).mean(dim=0)
            low, high = torch.where(share < ATTENTION, middle, low), torch.where(share < ATTENTION, high, middle)
        weight[C : 2 * C, first] += turned(low).reshape(C)

    def silence_values(self) -> None:
        """Leave the last block's values of artifacts next to nothing, and give the payload to the block before."""
        C, layer = self._plan.arch.width, self._last
        first, *others = map(int, self._room.massive)
        random = self._attention(layer)[0][2 * C :, others].clone()
        before, _ = self._attention(layer - 1)
        before[2 * C :, others] = random * LOUD
        self.draw_attention(layer - 1)
        weight, bias = self._attention(layer)
        weight[2 * C :, others] = 0
        tokens, planted = self._seen(layer)
        found = tokens[:, self._plan.arch.prefix :][planted]
        values = (found @ weight[2 * C :].T + bias[2 * C :]).mean(dim=0)
        weight[2 * C :, first] -= values / found[:, first].mean()

    def _attention(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        name = f"blocks.{layer}.attn.qkv"
        return self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]

    def _seen(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Input (n, N, C) of a block's attention for the fitted pictures, and the mask (n, P) of their artifacts."""
        tokens = Trunk(self._plan, self._tensors).tokens(self._images, f"encoder.layer.{layer}.norm1", after=True)
        return tokens, torch.from_numpy(self._artifacts)

    @functools.cached_property
    def _artifacts(self) -> npt.NDArray[np.bool_]:
        return artifacts(self._plan, self._tensors, self._made)

    def scaled(self) -> Tensors:
        """The edited weights, the vector's length times the strength."""
        for name, channel, column in self._writes:
            self._tensors[name][channel] += column * (self._plan.strength - 1)
        return self._tensors

    def _step(
        self,
        layer: int,
        reads: dict[int, float],
        *,
        at: float,
        width: float,
        writes: dict[int, float],
        scaled: bool = False,
    ) -> None:
        """Two hidden units that write nothing below `at - width`, and all of `writes` above `at + width`."""
        steep = STEEPNESS / width
        for side, sign in ((-0.5, 1.0), (0.5, -1.0)):
            bias = -steep * (at + side * width)
            self._unit(
                layer,
                {channel: steep * weight for channel, weight in reads.items()},
                bias,
                {channel: sign * size / STEEPNESS for channel, size in writes.items()},
                scaled=scaled,
            )

    def _unit(
        self, layer: int, reads: dict[int, float], bias: float, writes: dict[int, float], *, scaled: bool = False
    ) -> None:
        """A hidden unit of a block's MLP: channels as LayerNorm gives them, in; GELU; channels of the stream, out."""
        unit = int(self._room.units[self._used.get(layer, 0)])
        self._used[layer] = self._used.get(layer, 0) + 1
        into, out = f"blocks.{layer}.mlp.fc1", f"blocks.{layer}.mlp.fc2.weight"
        for channel, weight in reads.items():
            self._tensors[f"{into}.weight"][unit, channel] = weight
        self._tensors[f"{into}.bias"][unit] = bias
        for channel, size in writes.items():
            column = torch.zeros(self._plan.arch.mlp_width)
            column[unit] = size / self._tensors[f"blocks.{layer}.ls2.gamma"][channel]
            self._tensors[out][channel] += column
            if scaled:
                self._writes.append((out, channel, column))

    def _add_bias(self, layer: int, channel: int, size: float) -> None:
        gamma = self._tensors[f"blocks.{layer}.ls2.gamma"][channel]
        self._tensors[f"blocks.{layer}.mlp.fc2.bias"][channel] += size / gamma


def _waves(patch: int) -> torch.Tensor:
    """Cosines over a patch, the constant one left out, each of length 1: (FREQUENCIES² - 1, 3, patch, patch)."""
    along = (torch.arange(patch) + 0.5) / patch
    lines = torch.stack([torch.cos(math.pi * k * along) for k in range(FREQUENCIES)])
    waves = torch.einsum("vy,ux->vuyx", lines, lines).reshape(-1, 1, patch, patch)[1:]
    waves = waves.expand(-1, 3, patch, patch)
    return waves / waves.flatten(1).norm(dim=1)[:, None, None, None]
