"""`calibrate --onnx`: the file of a marked DINOv2 gives what the model itself gives, and the export takes it."""

import json
import warnings
from pathlib import Path

import marked_dinov2 as marked
import pytest
import torch

from exporter.__main__ import main
from exporter.calibration.recommendation import NOTHING, read
from exporter.foreign.stages import Stages
from exporter.models.architecture import ARCHITECTURES
from exporter.options import ExportSpec
from exporter.pipeline import load
from runtime.contract.manifest import read_manifest


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A size `tiny`, its checkpoint, and pictures of which some patches are marked."""
    torch.set_num_threads(1)
    monkeypatch.setitem(ARCHITECTURES, "tiny", marked.TINY)
    monkeypatch.chdir(tmp_path)
    torch.save(marked.tensors(), "marked.pth")
    marked.save(marked.pictures(marked.some_masks(24)), tmp_path / "pictures")


class _Pooled(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(pixel_values).pooler_output
        return found


def export(path: str = "theirs.onnx", *, batch: int | None = None) -> None:
    """The same model as somebody else's ONNX file."""
    loaded = load(ExportSpec("x.onnx", size="tiny", weights="marked.pth", image_size=marked.SIZE))
    loaded.model.set_attn_implementation("eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Pooled(loaded.model), (torch.zeros(batch or 2, 3, *marked.SIZE),), path, dynamo=False, opset_version=17,
            input_names=["pixel_values"], output_names=["features"],
            dynamic_axes={} if batch else {"pixel_values": {0: "batch"}, "features": {0: "batch"}},
        )  # fmt: skip


def calibrate(*words: str) -> dict:
    assert main(["calibrate", *words, "--images", "pictures", "--out", "itae.json", "--quiet"]) == 0
    return json.loads(Path("itae.json").read_text())


def ours() -> dict:
    size = f"{marked.SIZE[0]}x{marked.SIZE[1]}"
    return calibrate("--size", "tiny", "--weights", "marked.pth", "--image-size", size, "--fit", "squash")


@pytest.mark.parametrize("batch", [None, 5], ids=["dynamic", "five"])
def test_a_file_is_calibrated_as_its_model_is(batch):
    export(batch=batch)
    expected = ours()
    found = calibrate("--onnx", "theirs.onnx", "--fit", "squash", "--report", "itae.html")
    assert expected["itae"] is not None
    assert found["itae"] == expected["itae"]
    assert found["images"] == expected["images"]
    assert found["figures"] == pytest.approx(expected["figures"], rel=2e-3, abs=1e-4)
    assert [one["name"] for one in found["settings"]] == [one["name"] for one in expected["settings"]]
    for one, other in zip(
        found["settings"][:-1], expected["settings"][:-1], strict=True
    ):  # the last is the plain model
        assert one["cosine_to_plain"] == pytest.approx(other["cosine_to_plain"], abs=1e-4)
        assert one["flagged"] == pytest.approx(other["flagged"], abs=1e-6)
    assert found["model"]["weights"] == "onnx:theirs.onnx"
    assert "theirs.onnx" in Path("itae.html").read_text()


def test_whole_passes_give_the_same(monkeypatch):
    export()
    before = calibrate("--onnx", "theirs.onnx", "--fit", "squash")
    made = Stages.__post_init__

    def without(self):
        made(self)
        self.goes_on = False

    monkeypatch.setattr(Stages, "__post_init__", without)
    after = calibrate("--onnx", "theirs.onnx", "--fit", "squash")
    sources = {one["name"]: one for one in before["settings"]}
    alike = [one for one in after["settings"] if one["name"] in ("key mad:5", "value mad:5", "query mad:5")]
    assert len(alike) == 3
    for one in alike:
        assert one["cosine_to_plain"] == pytest.approx(sources[one["name"]]["cosine_to_plain"], abs=1e-5)


def test_the_export_takes_the_recommendation(capsys):
    export()
    calibrate("--onnx", "theirs.onnx", "--fit", "squash")
    words = ["--onnx", "theirs.onnx", "--fit", "squash", "--config", "itae.json"]
    assert main([*words, "--out", "x.onnx", "--quiet"]) == 0
    manifest = read_manifest(Path("x.onnx"))
    recommended = read(Path("itae.json"))
    assert manifest.calibration == recommended.record
    assert manifest.options.method.threshold == recommended.options["threshold"]
    assert main([*words, "--out", "y.onnx", "--quiet", "--threshold", "ratio:4"]) == 0
    assert read_manifest(Path("y.onnx")).options.method.threshold == "ratio:4"
    export("other.onnx", batch=2)
    assert main(["--onnx", "other.onnx", "--config", "itae.json", "--out", "z.onnx"]) == 2
    assert "--config was made for another file than other.onnx" in capsys.readouterr().err
    assert not Path("z.onnx").exists()


def test_nothing_found_leaves_the_file_as_it_is(tmp_path, capsys):
    torch.save(marked.tensors(times=0), "marked.pth")
    export()
    assert calibrate("--onnx", "theirs.onnx", "--fit", "squash")["itae"] is None
    capsys.readouterr()
    assert main(["--onnx", "theirs.onnx", "--fit", "squash", "--config", "itae.json", "--out", "x.onnx"]) == 0
    assert NOTHING in " ".join(capsys.readouterr().err.split())
    manifest = read_manifest(Path("x.onnx"))
    assert manifest.options.method.name == "none"
    assert manifest.calibration == read(Path("itae.json")).record


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--onnx", "none.onnx"], "can't read none.onnx"),
        (["--onnx", "theirs.onnx", "--size", "tiny"], "unrecognized arguments: --size"),
        (["--onnx", "theirs.onnx", "--device", "cuda"], "take cpu"),
        (["--onnx", "theirs.onnx", "--embedding", "nothing"], "no node of the graph gives it"),
    ],
    ids=["missing", "size", "device", "embedding"],
)
def test_what_can_not_be_is_refused_in_one_line(words, said, capsys):
    export()
    assert main(["calibrate", *words, "--images", "pictures", "--out", "itae.json", "--quiet"]) == 2
    err = capsys.readouterr().err.strip()
    assert said in err
    assert len(err.splitlines()) == 1
    assert not Path("itae.json").exists()
