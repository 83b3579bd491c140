"""One attention with ITAE beside exporter/ITAE.md in numpy, at ordinary logits and at logits in the thousands."""

import dataclasses
from functools import partial

import itae_in_numpy as oracle
import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime
from attention_as_text import FACTS, C, H, N, attention_text, make_model
from matrix import over

from exporter.methods.itae.graph.inject import inject_itae
from exporter.methods.itae.options import ItaeConfig
from exporter.surgery.cls_only import cls_only
from exporter.surgery.edit import import_graph
from exporter.surgery.runner import run_pass
from exporter.surgery.scale_queries import scale_queries

SCALE = 0.5
"""The constant `scale` of the text model."""
TOKENS = np.random.default_rng(2).standard_normal((3, N, C), dtype=np.float32)
TOKENS[0, 2] *= 30  # one patch far above the others, whose logits outweigh all others by hundreds


def projections(model, tokens: np.ndarray) -> list[np.ndarray]:
    """q, k, v (B, H, N, d) of the text model, in float64."""
    weights = {tensor.name: np.asarray(gs.import_onnx(model).tensors()[tensor.name].values) for tensor in
               model.graph.initializer if tensor.name[0] in "wb"}  # fmt: skip
    x = tokens.astype(np.float64)
    flat = [x @ weights[f"w{i}"].astype(np.float64) + weights[f"b{i}"] for i in range(3)]
    return [part.reshape(len(tokens), N, H, C // H).transpose(0, 2, 1, 3) for part in flat]


@over(
    attenuate=("min", "mask", "mean", "scale:0.2"),
    source=("query", "key", "value", "positions"),
    factor=(1, 100),
    rows=("all rows", "CLS row"),
)
def test_attention_equals_the_formulas(attenuate, source, factor, rows):
    model = make_model(attention_text(0, "tokens_in"), "out0")
    tokens = TOKENS * np.float32(factor)
    q, k, v = projections(model, tokens)
    if source == "positions":
        artifact = np.tile(np.arange(N - 1) == 1, (3, 1))
        itae = ItaeConfig("0", threshold="positions:1", attenuate=attenuate)
    else:
        chosen = {"query": q, "key": k, "value": v}[source][:, :, 1:]
        norms = np.sqrt((chosen**2).sum(axis=(1, 3)))  # (B, P)
        ordered = np.sort(norms, axis=None)
        threshold = f"absolute:{(ordered[-4] + ordered[-3]) / 2:.6g}"
        artifact = np.array([oracle.is_artifact(row, threshold, "high") for row in norms])
        itae = ItaeConfig("0", source, threshold, "high", attenuate)
    assert artifact.sum() == 3  # in three images

    facts = dataclasses.replace(FACTS, depth=1)
    passes = [partial(scale_queries, facts=facts)]
    if rows == "CLS row":
        passes.append(partial(cls_only, facts=facts, keep_query=source == "query"))
    passes.append(partial(inject_itae, facts=facts, itae=itae))
    graph = import_graph(model).toposort()
    for operate in passes:
        run_pass(operate, graph)
    operated = gs.export_onnx(graph, do_type_check=False)
    operated.ir_version = 10
    session = onnxruntime.InferenceSession(operated.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"tokens_in": tokens})

    scaled = q * SCALE * np.sqrt(C // H)  # the oracle divides by √d
    want = np.array([oracle.attention(*parts, 1, attenuate) for parts in zip(scaled, k, v, artifact, strict=True)])
    plain = np.array(
        [oracle.attention(*parts, 1, attenuate) for parts in zip(scaled, k, v, artifact & False, strict=True)]
    )
    want, plain = (x.transpose(0, 2, 1, 3).reshape(3, N, C)[:, : got.shape[1]] for x in (want, plain))
    assert got.shape[1] == (1 if rows == "CLS row" else N)
    atol = 2e-5 * np.abs(v).max()
    # A fifth of a weight that outweighs all others by e^100 is still all the weight there is.
    assert source == "positions" or (np.abs(want - plain).max() > 100 * atol) == (
        factor == 1 or not attenuate.startswith("scale")
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)
