"""Parity: the ONNX graph on ONNX Runtime against eager PyTorch, on every export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from exporter.gate import open_session
from exporter.golden_sample import Sample
from exporter.spec import ExportSpec
from exporter.surgery.detect import ARTIFACT
from exporter.surgery.edit import PREFIX
from runtime.errors import ParityError
from runtime.manifest import ParityCheck
from runtime.parity import LIMITS, compare


def check(session: Any, path: Path, sample: Sample, spec: ExportSpec, *, moved: bool = False) -> ParityCheck:  # noqa: ANN401
    """Compare a checked model with its golden sample.

    Args:
        session: the model on ONNX Runtime.
        path: its file; where flags are no output, a copy that has them as outputs is written beside it.
        sample: what eager PyTorch gives.
        spec: the export, with the options that the sample was made with.
        moved: whether the threshold isn't the one that was asked for.

    Raises:
        ParityError: they disagree by more than the precision allows.
    """
    golden = sample.golden
    got = _run(session, golden.input)
    if spec.itae is not None and "artifact_mask" not in got:
        got["artifact_mask"] = _flags(path, golden.input, spec)
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
        max_abs=parity.max_abs,
        min_cosine=parity.min_cosine,
        effect=sample.effect,
    )


def _run(session: Any, images: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:  # noqa: ANN401
    """Outputs by name, one image at a time: the memory of one, and no trust in a batch of many."""
    names = [output.name for output in session.get_outputs()]
    (name,) = (one.name for one in session.get_inputs())
    rows = [session.run(names, {name: image[None]}) for image in images]
    return {key: np.concatenate(values) for key, values in zip(names, zip(*rows, strict=True), strict=True)}


def _flags(path: Path, images: np.ndarray[Any, Any], spec: ExportSpec) -> np.ndarray[Any, Any]:
    """The graph's flags (S, K, P), by a copy of it that has nothing but them as outputs."""
    model = onnx.load(path, load_external_data=False)
    del model.graph.output[:]
    for layer in spec.layers:
        name = f"{PREFIX}/layer{layer}/{ARTIFACT}"
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, ["batch", spec.patches])
        )
    probe = path.with_name(f"flags-of-{path.name}")
    onnx.save(model, probe)
    del model
    layers = _run(open_session(probe), images)
    probe.unlink()
    return np.stack(list(layers.values()), axis=1)
