"""Pictures to embeddings, in memory."""

import numpy as np
import pytest
from PIL import Image

from runtime import load
from runtime.contract.errors import InputError, ManifestError, UsageError
from runtime.images.decode import load_image
from runtime.images.preprocess import preprocess

TOLERANCE = 1e-4
"""Of float32 sums over 588 products against float64; the figures are of order 1."""


@pytest.fixture(params=["float32", "uint8"])
def model(request, make_model, tmp_path):
    with load(make_model(tmp_path / "model", dtype=request.param)) as made:
        yield made


def expected(weights, model, paths) -> np.ndarray:
    """The embeddings by the tiny model's own arithmetic."""
    how = model.manifest.preprocessing.model_copy(
        update={"dtype": "float32", "layout": "NCHW", "normalized_by": "caller"}
    )
    return weights.outputs(np.stack([preprocess(load_image(path), how) for path in paths]))["embedding"]


# In memory


@pytest.mark.parametrize("batch", [None, 1, 3, 100])
def test_paths_are_embedded_in_order(batch, model, pictures, tiny_weights) -> None:
    paths = sorted(pictures.rglob("*.*"), reverse=True)
    got = model.embed(paths, batch)
    assert (got.shape, got.dtype) == ((8, 6), np.float32)
    np.testing.assert_allclose(got, expected(tiny_weights, model, paths), rtol=0, atol=TOLERANCE)
    assert len({row.tobytes() for row in got}) == 8  # so that an order mixed up would show


def test_paths_pictures_and_arrays_give_the_same(model, pictures) -> None:
    paths = sorted(pictures.rglob("*.png"))
    images = [Image.open(path) for path in paths]
    arrays = np.stack([preprocess(image, model.manifest.preprocessing) for image in images])
    by_path = model.embed(paths)
    np.testing.assert_array_equal(model.embed([str(path) for path in paths]), by_path)
    np.testing.assert_array_equal(model.embed(images), by_path)
    np.testing.assert_array_equal(model.run_inputs(arrays)["embedding"], by_path)


def test_a_single_picture_gives_one_row(model, pictures) -> None:
    path = pictures / "cats" / "0.png"
    for picture in (path, str(path), load_image(path)):
        np.testing.assert_array_equal(model.embed(picture), model.embed([path]))


def test_no_picture_gives_no_row(model) -> None:
    assert model.embed([]).shape == (0, model.width)


def test_array_of_the_wrong_size_is_refused(model) -> None:
    with pytest.raises(InputError, match="the model takes"):
        model.embed(np.zeros((1, 3, 224, 224), np.float32))


def test_picture_that_cannot_be_read_is_named(model, tmp_path) -> None:
    with pytest.raises(InputError, match=r"nowhere.png: does not exist"):
        model.embed([tmp_path / "nowhere.png"])


def test_model_without_embedding_is_refused(make_model, tmp_path, pictures) -> None:
    path = make_model(tmp_path / "model", outputs=("patch_tokens",))
    with load(path) as model, pytest.raises(UsageError, match="no output `embedding`, only patch_tokens"):
        model.embed([pictures / "cats" / "0.png"])


def test_closed_model_is_refused(tiny, pictures) -> None:
    with load(tiny) as model:
        pass
    with pytest.raises(UsageError, match="closed"):
        model.embed([pictures / "cats" / "0.png"])


def test_load_takes_a_string(tiny) -> None:
    with load(str(tiny)) as model:
        assert model.manifest.files.model.name == "tiny.onnx"


def test_load_checks_the_files(tiny) -> None:
    tiny.write_bytes(tiny.read_bytes() + b"\0")
    with pytest.raises(ManifestError):
        load(tiny)
