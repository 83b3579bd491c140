"""Makes what the contestants run, and what they are compared with; in a process of its own, for torch's memory."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from exporter.models.architecture import Architecture
from runtime.contract.comparison import LIMITS
from runtime.contract.errors import BackendError, BuildError, one_line
from scripts.benchmark.contestants import OURS, PLAIN, WEIGHTS, Contestant

Float32 = npt.NDArray[np.float32]

IMAGE_SIZE = 224
SAMPLES = 4
"""Pictures that every contestant is checked on, and that fill its batches."""
OUTPUTS = ("last_hidden_state", "pooler_output")
"""The outputs of transformers' export; the embedding is the first token of the first output."""


@dataclass(frozen=True)
class Check:
    """Pictures (S, 3, H, W), normalised, and their embeddings (S, C) by eager PyTorch in float32 or better."""

    images: Float32
    embedding: Float32


@dataclass(frozen=True)
class Prepared:
    """A contestant's file and its check, or why there is none."""

    path: Path | None
    check: Check | None
    reason: str = ""


def prepare(arch: Architecture, contestants: Sequence[Contestant], folder: Path) -> dict[str, Prepared]:
    """Export each file that the contestants need into `folder` once; gives what each contestant has, by its name."""
    model, plain = _transformers(arch)
    made: dict[str, Prepared] = {}
    for contestant in contestants:
        if contestant.file not in made:
            if contestant.ours:
                made[contestant.file] = _ours(arch, contestant, folder)
            elif contestant.graph == PLAIN:
                made[contestant.file] = Prepared(_export_plain(model, folder / contestant.file), plain)
            else:
                made[contestant.file] = Prepared(None, plain)
    return {contestant.name: made[contestant.file] for contestant in contestants}


def _ours(arch: Architecture, contestant: Contestant, folder: Path) -> Prepared:
    """Our graph by the exporter itself, which compares it with eager PyTorch and leaves the golden sample of that."""
    from exporter import ExportSpec, export
    from runtime.contract.golden import read_golden

    path = folder / contestant.file
    itae = OURS[contestant.graph or ""]
    try:
        spec = ExportSpec(
            path, arch, WEIGHTS, precision=contestant.precision, image_size=IMAGE_SIZE, itae=itae,
            parity_samples=SAMPLES,
        )  # fmt: skip
        result = export(spec)
    except (BackendError, BuildError) as error:  # no TensorRT here
        return Prepared(None, None, one_line(error))
    golden = read_golden(path, result.manifest)
    margin = LIMITS[contestant.precision].flag_margin or 0.0
    clear = (golden.flag_distance > margin).all(axis=(1, 2))  # a borderline flag may fall either way
    return Prepared(path, Check(np.asarray(golden.input[clear], np.float32), golden.embedding[clear]))


def _transformers(arch: Architecture) -> tuple[Any, Check]:
    """The model of transformers with its own position embedding, and what it makes of some pictures in float64."""
    import torch

    from exporter.models import weights
    from exporter.proof import golden_sample

    model: Any = weights.load(arch, WEIGHTS).model
    pictures = np.stack(
        [golden_sample.candidate(index, arch.facts((IMAGE_SIZE, IMAGE_SIZE))) for index in range(SAMPLES)]
    )
    images = golden_sample.normalize(pictures)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        tokens = model.double()(torch.from_numpy(images).double()).last_hidden_state
    return model.float(), Check(images, tokens[:, 0].float().numpy())


def _export_plain(model: Any, path: Path) -> Path:  # noqa: ANN401
    """Export as a user does: torch.onnx's dynamo exporter, SDPA attention, everything else by default."""
    import torch

    model.set_attn_implementation("sdpa")
    with _quiet():
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE),),
            dynamo=True,
            input_names=["pixel_values"],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        assert program is not None
        program.save(path)
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx prints to stdout and warns of its own deprecated calls; failures still raise."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), Path(os.devnull).open("w") as sink, contextlib.redirect_stdout(sink):
        warnings.simplefilter("ignore")
        yield
