"""Parity: the ONNX graph on ONNX Runtime against eager PyTorch, on every export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.spec import ExportSpec
from runtime.errors import ParityError
from runtime.manifest import ParityCheck
from runtime.parity import LIMITS, compare

if TYPE_CHECKING:
    from exporter.golden_sample import Sample

Session = Any
"""An `onnxruntime.InferenceSession`; it ships no types."""


def check(
    session: Session, sample: Sample, spec: ExportSpec, *, flags: Session | None = None, moved: bool = False
) -> ParityCheck:
    """Compare a checked model with its golden sample.

    Args:
        session: the model.
        sample: what eager PyTorch gives.
        spec: the export, with the options that the sample was made with.
        flags: where the model itself gives no `artifact_mask`: the same graph, with nothing but that as output.
        moved: whether the threshold isn't the one that was asked for.

    Raises:
        ParityError: they disagree by more than the precision allows.
    """
    golden = sample.golden
    got = _run(session, golden.input)
    if flags is not None:
        got |= _run(flags, golden.input)
    comparable = {name: value for name, value in got.items() if name in golden.outputs()}
    parity = compare(comparable, golden, LIMITS[spec.resolved_precision])
    if not parity.passed:
        what = f" with --threshold {spec.itae.threshold} in place of yours" if moved and spec.itae else ""
        raise ParityError(
            f"the {spec.resolved_precision} graph disagrees with eager PyTorch{what}: {'; '.join(parity.failures)}"
        )
    return ParityCheck(
        purpose="threshold at a quantile" if moved else "as exported",
        threshold=spec.itae.threshold if spec.itae else None,
        samples=len(golden.embedding),
        patches=golden.flags.size,
        flagged=int(golden.flags.sum()),
        margins=tuple(float(one.min()) for one in golden.flag_distance) if spec.itae else (),
        borderline=parity.borderline,
        left_out=parity.left_out,
        max_abs=parity.max_abs,
        min_cosine=parity.min_cosine,
        effect=sample.effect,
    )


def _run(session: Session, images: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs by name, one image at a time: the memory of one, and no trust in a batch of many."""
    names = [output.name for output in session.get_outputs()]
    (name,) = (one.name for one in session.get_inputs())
    rows = [session.run(names, {name: image[None]}) for image in images]
    return {key: np.concatenate(values) for key, values in zip(names, zip(*rows, strict=True), strict=True)}
