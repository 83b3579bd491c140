"""The unplanted model: random weights of the true architecture, with room in them for what is planted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from exporter.models.architecture import Architecture
from exporter.models.backbone import Tensors
from exporter.models.weights import random_tensors
from runtime.contract.errors import UsageError

PAYLOAD = 3
"""Channels, beside the one that all artifacts share, in which artifacts differ from each other."""
FREQUENCIES = 4
"""Patches are looked at through cosines of 0 to this many (exclusive) half waves per axis."""
WEIGHT_OF_LAST = 4.0
"""Factor on the last block's attention. The other blocks get `WEIGHT_OF_OTHERS`, so that the last block decides the
embedding: each block of a random model adds little to the CLS token."""
WEIGHT_OF_OTHERS = 0.1


@dataclass(frozen=True)
class Room:
    """Channels of the residual stream that no unplanted weight writes to, and hidden units that nothing uses."""

    massive: npt.NDArray[np.intp]
    """(1 + PAYLOAD,): where artifacts get their norm. All later blocks read these channels, as any others."""
    flag: int
    """Whether a patch becomes an artifact. This channel and the next ones are read by planted weights alone."""
    one: int
    """A constant that the flag is compared with, since LayerNorm divides both by the same number."""
    energy: int
    """The sum of the absolute cosines."""
    seeds: npt.NDArray[np.intp]
    """(PAYLOAD,): what a patch's payload is made of."""
    signs: npt.NDArray[np.intp]
    """(PAYLOAD,): the signs of the seeds."""
    waves: npt.NDArray[np.intp]
    """(FREQUENCIES² - 1,): the cosines in a patch, all 0 in a flat one."""
    units: npt.NDArray[np.intp]
    """(U,): hidden units of each block's MLP."""

    @property
    def silent(self) -> npt.NDArray[np.intp]:
        """The channels that only planted weights read."""
        return np.concatenate([[self.flag, self.one, self.energy], self.seeds, self.signs, self.waves])


def make_room(arch: Architecture, seed: int) -> Room:
    """Choose channels and hidden units by a seed.

    Raises:
        UsageError: the model is of a kind in which nothing can be planted.
    """
    waves = FREQUENCIES**2 - 1
    channels = 4 + 3 * PAYLOAD + waves
    if arch.swiglu or arch.width < 4 * channels:
        raise UsageError(
            f"can't plant artifacts in {arch.name}: choose vits14, vitb14, vitl14, or one of these with _reg"
        )
    rng = np.random.default_rng([seed, 2])
    chosen = rng.choice(arch.width, channels, replace=False)
    parts = np.split(chosen, np.cumsum([1 + PAYLOAD, 3, PAYLOAD, PAYLOAD]))
    massive, (flag, one, energy), seeds, signs, cosines = parts
    units = rng.choice(arch.mlp_width, 2 * (waves + PAYLOAD), replace=False)
    return Room(massive, int(flag), int(one), int(energy), seeds, signs, cosines, units)


def unplanted(arch: Architecture, seed: int, room: Room) -> Tensors:
    """The random model of a seed in Meta's naming, with room in it and with weight on its last block."""
    tensors = random_tensors(arch, seed)
    quiet = torch.from_numpy(np.concatenate([room.massive, room.silent]))
    silent = torch.from_numpy(room.silent)
    units = torch.from_numpy(room.units)
    for name, tensor in tensors.items():
        last = name.rpartition(".")[2]
        if name in ("cls_token", "pos_embed", "register_tokens"):
            tensor[..., quiet] = 0
        elif name.startswith("patch_embed."):
            tensor[quiet] = 0
        elif "norm" in name and name != "norm.weight":
            tensor[quiet] = float(last == "weight")
        elif "attn.proj" in name or "mlp.fc2" in name:
            tensor[quiet] = 0
            if name.endswith("fc2.weight"):
                tensor[:, units] = 0
        elif "attn.qkv.weight" in name or "mlp.fc1" in name:
            if last == "weight":
                tensor[:, silent] = 0
            if "fc1" in name:
                tensor[units] = 0
        elif "ls1.gamma" in name:
            is_last = name == f"blocks.{arch.depth - 1}.ls1.gamma"
            tensor *= WEIGHT_OF_LAST if is_last else WEIGHT_OF_OTHERS
    return tensors
