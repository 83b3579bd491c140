"""The street: load, trace, surgery, gate, parity, build, publish. Only this file knows the order."""

from __future__ import annotations

import dataclasses
import gc
import platform
from dataclasses import dataclass
from pathlib import Path

import onnx

from exporter import engine, gate, golden_sample, materialize, parity, position, surgery, trace, weights
from exporter.engine import EngineResult
from exporter.golden_sample import Sample
from exporter.progress import Progress
from exporter.publish import Product, publish
from exporter.spec import ExportSpec
from exporter.weights import Origin
from runtime.atomic import cannot_write, work_folder
from runtime.manifest import Builder, Manifest, ParityCheck


@dataclass(frozen=True)
class ExportResult:
    """What was made."""

    path: Path
    manifest: Manifest
    seconds: dict[str, float]
    """By step."""


def export(spec: ExportSpec, progress: Progress) -> ExportResult:
    """From weights to a published model; nothing appears at `spec.out` before all of it is right.

    Raises:
        ItaeError: one of the kinds of `runtime.errors`; the message speaks to the user.
    """
    backend = engine.choose_backend(spec.backend) if spec.makes_engine else None
    spec.check_folder()
    try:
        with work_folder(beside=spec.path) as work:
            traced, origin, samples = _load_and_trace(spec, work, progress)
            model, data, checks = _operate_and_check(spec, traced, samples, work, progress)
            built = None
            if backend is not None:
                request = engine.EngineRequest(backend, spec.profile, spec.workspace_mib)
                with progress.step("build", f"{spec.resolved_precision} engine by {backend}"):
                    built = engine.build(model, work / "model.plan", request, progress.log)
            with progress.step("publish", f"{spec.path} and its manifest"):
                manifest = _publish(spec, model, data, built, origin, samples[0], checks, work)
    except OSError as error:
        raise cannot_write(spec.path, error) from error
    return ExportResult(spec.path, manifest, progress.seconds)


def _load_and_trace(spec: ExportSpec, work: Path, progress: Progress) -> tuple[Path, Origin, list[Sample]]:
    """All that needs PyTorch's copy of the weights, which is released at the end."""
    weights.quiet_libraries()
    with progress.step("load", f"{spec.backbone.name} from {spec.weights}"):
        loaded = weights.load(spec.backbone, spec.weights)
        position.bake_position_embedding(loaded.model, spec.grid, spec.pos_embed)
    with progress.step("eager", f"{spec.parity_samples} golden samples by eager PyTorch"):
        samples = golden_sample.make_samples(loaded.model, spec, progress.detail)
    with progress.step("trace", "PyTorch to ONNX"):
        traced = trace.to_onnx(loaded.model, spec, work)
    origin = loaded.origin
    del loaded
    gc.collect()  # modules and the tracer's graphs refer to each other in cycles
    return traced, origin, samples


def _operate_and_check(
    spec: ExportSpec, traced: Path, samples: list[Sample], work: Path, progress: Progress
) -> tuple[Path, Path | None, tuple[ParityCheck, ...]]:
    """The operated model in the work folder, its external data, and how it compares with eager PyTorch."""
    final = spec.keep_onnx if spec.makes_engine and spec.keep_onnx is not None else spec.path
    with progress.step("surgery", f"{len(surgery.PASSES)} passes over the graph"):
        model, data = _operate(spec, traced, work / "model.onnx", f"{Path(final).name}.data", progress)
    with progress.step("gate", "onnx.checker, shape inference, ONNX Runtime"):
        session = gate.open_checked(model, spec)
        flags = _flags_session(spec, traced, work, progress)
    with progress.step("parity", f"ONNX Runtime against eager PyTorch, {len(samples)} checks"):
        checks = [parity.check(session, samples[0], spec, flags=flags)]
        del session, flags
        for sample in samples[1:]:
            again = dataclasses.replace(spec, itae=sample.itae, outputs=("embedding", "artifact_mask"))
            other, _ = _operate(again, traced, work / "moved.onnx", "moved.onnx.data", progress)
            checks.append(parity.check(gate.open_checked(other, again), sample, again, moved=True))
    for used in work.glob("traced.onnx*"):
        used.unlink()
    return model, data, tuple(checks)


def _flags_session(spec: ExportSpec, traced: Path, work: Path, progress: Progress) -> parity.Session | None:
    """The same surgery with the flags as its only output, where the model doesn't give them itself."""
    if spec.itae is None or "artifact_mask" in spec.outputs:
        return None
    bare = dataclasses.replace(spec, outputs=("artifact_mask",))
    path, _ = _operate(bare, traced, work / "flags.onnx", "flags.onnx.data", progress)
    return gate.open_checked(path, bare)


def _operate(
    spec: ExportSpec, traced: Path, path: Path, data_name: str, progress: Progress
) -> tuple[Path, Path | None]:
    model, reports = surgery.run(traced, spec)
    for report in reports:
        progress.detail(f"{report.name}: {len(report.changed)} changes")
    return path, materialize.materialize(model, traced.parent, path, data_name)


def _publish(
    spec: ExportSpec,
    model: Path,
    data: Path | None,
    built: EngineResult | None,
    origin: Origin,
    sample: Sample,
    checks: tuple[ParityCheck, ...],
    work: Path,
) -> Manifest:
    """Publish the ONNX file, the engine, or both; gives the manifest of `spec.out`."""
    by_onnx = Builder(
        name="onnx", version=onnx.__version__, platform=f"{platform.system()}-{platform.machine()}".lower()
    )
    manifest = None
    if built is None or spec.keep_onnx is not None:
        target = spec.path if built is None else Path(spec.keep_onnx or "")
        manifest = publish(Product(target, model, data, by_onnx), spec, origin, sample, checks)
    if built is not None:
        product = Product(spec.path, work / "model.plan", None, built.builder)
        manifest = publish(product, spec, origin, sample, checks)
    assert manifest is not None
    return manifest
