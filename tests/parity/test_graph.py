"""The operated ONNX graph on ONNX Runtime against eager PyTorch in float64, over all options."""

import itertools

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import over
from tiny_dinov2 import run

from exporter.methods.itae import reference
from exporter.methods.itae.options import SOURCES, ItaeConfig

ATOL = 1e-4
"""The promise in float32 at real size; here about 5e-6 is seen."""
NORM_RTOL = 2e-6
COSINE = 0.9999
SIDES = ("high", "low", "both")
DETECTIONS = [
    pytest.param((threshold, side), id=f"{threshold.partition(':')[0]}-{side}")
    for threshold, side in [
        *itertools.product(("mad:1", "zscore:0.7", "ratio:1.05"), SIDES),
        ("absolute", "high"),
        ("absolute", "low"),
    ]
]
"""Thresholds with the sides that each allows."""
CLS_OUTPUTS = ("embedding", "artifact_mask", "artifact_norm")
"""Without the patch tokens, of the last block only the CLS token's row is computed."""
ATTENUATIONS = ("min", "mask", "scale:0.1", "mean")


def absolute(eager_norm: torch.Tensor, share: float = 0.6) -> str:
    """An absolute threshold in the widest gap near a quantile of the norms."""
    ordered = eager_norm.flatten().unique()
    start = int(share * len(ordered)) - 3
    gaps = ordered[start + 1 : start + 7] - ordered[start : start + 6]
    at = start + int(gaps.argmax())
    return f"absolute:{((ordered[at] + ordered[at + 1]) / 2).item():.9g}"


def assert_equal(got, want: reference.Eager) -> None:
    """All outputs; `patch_tokens` only where they are among them."""
    clear = want.distance.numpy() > 1e-6
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(got["artifact_mask"][clear], want.artifact.numpy()[clear])
    assert (got["artifact_mask"] == want.artifact.numpy()).all(), "a borderline flag: choose another seed"
    np.testing.assert_allclose(got["artifact_norm"], want.norm.numpy(), rtol=NORM_RTOL)
    np.testing.assert_allclose(got["embedding"], want.embedding.numpy(), rtol=0, atol=ATOL)
    if "patch_tokens" in got:
        np.testing.assert_allclose(got["patch_tokens"], want.patch_tokens.numpy(), rtol=0, atol=ATOL)


@over(detection=DETECTIONS, source=SOURCES, attenuate=ATTENUATIONS)
def test_graph_equals_eager_for_every_option(detection, source, attenuate, tiny, tmp_path):
    threshold, side = detection
    images = tiny.images(3, seed=7)
    for layers in ("last", "all", "0,2"):
        if threshold == "absolute":
            seen = tiny.eager(ItaeConfig(layers, source, "absolute:0", "high"), images)
            itae = ItaeConfig(layers, source, absolute(seen.norm), side, attenuate)
        else:
            itae = ItaeConfig(layers, source, threshold, side, attenuate)
        want = tiny.eager(itae, images)
        assert want.is_mixed.any()  # the case has artifacts
        assert_equal(tiny.run(itae, images, tmp_path), want)
        plain = tiny.eager(None, images)
        moved = (want.patch_tokens - plain.patch_tokens).abs().max()
        assert moved > 100 * ATOL  # so the line above can fail
        if layers != "0,2":  # which ends in the last layer, as `all` does
            assert_equal(tiny.run(itae, images, tmp_path, outputs=CLS_OUTPUTS), want)
            assert (want.embedding - plain.embedding).abs().max() > 10 * ATOL


@pytest.mark.parametrize("outputs", [CLS_OUTPUTS, ("embedding",)])
@pytest.mark.parametrize("itae", [None, ItaeConfig("1", "query", "zscore:1"), ItaeConfig("last", "query", "zscore:1")])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_cls_row_alone_equals_that_of_all_tokens(precision, itae, outputs, tiny, tmp_path):
    if itae is None:
        outputs = ("embedding",)
    images = tiny.images(3, seed=61)
    got = tiny.run(itae, images, tmp_path, precision=precision, outputs=outputs)
    whole = tiny.run(itae, images, tmp_path, precision=precision, outputs=outputs, cls_only=False)
    for name in outputs:
        np.testing.assert_allclose(got[name], whole[name], rtol=0, atol=5e-6 if precision == "fp32" else 5e-3)


@pytest.mark.parametrize(
    "itae",
    [
        None,
        ItaeConfig("all", "value", "zscore:1"),
        ItaeConfig(threshold="zscore:1"),
        ItaeConfig("last", "residual", "zscore:1", detect_layer=1),
        ItaeConfig("all", threshold="positions:0,5"),
    ],
)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "cls+mean"])
def test_pooling_and_normalizing_equal_eager(pooling, normalize, itae, tiny, tmp_path):
    images = tiny.images(3, seed=67)
    want = tiny.eager(itae, images, pooling, normalize=normalize).embedding.numpy()
    got = tiny.run(itae, images, tmp_path, outputs=("embedding",), pooling=pooling, normalize=normalize)["embedding"]
    assert got.shape == (3, tiny.spec.backbone.width * (2 if pooling == "cls+mean" else 1))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 if normalize else ATOL)
    lengths = np.linalg.norm(got, axis=1)
    assert np.allclose(lengths, 1, atol=1e-6) == normalize


def test_the_mean_patch_token_counts_neither_cls_nor_registers(tiny, tmp_path):
    images = tiny.images(2, seed=71)
    tokens = tiny.float64(torch.from_numpy(images).double()).last_hidden_state.numpy()
    got = tiny.run(None, images, tmp_path, outputs=("embedding",), pooling="cls+mean")["embedding"]
    C = tiny.spec.backbone.width
    np.testing.assert_allclose(got[:, :C], tokens[:, 0], rtol=0, atol=ATOL)
    np.testing.assert_allclose(got[:, C:], tokens[:, tiny.prefix :].mean(axis=1), rtol=0, atol=ATOL)
    assert np.abs(tokens[:, 1:].mean(axis=1) - tokens[:, tiny.prefix :].mean(axis=1)).max() > ATOL or tiny.prefix == 1


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_graph_equals_eager_at_every_batch_size(batch, tiny, tmp_path):
    itae = ItaeConfig("all", "value", "zscore:1", "both", "min")
    images = tiny.images(batch, seed=11)
    assert_equal(tiny.run(itae, images, tmp_path), tiny.eager(itae, images))


@pytest.mark.parametrize("attenuate", ATTENUATIONS)
@pytest.mark.parametrize("flagged", ["none", "one", "all but one", "all"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_graph_equals_eager_with_any_number_of_artifacts(flagged, attenuate, precision, tiny, tmp_path):
    images = tiny.images(1, seed=13)
    P = tiny.spec.facts.patches
    seen = tiny.eager(ItaeConfig(threshold="absolute:0", side="high"), images)
    ordered = seen.norm.flatten().sort(descending=True).values.tolist()
    count = {"none": 0, "one": 1, "all but one": P - 1, "all": P}[flagged]
    ends = [ordered[0] * 1.5, *ordered, 0.0]
    itae = ItaeConfig(threshold=f"absolute:{(ends[count] + ends[count + 1]) / 2:.9g}", side="high", attenuate=attenuate)
    want = tiny.eager(itae, images)
    assert want.artifact.sum() == count
    got = tiny.run(itae, images, tmp_path, precision=precision)
    np.testing.assert_array_equal(got["artifact_mask"], want.artifact.numpy())
    plain = tiny.eager(None, images)
    moved = (want.embedding - plain.embedding).abs().max().item()
    assert moved == 0 if flagged in ("none", "all") else moved > 10 * ATOL
    if precision == "fp32":
        np.testing.assert_allclose(got["embedding"], want.embedding.numpy(), rtol=0, atol=ATOL)
    else:
        cosine = torch.cosine_similarity(torch.from_numpy(got["embedding"]).double(), want.embedding)
        assert cosine.min() > COSINE


@over(
    layers=("last", "1,2", "1"),
    detect_layer=(0, 1),
    source=SOURCES,
    outputs=((*CLS_OUTPUTS, "patch_tokens"), CLS_OUTPUTS),
    attenuate=("min", "mean"),
)
def test_one_layer_detects_for_others(layers, detect_layer, source, outputs, attenuate, tiny, tmp_path):
    itae = ItaeConfig(layers, source, "zscore:0.7", "both", attenuate, detect_layer)
    images = tiny.images(3, seed=7)
    want = tiny.eager(itae, images)
    assert want.is_mixed.all()
    path = tiny.export(itae, tmp_path, outputs=outputs)
    assert_equal(run(path, images), want)
    # Each chosen layer shows the flags and norms that decided for it, which are those of one layer of the plain model.
    alone = tiny.run(ItaeConfig(str(detect_layer), source, "zscore:0.7", "both"), images, tmp_path)
    for layer in range(len(itae.layer_indices(3))):
        np.testing.assert_array_equal(want.artifact[:, layer].numpy(), alone["artifact_mask"][:, 0])
    names = [node.name for node in onnx.load(path, load_external_data=False).graph.node]
    assert sum(name.endswith("/token_norm") for name in names) == 1


@over(
    positions=("0", "2,4-6", "0-14"),
    layers=("last", "all", "0,2"),
    attenuate=(*ATTENUATIONS, "none"),
    precision=("fp32", "fp16"),
    outputs=(("embedding", "artifact_mask"), ("embedding", "patch_tokens", "artifact_mask")),
)
def test_positions_are_artifacts_in_every_image(positions, layers, attenuate, precision, outputs, tiny, tmp_path):
    itae = ItaeConfig(layers, threshold=f"positions:{positions}", attenuate=attenuate)
    for batch in (1, 3):
        images = tiny.images(batch, seed=7)
        want = tiny.eager(itae, images)
        assert want.artifact.sum(dim=2).unique().tolist() == [{"0": 1, "2,4-6": 4, "0-14": 15}[positions]]
        got = tiny.run(itae, images, tmp_path, precision=precision, outputs=outputs)
        np.testing.assert_array_equal(got["artifact_mask"], want.artifact.numpy())
        if precision == "fp32":
            np.testing.assert_allclose(got["embedding"], want.embedding.numpy(), rtol=0, atol=ATOL)
        else:
            cosine = torch.cosine_similarity(torch.from_numpy(got["embedding"]).double(), want.embedding)
            assert cosine.min() > COSINE
    plain = tiny.eager(None, images)
    moves = attenuate != "none" and not (positions == "0-14" and tiny.spec.facts.patches == 15)
    assert ((want.patch_tokens - plain.patch_tokens).abs().max() > 100 * ATOL) == moves


@pytest.mark.parametrize("outputs", [("embedding",), ("embedding", "patch_tokens")], ids=["CLS row", "all rows"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    "itae",
    [
        *(ItaeConfig("all", source, "zscore:0.7", attenuate="none") for source in SOURCES),
        ItaeConfig("last", "query", "mad:1", attenuate="none", detect_layer=1),
        ItaeConfig("last", threshold="positions:1", attenuate="none"),
    ],
    ids=lambda itae: f"{itae.source}",
)
def test_attenuate_none_finds_artifacts_and_changes_nothing(itae, precision, outputs, tiny, tmp_path):
    images = tiny.images(3, seed=17)
    unfused = itae.detect_layer is not None  # a pass more, which must leave what no output reads yet
    extra = ("artifact_mask",) if itae.source is None else ("artifact_mask", "artifact_norm")
    plain = tiny.export(None, tmp_path / "plain", precision=precision, outputs=outputs, unfused=unfused)
    found = tiny.export(itae, tmp_path / "found", precision=precision, outputs=(*outputs, *extra), unfused=unfused)
    # Not a bit differs; with its optimisers on, one more reader of a tensor changes what ONNX Runtime fuses. In fp16
    # it rounds where nodes are cut apart, as the queries of all rows are from the CLS token's.
    want, got = (run(path, images, optimize=False) for path in (plain, found))
    same_bits = precision == "fp32" or itae.source != "query" or "patch_tokens" in outputs
    for name in outputs:
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=0 if same_bits else 2e-3)
    optimized = run(found, images)
    for name in outputs:
        np.testing.assert_allclose(optimized[name], want[name], rtol=0, atol=ATOL if precision == "fp32" else 2e-2)
    eager = tiny.eager(itae, images)
    assert eager.is_mixed.all()
    np.testing.assert_array_equal(got["artifact_mask"], eager.artifact.numpy())
    if "artifact_norm" in got:
        np.testing.assert_allclose(
            got["artifact_norm"], eager.norm.numpy(), rtol=NORM_RTOL if precision == "fp32" else 5e-3
        )
    np.testing.assert_array_equal(eager.embedding.numpy(), tiny.eager(None, images).embedding.numpy())


@pytest.mark.parametrize("source", SOURCES)
def test_a_huge_absolute_threshold_gives_the_plain_model(source, tiny, tmp_path):
    images = tiny.images(3, seed=17)
    itae = ItaeConfig("all", source, "absolute:1e9", "high")
    plain = tiny.run(None, images, tmp_path)
    got = tiny.run(itae, images, tmp_path)
    assert not got["artifact_mask"].any()
    for name in plain:
        if source in ("query", "residual"):  # one more reader of these changes what ONNX Runtime fuses
            np.testing.assert_allclose(got[name], plain[name], rtol=0, atol=1e-6)
        else:
            np.testing.assert_array_equal(got[name], plain[name])


def test_a_constant_image_is_handled(tiny, tmp_path):
    images = np.full((2, 3, tiny.spec.height, tiny.spec.width), 0.25, np.float32)
    for source, threshold in itertools.product(("key", "residual"), ("mad:3", "zscore:1.5", "ratio:1.05")):
        itae = ItaeConfig("last", source, threshold)
        assert_equal(tiny.run(itae, images, tmp_path), tiny.eager(itae, images))


def test_cls_and_registers_are_never_artifacts(tiny, tmp_path):
    # Every patch is above, so all would be attenuated if CLS or a register counted as the one normal token.
    images = tiny.images(2, seed=19)
    itae = ItaeConfig("all", "key", "absolute:0", "high", "mask")
    got = tiny.run(itae, images, tmp_path)
    assert got["artifact_mask"].shape == (2, 3, tiny.spec.facts.patches)
    assert got["artifact_mask"].all()
    plain = tiny.run(None, images, tmp_path)
    np.testing.assert_array_equal(got["embedding"], plain["embedding"])


def test_permuting_images_permutes_rows(tiny, tmp_path):
    path = tiny.export(ItaeConfig("all", "value", "zscore:1"), tmp_path)

    @given(order=st.permutations(range(5)), seed=st.integers(0, 2**32))
    @settings(max_examples=25)
    def permutes(order, seed):
        images = tiny.images(5, seed=seed)
        straight, shuffled = (run(path, x) for x in (images, images[order]))
        # Flags too: rows of one batch don't see each other.
        np.testing.assert_array_equal(shuffled["artifact_mask"], straight["artifact_mask"][order])
        np.testing.assert_allclose(shuffled["embedding"], straight["embedding"][order], rtol=0, atol=5e-6)

    permutes()


def test_a_weak_attenuation_tends_to_the_plain_model(tiny, tmp_path):
    images = tiny.images(2, seed=31)
    plain = tiny.run(None, images, tmp_path)["embedding"]
    off = [
        np.abs(
            tiny.run(ItaeConfig("all", "key", "zscore:1", attenuate=f"scale:{alpha}"), images, tmp_path)["embedding"]
            - plain
        ).max()
        for alpha in (0.5, 0.9, 0.99, 0.9999)
    ]
    assert off == sorted(off, reverse=True)
    assert off[0] > 0.05
    assert off[-1] < off[0] / 1000  # ln 0.9999 is 1/6900 of ln 0.5


@given(seed=st.integers(0, 2**32), share=st.floats(0.05, 0.95))
def test_min_never_raises_an_artifacts_logit(seed, share):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.standard_normal((4, 2, 9, 9)))
    artifact = torch.from_numpy(rng.random((4, 8)) < share)
    weakened = reference.attenuate(logits, artifact, 1, ItaeConfig(attenuate="min").attenuation)
    assert (weakened <= logits).all()


def test_mean_can_raise_an_artifacts_logit():
    logits = torch.tensor([[[[0.0, -1.0, 3.0, 5.0]]]])  # CLS and three patches, the first of them an artifact
    artifact = torch.tensor([[True, False, False]])
    weakened = reference.attenuate(logits, artifact, 1, ItaeConfig(attenuate="mean").attenuation)
    assert weakened.tolist() == [[[[0.0, 4.0, 3.0, 5.0]]]]


@pytest.mark.parametrize(
    "itae",
    [
        ItaeConfig("all", "key", "zscore:1"),
        ItaeConfig("1-2", "residual", "zscore:1", detect_layer=1),
        ItaeConfig("all", threshold="positions:0,5"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_uint8_input_equals_the_normalised_one(precision, itae, tiny, tmp_path):
    rng = np.random.default_rng(43)
    pictures = rng.integers(0, 256, (2, tiny.spec.height, tiny.spec.width, 3), dtype=np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = ((pictures / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    want = tiny.run(itae, pixels, tmp_path, outputs=("embedding",), precision=precision)["embedding"]
    options = {"outputs": ("embedding",), "precision": precision, "input": "uint8"}
    got = tiny.run(itae, pictures, tmp_path, **options)["embedding"]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 if precision == "fp32" else 2e-2)


def test_flags_alone_are_computed_without_what_comes_after_them(tiny, tmp_path):
    itae = ItaeConfig("0", "value", "zscore:1")
    images = tiny.images(2, seed=53)
    path = tiny.export(itae, tmp_path, outputs=("artifact_mask",))
    np.testing.assert_array_equal(run(path, images)["artifact_mask"], tiny.eager(itae, images).artifact.numpy())
    assert path.stat().st_size < tiny.export(itae, tmp_path).stat().st_size / 2


def test_outputs_are_those_asked_for_in_that_order(tiny, tmp_path):
    path = tiny.export(ItaeConfig(), tmp_path, outputs=("artifact_norm", "embedding"))
    got = run(path, tiny.images(2, seed=47))
    assert list(got) == ["artifact_norm", "embedding"]
    assert got["artifact_norm"].shape == (2, 1, tiny.spec.facts.patches)
