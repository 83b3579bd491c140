"""ONNX Runtime's result of an image is the same in every row, at every batch size, beside any neighbours."""

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_dinov2
from onnx import helper, numpy_helper

from exporter import pipeline
from exporter.methods.itae.options import ItaeConfig
from exporter.options import ExportSpec
from exporter.proof.golden_sample import candidate, normalize

EVERYTHING = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")
FAR = 2e-6
"""Of a vector's length. Here all were the same to the bit; another CPU's kernels may add in another order."""
SIZES = (1, 2, 3, 8)
SHIFTS = (0, 1, 4)


@pytest.fixture(scope="module")
def vits14(tmp_path_factory):
    spec = ExportSpec("unused.onnx", size="vits14", weights="random:0")
    return spec, pipeline.load_and_trace(spec, tmp_path_factory.mktemp("vits14"))[1]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Of all kinds of content, black and random black and white among them: (6, 3, 224, 224)."""
    black = np.zeros((224, 224, 3), np.uint8)
    loud = np.random.default_rng(5).choice(np.array([0, 255], np.uint8), black.shape)
    return normalize(
        np.stack([*(candidate(index, ExportSpec("unused.onnx").facts) for index in range(4)), black, loud])
    )


def export(vits14, folder, itae, outputs):
    spec, traced = vits14
    return pipeline.operate(dataclasses.replace(spec, itae=itae, outputs=outputs), traced, folder).model


def assert_rows_are_as_alone(path, images) -> dict[str, np.ndarray]:
    """Run each image alone, then all of them in several rows of batches of several sizes; gives what they are alone."""
    # On as many threads as a user has: they share the work by the batch's size.
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (source,), names = session.get_inputs(), [output.name for output in session.get_outputs()]

    def run(batch):
        return dict(zip(names, session.run(names, {source.name: batch}), strict=True))

    apart = [run(image[None]) for image in images]
    alone = {name: np.concatenate([one[name] for one in apart]) for name in names}
    for size in SIZES:
        for shift in SHIFTS:
            rows = (np.arange(size) + shift) % len(images)
            for name, got in run(images[rows]).items():
                want = alone[name][rows]
                if want.dtype == bool:
                    np.testing.assert_array_equal(got, want)
                else:
                    length = np.linalg.norm(want, axis=-1, keepdims=True)
                    np.testing.assert_array_less(np.abs(got - want) / length, FAR, f"{name}, batch of {size}")
    return alone


KEYS = ItaeConfig("last", "key", "mad:5", "both")
OPTIONS = {
    "keys": (KEYS, EVERYTHING),
    "keys, embedding": (KEYS, ("embedding",)),
    "mask in all layers": (ItaeConfig("all", "key", "mad:5", "both", "mask"), EVERYTHING),
    "residual in one layer": (ItaeConfig("8-11", "residual", "mad:5", "both", detect_layer=8), EVERYTHING),
    "positions": (ItaeConfig("all", threshold="positions:0,5"), ("embedding", "patch_tokens")),
    "plain": (None, ("embedding", "patch_tokens")),
}


@pytest.mark.parametrize(("itae", "outputs"), OPTIONS.values(), ids=OPTIONS)
def test_an_image_is_the_same_in_every_row_at_every_batch_size(itae, outputs, vits14, images, tmp_path) -> None:
    alone = assert_rows_are_as_alone(export(vits14, tmp_path, itae, outputs), images)
    if "artifact_mask" in outputs:
        flagged = alone["artifact_mask"].any(axis=(1, 2))
        assert flagged.any()
        assert not flagged.all() or itae.layers == "all"


def test_an_image_is_the_same_beside_one_whose_patches_are_all_artifacts(vits14, images, tmp_path) -> None:
    probe = export(vits14, tmp_path, KEYS, EVERYTHING)
    norms = tiny_dinov2.run(probe, images)["artifact_norm"][:, 0]  # (6, P)
    quiet = norms.max(axis=1)
    between = np.sort(quiet)[:2].mean()  # one image lies below it whole, no other does
    itae = ItaeConfig("last", "key", f"absolute:{between:.6g}", "low")
    alone = assert_rows_are_as_alone(export(vits14, tmp_path, itae, EVERYTHING), images)
    every = alone["artifact_mask"].all(axis=(1, 2))
    assert every.sum() == 1
    assert alone["artifact_mask"][~every].any()


def test_a_graph_whose_rows_know_their_neighbours_is_found(vits14, images, tmp_path) -> None:
    path = export(vits14, tmp_path, KEYS, ("embedding",))
    model = onnx.load(path)
    (producer,) = (node for node in model.graph.node if "embedding" in node.output)
    producer.output[list(producer.output).index("embedding")] = "own"
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.array([0], np.int64), "rows"), numpy_helper.from_array(np.float32(1e-4), "little")]
    )
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["own", "rows"], ["common"]),
            helper.make_node("Mul", ["common", "little"], ["leak"]),
            helper.make_node("Add", ["own", "leak"], ["embedding"]),
        ]
    )
    onnx.save(model, path)
    with pytest.raises(AssertionError, match="embedding, batch of 2"):
        assert_rows_are_as_alone(path, images)
