"""The flags of a report, compared with the same model in numpy."""

import numpy as np
import pytest
from PIL import Image
from reports import parse

from runtime import load
from runtime.commands.report_artifacts import MOST_IMAGES, _norms, check_outputs, sample_artifacts
from runtime.contract.errors import UsageError
from runtime.contract.manifest import manifest_path, read_manifest
from runtime.report import Report, write_report
from runtime.sources import read_image
from runtime.sources.at_hand import at_hand

OUTPUTS = ("embedding", "artifact_mask", "artifact_norm")


@pytest.fixture
def keys(pictures):
    return [(str(pictures), str(path.relative_to(pictures))) for path in sorted(pictures.rglob("*.*"))]


def test_flags_and_norms_are_the_models(tmp_path, make_model, keys):
    with load(make_model(tmp_path, outputs=OUTPUTS)) as model:
        found = sample_artifacts(model, len(keys), keys.__getitem__)
        expected = model.run([read_image(*key) for key in keys])
    mask, norm = expected["artifact_mask"][:, 0], expected["artifact_norm"][:, 0]
    assert 0 < mask.sum() < mask.size
    assert [one.key for one in found.images] == keys
    np.testing.assert_array_equal([one.share for one in found.images], mask)
    (norms,) = found.norms
    assert norms.layer == 0
    assert (sum(norms.normal), sum(norms.flagged)) == ((~mask).sum(), mask.sum())
    assert norms.edges[0] == norm.min()
    assert norms.edges[-1] == norm.max()
    threshold = 8.0
    for low, high, normal, flagged in zip(norms.edges, norms.edges[1:], norms.normal, norms.flagged, strict=False):
        assert not (flagged and high < threshold)
        assert not (normal and low > threshold)
    assert found.grid == (3, 3)
    assert found.detection == "key norm, absolute:8.0 on high"


def test_the_overlay_marks_the_flagged_patches_of_the_grid(tmp_path, make_model, keys):
    with load(make_model(tmp_path, outputs=OUTPUTS)) as model:
        found = sample_artifacts(model, len(keys), keys.__getitem__)
    write_report(tmp_path / "r.html", Report("t", [], artifacts=found), at_hand)
    page = parse(tmp_path / "r.html")
    drawn = [(float(got["x"]), float(got["y"])) for got in page.all("rect", width="1", height="1")]
    expected = [(place % 3, place // 3) for one in found.images for place, share in enumerate(one.share) if share]
    assert drawn == expected
    assert len(page.all("svg", viewbox="0 0 3 3")) == len(keys)


def test_a_large_set_is_sampled_by_seed(tmp_path, make_model, pictures):
    color = np.random.default_rng(0).integers(0, 256, (60, 3))
    for number in range(60):
        Image.new("RGB", (20, 20), tuple(color[number].tolist())).save(tmp_path / f"{number}.png")

    def key(row: int) -> tuple[str, str]:
        return str(tmp_path), f"{row}.png"

    with load(make_model(tmp_path, outputs=OUTPUTS)) as model:
        first, again, other = (sample_artifacts(model, 60, key, seed=seed) for seed in (1, 1, 2))
    assert len(first.images) == MOST_IMAGES
    assert first == again
    assert first.images != other.images


def test_unreadable_images_are_left_out(tmp_path, make_model, keys):
    with load(make_model(tmp_path, outputs=OUTPUTS)) as model:
        some = sample_artifacts(model, 3, [("/nowhere", "x.png"), *keys].__getitem__)
        none = sample_artifacts(model, 2, lambda _: ("/nowhere", "x.png"))
    assert [one.key for one in some.images] == keys[:2]
    assert none is None


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_norms_that_hardly_differ_have_a_histogram(steps):
    norm = np.full((3, 9), 100, np.float32)
    norm[0, 0] += steps * np.spacing(norm[0, 0])
    found = _norms(11, norm, norm > 100)
    assert (sum(found.normal), sum(found.flagged)) == ((26, 1) if steps else (27, 0))
    assert found.edges == sorted(found.edges)


def test_a_model_that_tells_no_artifacts_is_refused(tmp_path, make_model, keys):
    with (
        load(make_model(tmp_path)) as model,
        pytest.raises(UsageError, match="has no output artifact_mask: export one with --outputs"),
    ):
        sample_artifacts(model, len(keys), keys.__getitem__)


def test_a_model_of_positions_needs_no_norms(tmp_path, make_model, keys):
    path = make_model(tmp_path, outputs=("embedding", "artifact_mask"))
    with load(path) as model, pytest.raises(UsageError, match="no output artifact_norm"):
        sample_artifacts(model, len(keys), keys.__getitem__)
    manifest = read_manifest(path)
    method = manifest.options.method.model_copy(update={"source": None, "side": None, "threshold": "positions:0,4"})
    options = manifest.options.model_copy(update={"method": method})
    manifest_path(path).write_bytes(manifest.model_copy(update={"options": options}).to_json())
    with load(path) as model:
        found = sample_artifacts(model, len(keys), keys.__getitem__)
    assert list(found.norms) == []
    assert found.detection == "positions:0,4"
    write_report(tmp_path / "r.html", Report("t", [], artifacts=found), at_hand)
    page = parse(tmp_path / "r.html")
    assert "positions:0,4" in page.text
    assert "Norms of the patches" not in page.text
    assert len(page.all("svg", viewbox="0 0 3 3")) == len(keys)


def test_a_model_of_positions_without_flags_is_told_to_output_them_alone(tmp_path, make_model):
    manifest = read_manifest(make_model(tmp_path))
    method = manifest.options.method.model_copy(update={"source": None, "side": None, "threshold": "positions:0"})
    options = manifest.options.model_copy(update={"method": method})
    with pytest.raises(
        UsageError, match=r"no output artifact_mask: export one with --outputs embedding,artifact_mask$"
    ):
        check_outputs(manifest.model_copy(update={"options": options}), "m.onnx")
