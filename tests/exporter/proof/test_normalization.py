"""A wrong mean or standard deviation fails the export, wherever it stands: the numbers are stated in two places."""

import dataclasses

import pytest
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from exporter import ExportSpec, export
from exporter.models.architecture import ARCHITECTURES, Architecture
from exporter.proof import golden_sample
from runtime.contract.errors import CheckError, ParityError

TINY = Architecture("tiny", width=32, heads=2, depth=2)
WRONG = {"mean": (0.485, 0.456, 0.4), "std": (0.229, 0.224, 0.22)}


def spec(folder, dtype="float32", **changes) -> ExportSpec:
    arch = dataclasses.replace(TINY, **changes)
    return ExportSpec(folder / "a.onnx", size=arch, image_size=28, weights="random:1", input=dtype, parity_samples=1)


def test_both_statements_are_the_published_numbers():
    published = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)) == published
    assert published == (golden_sample.MEAN, golden_sample.STD)
    assert {(arch.mean, arch.std) for arch in ARCHITECTURES.values()} == {published}


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_number_of_the_architecture_fails_the_export(what, dtype, tmp_path):
    with pytest.raises(CheckError, match="the manifest would say that pictures are normalised by"):
        export(spec(tmp_path, dtype, **{what: WRONG[what]}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["MEAN", "STD"])
def test_a_wrong_number_of_the_reference_fails_the_export(name, tmp_path, monkeypatch):
    monkeypatch.setattr(golden_sample, name, WRONG[name.lower()])
    with pytest.raises(CheckError, match="the manifest would say"):
        export(spec(tmp_path))


@pytest.mark.parametrize("what", WRONG)
def test_a_graph_that_normalises_by_wrong_numbers_disagrees_with_the_reference(what, tmp_path, monkeypatch):
    monkeypatch.setattr(golden_sample, "check_preprocessing", lambda how: None)
    with pytest.raises(ParityError, match="disagrees with eager PyTorch"):
        export(spec(tmp_path, "uint8", **{what: WRONG[what]}))
