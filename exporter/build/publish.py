"""The last station: model, golden sample and manifest take their places, the manifest last."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.options import ExportSpec
from runtime.contract.file_set import FileSet, publish_sets
from runtime.contract.golden import golden_bytes
from runtime.contract.manifest import (
    Backbone,
    Builder,
    FileRecord,
    Files,
    Fusion,
    Manifest,
    Options,
    ParityCheck,
    ParityReport,
    Quantization,
    Replay,
    Weights,
    manifest_path,
    parity_path,
    record_file,
)

if TYPE_CHECKING:
    from exporter.proof.golden_sample import Sample

VERSIONS = ("torch", "transformers", "onnx", "onnxruntime", "onnx-graphsurgeon", "numpy", "itae")


@dataclass(frozen=True)
class Product:
    """One finished model in the work folder, and where it goes."""

    target: Path
    model: Path
    data: Path | None
    builder: Builder
    fusion: Fusion | None = None
    """The fused attentions of an engine; None for ONNX, and if the builder names no kernels."""
    replay: Replay | None = None
    """The figures of its run; None if parity has them, or if it was not run."""
    not_replayed: str | None = None
    """The reason why it was not run; None if it was."""
    quantization: Quantization | None = None
    """The figures of int8; None in other precisions."""


def write_for_replay(
    product: Product, spec: ExportSpec, origin: Weights, sample: Sample, checks: tuple[ParityCheck, ...]
) -> Path:
    """Write golden sample and manifest beside a product in the work folder, so that it can be run there."""
    model = product.model
    files = Files(
        model=record_file(model),
        external_data=record_file(product.data) if product.data else None,
        parity=_write_golden(model, sample, parity_path(model)),
    )
    manifest_path(model).write_bytes(_manifest(product, spec, origin, sample, checks, files).to_json())
    return model


def _write_golden(model: Path, sample: Sample, called: Path) -> FileRecord:
    """Write the golden sample beside `model` in the work folder; it will be `called` so, where it isn't yet."""
    golden = parity_path(model)
    golden.write_bytes(golden_bytes(sample.golden))
    return record_file(golden, called.name)


def publish(
    products: Sequence[Product],
    spec: ExportSpec,
    origin: Weights,
    sample: Sample,
    checks: tuple[ParityCheck, ...],
    work: Path,
) -> list[Manifest]:
    """Move finished models to their places, each with its golden sample and manifest: all of them or none.

    Raises:
        OutputFileError: a file can't be written or moved; the message says what is in the places of the models.
    """
    sets, manifests = [], []
    for product in products:
        target = product.target
        data_name = f"{target.name}.data"
        files = Files(
            model=record_file(product.model, target.name),
            external_data=record_file(product.data, data_name) if product.data else None,
            parity=_write_golden(product.model, sample, parity_path(target)),
        )
        manifest = _manifest(product, spec, origin, sample, checks, files)
        written = product.model.with_name("manifest.json")
        written.write_bytes(manifest.to_json())
        sources = {
            target.name: product.model,
            files.parity.name: parity_path(product.model),
            manifest_path(target).name: written,
        }
        if product.data is not None:
            sources[data_name] = product.data
        # A larger model that was here before has a file of data.
        obsolete = [data_name] if product.data is None and target.suffix == ".onnx" else []
        sets.append(FileSet(manifest_path(target), sources, obsolete))
        manifests.append(manifest)
    publish_sets(sets, work)
    return manifests


def _manifest(
    product: Product,
    spec: ExportSpec,
    origin: Weights,
    sample: Sample,
    checks: tuple[ParityCheck, ...],
    files: Files,
) -> Manifest:
    arch = spec.backbone
    return Manifest(
        options=Options(
            weights=origin.source,
            backend="none" if product.builder.name == "onnx" else product.builder.name,
            **spec.recorded(engine=product.builder.name != "onnx"),
        ),
        model=Backbone(
            size=arch.name,
            registers=arch.registers,
            patch=arch.patch,
            width=arch.width,
            heads=arch.heads,
            depth=arch.depth,
            weights=origin,
        ),
        inputs=(spec.input_info(),),
        outputs=tuple(spec.output_info(name) for name in spec.outputs),
        preprocessing=spec.preprocessing(),
        builder=product.builder,
        parity=ParityReport(limits=sample.limits[spec.resolved_precision], checks=checks),
        fusion=product.fusion,
        replay=product.replay,
        not_replayed=product.not_replayed,
        calibration=spec.calibration,
        quantization=product.quantization,
        files=files,
        versions={name: _version(name) for name in VERSIONS},
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
