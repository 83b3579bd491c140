"""Checks of exported models, as functions that run in the child process."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from exporter import ExportSpec, ItaeConfig, export
from exporter.models.architecture import Architecture
from exporter.steps import Progress
from runtime.backends import open_session
from runtime.checks import criteria
from runtime.checks.agreement import agreement
from runtime.checks.verify import Verification, verify
from runtime.contract.golden import read_golden
from runtime.contract.manifest import HardwareCompatibility, read_manifest
from scripts.gpu_checks.check import Failed, Figures
from scripts.gpu_checks.machine import Precision, Road, Target
from scripts.planting.pictures import write_noise

Float32 = npt.NDArray[np.float32]

EDGE = 16
"""Side of the coarse noise that a drawn picture begins with."""


@dataclass(frozen=True)
class Case:
    """One model: a size with ITAE in all layers or without, in a precision."""

    arch: Architecture
    itae: bool
    precision: Precision = "fp32"
    travels: HardwareCompatibility = "none"
    """Other GPUs that the engine is for; it is for later versions of its library too then."""

    @property
    def what(self) -> str:
        """`vits14-itae`: the model whatever its precision."""
        return f"{self.arch.name}-{'itae' if self.itae else 'plain'}"

    @property
    def name(self) -> str:
        """`vits14-itae-fp16`."""
        return f"{self.what}-{self.precision}" + ("" if self.travels == "none" else f"-{self.travels}")

    @property
    def config(self) -> ItaeConfig | None:
        """ITAE's options: in all layers, where it can do most harm to speed and precision.

        The threshold flags some patches of whatever model; the default, ratio:3, flags none of random weights.
        """
        return ItaeConfig("all", threshold="zscore:1.5", attenuate="mask") if self.itae else None


def path_of(folder: Path, case: Case, road: Road) -> Path:
    """Where the model of a case lies."""
    return folder / f"{case.name}-{road.name}{road.suffix}"


def export_case(target: Target, folder: Path, case: Case, road: Road) -> Figures:
    """Export a model as a user does: compared with eager PyTorch, and an engine is run before it is published.

    A model that lies in `folder` already is taken as it is.
    """
    path = path_of(folder, case, road)
    start = time.monotonic()
    if path.exists():
        made = read_manifest(path)
        seconds: dict[str, float] = {}
    else:
        engine: dict[str, Any] = {} if road.library is None else {"backend": road.library, "batch": target.batch}
        if case.travels != "none":
            engine |= {"hardware_compatibility": case.travels, "version_compatible": True}
        if case.precision == "int8":
            # of every colour, since the golden images are noise
            noise = write_noise(folder / "calibration", target.pictures, target.image_size)
            engine |= {"calibrate_images": noise}
        spec = ExportSpec(
            path, case.arch, target.weights, precision=case.precision, image_size=target.image_size, itae=case.config,
            **engine,
        )  # fmt: skip
        done = export(spec, Progress(verbose=True))
        made, seconds = done.manifest, done.seconds
    figures: Figures = {"MB": round(made.files.model.bytes / 1e6, 1)}
    if seconds:
        figures["export s"] = round(time.monotonic() - start, 1)
    if "build" in seconds:
        figures["build s"] = round(seconds["build"], 1)
    if made.options.version_compatible:
        figures["for"] = f"{made.options.hardware_compatibility}, later versions"
    if made.quantization is not None:
        figures |= {
            "int8 layers": made.quantization.int8_layers,
            "in int8 kernels": str(made.quantization.engine_layers),
        }
    if made.replay is not None:
        figures["replay max abs"] = made.replay.max_abs
    elif road.library is not None:
        raise Failed("the engine was published without being run by its exporter", figures)
    return figures


@functools.cache
def _verified(path: Path, provider: str) -> Verification:
    return verify(path, provider)


def check_golden(folder: Path, case: Case, road: Road) -> Figures:
    """The golden sample: eager PyTorch's embeddings of a few images, in float32 on the CPU."""
    path = path_of(folder, case, road)
    result = _verified(path, road.provider)
    parity = result.parity
    figures: Figures = {"max abs": parity.max_abs, "min cosine": parity.min_cosine, "images": result.samples}
    failures = list(parity.failures)
    if result.has_itae:
        flags = read_golden(path, read_manifest(path)).flags
        figures |= {"patches flagged": float(flags.mean()), "images left out": len(parity.borderline)}
        if not flags.any():
            failures.append("no patch of the golden images is an artifact, so ITAE changed nothing")
    return _judged(figures, failures)


def check_batches(folder: Path, case: Case, road: Road) -> Figures:
    """Rows of batches against the same images alone."""
    found = _verified(path_of(folder, case, road), road.provider).batches
    figures: Figures = {"distance": found.distance, "sizes": list(found.sizes), "rows": found.rows}
    return _judged(figures, found.failures)


def check_fusion(folder: Path, case: Case, road: Road) -> Figures:
    """Whether each attention that the options allow to be one kernel is one, as the builder named its kernels."""
    found = read_manifest(path_of(folder, case, road)).fusion
    if found is None:
        raise Failed("the builder named no kernels: neither its log nor the inspector was understood")
    figures: Figures = {"fused": found.fused, "of": found.sites, "kernels": found.engine_kernels}
    wanted = f"{found.fused} attentions are one kernel, the options allow {found.expected}"
    return _judged(figures, (wanted,) if found.fused < found.expected else ())


def draw(target: Target) -> npt.NDArray[np.uint8]:
    """Seeded pictures (n, S, S, 3), as rich in detail as photographs, in groups that share their colours."""
    from PIL import Image

    side, rng = target.image_size, np.random.default_rng(13)
    pictures = np.empty((target.pictures, side, side, 3), np.uint8)
    grounds = rng.integers(0, 256, (10, 1, 1, 3))
    for number in range(target.pictures):
        coarse = grounds[number % 10] + rng.normal(0, 60, (EDGE, EDGE, 3))
        small = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
        smooth = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), np.int16)
        grain = rng.normal(0, 6, smooth.shape).astype(np.int16)
        pictures[number] = np.clip(smooth + grain, 0, 255)
    return pictures


def eager_path(folder: Path, case: Case) -> Path:
    """Where eager PyTorch's embeddings of the pictures lie."""
    return folder / f"{case.what}-eager.npy"


def embed_eagerly(target: Target, folder: Path, case: Case) -> Figures:
    """Embeddings (n, C) of the pictures by eager PyTorch in float32 on the CPU, kept as the reference."""
    import torch

    start = time.monotonic()
    found = eager_embeddings(target, case, torch.device("cpu"))
    if not np.isfinite(found).all():
        raise Failed("eager PyTorch gave NaN or infinity")
    np.save(eager_path(folder, case), found)
    return {"pictures": len(found), "width": found.shape[1], "s": round(time.monotonic() - start, 1)}


def eager_embeddings(target: Target, case: Case, device: Any, dtype: Any = None) -> Float32:  # noqa: ANN401
    """Embeddings (n, C) by eager PyTorch on a device; with `dtype`, products are computed in that.

    TF32, which PyTorch uses for convolutions unless it is turned off, is off.
    """
    import torch

    from exporter import pipeline
    from exporter.methods.itae import reference
    from exporter.proof.golden_sample import normalize

    if target.dry:
        torch.set_num_threads(1)  # a model so small is slower on several
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    spec = ExportSpec("unused.onnx", case.arch, target.weights, image_size=target.image_size, itae=case.config)
    model = pipeline.load(spec).model.to(device)
    images = torch.from_numpy(normalize(draw(target))).to(device)
    half = contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)
    with torch.inference_mode(), half:
        return np.asarray(reference.embed(model, images, case.config).embedding.float().cpu().numpy())


def check_pictures(target: Target, folder: Path, case: Case, road: Road) -> Figures:
    """The pictures' embeddings against eager PyTorch's, in the units of those who search and cluster them."""
    from exporter.proof.golden_sample import normalize

    model = path_of(folder, case, road)
    images = normalize(draw(target))
    with contextlib.closing(open_session(model, road.provider)) as session:
        step = target.batch[1]
        batches = (images[start : start + step] for start in range(0, len(images), step))
        got = np.concatenate([session.run(batch, ["embedding"])["embedding"] for batch in batches])
    return judge(got, np.load(eager_path(folder, case)), case)


def judge(got: Float32, expected: Float32, case: Case) -> Figures:
    """The figures of two sets of embeddings, held to the limits of `verify --against`."""
    found = criteria.judge(agreement(got, expected), None, criteria.limits_of(case.precision, has_flags=case.itae))
    return _judged(
        {one.name: one.figure for one in found if one.figure is not None},
        [one.failure for one in found if one.failure is not None],
    )


def _judged(figures: Figures, failures: tuple[str, ...] | list[str]) -> Figures:
    if failures:
        raise Failed("; ".join(failures), figures)
    return figures


def check_tensors(target: Target, folder: Path, case: Case, road: Road) -> Figures:
    """A tensor of PyTorch on the device is embedded where it lies, by DLPack, as the same array is."""
    import torch

    from runtime import load

    rng = np.random.default_rng(0)
    images = rng.standard_normal((target.batch[2] + 1, 3, target.image_size, target.image_size), np.float32)
    with load(path_of(folder, case, road), road.provider) as model:
        expected = model.embed(images)
        got = torch.from_dlpack(model.embed(torch.from_numpy(images).to(target.device)))
        place, found = got.device.type, got.cpu().numpy().copy()
    difference = float(np.abs(found - expected).max())
    figures: Figures = {"images": len(images), "on": place, "max abs to the same array": difference}
    failures = [f"the embedding is on {place}, not on {target.device}"] if place != target.device else []
    if not difference <= 1e-3:
        failures.append(f"it differs by {difference:.3g} from the array's embedding")
    return _judged(figures, failures)


def keep_build_log(target: Target, folder: Path, evidence: Path, case: Case, road: Road) -> Figures:
    """Build an engine and keep the builder's own log, raw, and the inspector's JSON: fixtures for the parsers of both.

    The two must name the same attentions as fused. Without a GPU there is no inspector.
    """
    from exporter.build import build_log, engine, fusion
    from exporter.surgery.attention import attention_nodes
    from runtime.contract.tensorrt import import_library, shared_logger

    assert road.library is not None
    onnx = path_of(folder, case, Road("cpu"))
    plan = folder / f"{case.name}-{road.name}-log.plan"
    evidence.mkdir(exist_ok=True)
    lines: list[str] = []
    request = engine.EngineRequest(road.library, target.batch)
    built = engine.build(onnx, plan, request, lambda severity, message: lines.append(f"[{severity}] {message}"))
    log = evidence / f"{road.name}-build.log"
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    trt = import_library(road.library, "the build log")
    layers = [line.partition("] ")[2] for line in lines if line.partition("] ")[2].startswith("Layers:")]
    logged = build_log.logged_kernels(layers[-1]) if layers else ()
    sites, unfusable = attention_nodes(onnx), {}
    by_log = fusion.read_fusion(sites, logged, unfusable)
    figures: Figures = {
        "version": str(trt.__version__),
        "log lines": len(lines),
        "kernels in the log": len(logged),
        "fused by the log": None if by_log is None else by_log.fused,
    }
    failures = [] if logged else [f"no kernels were read from {log}, which has {len(layers)} messages `Layers:`"]
    if not target.dry:
        runtime = trt.Runtime(shared_logger(trt).logger)
        inspector = runtime.deserialize_cuda_engine(plan.read_bytes()).create_engine_inspector()
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        (evidence / f"{road.name}-inspector.json").write_text(text, encoding="utf-8")
        inspected = build_log.inspected_kernels(text)
        by_inspector = fusion.read_fusion(sites, inspected, unfusable)
        figures["kernels by the inspector"] = len(inspected)
        figures["fused by the inspector"] = None if by_inspector is None else by_inspector.fused
        figures["inspector's keys"] = sorted(json.loads(text))
        if by_inspector is None or by_log is None or by_inspector.fused != by_log.fused:
            failures.append("the log and the inspector do not name the same attentions as fused")
    plan.unlink()
    assert built.plan_bytes > 0
    return _judged(figures, failures)
