"""The manifest of an operated foreign graph, and its golden sample."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from exporter.foreign import uint8_pictures
from exporter.foreign.embedding_output import EMBEDDING, is_pooled
from exporter.foreign.probe import Array, Arrays, Probe
from exporter.foreign.replica import Proof, Replica
from exporter.foreign.request import FLAG_OUTPUTS, ForeignSpec
from exporter.foreign.survey import Survey
from runtime.contract.comparison import LIMITS
from runtime.contract.errors import SurgeryError
from runtime.contract.golden import Golden, golden_bytes
from runtime.contract.manifest import (
    Backbone,
    Builder,
    Files,
    Foreign,
    Fusion,
    Manifest,
    NoMethod,
    Options,
    ParityCheck,
    ParityLimits,
    ParityReport,
    Replay,
    TensorInfo,
    Weights,
    parity_path,
    record_file,
)

VERSIONS: tuple[str, ...] = ("onnx", "onnxruntime", "onnx-graphsurgeon", "numpy", "itae")


@dataclass(frozen=True)
class Proven:
    """An operated graph whose results are known to be right."""

    spec: ForeignSpec
    found: Survey
    """The graph without ITAE."""
    probe: Probe
    prefix: int
    outputs: Mapping[str, str]
    """Those that the runtime uses, the names of the file by its own; none if it can't run the file."""
    proofs: tuple[Proof, ...]
    sample: Golden | None
    """None if the runtime can't run the file."""


@dataclass(frozen=True)
class Made:
    """A model in the work folder, before it is published."""

    model: Path
    data: Path | None
    builder: Builder
    batch: tuple[int, int, int] | None = None
    """min, opt, max of an engine."""
    fusion: Fusion | None = None
    replay: Replay | None = None
    not_replayed: str | None = None


def golden_sample(
    found: Survey, outputs: Mapping[str, str], feeds: Arrays, golden: Replica, pictures: Array | None = None
) -> Golden:
    """The golden sample: the inputs of the proof and their results by the untouched graph and numpy.

    Args:
        found: the survey of the untouched graph.
        outputs: those that the runtime uses, the names of the file by its own.
        feeds: the inputs of the untouched graph.
        golden: its results.
        pictures: the uint8 images that `feeds` were made of, if the new file takes them.
    """
    assert found.picture is not None
    values = {name: golden.outputs[in_file] for name, in_file in outputs.items() if name not in FLAG_OUTPUTS}
    return Golden(
        input=feeds[found.picture.name].astype(np.float32) if pictures is None else pictures,
        embedding=values.get(EMBEDDING),
        own={name: value for name, value in values.items() if name != EMBEDDING},
        flags=golden.flags,
        artifact_norm=golden.norm.astype(np.float32) if "artifact_norm" in outputs else None,
        flag_distance=np.minimum(golden.distance, 1e30).astype(np.float32),
    )


def onnx_builder() -> Builder:
    """The builder of an ONNX file."""
    return Builder(
        name="onnx", version=onnx.__version__, platform=f"{platform.system()}-{platform.machine()}".lower()
    )  # fmt: skip


def describe(proven: Proven, made: Made, called: Path) -> Manifest:
    """The manifest of a model that will be `called` so, whose golden sample is written beside it in the work folder."""
    spec, found, outputs, sample = proven.spec, proven.found, proven.outputs, proven.sample
    assert sample is not None
    assert found.picture is not None
    assert found.image_size is not None
    size = found.image_size
    values, vectors = sample.outputs(), sample.embedding
    place = parity_path(made.model)
    place.write_bytes(golden_bytes(sample))
    patches = sample.flags.shape[-1]
    is_engine = made.builder.name != "onnx"
    patch = _patch(size, patches, found)
    batch = found.fixed_batch or "batch"
    file = found.file
    pooling = spec.pooling if spec.embedding is not None and is_pooled(spec, found) else "cls"
    width = found.backbone[-1].width
    if vectors is not None:
        width = vectors.shape[1] // (2 if pooling == "cls+mean" else 1)
    weights = Weights(kind="path", source=file.path.name, revision=None, sha256=file.sha256)
    precision: Any = "fp16" if any(one.precision == "float16" for one in found.backbone) else "fp32"
    precision = spec.half or precision
    return Manifest(
        options=Options(
            size=file.path.stem, weights=f"onnx:{file.path.name}",
            backend=made.builder.name if made.builder.name != "onnx" else "none", precision=precision, image_size=size,
            batch=made.batch, hardware_compatibility="none" if is_engine else None,
            version_compatible=False if is_engine else None,
            method=NoMethod() if spec.itae is None else spec.itae.resolved(len(found.backbone)),
            outputs=tuple(outputs), pooling=pooling, input=spec.input, pos_embed=None, workspace_mib=None,
            parity_samples=len(sample.input),
        ),
        model=Backbone(
            size=file.path.stem, registers=max(0, proven.prefix - 1), patch=patch, width=width,
            heads=found.backbone[-1].heads, depth=len(found.backbone), weights=weights,
        ),
        inputs=(
            TensorInfo(name=uint8_pictures.NAME, dtype="uint8", shape=(batch, *size, 3))
            if spec.input == "uint8"
            else TensorInfo(name=found.picture.name, dtype="float32", shape=(batch, 3, *size)),
        ),
        outputs=tuple(
            TensorInfo(
                name=name, dtype="bool" if values[name].dtype == np.bool_ else "float32",
                shape=(batch, *values[name].shape[1:]),
                in_file=None if in_file == name or is_engine else in_file,
            )
            for name, in_file in outputs.items()
        ),
        preprocessing=spec.preprocessing(size),
        builder=made.builder, fusion=made.fusion, replay=made.replay, not_replayed=made.not_replayed,
        parity=ParityReport(
            limits=LIMITS[precision],
            checks=tuple(
                ParityCheck(
                    purpose="exported" if number == 0 else "threshold", threshold=one.threshold, samples=one.images,
                    patches=one.patches, flagged=one.flagged, margins=one.margins, borderline=(), max_abs=one.max_abs,
                    min_cosine=one.min_cosine, effect=one.effect,
                    limits=ParityLimits(max_abs=one.limit, min_cosine=None, flag_margin=None),
                )
                for number, one in enumerate(proven.proofs)
            ),
        ),
        calibration=spec.calibration,
        files=Files(
            model=record_file(made.model, called.name),
            external_data=record_file(made.data) if made.data is not None else None,
            parity=record_file(place, parity_path(called).name),
        ),
        foreign=Foreign(
            file=file.path.name, sha256=file.sha256, producer=file.producer, opset=file.opset,
            form=found.backbone[-1].site.form, prefix=proven.prefix,
            grid=found.grid if found.grid and found.grid[0] * found.grid[1] == patches else None,
            given=_given(spec), outputs=(*(one.name for one in found.outputs), *(spec.add_outputs or ())),
        ),
        versions={name: _version(name) for name in VERSIONS},
    )  # fmt: skip


def _given(spec: ForeignSpec) -> tuple[str, ...]:
    """The facts that the user said, by the names of the options."""
    options = (
        "prefix_tokens",
        "fix_input",
        "precision",
        "image_size",
        "embedding",
        "mean",
        "std",
        "resize_to",
        "preprocessor",
    )
    return tuple(name for name in options if getattr(spec, name) is not None)


def _patch(size: tuple[int, int], patches: int, found: Survey) -> int:
    """The side of a patch in pixels, or its height.

    Raises:
        SurgeryError: patches are not square, and the graph does not show their rows and columns.
    """
    rows, columns = found.grid or (0, 0)
    if found.grid and rows * columns == patches:
        return max(1, size[0] // rows)
    side = max(1, int((size[0] * size[1] / patches) ** 0.5 + 0.5))
    if (size[0] // side) * (size[1] // side) != patches:
        raise SurgeryError(
            f"{patches} patches of pictures of {size[0]}x{size[1]} are not square, and no convolution shows their rows"
        )
    return side


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
