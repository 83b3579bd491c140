"""The last station: model, golden sample and manifest take their places, the manifest last."""

from __future__ import annotations

import contextlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.options import ExportSpec
from runtime.contract import atomic
from runtime.contract.golden import golden_bytes
from runtime.contract.manifest import (
    Backbone,
    Builder,
    Files,
    Fusion,
    Manifest,
    NoMethod,
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
    """Of an engine, where its builder tells."""


def publish(
    product: Product, spec: ExportSpec, origin: Weights, sample: Sample, checks: tuple[ParityCheck, ...]
) -> Manifest:
    """Move a finished model to its place with its golden sample and manifest.

    Every file takes its place whole. Between the first and the manifest an older manifest matches no longer, so that
    readers refuse rather than mix.

    Raises:
        OutputFileError: a file can't be written.
    """
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
    written.write_bytes(manifest.to_json())  # before the first move: then no full disk can come between them
    with atomic.uninterrupted():
        if product.data is not None:
            atomic.publish(product.data, target.with_name(data_name))
        atomic.publish(product.model, target)
        atomic.publish(golden, parity_path(target))
        atomic.publish(written, manifest_path(target))
        if product.data is None and target.suffix == ".onnx":
            with contextlib.suppress(OSError):  # of a larger model that was here before; no manifest names it now
                target.with_name(data_name).unlink()
    return manifest


def _manifest(
    product: Product, spec: ExportSpec, origin: Weights, checks: tuple[ParityCheck, ...], files: Files
) -> Manifest:
    arch = spec.backbone
    is_engine = product.builder.name != "onnx"
    return Manifest(
        options=Options(
            size=arch.name,
            weights=origin.source,
            backend="none" if product.builder.name == "onnx" else product.builder.name,
            precision=spec.resolved_precision,
            image_size=(spec.height, spec.width),
            batch=spec.profile if is_engine else None,
            method=spec.itae.resolved(arch.depth) if spec.itae else NoMethod(),
            outputs=spec.outputs,
            pooling=spec.pooling,
            normalize=spec.normalize,
            cls_only=spec.computes_cls_only,
            input=spec.input,
            pos_embed=spec.pos_embed,
            workspace_mib=spec.workspace_mib if is_engine else None,
            parity_samples=spec.parity_samples,
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
