"""The street of a foreign graph: open, survey, operate, prove, publish. Only this file knows the order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import onnx

from exporter.build.engine import choose_backend, known_faults_here
from exporter.build.replay import cannot_replay, replay
from exporter.foreign import replica
from exporter.foreign.as_engine import build_engine, with_outputs
from exporter.foreign.delivered import Delivered
from exporter.foreign.description import Made, Proven, describe, golden_sample, onnx_builder
from exporter.foreign.embedding_output import EMBEDDING, finite, outputs_of, why_not
from exporter.foreign.file_check import check_written
from exporter.foreign.flag_outputs import add_flag_outputs
from exporter.foreign.fused_layers import fused_layers, written_out
from exporter.foreign.library_model import LibraryModel
from exporter.foreign.opening import Opened, open_graph, say
from exporter.foreign.operation import operate, save
from exporter.foreign.plain import prove_plain
from exporter.foreign.precision import finish, keep_rows, make_faster
from exporter.foreign.probe import Array, Arrays, open_session
from exporter.foreign.replica import Proof
from exporter.foreign.request import ForeignSpec
from exporter.foreign.uint8_pictures import NAME, as_images, normalized, take_uint8
from exporter.methods.itae.options import ItaeConfig
from exporter.steps import Progress
from runtime.contract.atomic import cannot_write, work_folder
from runtime.contract.comparison import LIMITS, compare
from runtime.contract.errors import ParityError, SurgeryError
from runtime.contract.file_set import FileSet, publish_sets, recover
from runtime.contract.further_outputs import how_to_add
from runtime.contract.manifest import Manifest, manifest_path, parity_path
from runtime.contract.tensorrt import LibraryName

_WITH_ITAE = " with ITAE in numpy, float64"


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
        opened = open_graph(spec, library, work, by_name)
    say(opened, spec, progress, by_name)
    untouched = opened.with_embedding(spec, work / "with_embedding")
    opened = _written_out(untouched, spec, work, progress)
    target = work / "model.onnx"
    is_trace = by_name is not None
    proven, data = _proven(spec, opened, untouched, target, progress, is_engine=library is not None, is_trace=is_trace)
    made = Made(target, data, onnx_builder())
    if spec.faster or spec.half is not None or library is not None:
        model = _faster(proven, work, progress)
        if library is not None:
            made = _built(proven, model, library, work, progress)
        else:
            data = save(model, opened.found.file, target, f"{spec.path.name}.data", as_one=is_trace)
            _gate(spec, target, opened)
            made = dataclasses.replace(made, data=data)
    what = "the file, its golden sample and its manifest" if proven.outputs else "the file alone"
    with progress.step("publish", f"{spec.path}: {what}"):
        manifest = _publish(proven, made, by_name, work, progress)
    return Delivered(spec.path, manifest, opened.found, opened.prefix, proven.proofs, progress.seconds)


def _written_out(opened: Opened, spec: ForeignSpec, work: Path, progress: Progress) -> Opened:
    """The graph with the attentions written out that are one operator and must not be."""
    if not (layers := fused_layers(opened.found, spec)):
        return opened
    written = opened.changed(written_out(opened.found, opened.probe, layers), work / "written_out")
    progress.note(
        f"{len(layers)} attentions are one operator, and are written out, so that ITAE can go into them: rounding "
        "differs"
    )
    return written


def _proven(
    spec: ForeignSpec,
    opened: Opened,
    untouched: Opened,
    target: Path,
    progress: Progress,
    *,
    is_engine: bool,
    is_trace: bool,
) -> tuple[Proven, Path | None]:
    """Operate on the graph, write it to `target` and prove it; gives its external data too.

    A trace becomes one file if 2 GiB are enough; somebody else's file keeps its external data.
    """
    found, probe, prefix = opened.found, opened.probe, opened.prefix
    names = [tensor.name for tensor in found.outputs]
    assert found.picture is not None
    assert found.image_size is not None
    picture = found.picture.name
    batch = found.fixed_batch or spec.parity_samples
    size = found.image_size
    what = "no ITAE"
    if spec.itae is not None:
        what = f"ITAE in {len(spec.itae.layer_indices(len(found.backbone)))} of the layers"
    with progress.step("surgery", what):
        model = _operated(spec, opened, _with_itae(opened, spec.itae))
        data = save(model, found.file, target, f"{spec.path.name}.data", as_one=is_trace)
        del model
    with progress.step("gate", "onnx.checker, shape inference, ONNX Runtime"):
        _gate(spec, target, opened)
    how = spec.preprocessing(found.image_size)
    is_uint8 = spec.input == "uint8"

    def pictures(number: int) -> Array:
        pixels = replica.images_for(found, number, size, batch)
        return normalized(as_images(pixels, how), how) if is_uint8 else pixels

    def run_operated(itae: ItaeConfig | None, feeds: Arrays) -> Arrays:
        place = target
        if itae is not spec.itae:
            folder = target.parent / "other"
            folder.mkdir(exist_ok=True)
            place = folder / "model.onnx"
            save(_with_itae(opened, itae), found.file, place, "model.onnx.data")
        elif is_uint8:
            feeds = {NAME: as_images(feeds[picture], how)}
        session = open_session(place, spec.path)
        return dict(zip(names, session.run(names, feeds), strict=True))

    proofs: list[Proof]
    with progress.step("proof", f"ONNX Runtime against the untouched graph{_WITH_ITAE if spec.itae else ''}"):
        if spec.itae is None:
            proof, feeds, golden = prove_plain(found, probe, prefix, partial(run_operated, None), pictures)
            proofs = [proof]
        else:
            proofs, feeds, golden = replica.prove(
                found, probe, spec.itae, prefix, run_operated, pictures, progress.detail
            )
        if opened is not untouched:
            before, after = untouched.probe.run(feeds, names), probe.run(feeds, names)
            replica.check_close(before, after, found, "the graph with its attention written out")
    if not any(one.is_telling for one in proofs):
        most = max(proofs, key=lambda one: one.effect)
        progress.note(
            f"ITAE moves outputs by at most {most.effect:.2g} on the golden samples, limit {most.limit:g}: what it "
            "does was hardly checked"
        )
    # An engine has no outputs beside those of its manifest.
    outputs = finite(outputs_of(untouched.found, with_all=is_engine), golden.outputs)
    if not outputs:
        return Proven(spec, found, probe, prefix, outputs, tuple(proofs), None), data
    outputs |= {name: name for name in spec.add_outputs or ()}
    images = as_images(feeds[picture], how) if is_uint8 else None
    sample = golden_sample(found, outputs, feeds, golden, images)
    proven = Proven(spec, found, probe, prefix, outputs, tuple(proofs), sample)
    if spec.add_outputs is not None:
        precision = "fp16" if replica.precision_of(found) == "float16" else "fp32"
        if failures := _failures(proven, target, spec.add_outputs, precision):
            raise ParityError(f"the artifacts that the new file shows are not numpy's: {'; '.join(failures)}")
    return proven, data


def _failures(proven: Proven, path: Path, names: Iterable[str], precision: str) -> tuple[str, ...]:
    """The differences of outputs of a written model to the golden sample, in clauses, beyond the precision's limits."""
    sample, outputs = proven.sample, {name: proven.outputs[name] for name in names}
    assert sample is not None
    session = open_session(path, proven.spec.path)
    got = session.run([*outputs.values()], {session.get_inputs()[0].name: sample.input})
    return compare(dict(zip(outputs, got, strict=True)), sample, LIMITS[precision]).failures


def _gate(spec: ForeignSpec, path: Path, opened: Opened) -> None:
    check_written(path, opened.found, spec.add_outputs or (), NAME if spec.input == "uint8" else None)


def _operated(spec: ForeignSpec, opened: Opened, model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with ITAE as `spec` asks for it, in place: with further outputs, and pictures in uint8."""
    found = opened.found
    assert found.picture is not None
    assert found.image_size is not None
    if spec.add_outputs is not None and spec.itae is not None:
        add_flag_outputs(model, spec.add_outputs, found, spec.itae, opened.prefix)
    if spec.input == "uint8":
        take_uint8(model, found.picture.name, spec.preprocessing(found.image_size))
    return model


def _with_itae(opened: Opened, itae: ItaeConfig | None) -> onnx.ModelProto:
    """The model with ITAE in it, a copy; as it is for None."""
    if itae is None:
        plain = onnx.ModelProto()
        plain.CopyFrom(opened.found.file.model)
        return plain
    return operate(opened.found, opened.probe, itae, opened.prefix)


def _faster(proven: Proven, work: Path, progress: Progress) -> onnx.ModelProto:
    """The operated model after the passes that only make it faster, held to the golden sample of the proven one.

    Raises:
        SurgeryError: the graph can't become half precision.
        ParityError: the results are off.
    """
    spec, found = proven.spec, proven.found
    with progress.step(
        "faster", f"scale on the queries, rows of the last layer{f', {spec.half}' if spec.half else ''}"
    ):
        file, notes = make_faster(found, proven.probe, spec.half)
        quick = Opened.of(file, work / "faster", found.image_size, proven.prefix)
        if [one.tokens for one in quick.found.backbone] != [one.tokens for one in found.backbone]:
            raise SurgeryError(f"--precision {spec.precision}: attention is not found again in the rewritten graph")
        model, rows = keep_rows(_with_itae(quick, spec.itae), quick.found, work / "faster" / "rows")
        model = _operated(spec, quick, model)
        notes.append(rows)
        if spec.half != "bf16":
            finish(model, spec.half)
        if proven.sample is not None:
            place = work / "faster" / "check.onnx"
            save(model, file, place, "check.onnx.data")
            if failures := _failures(proven, place, proven.outputs, spec.half or "fp32"):
                raise ParityError(
                    f"with --precision {spec.half or 'fp32'} the graph is off: {'; '.join(failures)}; try "
                    f"{'bf16 or fp32' if spec.half == 'fp16' else 'fp32'}"
                )
        if spec.half == "bf16":
            finish(model, "bf16")
    for note in notes:
        progress.note(note)
    return model


def _built(proven: Proven, model: onnx.ModelProto, library: LibraryName, work: Path, progress: Progress) -> Made:
    """The engine of the operated model, after a run on a GPU here if there is one."""
    spec, found, outputs = proven.spec, proven.found, proven.outputs
    assert proven.sample is not None
    dropped = [one.name for one in found.outputs if one.name not in outputs.values()]
    if dropped:
        progress.note(f"the engine has no output {', '.join(dropped)}: it is not in float32, or not by image")
    fixed_batch = found.fixed_batch
    profile = (fixed_batch,) * 3 if isinstance(fixed_batch, int) else spec.profile
    with progress.step("build", f"{spec.precision or 'fp32'} engine by {library}"):
        built = build_engine(with_outputs(model, outputs), found, work, library, profile, spec.half or "fp32")
    return _replayed(proven, Made(built.plan, None, built.builder, profile, built.fusion), progress)


def _replayed(proven: Proven, made: Made, progress: Progress) -> Made:
    """The engine with the figures of its run on a GPU here, or the reason why it was not run.

    Raises:
        ParityError, BuildError: its results are off, or it does not run.
    """
    assert made.builder.name != "onnx"
    reason = "--no-replay was given" if not proven.spec.replay else cannot_replay(made.builder.name)
    if reason is not None:
        progress.note(f"the engine was not run: {reason}; check it by `verify` where it will run")
        return dataclasses.replace(made, not_replayed=reason)
    with progress.step("replay", "golden sample and batches on the GPU"):
        manifest = describe(proven, made, made.model)
        manifest_path(made.model).write_bytes(manifest.to_json())
        return dataclasses.replace(made, replay=replay(made.model, made.builder.name, unfused=False))


def _publish(
    proven: Proven, made: Made, by_name: LibraryModel | None, work: Path, progress: Progress
) -> Manifest | None:
    """Move the files to their places, the manifest last; gives it, or None if the runtime can't run the file."""
    path, manifest = proven.spec.path, None
    sources = {path.name: made.model}
    if made.data is not None:
        sources[made.data.name] = made.data
    seal = path
    if proven.sample is not None:
        manifest = describe(proven, made, path)
        manifest = manifest if by_name is None else by_name.named(manifest)
        described = work / "manifest.json"
        described.write_bytes(manifest.to_json())
        sources |= {parity_path(path).name: parity_path(made.model), manifest_path(path).name: described}
        seal = manifest_path(path)
        if EMBEDDING not in proven.outputs:
            progress.note(
                f"none of the outputs is an embedding (B, C) in float32: `verify` compares "
                f"{', '.join(proven.outputs)}, and `embed` can't use the file; {how_to_add(manifest, [EMBEDDING])}"
            )
    else:
        progress.note(f"{why_not(proven.found)}: so there is no manifest, and `embed` and `verify` can't use the file")
    obsolete = [f"{path.name}.data"] if made.data is None else []
    if manifest is None:  # of an older file in this place
        obsolete += [manifest_path(path).name, parity_path(path).name]
    publish_sets([FileSet(seal, sources, obsolete)], work)
    return manifest
