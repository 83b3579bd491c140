"""The input `images` (B, H, W, 3) uint8 in place of normalised pictures (B, 3, H, W) float32, which the graph makes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter.foreign.probe import Array
from exporter.surgery.edit import PREFIX
from runtime.contract.manifest import Preprocessing

NAME = "images"


def take_uint8(model: onnx.ModelProto, picture: str, how: Preprocessing) -> None:
    """Replace the model's only input `picture` by `images`, in place; the graph normalises them."""
    (old,) = model.graph.input
    sizes = [size.dim_param or size.dim_value for size in old.type.tensor_type.shape.dim]
    scope = f"{PREFIX}/input"
    means, stds = (np.array(three, np.float64).reshape(1, 3, 1, 1) for three in (how.mean, how.std))
    # x / 255, minus mean, divided by std, as one multiplication and one addition.
    numbers = {"factor": how.scale / stds, "offset": -means / stds}
    model.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), f"{scope}/{name}") for name, value in numbers.items()
    )
    # Cast first: TensorRT takes a uint8 input only so, and refuses to transpose one.
    steps = [
        helper.make_node("Cast", [NAME], [f"{scope}/decimal"], f"{scope}/Cast", to=TensorProto.FLOAT),
        helper.make_node(
            "Transpose", [f"{scope}/decimal"], [f"{scope}/planes"], f"{scope}/Transpose", perm=[0, 3, 1, 2]
        ),
        helper.make_node("Mul", [f"{scope}/planes", f"{scope}/factor"], [f"{scope}/scaled"], f"{scope}/Mul"),
        helper.make_node("Add", [f"{scope}/scaled", f"{scope}/offset"], [picture], f"{scope}/Add"),
    ]
    nodes = [*steps, *(onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node)]
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend(nodes)
    shape = (sizes[0], *sizes[2:], 3)
    model.graph.input.append(helper.make_tensor_value_info(NAME, TensorProto.UINT8, shape))


def as_images(pixels: Array, how: Preprocessing) -> npt.NDArray[np.uint8]:
    """The pictures (B, H, W, 3) that are nearest to normalised ones, (B, 3, H, W), once they are normalised."""
    by_pixel = pixels.transpose(0, 2, 3, 1).astype(np.float64)
    values = (by_pixel * np.array(how.std) + np.array(how.mean)) / how.scale
    images: npt.NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return images


def normalized(images: npt.NDArray[np.uint8], how: Preprocessing) -> npt.NDArray[np.float32]:
    """Pictures (B, H, W, 3) as the graph without the uint8 input takes them, (B, 3, H, W), by numpy in float64."""
    by_pixel = (images.astype(np.float64) * how.scale - np.array(how.mean)) / np.array(how.std)
    pixels: npt.NDArray[np.float32] = np.ascontiguousarray(by_pixel.transpose(0, 3, 1, 2)).astype(np.float32)
    return pixels
