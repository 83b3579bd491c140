"""The street: load, trace, surgery, int8, gate, parity, build, publish. Only here is the order known, of passes too."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import platform
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx
import torch

from exporter import trace
from exporter.build import engine, fusion, replay, timing_cache
from exporter.build.engine import Choice
from exporter.build.publish import Product, publish, write_for_replay
from exporter.intake import Intake, open_intake
from exporter.methods.itae.graph.inject import inject_itae, offered_outputs
from exporter.models import position, weights
from exporter.models.weights import LoadedModel
from exporter.options import CALIBRATE_LIMIT, MIN_COSINE, ExportSpec
from exporter.proof import gate, golden_sample, half_range, parity, rounding
from exporter.proof.golden_sample import Sample
from exporter.quantization.within_limit import quantize
from exporter.result import ExportResult
from exporter.steps import Progress
from exporter.surgery import materialize, runner
from exporter.surgery.attention import attention_nodes
from exporter.surgery.cls_only import cls_only
from exporter.surgery.half_precision import half_precision
from exporter.surgery.quantize_linears import int8_products
from exporter.surgery.runner import Pass, PassReport
from exporter.surgery.scale_queries import scale_queries
from exporter.surgery.select_outputs import Outputs, select_outputs
from exporter.surgery.split_bias_gelu import split_bias_gelu
from exporter.surgery.uint8_input import uint8_input
from exporter.surgery.unfuse_attention import unfuse_attention
from runtime.contract.atomic import cannot_write, work_folder, write_atomically
from runtime.contract.file_set import recover
from runtime.contract.machine import thread_limit
from runtime.contract.manifest import Builder, Fusion, ParityCheck, Quantization, Weights
from runtime.images.decode import quiet_pillow

FEW_PICTURES = 100
"""Fewer that choose the scales of int8 don't show what others need. Evidence: exporter/MEASUREMENTS.md."""


def export(spec: ExportSpec, progress: Progress) -> ExportResult:
    """From weights to a published model; nothing appears at `spec.out` before all of it is right.

    Raises:
        ItaeError: one of the kinds of `runtime.contract.errors`; the message speaks to the user.
    """
    choice = engine.choose_backend(spec.backend) if spec.makes_engine else None
    if choice is not None:
        engine.check_portability(
            choice.backend, spec.hardware_compatibility, version_compatible=spec.version_compatible
        )
    spec.check_folder()
    for warning in engine.known_faults_here(choice.backend, spec.resolved_precision) if choice is not None else ():
        progress.note(warning)
    intake = None
    if spec.resolved_precision == "int8":
        intake = open_intake(str(spec.calibrate_images), spec.preprocessing(), spec.calibrate_limit or CALIBRATE_LIMIT)
    timings = None
    is_rtx = choice is not None and choice.backend == "tensorrt-rtx"
    if is_rtx and spec.timing_cache is not None and spec.backend == "auto":
        progress.note(f"--timing-cache {spec.timing_cache} is not used: {timing_cache.NO_TIMINGS}")
    elif choice is not None and spec.timing_cache is not None:
        timings = timing_cache.read(Path(spec.timing_cache), choice.backend)
    for target in spec.targets():
        recover(target.parent)
    try:
        with work_folder(beside=spec.path) as work:
            traced, origin, samples = _load_and_trace(spec, work, progress)
            checked = _operate_and_check(spec, traced, samples, work, progress, intake)
            model = checked.model
            built = None
            if choice is not None:
                with progress.step("build", f"{spec.resolved_precision} engine by {choice.backend}"):
                    built = _build(spec, model, work / "model.plan", choice, timings, progress)
            products = _products(spec, checked, built, work)
            products = [
                _replay(spec, product, origin, checked.sample, checked.checks, progress) for product in products
            ]
            with progress.step("publish", f"{spec.path} and its manifest"):
                manifest = publish(products, spec, origin, checked.sample, checked.checks, work)[-1]
    except OSError as error:
        raise cannot_write(spec.path, error) from error
    return ExportResult(spec.path, manifest, progress.seconds, choice.reason if choice is not None else None)


def load(spec: ExportSpec) -> LoadedModel:
    """The model of `spec` in PyTorch, its position embedding baked for the image size.

    Raises:
        UsageError: the form of `weights` is wrong.
        WeightsError: the weights can't be had, or are not of this model.
    """
    weights.quiet_libraries()
    if (limit := thread_limit()) is not None and torch.get_num_threads() > limit:
        torch.set_num_threads(limit)
    loaded = weights.load(spec.backbone, spec.weights)
    loaded.check_grid(spec.facts.grid, spec.backbone.patch)
    position.bake_position_embedding(loaded.model, spec.facts.grid, spec.backbone, spec.pos_embed)
    return loaded


def load_and_trace(spec: ExportSpec, folder: Path) -> tuple[LoadedModel, Path]:
    """The model of `spec` in PyTorch, and its trace in `folder`."""
    loaded = load(spec)
    return loaded, trace.to_onnx(loaded.model, spec.facts, folder)


def passes(spec: ExportSpec) -> list[Pass]:
    """The passes over the traced graph, in their order."""
    facts, itae, arch = spec.facts, spec.itae, spec.backbone
    chosen = [partial(scale_queries, facts=facts)]
    if spec.resolved_precision in ("fp16", "bf16"):
        chosen.append(partial(half_precision, precision=spec.resolved_precision))
    if spec.computes_cls_only:
        keep_query = itae is not None and itae.reads_queries(facts.depth - 1, facts.depth)
        chosen.append(partial(cls_only, facts=facts, keep_query=keep_query))
    if itae is not None:
        chosen.append(partial(inject_itae, facts=facts, itae=itae))
    if spec.unfused:
        chosen.append(partial(unfuse_attention, facts=facts))
    offered = offered_outputs(itae, facts.depth) if itae is not None else {}
    outputs = Outputs(spec.outputs, spec.pooling == "cls+mean", spec.normalize, offered)
    chosen.append(partial(select_outputs, facts=facts, outputs=outputs))
    chosen.append(partial(split_bias_gelu))
    if spec.input == "uint8":
        name = spec.input_info().name
        chosen.append(partial(uint8_input, facts=facts, name=name, mean=arch.mean, std=arch.std))
    return chosen


@dataclass(frozen=True)
class Operated:
    """A graph after surgery, as a file."""

    model: Path
    data: Path | None
    """Its external weights; None if all weights lie in `model`."""
    reports: list[PassReport]


def operate(spec: ExportSpec, traced: Path, folder: Path, data_name: str = "model.onnx.data") -> Operated:
    """Do the passes of `spec` on a trace and write `model.onnx` with its weights to `folder`, which is made if needed.

    Args:
        spec: what to export.
        traced: as `trace.to_onnx` gave it.
        folder: of its own for each model, so that no external data meets another's name.
        data_name: what external weights are called.

    Raises:
        SurgeryError: a pass refused the graph.
        WeightsError: a weight is beyond the range of half precision.
    """
    folder.mkdir(exist_ok=True)
    model, reports = runner.run(traced, passes(spec))
    path = folder / "model.onnx"
    return Operated(path, materialize.materialize(model, traced.parent, path, data_name), reports)


def _load_and_trace(spec: ExportSpec, work: Path, progress: Progress) -> tuple[Path, Weights, list[Sample]]:
    """All that needs PyTorch's copy of the weights, which is released at the end."""
    with progress.step("load", f"{spec.backbone.name} from {spec.weights}"):
        loaded = load(spec)
    for note in loaded.origin.notes:
        progress.note(note)
    if spec.calibration is not None and spec.calibration.weights_sha256 != loaded.origin.sha256:
        progress.note("the calibration was made with other weights: it may not hold for these; calibrate again")
    with progress.step("eager", f"{spec.parity_samples} golden samples by eager PyTorch"):
        with contextlib.ExitStack() as stack:
            seen: half_range.Magnitudes = {}
            if spec.resolved_precision == "fp16":
                seen = stack.enter_context(half_range.watch(loaded.model))
            exact = spec.in_fp32() if spec.resolved_precision == "int8" else spec
            samples = golden_sample.make_samples(loaded.model, exact, progress.detail)
        half_range.check_float16(seen)
        for sample in samples:
            for precision, measured in sample.rounding.items():
                rounding.check_limits(precision, sample.limits[precision], measured)
    precision = exact.resolved_precision
    if wider := rounding.describe(precision, samples[0].limits[precision], samples[0].rounding[precision]):
        progress.note(wider)
    with progress.step("trace", "PyTorch to ONNX"):
        folder = work / "traced"
        folder.mkdir()
        traced = trace.to_onnx(loaded.model, spec.facts, folder)
    origin = loaded.origin
    del loaded
    gc.collect()  # modules and the tracer's graphs refer to each other in cycles
    return traced, origin, samples


@dataclass(frozen=True)
class _Checked:
    """The operated model in the work folder, and how it compares with eager PyTorch."""

    model: Path
    data: Path | None
    """Its external weights; None if all weights lie in `model`."""
    sample: Sample
    checks: tuple[ParityCheck, ...]
    quantization: Quantization | None
    """The figures of int8; None in other precisions."""


def _operate_and_check(
    spec: ExportSpec, traced: Path, samples: list[Sample], work: Path, progress: Progress, intake: Intake | None
) -> _Checked:
    """Operate on the trace, and compare the result with eager PyTorch; `intake` has the pictures for int8."""
    final = spec.path if spec.keep_onnx is None else Path(spec.keep_onnx)
    data_name = f"{final.name}.data"

    def run_other(other: ExportSpec, images: parity.Array) -> dict[str, parity.Array]:
        """The outputs of another operation on the same trace, whose files are removed."""
        folder = work / "other"
        got = parity.run(gate.open_checked(operate(other, traced, folder).model, other), images)
        shutil.rmtree(folder)
        return got

    exact = spec if intake is None else spec.in_fp32()
    with progress.step("surgery", f"{len(passes(exact))} passes over the graph"):
        operated = operate(exact, traced, work / "model", data_name)
        model, data = operated.model, operated.data
        for report in operated.reports:
            progress.detail(f"{report.name}: {len(report.changed)} changes")
    quantization = None
    if intake is not None:
        model, data, quantization = _quantize(spec, model, intake, work / "int8", data_name, progress)
    runs = spec.resolved_precision in gate.RUNNABLE
    with progress.step("gate", f"onnx.checker, shape inference{', ONNX Runtime' if runs else ''}"):
        if runs:
            session = gate.open_checked(model, spec)
        else:
            gate.check_file(model, spec)
    further = parity.further_checks(spec, samples)
    sample, checks = samples[0], []
    with progress.step("parity", f"ONNX Runtime against eager PyTorch, {runs + len(further)} checks"):
        if runs:
            got = parity.run(session, sample.golden.input)
            del session  # one copy of the weights at a time
            if quantization is not None:
                sample = parity.with_int8_limits(sample, got, spec)
            elif spec.itae is not None and "artifact_mask" not in got:
                got |= run_other(spec.flags_alone(), sample.golden.input)
            checks.append(parity.check(got, sample, spec, "exported"))
        for purpose, other, its_sample in further:
            progress.detail(purpose)
            checks.append(parity.check(run_other(other, its_sample.golden.input), its_sample, other, purpose))
    attenuates = spec.itae is not None and spec.itae.attenuation.kind != "none"
    if attenuates and not any(one.shows_itae for one in samples):
        progress.note("ITAE changes next to nothing on the golden samples, so what it does was hardly checked")
    shutil.rmtree(traced.parent)
    return _Checked(model, data, sample, tuple(checks), quantization)


def _quantize(
    spec: ExportSpec, exact: Path, intake: Intake, folder: Path, data_name: str, progress: Progress
) -> tuple[Path, Path | None, Quantization]:
    """The int8 model, its external weights and its figures; the folder of the float32 model is removed."""
    with progress.step("quantize", f"int8 by pictures of {spec.calibrate_images}"):
        min_cosine = spec.min_cosine or MIN_COSINE
        with quiet_pillow():
            found = quantize(exact, folder, data_name, intake, min_cosine, gate.open_model, progress.detail)
        shutil.rmtree(exact.parent)
    if intake.failed:
        progress.note(f"{len(intake.failed)} pictures can't be read; the first: {intake.first_failure()}")
    if found.record.calibrated < FEW_PICTURES:
        progress.note(
            f"{found.record.calibrated} pictures chose the scales of int8, so others may be further off than "
            f"--min-cosine allows: give {2 * FEW_PICTURES} or more"
        )
    return found.model, found.data, found.record


@dataclass(frozen=True)
class _Built:
    """The facts about an engine that was built."""

    builder: Builder
    fusion: Fusion | None
    int8_layers: int | None
    """Number of linear layers that its kernels compute from int8 numbers; None if that is not known."""


def _build(
    spec: ExportSpec, model: Path, plan: Path, choice: Choice, timings: bytes | None, progress: Progress
) -> _Built:
    """Write the engine of the operated model to `plan`."""
    request = engine.EngineRequest(
        choice.backend,
        spec.profile,
        spec.workspace_mib,
        timings,
        spec.hardware_compatibility,
        spec.version_compatible,
    )
    built = engine.build(model, plan, request, progress.log)
    if spec.timing_cache is not None and built.timing_cache is not None:
        write_atomically(Path(spec.timing_cache), built.timing_cache)
    found = fusion.read_fusion(attention_nodes(model), built.kernels, fusion.unfusable_layers(spec))
    if spec.require_fusion:
        fusion.require(found)
    if spec.unfused:
        fusion.require_none(found)
    int8 = fusion.count_int8(int8_products(model), built.kernels) if spec.resolved_precision == "int8" else None
    return _Built(built.builder, found, int8)


def _products(spec: ExportSpec, checked: _Checked, built: _Built | None, work: Path) -> list[Product]:
    """The ONNX file, the engine, or both; the last is that of `spec.out`."""
    by_onnx = Builder(
        name="onnx", version=onnx.__version__, platform=f"{platform.system()}-{platform.machine()}".lower()
    )
    products = []
    if built is None or spec.keep_onnx is not None:
        target = spec.path if built is None else Path(spec.keep_onnx or "")
        products.append(Product(target, checked.model, checked.data, by_onnx, quantization=checked.quantization))
    if built is not None:
        record = checked.quantization
        if record is not None:
            record = record.model_copy(update={"engine_layers": built.int8_layers})
        plan = work / "model.plan"
        products.append(Product(spec.path, plan, None, built.builder, built.fusion, quantization=record))
    return products


def _replay(
    spec: ExportSpec,
    product: Product,
    origin: Weights,
    sample: Sample,
    checks: tuple[ParityCheck, ...],
    progress: Progress,
) -> Product:
    """The product with the figures of its run where something here runs it, or with the reason why it was not run.

    An ONNX file that parity ran on ONNX Runtime's CPU comes back as it is.

    Raises:
        ParityError: its results are off.
        BuildError: it does not run.
    """
    builder = product.builder.name
    is_engine = builder != "onnx"
    if not is_engine and spec.resolved_precision in gate.RUNNABLE:
        return product
    reason = "--no-replay was given" if not spec.replay else replay.cannot_replay(builder)
    if reason is not None:
        what = "engine" if is_engine else f"{spec.resolved_precision} model"
        progress.note(f"the {what} was not run: {reason}; check it by `verify` where it will run")
        return dataclasses.replace(product, not_replayed=reason)
    with progress.step("replay", f"golden sample and batches {'on the GPU' if is_engine else 'by OpenVINO'}"):
        model = write_for_replay(product, spec, origin, sample, checks)
        return dataclasses.replace(product, replay=replay.replay(model, builder, unfused=spec.unfused))
