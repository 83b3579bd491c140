"""Parity: the ONNX graph on ONNX Runtime against eager PyTorch, on every export."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.options import ExportSpec
from exporter.proof import rounding
from runtime.contract.comparison import LIMITS, compare
from runtime.contract.errors import ParityError
from runtime.contract.manifest import ParityCheck, ParityLimits, Purpose, Rounding

if TYPE_CHECKING:
    from exporter.proof.golden_sample import Sample

Array = np.ndarray[Any, Any]
TOGETHER = 4
"""Images in one batch. The first sample is run alone, the others together: a graph may be wrong for one of the two."""


def run(session: Any, images: Array) -> dict[str, Array]:  # noqa: ANN401  # onnxruntime ships no types
    """Outputs by name, of a model on ONNX Runtime; images (S, ...) as it takes them."""
    names = [output.name for output in session.get_outputs()]
    (name,) = (one.name for one in session.get_inputs())
    starts = [0, *range(1, len(images), TOGETHER), len(images)]
    batches = [session.run(names, {name: images[a:b]}) for a, b in itertools.pairwise(starts) if a < b]
    return {key: np.concatenate(values) for key, values in zip(names, zip(*batches, strict=True), strict=True)}


def further_checks(spec: ExportSpec, samples: list[Sample]) -> list[tuple[Purpose, ExportSpec, Sample]]:
    """Further surgeries to check, since a wrong attenuation would pass a check of cosines in half precision.

    For fp16 and int8 the same surgery is also checked in fp32; for bf16, which ONNX Runtime's CPU can't run, it is
    checked in fp32 only. If the options flag too little, another threshold is checked too.
    """
    outputs = tuple(dict.fromkeys((*spec.outputs, "embedding", *(("artifact_mask",) if spec.itae else ()))))
    # Other outputs must not bring the last block's other rows back: it would be another surgery.
    exact = dataclasses.replace(spec.in_fp32(), outputs=outputs, cls_only=spec.computes_cls_only)
    further: list[tuple[Purpose, ExportSpec, Sample]] = []
    if spec.resolved_precision != "fp32":
        further.append(("fp32", exact, samples[0]))
    further += [("threshold", dataclasses.replace(exact, itae=sample.itae), sample) for sample in samples[1:]]
    return further


def with_int8_limits(sample: Sample, got: dict[str, Array], spec: ExportSpec) -> Sample:
    """The sample with limits for int8, which follow from what ONNX Runtime made of the int8 graph.

    The scales fit real pictures, and a golden image is none. So these limits say how closely another backend must
    follow; how good int8 is was measured on real pictures.

    Raises:
        ParityError: the graph is so far off on the golden images that a comparison would prove nothing.
    """
    golden = sample.golden
    comparable = {name: value for name, value in got.items() if name in golden.outputs() and value.dtype != np.bool_}
    none = ParityLimits(max_abs=None, min_cosine=None, flag_margin=None, normalized=spec.normalize)
    found = compare(comparable, golden, none)
    if found.failures:
        raise ParityError(f"the int8 graph disagrees with eager PyTorch: {'; '.join(found.failures)}")
    measured = Rounding(
        max_abs=found.max_abs,
        min_cosine=found.min_cosine,
        norm_relative=found.norm_relative,
        distance=math.sqrt(max(2 * (1 - found.min_cosine), 0.0)),
    )
    limits = rounding.limits("int8", measured, normalized=spec.normalize)
    # Rows of a batch go through the same roundings as alone.
    limits = limits.model_copy(update={"batch_distance": LIMITS["int8"].batch_distance})
    if rounding.is_beyond_reach(limits):
        raise ParityError(
            f"int8 moves the golden images to cosine {found.min_cosine:.5f}, norms by up to {found.norm_relative:.2g} "
            "of themselves: these scales fit nothing but pictures like those of --calibrate-images; give more of them, "
            "of more kinds, or use --precision bf16 or fp32"
        )
    return dataclasses.replace(
        sample, limits={**sample.limits, "int8": limits}, rounding={**sample.rounding, "int8": measured}
    )


def check(got: dict[str, Array], sample: Sample, spec: ExportSpec, purpose: Purpose) -> ParityCheck:
    """Compare a model's outputs with its golden sample.

    Args:
        got: the outputs, as `run` gives them; `artifact_mask` among them where there is ITAE.
        sample: what eager PyTorch gives.
        spec: the options that both were made with.
        purpose: what the comparison is for.

    Raises:
        ParityError: they disagree by more than the sample's limits for the precision allow.
    """
    golden = sample.golden
    comparable = {name: value for name, value in got.items() if name in golden.outputs()}
    limits = sample.limits[spec.resolved_precision]
    parity = compare(comparable, golden, limits)
    if not parity.passed:
        threshold = f" at --threshold {spec.itae.threshold}" if spec.itae else ""
        raise ParityError(
            f"the {spec.resolved_precision} graph disagrees with eager PyTorch{threshold}: {'; '.join(parity.failures)}"
        )
    return ParityCheck(
        purpose=purpose,
        threshold=spec.itae.threshold if spec.itae else None,
        samples=len(golden.input),
        patches=golden.flags.size,
        flagged=int(golden.flags.sum()),
        margins=tuple(float(one.min()) for one in golden.flag_distance) if spec.itae else (),
        borderline=parity.borderline,
        left_out=parity.left_out,
        max_abs=parity.max_abs,
        min_cosine=parity.min_cosine,
        effect=sample.effect,
        limits=limits,
        rounding=sample.rounding[spec.resolved_precision],
    )
