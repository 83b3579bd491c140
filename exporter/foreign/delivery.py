"""The street of a foreign graph: open, survey, operate, prove, publish. Only this file knows the order."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter.build.engine import choose_backend, known_faults_here
from exporter.build.fusion import describe
from exporter.build.replay import cannot_replay, replay
from exporter.foreign import replica
from exporter.foreign.as_engine import build_engine, with_fixed_size, with_outputs
from exporter.foreign.library_model import LibraryModel
from exporter.foreign.onnx_file import OnnxFile, open_onnx
from exporter.foreign.operation import operate, save
from exporter.foreign.precision import finish, make_faster
from exporter.foreign.probe import Arrays, Probe, open_session
from exporter.foreign.replica import Proof
from exporter.foreign.request import ForeignSpec
from exporter.foreign.survey import Measured, Survey, feeds_for, refusal, survey
from exporter.methods.itae.options import MAX_MEDIAN_PATCHES, ItaeConfig
from exporter.steps import Progress
from exporter.surgery.write_out import Known, write_out
from runtime.contract.atomic import cannot_write, work_folder
from runtime.contract.comparison import LIMITS, compare
from runtime.contract.errors import CheckError, InputError, ParityError, SurgeryError, UsageError, one_line
from runtime.contract.file_set import FileSet, publish_sets, recover
from runtime.contract.golden import Golden, golden_bytes
from runtime.contract.manifest import (
    OUTPUTS,
    Backbone,
    Builder,
    Files,
    Foreign,
    Fusion,
    Manifest,
    Options,
    ParityCheck,
    ParityLimits,
    ParityReport,
    Replay,
    TensorInfo,
    Weights,
    manifest_path,
    parity_path,
    record_file,
)
from runtime.contract.tensorrt import LibraryName

VERSIONS: tuple[str, ...] = ("onnx", "onnxruntime", "onnx-graphsurgeon", "numpy", "itae")
EMBEDDING = "embedding"
NOT_EMBEDDINGS = ("logits", "scores", "probs", "probabilities")
"""Parts of names of outputs (B, C) that are no embeddings."""


@dataclass(frozen=True)
class Delivered:
    """A published file."""

    path: Path
    manifest: Manifest | None
    """None if the runtime can't run the file."""
    found: Survey
    prefix: int
    proofs: tuple[Proof, ...]
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Made:
    """A model in the work folder, before it is published."""

    model: Path
    data: Path | None
    builder: Builder
    batch: tuple[int, int, int] | None = None
    """min, opt, max of an engine."""
    fusion: Fusion | None = None
    replay: Replay | None = None
    not_replayed: str | None = None


def deliver(spec: ForeignSpec, progress: Progress, by_name: LibraryModel | None = None) -> Delivered:
    """Put ITAE into somebody else's ONNX file; nothing appears at `spec.out` before all of it is proven.

    Args:
        spec: the file, and what is done with it.
        progress: shows the steps.
        by_name: given if the file is a trace of a library's model.

    Raises:
        ItaeError: one of the kinds of `runtime.contract.errors`; the message speaks to the user.
    """
    library = choose_backend(spec.backend).backend if spec.makes_engine else None
    spec.check_folder()
    if library is not None:
        for warning in known_faults_here(library, spec.precision or "fp32"):
            progress.note(warning)
    recover(spec.path.parent)
    try:
        with work_folder(beside=spec.path) as work:
            return _deliver(spec, library, progress, work, by_name)
    except OSError as error:
        raise cannot_write(spec.path, error) from error


def _deliver(
    spec: ForeignSpec, library: LibraryName | None, progress: Progress, work: Path, by_name: LibraryModel | None
) -> Delivered:
    with progress.step("survey", f"{spec.onnx if by_name is None else by_name.name}: what is in it"):
        found, probe, prefix = _opened(spec, library, work, by_name)
        file = found.file
    _say(found, prefix, spec, progress, by_name)
    if spec.embedding is not None:
        file = dataclasses.replace(file, model=_with_embedding(found, probe, spec, prefix))
        found, probe = _survey(file, work / "with_embedding", found.image_size)
    outputs = _outputs(found, with_all=library is not None)  # an engine has no outputs beside those of its manifest
    untouched = probe
    if written := _fused_layers(found, spec):
        file = dataclasses.replace(file, model=_written_out(found, probe, written))
        found, probe = _survey(file, work / "written_out", found.image_size)
        progress.note(
            f"{len(written)} attentions are one operator, and are written out, so that ITAE can go into them: rounding "
            "differs"
        )
    with progress.step("surgery", f"ITAE in {len(spec.itae.layer_indices(len(found.backbone)))} of the layers"):
        model = operate(found, probe, spec.itae, prefix)
        target = work / "model.onnx"
        data = save(model, file, target, f"{spec.path.name}.data")
    with progress.step("gate", "onnx.checker, shape inference, ONNX Runtime"):
        _check(target, found)

    def run_operated(itae: ItaeConfig, feeds: Arrays) -> Arrays:
        names = [tensor.name for tensor in found.outputs]
        place = target
        if itae is not spec.itae:
            folder = work / "other"
            folder.mkdir(exist_ok=True)
            place = folder / "model.onnx"
            save(operate(found, probe, itae, prefix), file, place, "model.onnx.data")
        session = open_session(place, spec.path)
        return dict(zip(names, session.run(names, feeds), strict=True))

    with progress.step("proof", "ONNX Runtime against the untouched graph with ITAE in numpy, float64"):
        proofs, feeds, golden = replica.prove(
            found, probe, spec.itae, prefix, run_operated, spec.parity_samples, progress.detail
        )
        if probe is not untouched:
            names = [tensor.name for tensor in found.outputs]
            replica.check_close(untouched.run(feeds, names), probe.run(feeds, names), found)
    if not any(one.is_telling for one in proofs):
        most = max(proofs, key=lambda one: one.effect)
        progress.note(
            f"ITAE moves outputs by at most {most.effect:.2g} on the golden samples, limit {most.limit:g}: what it "
            "does was hardly checked"
        )
    outputs = _finite(outputs, golden.outputs)
    sample = _golden_sample(found, outputs, feeds, golden) if outputs else None
    made = _Made(target, data, _onnx_builder())
    if spec.half is not None or library is not None:
        model = _faster(spec, found, probe, prefix, outputs, sample, work, progress)
    if library is not None:
        assert sample is not None
        dropped = [one.name for one in found.outputs if one.name not in outputs.values()]
        if dropped:
            progress.note(f"the engine has no output {', '.join(dropped)}: it is not in float32, or not by image")
        fixed_batch = found.picture.shape[0] if found.picture is not None else None
        profile = (fixed_batch,) * 3 if isinstance(fixed_batch, int) else spec.profile
        with progress.step("build", f"{spec.precision or 'fp32'} engine by {library}"):
            built = build_engine(with_outputs(model, outputs), found, work, library, profile, spec.half or "fp32")
        made = _Made(built.plan, None, built.builder, profile, built.fusion)
        made = _replayed(spec, made, found, prefix, outputs, proofs, sample, progress)
    elif spec.half is not None:
        data = save(model, found.file, target, f"{spec.path.name}.data")
        _check(target, found)
        made = dataclasses.replace(made, data=data)
    what = "the file, its golden sample and its manifest" if outputs else "the file alone"
    with progress.step("publish", f"{spec.path}: {what}"):
        manifest = None
        sources = {spec.path.name: made.model}
        if made.data is not None:
            sources[made.data.name] = made.data
        seal = spec.path
        if sample is not None:
            manifest = _described(spec, made, found, prefix, outputs, proofs, sample, spec.path)
            manifest = manifest if by_name is None else by_name.named(manifest)
            described = work / "manifest.json"
            described.write_bytes(manifest.to_json())
            sources |= {parity_path(spec.path).name: parity_path(made.model), manifest_path(spec.path).name: described}
            seal = manifest_path(spec.path)
            if EMBEDDING not in outputs:
                progress.note(
                    f"none of the outputs is an embedding (B, C) in float32: `verify` compares {', '.join(outputs)}, "
                    "and `embed` can't use the file; --embedding NAME adds one"
                )
        else:
            progress.note(f"{_why_not(found)}: so there is no manifest, and `embed` and `verify` can't use the file")
        obsolete = [f"{spec.path.name}.data"] if made.data is None else []
        if manifest is None:  # of an older file in this place
            obsolete += [manifest_path(spec.path).name, parity_path(spec.path).name]
        publish_sets([FileSet(seal, sources, obsolete)], work)
    return Delivered(spec.path, manifest, found, prefix, tuple(proofs), progress.seconds)


@dataclass(frozen=True)
class Prepared:
    """Somebody else's graph, ready to be looked at layer by layer: each attention is written out."""

    found: Survey
    probe: Probe
    prefix: int
    embedding: str
    """The name of its output (B, C)."""


def prepare(spec: ForeignSpec, work: Path, progress: Progress) -> Prepared:
    """Open a file for what runs it layer by layer, such as a calibration.

    Raises:
        UsageError: an option does not fit the file, or none of its outputs is an embedding.
        SurgeryError: ITAE can't be put into it.
        InputError: it can't be read or run.
    """
    found, probe, prefix = _opened(spec, None, work)
    _say(found, prefix, spec, progress, None)
    if spec.embedding is not None:
        file = dataclasses.replace(found.file, model=_with_embedding(found, probe, spec, prefix))
        found, probe = _survey(file, work / "with_embedding", found.image_size)
    embedding = _outputs(found).get(EMBEDDING)
    if embedding is None:
        raise UsageError(
            f"{found.file.path}: {_why_not(found)}"
            if not _outputs(found)
            else f"{found.file.path}: none of its outputs is an embedding (B, C): name one by --embedding NAME"
        )
    if written := [one for one in found.backbone if one.site.fused is not None]:
        file = dataclasses.replace(found.file, model=_written_out(found, probe, written))
        found, probe = _survey(file, work / "written_out", found.image_size)
    return Prepared(found, probe, prefix, embedding)


def _opened(
    spec: ForeignSpec, library: LibraryName | None, work: Path, by_name: LibraryModel | None = None
) -> tuple[Survey, Probe, int]:
    """The survey of the file, its probe, and the number of tokens before the patches.

    Raises:
        UsageError: an option does not fit the file.
        SurgeryError: ITAE can't be put into it.
        InputError: it can't be read or run.
    """
    size = (spec.image_size, spec.image_size) if isinstance(spec.image_size, int) else spec.image_size
    file = open_onnx(Path(spec.onnx))
    if spec.calibration is not None and spec.calibration.weights_sha256 != file.sha256:
        raise UsageError(f"--config was made for another file than {file.path}: make one with `calibrate --onnx`")
    if spec.fix_input:
        file = dataclasses.replace(file, model=_with_fixed(file.model, spec.fix_input))
    found, probe = _survey(file, work / "probe", size, usual=True)
    if (why := refusal(found, spec.prefix_tokens)) is not None:
        raise SurgeryError(f"{file.path if by_name is None else by_name.name}: {why}")
    if by_name is not None:
        by_name.check(found)
    if spec.precision == "fp32" and any(one.precision == "float16" for one in found.backbone):
        raise UsageError("--precision fp32: the file is in half precision: leave it out to keep that")
    prefix = spec.prefix_tokens if spec.prefix_tokens is not None else found.prefix
    assert prefix is not None
    if size is not None and found.image_size != size:
        raise UsageError(
            f"--image-size {size[0]}x{size[1]}: the graph takes {found.image_size[0]}x{found.image_size[1]} alone"  # type: ignore[index]
        )
    spec.itae.layer_indices(len(found.backbone))
    if library is not None:
        _check_engine(spec, found, prefix)
        if found.is_dynamic and found.image_size is not None and found.picture is not None:
            fixed = with_fixed_size(file, found.picture.name, found.image_size)
            found, probe = _survey(dataclasses.replace(file, model=fixed), work / "fixed", None)
    return found, probe, prefix


def _survey(file: OnnxFile, folder: Path, size: tuple[int, int] | None, *, usual: bool = False) -> tuple[Survey, Probe]:
    folder.mkdir()
    probe = Probe(file, folder)
    return survey(file, probe, size, usual=usual), probe


def _say(found: Survey, prefix: int, spec: ForeignSpec, progress: Progress, by_name: LibraryModel | None) -> None:
    """Show what was inferred, so that the user can contradict."""
    if found.file.taken_out:
        progress.note(
            f"the file was exported in training mode: {'; '.join(found.file.taken_out)}: the new file gives what the "
            "model gives in use"
        )
    last = found.backbone[-1]
    grid = f"a grid of {found.grid[0]}x{found.grid[1]} patches" if found.grid else "patches"
    who = "as you say" if spec.prefix_tokens is not None else "as the graph shows"
    if by_name is not None and by_name.prefix is not None:
        who = f"as {by_name.library.split()[0]} says"
    progress.note(
        f"{len(found.backbone)} layers of {last.heads} heads of {last.head_dim}; tokens before the patches: {prefix} "
        f"({who}), then {grid}{f', then {found.behind} more tokens' if found.behind else ''}; {last.site.form}"
    )
    if not spec.is_told:
        progress.note(
            "pictures are normalised by ImageNet's mean and standard deviation, as nobody said otherwise: if the model "
            "was trained with others, say --mean and --std, or --preprocessor"
        )
    if found.image_size is not None:
        spec.preprocessing(found.image_size)  # which refuses a preprocessor's file before the work
        for note in spec.pictures(found.image_size).notes if spec.preprocessor is not None else ():
            progress.note(note)
    if found.is_dynamic and spec.image_size is None and found.image_size is not None:
        progress.note(
            f"height and width stay open in the file; `embed` and `verify` use {found.image_size[0]}x"
            f"{found.image_size[1]}: --image-size says another size"
        )
    others = len(found.sites) - len(found.backbone)
    if others:
        progress.note(f"{others} further attentions, such as a pooling head's, are left as they are")
    if found.found.near_misses:
        near = found.found.near_misses[0]
        progress.note(f"no layer, but near to one: {near.node}: {near.reason}")


def _check_engine(spec: ForeignSpec, found: Survey, prefix: int) -> None:
    """Refuse what no engine can be made of, before the work.

    Raises:
        UsageError: the sizes of pictures are open, there are more inputs, or no output that the runtime uses; or the
            threshold needs a median of more patches than TensorRT takes.
    """
    if found.is_dynamic and spec.image_size is None:
        raise UsageError(
            f"--out {spec.path}: height and width are open in the graph, and an engine has one size: say --image-size"
        )
    if not _outputs(found) and spec.embedding is None:
        raise UsageError(f"--out {spec.path}: {_why_not(found)}: export to .onnx, and build from that")
    patches = found.backbone[0].tokens - prefix - found.behind
    if spec.itae.needs_median and patches > MAX_MEDIAN_PATCHES:
        raise UsageError(
            f"--threshold {spec.itae.threshold} needs the median of {patches} patches, TensorRT can take at most "
            f"{MAX_MEDIAN_PATCHES}: use --threshold zscore:λ or absolute:τ, or a smaller --image-size"
        )


def _faster(
    spec: ForeignSpec,
    found: Survey,
    probe: Probe,
    prefix: int,
    outputs: dict[str, str],
    sample: Golden | None,
    work: Path,
    progress: Progress,
) -> onnx.ModelProto:
    """The operated model after the passes that only make it faster, held to the golden sample of the proven one.

    Raises:
        SurgeryError: the graph can't become half precision.
        ParityError: the results are off.
    """
    with progress.step("faster", f"scale on the queries{f', {spec.half}' if spec.half else ''}"):
        file, notes = make_faster(found, probe, spec.half)
        notes.append("all tokens are computed in the last block: cls_only is for this program's own graphs")
        quick, quick_probe = _survey(file, work / "faster", found.image_size)
        if [one.tokens for one in quick.backbone] != [one.tokens for one in found.backbone]:
            raise SurgeryError(f"--precision {spec.precision}: attention is not found again in the rewritten graph")
        model = operate(quick, quick_probe, spec.itae, prefix)
        if spec.half != "bf16":
            finish(model, spec.half)
        if sample is not None and found.picture is not None:
            place = work / "faster" / "check.onnx"
            save(model, file, place, "check.onnx.data")
            session = open_session(place, spec.path)
            got = session.run([*outputs.values()], {found.picture.name: sample.input})
            parity = compare(dict(zip(outputs, got, strict=True)), sample, LIMITS[spec.half or "fp32"])
            if not parity.passed:
                raise ParityError(
                    f"with --precision {spec.half or 'fp32'} the graph is off: {'; '.join(parity.failures)}; try "
                    f"{'bf16 or fp32' if spec.half == 'fp16' else 'fp32'}"
                )
        if spec.half == "bf16":
            finish(model, "bf16")
    for note in notes:
        progress.note(note)
    return model


def _replayed(
    spec: ForeignSpec,
    made: _Made,
    found: Survey,
    prefix: int,
    outputs: dict[str, str],
    proofs: list[Proof],
    sample: Golden,
    progress: Progress,
) -> _Made:
    """The engine with the figures of its run on a GPU here, or the reason why it was not run.

    Raises:
        ParityError, BuildError: its results are off, or it does not run.
    """
    assert made.builder.name != "onnx"
    reason = "--no-replay was given" if not spec.replay else cannot_replay(made.builder.name)
    if reason is not None:
        progress.note(f"the engine was not run: {reason}; check it by `verify` where it will run")
        return dataclasses.replace(made, not_replayed=reason)
    with progress.step("replay", "golden sample and batches on the GPU"):
        manifest = _described(spec, made, found, prefix, outputs, proofs, sample, made.model)
        manifest_path(made.model).write_bytes(manifest.to_json())
        return dataclasses.replace(made, replay=replay(made.model, made.builder.name, unfused=False))


def _fused_layers(found: Survey, spec: ForeignSpec) -> list[Measured]:
    """The attentions that are one operator and that ITAE works in; for an engine, all that are one operator."""
    itae = spec.itae
    if spec.makes_engine:
        return [one for one in found.backbone if one.site.fused is not None]
    layers = itae.layer_indices(len(found.backbone))
    needed = {*layers, *(map(itae.detects_in, layers) if itae.source not in (None, "residual") else ())}
    return [found.backbone[layer] for layer in sorted(needed) if found.backbone[layer].site.fused is not None]


def _written_out(found: Survey, probe: Probe, sites: list[Measured]) -> onnx.ModelProto:
    """The model with these attentions written out."""
    assert found.image_size is not None
    names = [one.name for site in sites for one in site.site.context.inputs if one.name]
    constants = {one.name: one for one in found.file.model.graph.initializer}
    computed = [name for name in dict.fromkeys(names) if name not in constants]
    shapes = probe.shapes(feeds_for(found, found.image_size, found.batch), computed)
    ranks = {name: len(shape) for name, shape in shapes.items()}
    dtypes = probe.dtypes(computed)
    for name, one in constants.items():
        ranks[name] = len(one.dims)
        dtypes[name] = np.dtype(helper.tensor_dtype_to_np_dtype(one.data_type))
    scales = {}
    for site in sites:
        if site.scale is None:
            raise SurgeryError(f"{site.site.name!r}: the scale of {site.site.form} is not known")
        scales[str(site.site.context.outputs[0].name)] = site.scale
    return write_out(found.file.model, scales, Known(ranks, dtypes))


def _with_fixed(model: onnx.ModelProto, fixed: str) -> onnx.ModelProto:
    """The model with some inputs as constants.

    Raises:
        UsageError: there is no such input, or it does not take the value.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for name, text in (one.split("=", 1) for one in fixed.split(",")):
        value = next((one for one in made.graph.input if one.name == name), None)
        if value is None:
            names = ", ".join(one.name for one in made.graph.input)
            raise UsageError(f"--fix-input {name}={text}: the graph has no such input, only {names}")
        kind = value.type.tensor_type
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        words = {"false": 0.0, "true": 1.0}
        number = words.get(text.lower(), float("nan")) if text.lower() in words else float(text)
        sizes = [size.dim_value or 1 for size in kind.shape.dim]  # an open size is broadcast
        made.graph.initializer.append(numpy_helper.from_array(np.full(sizes, number).astype(dtype), name))
        made.graph.input.remove(value)
    return made


def _why_not(found: Survey) -> str:
    """The reason why the runtime can't use the file."""
    assert found.picture is not None
    if len(found.inputs) > 1:
        others = ", ".join(one.name for one in found.inputs if one is not found.picture)
        return f"`embed` runs models with one input, and this one takes {others} too (--fix-input NAME=VALUE fixes one)"
    if found.picture.dtype != "float32":
        return f"`embed` gives pictures in float32, and this model takes {found.picture.dtype}"
    return "none of the outputs is in float32, finite and by image (--embedding NAME adds one that is)"


def _outputs(found: Survey, *, with_all: bool = False) -> dict[str, str]:
    """The outputs that the runtime uses, the names of the file by its own names for them.

    That is the embedding, (B, C) in float32; where there is none or `with_all`, all outputs (B, ...) in float32 under
    their own names; empty where the runtime can't run the model.
    """
    if len(found.inputs) > 1 or found.picture is None or found.picture.dtype != "float32":
        return {}
    by_image = [
        one.name for one in found.outputs
        if one.dtype == "float32" and found.output_shapes[one.name][:1] == (found.batch,)
    ]  # fmt: skip
    vectors = [
        name for name in by_image
        if len(found.output_shapes[name]) == 2 and not any(word in name.lower() for word in NOT_EMBEDDINGS)
    ]  # fmt: skip
    # A name that readers know means what they know: it gets another.
    own = {f"own/{name}" if name in OUTPUTS else name: name for name in by_image}
    if vectors:
        embedding = EMBEDDING if EMBEDDING in vectors else vectors[0]
        others = {name: in_file for name, in_file in own.items() if in_file != EMBEDDING or embedding != EMBEDDING}
        return {EMBEDDING: embedding, **(others if with_all else {})}
    return own


def _finite(outputs: dict[str, str], found: Arrays) -> dict[str, str]:
    """Those of the outputs that hold no NaN or infinity, which can't be compared."""
    return {name: in_file for name, in_file in outputs.items() if np.isfinite(found[in_file]).all()}


def _with_embedding(found: Survey, probe: Probe, spec: ForeignSpec, prefix: int) -> onnx.ModelProto:
    """The model with the output `embedding` behind its own.

    Raises:
        UsageError: there is no such tensor, it has another shape, or there is an output of that name already.
    """
    name, graph = spec.embedding or "", found.file.model.graph
    known = {one for node in graph.node for one in node.output if one}
    if name == EMBEDDING and any(one.name == EMBEDDING for one in found.outputs):
        return found.file.model
    if name not in known:
        near = [one.name for one in found.outputs]
        raise UsageError(f"--embedding {name}: no node of the graph gives it; its outputs are {', '.join(near)}")
    if EMBEDDING in known or any(one.name == EMBEDDING for one in found.inputs):
        raise UsageError(f"--embedding {name}: the graph has a tensor `embedding` already: name that")
    assert found.image_size is not None
    shape = probe.shapes(feeds_for(found, found.image_size, found.batch), [name])[name]
    dtype = probe.dtypes([name])[name]
    if len(shape) not in (2, 3) or shape[0] != found.batch or dtype.kind != "f":
        raise UsageError(
            f"--embedding {name}: is {dtype} {list(shape)}, where (B, C) or tokens (B, N, C) in floating point are "
            "needed"
        )
    if len(shape) == 3 and spec.pooling != "mean" and prefix == 0:
        raise UsageError(f"--embedding {name}: the model has no CLS token: say --pooling mean")
    model = onnx.ModelProto()
    model.CopyFrom(found.file.model)
    own = "itae/embedding"
    parts, constants = [], {f"{own}/first": np.array(0, np.int64), f"{own}/prefix": np.array([prefix], np.int64),
        f"{own}/end": np.array([2**62], np.int64), f"{own}/one": np.array([1], np.int64)}  # fmt: skip
    nodes = []
    if len(shape) == 2:
        parts = [name]
    if len(shape) == 3 and spec.pooling != "mean":
        nodes.append(helper.make_node("Gather", [name, f"{own}/first"], [f"{own}/cls"], axis=1))
        parts.append(f"{own}/cls")
    if len(shape) == 3 and spec.pooling != "cls":
        ends = [f"{own}/{part}" for part in ("prefix", "end", "one")]
        nodes.append(helper.make_node("Slice", [name, *ends], [f"{own}/patches"]))
        axes: dict[str, Any] = {"axes": [1]} if found.file.opset < 18 else {}
        inputs = [f"{own}/patches", *([f"{own}/one"] if not axes else [])]
        nodes.append(helper.make_node("ReduceMean", inputs, [f"{own}/mean"], keepdims=0, **axes))
        parts.append(f"{own}/mean")
    if len(parts) == 2:
        nodes.append(helper.make_node("Concat", parts, [f"{own}/both"], axis=1))
        parts = [f"{own}/both"]
    nodes.append(helper.make_node("Cast", parts, [EMBEDDING], to=TensorProto.FLOAT))
    for node in nodes:
        node.name = node.output[0] if node.output[0] != EMBEDDING else own
    model.graph.node.extend(nodes)
    used = {one for node in nodes for one in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(value, key) for key, value in constants.items() if key in used
    )
    width = shape[-1] * (2 if len(shape) == 3 and spec.pooling == "cls+mean" else 1)
    batch = found.picture.shape[0] if found.picture is not None else "batch"
    model.graph.output.append(helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, [batch, width]))
    return model


def _check(path: Path, found: Survey) -> None:
    """The gate: no file passes that a strict reader refuses, or that has other inputs and outputs than before.

    Raises:
        CheckError: it is refused.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        if _passes(found.file):
            raise CheckError(f"the new graph does not pass onnx.checker: {one_line(error)}") from error
    before, after = found.file.model.graph, onnx.load(path, load_external_data=False).graph
    for old, new in ((before.input, after.input), (before.output, after.output)):
        if [one.SerializeToString() for one in old] != [one.SerializeToString() for one in new]:
            raise CheckError("the new graph has other inputs or outputs than the old one")
    try:
        open_session(path, path, optimize=True)
    except InputError as error:
        raise CheckError(str(error)) from error


def _passes(file: OnnxFile) -> bool:
    """Whether the file itself passes the checker: one with operators of another domain may not."""
    try:
        onnx.checker.check_model(str(file.path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def _golden_sample(found: Survey, outputs: dict[str, str], feeds: Arrays, golden: replica.Replica) -> Golden:
    """The golden sample: the inputs of the proof and their results by the untouched graph and numpy."""
    assert found.picture is not None
    values = {name: golden.outputs[in_file] for name, in_file in outputs.items()}
    return Golden(
        input=feeds[found.picture.name].astype(np.float32),
        embedding=values.get(EMBEDDING),
        own={name: value for name, value in values.items() if name != EMBEDDING},
        flags=golden.flags,
        flag_distance=np.minimum(golden.distance, 1e30).astype(np.float32),
    )


def _onnx_builder() -> Builder:
    return Builder(
        name="onnx", version=onnx.__version__, platform=f"{platform.system()}-{platform.machine()}".lower()
    )  # fmt: skip


def _described(
    spec: ForeignSpec,
    made: _Made,
    found: Survey,
    prefix: int,
    outputs: dict[str, str],
    proofs: list[Proof],
    sample: Golden,
    called: Path,
) -> Manifest:
    """The manifest of a model that will be `called` so, whose golden sample is written beside it in the work folder."""
    assert found.picture is not None
    assert found.image_size is not None
    size = found.image_size
    values, vectors = sample.outputs(), sample.embedding
    place = parity_path(made.model)
    place.write_bytes(golden_bytes(sample))
    patches = sample.flags.shape[-1]
    is_engine = made.builder.name != "onnx"
    patch = _patch(size, patches, found)
    batch = found.picture.shape[0] if isinstance(found.picture.shape[0], int) else "batch"
    file = found.file
    pooling = spec.pooling if spec.embedding is not None and _is_pooled(spec, found) else "cls"
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
            version_compatible=False if is_engine else None, method=spec.itae.resolved(len(found.backbone)),
            outputs=tuple(outputs), pooling=pooling, input="float32", pos_embed=None, workspace_mib=None,
            parity_samples=len(sample.input),
        ),
        model=Backbone(
            size=file.path.stem, registers=max(0, prefix - 1), patch=patch, width=width,
            heads=found.backbone[-1].heads, depth=len(found.backbone), weights=weights,
        ),
        inputs=(TensorInfo(name=found.picture.name, dtype="float32", shape=(batch, 3, *size)),),
        outputs=tuple(
            TensorInfo(
                name=name, dtype="float32", shape=(batch, *values[name].shape[1:]),
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
                for number, one in enumerate(proofs)
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
            form=found.backbone[-1].site.form, prefix=prefix,
            grid=found.grid if found.grid and found.grid[0] * found.grid[1] == patches else None,
            given=_given(spec), outputs=tuple(
                one.name for one in found.outputs
            ),
        ),
        versions={name: _version(name) for name in VERSIONS},
    )  # fmt: skip


def _is_pooled(spec: ForeignSpec, found: Survey) -> bool:
    """Whether the embedding was made of tokens, by `--pooling`."""
    return any(node.name.startswith("itae/embedding/") for node in found.file.model.graph.node) and bool(spec.embedding)


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


def summary(result: Delivered) -> list[str]:
    """The summary of an export, in lines for people."""
    last, found = result.found.backbone[-1], result.found
    used = [] if result.manifest is None else [_used(result.manifest)]
    origin = None if result.manifest is None else result.manifest.foreign
    made_from, maker = (origin.file, origin.producer) if origin else (found.file.path.name, found.file.producer)
    lines = [
        f"{result.path}: {result.path.stat().st_size / 1e6:.1f} MB, from {made_from} by {maker}",
        f"  model    {len(found.backbone)} layers, {last.heads} heads of {last.head_dim}, tokens before the patches: "
        f"{result.prefix}",
        *(f"  output   {one.name} {one.dtype} ({', '.join(map(str, one.shape))})" for one in found.outputs),
        *used,
    ]
    lines += [
        f"  proof    {one.threshold}: {one.flagged} of {one.patches} patches flagged; within {one.max_abs:.2g} of the "
        f"untouched graph with ITAE in numpy, limit {one.limit:g}; ITAE moves outputs by up to {one.effect:.2g}"
        for one in result.proofs
    ]
    if result.manifest is not None and result.manifest.builder.name != "onnx":
        made, by = result.manifest, result.manifest.builder
        lines.append(f"  engine   {made.options.precision} by {by.name} {by.version}; {describe(made.fusion)}")
    lines.append(f"  seconds  {', '.join(f'{name} {s:.1f}' for name, s in result.seconds.items())}")
    return lines


def _used(manifest: Manifest) -> str:
    used = [f"{info.name_in_file} ({', '.join(map(str, info.shape))})" for info in manifest.outputs]
    if EMBEDDING not in manifest.output_names():
        return f"  verify   compares {', '.join(used)}"
    return f"  embed    uses the output {used[0]}"
