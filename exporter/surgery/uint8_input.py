"""Pass: take pictures as they are decoded, and normalise them in the graph."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from exporter.graph_facts import GraphFacts
from exporter.surgery.edit import Editor, replace_uses, shape_of
from runtime.contract.errors import SurgeryError

Channels = tuple[float, float, float]
"""A number for each of red, green and blue."""


def uint8_input(graph: gs.Graph, facts: GraphFacts, name: str, mean: Channels, std: Channels) -> list[str]:
    """Replace the float32 input (B, 3, H, W) by a uint8 input (B, H, W, 3) that the graph normalises.

    Args:
        graph: changed in place.
        facts: the size of the image.
        name: what the new input is called.
        mean: subtracted from each channel, after its division by 255.
        std: what each channel is then divided by.

    Raises:
        SurgeryError: the graph has another input, or gives its input as an output.
    """
    height, width = facts.image_size
    (old,) = graph.inputs if len(graph.inputs) == 1 else (None,)
    if old is not None and old.name == name:  # a second run changes nothing
        return []
    if old is None or old.dtype != np.float32 or shape_of(old)[1:] != (3, height, width):
        found = ", ".join(f"{tensor.name} {tensor.dtype} {tensor.shape}" for tensor in graph.inputs)
        raise SurgeryError(f"looked for one float32 input (B, 3, {height}, {width}), found {found or 'none'}")
    batch = shape_of(old)[0]
    images = gs.Variable(name, dtype=np.dtype(np.uint8), shape=[batch, height, width, 3])
    edit = Editor(graph, "input")
    # Cast first: TensorRT takes a uint8 input only so, and refuses to transpose one.
    decimal = edit.cast(images, np.float32, "float32")
    planes = edit.node("Transpose", [decimal], "planes", dtype=np.float32, shape=shape_of(old), perm=[0, 3, 1, 2])
    # x / 255, minus mean, divided by std, as one multiplication and one addition.
    means, stds = (np.array(three, np.float64).reshape(1, 3, 1, 1) for three in (mean, std))
    factor, offset = (1 / (255 * stds)).astype(np.float32), (-means / stds).astype(np.float32)
    scaled = edit.node("Mul", [planes, factor], "scaled", dtype=np.float32, shape=shape_of(old))
    normalized = edit.node("Add", [scaled, offset], "normalized", dtype=np.float32, shape=shape_of(old))
    replace_uses(graph, old, normalized)
    graph.inputs = [images]
    graph.cleanup().toposort()
    return [name]
