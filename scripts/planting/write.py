"""Write a planted model, its pictures and the truth about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch

from runtime.contract.atomic import atomic_file, write_atomically
from runtime.contract.errors import OutputFileError
from scripts.planting import pictures
from scripts.planting.plan import Plan
from scripts.planting.plant import artifacts, plant

WEIGHTS, PICTURES, TRUTH = "weights.safetensors", "pictures", "truth.npz"


def write(plan: Plan, folder: Path, per_class: int) -> npt.NDArray[np.bool_]:
    """Write everything into `folder` and return which patches of each picture are artifacts, (n, P).

    Raises:
        OutputFileError: the folder can't be written, or holds the pictures of an earlier run.
        UsageError: nothing can be planted in such a model.
    """
    if (folder / PICTURES).exists():
        raise OutputFileError(f"{folder / PICTURES} is there already: remove it, or give another folder")
    made = pictures.make(plan.seed, per_class, plan.image_size)
    tensors = plant(plan)
    artifact = artifacts(plan, tensors, made)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures.write(made, folder / PICTURES)
        weights = safetensors.torch.save({name: one.contiguous() for name, one in tensors.items()})
        write_atomically(folder / WEIGHTS, weights)
        with atomic_file(folder / TRUTH) as file:
            np.savez_compressed(file, names=np.array([one.name for one in made]), artifact=artifact)
    except OSError as error:
        raise OutputFileError(f"can't write {folder}: {error.strerror or error}") from error
    return artifact
