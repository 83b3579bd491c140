"""The first steps with a foreign graph: open it, survey it, say what was inferred, refuse what can't be done."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exporter.foreign.as_engine import with_fixed_size
from exporter.foreign.embedding_output import EMBEDDING, outputs_of, why_not, with_embedding
from exporter.foreign.flag_outputs import check_flag_outputs
from exporter.foreign.fused_layers import written_out
from exporter.foreign.library_model import LibraryModel
from exporter.foreign.onnx_file import OnnxFile, open_onnx
from exporter.foreign.probe import Probe
from exporter.foreign.request import ForeignSpec
from exporter.foreign.survey import Survey, is_quantised, refusal, survey
from exporter.methods.itae.options import MAX_MEDIAN_PATCHES
from exporter.steps import Progress
from runtime.contract.errors import SurgeryError, UsageError
from runtime.contract.tensorrt import LibraryName


@dataclass(frozen=True)
class Opened:
    """A foreign graph that ITAE can be put into."""

    found: Survey
    probe: Probe
    prefix: int
    """Number of tokens before the patches."""

    @classmethod
    def of(cls, file: OnnxFile, folder: Path, size: tuple[int, int] | None, prefix: int) -> Opened:
        """A file in which attention was found before, surveyed at a size; `folder` is made."""
        return cls(*_survey(file, folder, size), prefix)

    def changed(self, model: onnx.ModelProto, folder: Path) -> Opened:
        """The same file with its model changed, surveyed again at the same size; `folder` is made."""
        return Opened.of(dataclasses.replace(self.found.file, model=model), folder, self.found.image_size, self.prefix)

    def with_embedding(self, spec: ForeignSpec, folder: Path) -> Opened:
        """The same with the output `embedding`, if `--embedding` asks for it."""
        if spec.embedding is None:
            return self
        return self.changed(with_embedding(self.found, self.probe, spec, self.prefix), folder)


def open_graph(
    spec: ForeignSpec, library: LibraryName | None, work: Path, by_name: LibraryModel | None = None
) -> Opened:
    """Open and survey the file of `spec`; `library` builds an engine of it, `by_name` made it.

    Raises:
        UsageError: an option does not fit the file.
        SurgeryError: ITAE can't be put into it.
        InputError: it can't be read or run.
    """
    size = spec.height_and_width
    file = open_onnx(Path(spec.onnx))
    if by_name is None and spec.calibration is not None and spec.calibration.weights_sha256 != file.sha256:
        raise UsageError(f"--config was made for another file than {file.path}: make one with `calibrate --onnx`")
    if spec.fix_input:
        file = dataclasses.replace(file, model=_with_fixed(file.model, spec.fix_input))
    found, probe = _survey(file, work / "probe", size, usual=True)
    if (why := refusal(found, spec.prefix_tokens)) is not None:
        raise SurgeryError(f"{file.path if by_name is None else by_name.name}: {why}")
    if by_name is not None:
        by_name.check(found)
    if spec.half is not None and is_quantised(found):
        raise UsageError(f"--precision {spec.half}: the file is quantised: leave the option out to keep that")
    if spec.precision == "fp32" and any(one.precision == "float16" for one in found.backbone):
        raise UsageError("--precision fp32: the file is in half precision: leave it out to keep that")
    prefix = spec.prefix_tokens if spec.prefix_tokens is not None else found.prefix
    assert prefix is not None
    if size is not None and found.image_size != size:
        raise UsageError(
            f"--image-size {size[0]}x{size[1]}: the graph takes {found.image_size[0]}x{found.image_size[1]} alone"  # type: ignore[index]
        )
    if spec.itae is not None:
        spec.itae.layer_indices(len(found.backbone))
    check_flag_outputs(spec.add_outputs or (), found)
    if library is not None:
        _check_engine(spec, found, prefix)
        if found.is_dynamic and found.image_size is not None and found.picture is not None:
            fixed = with_fixed_size(file, found.picture, found.image_size)
            return Opened.of(dataclasses.replace(file, model=fixed), work / "fixed", None, prefix)
    return Opened(found, probe, prefix)


def say(opened: Opened, spec: ForeignSpec, progress: Progress, by_name: LibraryModel | None = None) -> None:
    """Show what was inferred, so that the user can contradict."""
    found, prefix = opened.found, opened.prefix
    if found.file.taken_out:
        progress.note(
            f"the file was exported in training mode: {'; '.join(found.file.taken_out)}: the new file gives what the "
            "model gives in use"
        )
    last = found.backbone[-1]
    grid = f"a grid of {found.grid[0]}x{found.grid[1]} patches" if found.grid else "patches"
    who = "as --prefix-tokens or the manifest says" if spec.prefix_tokens is not None else "as the graph shows"
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
    if found.fixed_batch is not None and found.picture is not None and isinstance(found.picture.shape[0], str):
        progress.note(
            f"the graph runs with a batch of {found.fixed_batch} alone, though it says otherwise: it keeps that"
        )
    others = len(found.sites) - len(found.backbone)
    if others:
        progress.note(f"{others} further attentions, such as a pooling head's, are left as they are")
    if found.found.near_misses:
        near = found.found.near_misses[0]
        progress.note(f"no layer, but near to one: {near.node}: {near.reason}")


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
    opened = open_graph(spec, None, work)
    say(opened, spec, progress)
    opened = opened.with_embedding(spec, work / "with_embedding")
    found = opened.found
    embedding = outputs_of(found).get(EMBEDDING)
    if embedding is None:
        raise UsageError(
            f"{found.file.path}: {why_not(found)}"
            if not outputs_of(found)
            else f"{found.file.path}: none of its outputs is an embedding (B, C): name one by --embedding NAME"
        )
    if written := [one for one in found.backbone if one.site.fused is not None]:
        opened = opened.changed(written_out(found, opened.probe, written), work / "written_out")
    return Prepared(opened.found, opened.probe, opened.prefix, embedding)


def _survey(file: OnnxFile, folder: Path, size: tuple[int, int] | None, *, usual: bool = False) -> tuple[Survey, Probe]:
    folder.mkdir()
    probe = Probe(file, folder)
    return survey(file, probe, size, usual=usual), probe


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
    if not outputs_of(found) and spec.embedding is None:
        raise UsageError(f"--out {spec.path}: {why_not(found)}: export to .onnx, and build from that")
    patches = found.backbone[0].tokens - prefix - found.behind
    if spec.itae is not None and spec.itae.needs_median and patches > MAX_MEDIAN_PATCHES:
        raise UsageError(
            f"--threshold {spec.itae.threshold} needs the median of {patches} patches, TensorRT can take at most "
            f"{MAX_MEDIAN_PATCHES}: use --threshold zscore:λ or absolute:τ, or a smaller --image-size"
        )


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
