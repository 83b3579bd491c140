"""ONNX nodes for medians over patches, of values that stand for all tokens (B, N): CLS and registers count for nothing.

All by TopK, the one sort that TensorRT has; it gives at most `MAX_TOP` values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from exporter.methods.itae.options import MAX_TOP
from exporter.surgery.edit import Editor, cut, shape_of

_AXIS = np.array([1], np.int64)


def for_tokens(prefix: int, tokens: int, for_prefix: float, for_patches: float) -> npt.NDArray[np.float32]:
    """A constant (1, N) with one number for CLS and registers, another for patches."""
    row = np.full((1, tokens), for_patches, np.float32)
    row[0, :prefix] = for_prefix
    return row


def median(edit: Editor, values: gs.Tensor, prefix: int, name: str) -> gs.Tensor:
    """Median over the patches of non-negative values (B, N): (B, 1); of an even P the mean of the two middle ones."""
    batch, N = shape_of(values)
    P = int(N) - prefix
    below = for_tokens(prefix, int(N), -1, np.inf)  # CLS and registers come last
    patches = edit.node("Min", [values, below], f"{name}_of", dtype=np.float32, shape=(batch, N))
    upper = P // 2 + 1
    top = _sorted(edit, patches, upper, f"{name}_upper_half")
    if P % 2:
        return cut(edit, top, name, axis=1, start=upper - 1, stop=upper)
    return _mean(edit, cut(edit, top, f"{name}_pair", axis=1, start=upper - 2, stop=upper), name)


def median_and_mad(edit: Editor, values: gs.Tensor, prefix: int) -> tuple[gs.Tensor, gs.Tensor]:
    """Median and median absolute deviation over the patches of non-negative values (B, N): (B, 1) each."""
    batch, N = shape_of(values)
    P = int(N) - prefix
    if P + 1 <= MAX_TOP:
        return _by_one_sort(edit, values, prefix)
    middle = median(edit, values, prefix, "median")
    off = edit.node("Sub", [values, middle], "deviation_of", dtype=np.float32, shape=(batch, N))
    size = edit.node("Abs", [off], "absolute_deviation", dtype=np.float32, shape=(batch, N))
    return middle, median(edit, size, prefix, "mad")


def _by_one_sort(edit: Editor, values: gs.Tensor, prefix: int) -> tuple[gs.Tensor, gs.Tensor]:
    """Median and MAD from the sorted values, so that no second sort is needed.

    The k values nearest to the median stand next to each other in the sorted row, so the k-th smallest deviation is
    the smallest, over all windows of k values, of the larger deviation of the window's two ends. CLS, lifted to
    infinity, is the end of a window of one less.
    """
    batch, N = shape_of(values)
    P = int(N) - prefix
    h = P // 2
    lift = for_tokens(prefix, int(N), -np.inf, 0)
    lift[0, 0] = np.inf
    lifted = edit.node("Add", [values, lift], "lifted", dtype=np.float32, shape=(batch, N))
    ordered = _sorted(edit, lifted, P + 1, "sorted")  # infinity, then the patches, descending
    if P % 2:
        middle: gs.Tensor = cut(edit, ordered, "median", axis=1, start=h + 1, stop=h + 2)
    else:
        middle = _mean(edit, cut(edit, ordered, "median_pair", axis=1, start=h, stop=h + 2), "median")

    def smallest(name: str, first: int, size: int) -> gs.Tensor:
        """The `size`-th smallest deviation, over windows whose upper ends begin at `first`."""
        lower = cut(edit, ordered, f"{name}_lower", axis=1, start=first + size - 1, stop=P + 1)
        width = int(shape_of(lower)[1])
        upper = cut(edit, ordered, f"{name}_upper", axis=1, start=first, stop=first + width)
        shape = (batch, width)
        below = edit.node("Sub", [middle, lower], f"{name}_below", dtype=np.float32, shape=shape)
        above = edit.node("Sub", [upper, middle], f"{name}_above", dtype=np.float32, shape=shape)
        larger = edit.node("Max", [below, above], f"{name}_larger", dtype=np.float32, shape=shape)
        return edit.node("ReduceMin", [larger, _AXIS], name, dtype=np.float32, shape=(batch, 1), keepdims=1)

    if P % 2:
        return middle, smallest("mad", 1, h + 1)
    two = [smallest("mad_first", 1, h), smallest("mad_second", 0, h + 1)]
    total = edit.node("Add", two, "mad_sum", dtype=np.float32, shape=(batch, 1))
    return middle, edit.node("Mul", [total, np.float32(0.5)], "mad", dtype=np.float32, shape=(batch, 1))


def _sorted(edit: Editor, values: gs.Tensor, count: int, name: str) -> gs.Tensor:
    """The largest `count` of the values (B, N), descending."""
    batch = shape_of(values)[0]
    top = edit.node(
        "TopK", [values, np.array([count], np.int64)], name, dtype=np.float32, shape=(batch, count), axis=1,
        largest=1, sorted=1,
    )  # fmt: skip
    node = top.inputs[0]
    node.outputs.append(gs.Variable(f"{node.name}/indices", dtype=np.dtype(np.int64), shape=[batch, count]))
    return top


def _mean(edit: Editor, pair: gs.Tensor, name: str) -> gs.Tensor:
    return edit.node("ReduceMean", [pair, _AXIS], name, dtype=np.float32, shape=(shape_of(pair)[0], 1), keepdims=1)
