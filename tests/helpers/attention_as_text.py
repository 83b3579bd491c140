"""A DINOv2 block's attention as ONNX text, with options, for tests of the passes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser

from exporter.graph_facts import GraphFacts

B, N, C, H, D = 2, 5, 8, 2, 4
"""N = CLS + a 2×2 grid of patches."""
FACTS = GraphFacts(depth=2, heads=H, width=C, prefix=1, grid=(2, 2), image_size=(28, 28))
"""What `two_layers` makes."""


def attention_text(layer: int, source: str, *, scale: str = "late", key: str = "merged", mask: bool = False) -> str:
    """One attention from `source` (B, N, C) to `out{layer}`; names say nothing of what they hold."""
    x = f"n{layer}_"
    lines = []
    for index, part in enumerate("qkv"):
        lines += [
            f"{x}{part}m = MatMul({source}, w{index})",
            f"{x}{part}p = Add({x}{part}m, b{index})",
            f"{x}{part}r = Reshape({x}{part}p, heads)",
        ]
    lines += [f"{x}q = Transpose<perm=[0,2,1,3]>({x}qr)", f"{x}v = Transpose<perm=[0,2,1,3]>({x}vr)"]
    if key == "merged":
        lines.append(f"{x}kt = Transpose<perm=[0,2,3,1]>({x}kr)")
    else:
        lines += [f"{x}k = Transpose<perm=[0,2,1,3]>({x}kr)", f"{x}kt = Transpose<perm=[0,1,3,2]>({x}k)"]
    query, logits = f"{x}q", f"{x}l"
    if scale == "early":
        lines.append(f"{x}qs = Mul(scale, {x}q)")
        query = f"{x}qs"
    lines.append(f"{x}l = MatMul({query}, {x}kt)")
    if scale == "late":
        lines.append(f"{x}ls = Mul({x}l, scale)")
        logits = f"{x}ls"
    if mask:
        lines.append(f"{x}lm = Add({logits}, zero_mask)")
        logits = f"{x}lm"
    lines += [
        f"{x}s = Softmax<axis=-1>({logits})",
        f"{x}c = MatMul({x}s, {x}v)",
        f"{x}t = Transpose<perm=[0,2,1,3]>({x}c)",
        f"out{layer} = Reshape({x}t, tokens_shape)",
    ]
    return "\n".join(lines)


def make_model(
    body: str, last: str, *, extra_outputs: str = "", constants: tuple[str, ...] = (), tokens: int = N
) -> onnx.ModelProto:
    """A model around `body` with one input `pixel_values`, standing for (B, N, C) tokens, and the output `tokens`."""
    rng = np.random.default_rng(3)

    def numbers(*shape: int) -> str:
        values = ", ".join(f"{x:.5f}" for x in rng.standard_normal(shape).ravel() * 0.5)
        return f"float[{','.join(map(str, shape))}] NAME = {{{values}}}"

    weights = [numbers(C, C).replace("NAME", f"w{i}") for i in range(3)]
    weights += [numbers(C).replace("NAME", f"b{i}") for i in range(3)]
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    attention (float[batch,{N},{C}] tokens_in) => (float[batch,{tokens},{C}] tokens{extra_outputs})
    <{", ".join(weights)}, int64[4] heads = {{0, {N}, {H}, {D}}}, int64[3] tokens_shape = {{0, {N}, {C}}},
     float scale = {{0.5}}, float[1] zero_mask = {{0.0}}{"".join(f", {one}" for one in constants)}>
    {{
    {body}
    tokens = Identity({last})
    }}
    """
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def two_layers(**knobs) -> onnx.ModelProto:
    """Two attentions, one after the other."""
    body = attention_text(0, "tokens_in", **knobs) + "\n" + attention_text(1, "out0", **knobs)
    return make_model(body, "out1")
