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
    Files,
    Fusion,
    Manifest,
    Options,
    ParityCheck,
    ParityReport,
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
        golden = product.model.with_name("golden.npz")
        golden.write_bytes(golden_bytes(sample.golden))
        files = Files(
            model=record_file(product.model, target.name),
            external_data=record_file(product.data, data_name) if product.data else None,
            parity=record_file(golden, parity_path(target).name),
        )
        manifest = _manifest(product, spec, origin, checks, files)
        written = product.model.with_name("manifest.json")
        written.write_bytes(manifest.to_json())
        sources = {target.name: product.model, files.parity.name: golden, manifest_path(target).name: written}
        if product.data is not None:
            sources[data_name] = product.data
        # A larger model that was here before has a file of data.
        obsolete = [data_name] if product.data is None and target.suffix == ".onnx" else []
        sets.append(FileSet(manifest_path(target), sources, obsolete))
        manifests.append(manifest)
    publish_sets(sets, work)
    return manifests


def _manifest(
    product: Product, spec: ExportSpec, origin: Weights, checks: tuple[ParityCheck, ...], files: Files
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
        parity=ParityReport(limits=spec.limits, checks=checks),
        fusion=product.fusion,
        files=files,
        versions={name: _version(name) for name in VERSIONS},
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
