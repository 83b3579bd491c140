"""Pass: take pictures as they are decoded, and normalise them in the graph."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from exporter.options import ExportSpec
from exporter.surgery.edit import Editor, replace_uses, shape_of
from exporter.surgery.pass_report import PassReport
from runtime.contract.errors import SurgeryError
from runtime.images.preprocess import MEAN, STD


def uint8_input(graph: gs.Graph, spec: ExportSpec) -> PassReport:
    """Replace `pixel_values` (B, 3, H, W) float32 by `images` (B, H, W, 3) uint8, if `spec` asks for it.

    Raises:
        SurgeryError: the graph has another input.
    """
    report = PassReport("uint8_input")
    info = spec.input_info()
    (old,) = graph.inputs if len(graph.inputs) == 1 else (None,)
    if info.dtype != "uint8" or (old is not None and old.name == info.name):
        return report
    if old is None or shape_of(old)[1:] != (3, spec.height, spec.width):
        found = ", ".join(f"{tensor.name} {list(shape_of(tensor))}" for tensor in graph.inputs)
        raise SurgeryError(f"looked for one input (B, 3, {spec.height}, {spec.width}), found {found}")
    batch = shape_of(old)[0]
    images = gs.Variable(info.name, dtype=np.dtype(np.uint8), shape=[batch, spec.height, spec.width, 3])
    edit = Editor(graph, "input")
    # Cast first: TensorRT takes a uint8 input only so, and refuses to transpose one.
    decimal = edit.cast(images, np.float32, "float32")
    planes = edit.node("Transpose", [decimal], "planes", dtype=np.float32, shape=shape_of(old), perm=[0, 3, 1, 2])
    # x / 255, minus mean, divided by std, as one multiplication and one addition.
    mean, std = (np.array(three, np.float64).reshape(1, 3, 1, 1) for three in (MEAN, STD))
    factor, offset = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
    scaled = edit.node("Mul", [planes, factor], "scaled", dtype=np.float32, shape=shape_of(old))
    normalized = edit.node("Add", [scaled, offset], "normalized", dtype=np.float32, shape=shape_of(old))
    replace_uses(old, normalized)
    graph.inputs = [images]
    report.changed.append(info.name)
    graph.cleanup().toposort()
    return report
