"""Pictures to embeddings, in memory and into a folder."""

import json

import numpy as np
import pytest
from PIL import Image

from runtime import load
from runtime.embedder import embed_files
from runtime.errors import CheckError, InputError, ManifestError, UsageError
from runtime.images import find_images, load_image
from runtime.preprocess import preprocess
from runtime.store import read_embeddings

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


def test_no_picture_is_refused(model) -> None:
    with pytest.raises(InputError, match="no image to embed"):
        model.embed([])


def test_array_of_the_wrong_size_is_refused(model) -> None:
    with pytest.raises(InputError, match="the model takes"):
        model.embed(np.zeros((1, 3, 224, 224), np.float32))


def test_picture_that_cannot_be_read_is_named(model, tmp_path) -> None:
    with pytest.raises(InputError, match=r"nowhere.png: does not exist"):
        model.embed([tmp_path / "nowhere.png"])


def test_model_without_embedding_is_refused(make_model, tmp_path, pictures) -> None:
    with load(make_model(tmp_path / "model", outputs=("patch_tokens",))) as model:
        with pytest.raises(UsageError, match="no output `embedding`, only patch_tokens"):
            model.embed([pictures / "cats" / "0.png"])
        with pytest.raises(UsageError, match="no output `embedding`"):
            embed_files(model, find_images([pictures]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


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


# Into a folder


@pytest.mark.parametrize("batch", [1, 3, 8, None])
def test_folder_gets_the_embedding_of_each_picture(batch, model, pictures, tmp_path, tiny_weights) -> None:
    found = find_images([pictures])
    result = embed_files(model, found, tmp_path / "out", batch)
    assert (result.images, result.unreadable) == (8, ())
    got = read_embeddings(tmp_path / "out")
    assert list(zip(got.roots, got.paths, strict=True)) == [(file.root, file.path) for file in found.files]
    want = expected(tiny_weights, model, [file.location for file in found.files])
    np.testing.assert_allclose(got.vectors, want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_what_cannot_be_read_is_recorded_and_the_rest_embedded(batch, tiny, pictures, tmp_path) -> None:
    (pictures / "cats" / "0.png").write_bytes(b"")
    (pictures / "cats" / "1.png").write_bytes((pictures / "cats" / "1.png").read_bytes()[:60])
    (pictures / "dogs" / "z.png").symlink_to("nowhere")
    told = []
    with load(tiny) as model:
        result = embed_files(
            model,
            find_images([pictures]),
            tmp_path / "out",
            batch,
            lambda embedded, unreadable: told.append((embedded, unreadable)),
        )
    assert result.images == 6
    assert [problem.path for problem in result.unreadable] == ["cats/0.png", "cats/1.png", "dogs/z.png"]
    assert told[-1] == (6, 3)
    lines = (tmp_path / "out" / "errors.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["path"] for record in records] == ["cats/0.png", "cats/1.png", "dogs/z.png"]
    assert {record["root"] for record in records} == {str(pictures.resolve())}
    assert records[0]["error"] == "is empty (0 bytes)"
    assert read_embeddings(tmp_path / "out").paths == [
        "cats/2.png",
        "cats/3.png",
        *[f"dogs/deep/{number}.jpg" for number in range(4, 8)],
    ]


def test_embeddings_do_not_depend_on_what_was_unreadable_beside_them(tiny, pictures, tmp_path) -> None:
    with load(tiny) as model:
        embed_files(model, find_images([pictures]), tmp_path / "all", 3)
        (pictures / "cats" / "1.png").write_bytes(b"")
        embed_files(model, find_images([pictures]), tmp_path / "rest", 3)
    everything, rest = read_embeddings(tmp_path / "all"), read_embeddings(tmp_path / "rest")
    kept = [everything.paths.index(path) for path in rest.paths]
    assert len(kept) == 7
    np.testing.assert_allclose(rest.vectors, everything.vectors[kept], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("batch", "batches"), [(1, [1] * 7), (3, [3, 3, 1]), (100, [7])])
def test_no_batch_is_larger_than_asked_for(batch, batches, tiny, pictures, tmp_path, monkeypatch) -> None:
    (pictures / "cats" / "1.png").write_bytes(b"")
    with load(tiny) as model:
        real, sizes = model.session.run, []

        def run(inputs, outputs=None):
            sizes.append(len(inputs))
            return real(inputs, outputs)

        monkeypatch.setattr(model.session, "run", run)
        embed_files(model, find_images([pictures]), tmp_path / "out", batch)
    assert sizes == batches


def test_two_runs_write_the_same_bytes(tiny, pictures, tmp_path) -> None:
    with load(tiny) as model:
        for name in ("a", "b"):
            embed_files(model, find_images([pictures]), tmp_path / name)
    one, other = (tmp_path / name / "part-00000.parquet" for name in ("a", "b"))
    assert one.read_bytes() == other.read_bytes()


def test_each_part_says_which_model_made_it(tiny, pictures, tmp_path) -> None:
    from pyarrow import parquet

    with load(tiny) as model:
        embed_files(model, find_images([pictures]), tmp_path / "out")
        metadata = json.loads(parquet.read_schema(tmp_path / "out" / "part-00000.parquet").metadata[b"itae"])
        assert metadata["model"] == "tiny.onnx"
        assert metadata["model_sha256"] == model.manifest.files.model.sha256
        assert metadata["options"]["image_size"] == [42, 42]


def test_embeddings_of_another_model_are_replaced_not_mixed(make_model, pictures, tmp_path) -> None:
    for dtype in ("float32", "uint8"):
        with load(make_model(tmp_path / dtype, dtype=dtype)) as model:
            embed_files(model, find_images([pictures / "cats" if dtype == "uint8" else pictures]), tmp_path / "out")
    assert len(read_embeddings(tmp_path / "out").paths) == 4


def test_nan_ends_the_run_names_the_pictures_and_leaves_the_older_set(make_model, pictures, tmp_path) -> None:
    with load(make_model(tmp_path / "good")) as model:
        embed_files(model, find_images([pictures]), tmp_path / "out")
    Image.new("RGB", (50, 50), "white").save(pictures / "cats" / "bright.png")
    with (
        load(make_model(tmp_path / "bad", nan=True)) as model,
        pytest.raises(CheckError, match=r"NaN or infinity .*cats.*png to ") as info,
    ):
        embed_files(model, find_images([pictures]), tmp_path / "out")
    assert info.value.exit_code == 1
    assert len(read_embeddings(tmp_path / "out").paths) == 8


def test_where_nothing_could_be_read_there_are_no_parts(tiny, tmp_path) -> None:
    (tmp_path / "a.png").touch()
    with load(tiny) as model:
        result = embed_files(model, find_images([tmp_path / "a.png"]), tmp_path / "out")
    assert result.images == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["errors.jsonl"]
