"""A model in a program: every kind of picture, other outputs, many threads, and the errors for unusable input."""

import functools
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from manifests import reseal
from PIL import Image

import runtime
from runtime import load
from runtime.backends.session import check_names
from runtime.contract.errors import CheckError, InputError, ItaeError, UsageError
from runtime.embedding.model import Model
from runtime.images import batches as module
from runtime.images.decode import Note, load_image
from runtime.images.preprocess import preprocess

ALL = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")
SIDE = 42


def assert_same(got, want) -> None:
    """The same but for the order of float32 sums, which is another in a batch of another size."""
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.fixture(params=["float32", "uint8"])
def model(request, make_model, tmp_path):
    with load(make_model(tmp_path / "model", dtype=request.param)) as made:
        yield made


@pytest.fixture
def paths(pictures) -> list[Path]:
    """Lossless pictures, so that an array of one is the same picture."""
    return sorted(pictures.rglob("*.png"))


def written(path: Path) -> io.BytesIO:
    file = io.BytesIO()
    file.write(path.read_bytes())
    return file


class Stream:
    """A response of the network: a little at a time, and no way back."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, 100))


class Upload:
    """An upload of FastAPI."""

    async def read(self, size: int = -1) -> bytes:
        return b""


KINDS = {
    "path": lambda path: path,
    "string": str,
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "BytesIO at its end": lambda path: written(path),
    "file that can't seek": lambda path: Stream(path.read_bytes()),
    "lazy image": Image.open,
    "decoded image": load_image,
    "array": lambda path: np.asarray(load_image(path)),
    "read-only array": lambda path: np.frombuffer(load_image(path).tobytes(), np.uint8).reshape(
        *load_image(path).size[::-1], 3
    ),
    "reversed twice": lambda path: np.asarray(load_image(path))[..., ::-1].copy()[..., ::-1],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_gives_what_its_file_gives(kind, model, paths) -> None:
    want = model.embed(paths)
    assert_same(model.embed([KINDS[kind](path) for path in paths]), want)
    assert_same(model.embed(KINDS[kind](paths[1])), want[1:2])
    assert len({row.tobytes() for row in want}) == len(paths)  # so that a picture mixed up would show


@pytest.mark.parametrize("batch", [1, 2, None])
def test_kinds_can_be_mixed(batch, model, paths) -> None:
    kinds = list(KINDS.values())
    chosen = [paths[number % len(paths)] for number in range(len(kinds))]
    got = model.embed([kind(path) for kind, path in zip(kinds, chosen, strict=True)], batch)
    assert_same(got, model.embed(chosen))


def test_bgr_is_another_picture(model, paths) -> None:
    pixels = np.asarray(load_image(paths[0]))
    assert np.abs(model.embed(pixels[..., ::-1]) - model.embed(pixels)).max() > 0.01


def test_uint8_of_the_models_own_size_is_a_picture_like_any_other(model) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    want = model.embed([Image.fromarray(one) for one in pixels])
    assert_same(model.embed(pixels), want)
    assert_same(model.embed(list(pixels)), want)
    assert_same(model.embed(pixels[0]), want[:1])
    if model.manifest.input.dtype == "uint8":  # what the model itself takes is another thing: not resized
        assert np.abs(model.run_inputs(pixels)["embedding"] - want).max() > 0.01


def test_what_the_model_itself_takes_is_not_preprocessed_again(model, paths) -> None:
    prepared = np.stack([preprocess(load_image(path), model.manifest.preprocessing) for path in paths])
    want = model.embed(paths)
    assert_same(model.run_inputs(prepared)["embedding"], want)
    assert_same(model.run_inputs(prepared, batch=len(paths))["embedding"], want)
    if prepared.dtype == np.float32:
        assert_same(model.embed(prepared), want)
        assert_same(model.embed(list(prepared)), want)
        assert_same(model.embed(prepared[0]), want[:1])


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_a_generator_may_close_its_images_and_reuse_its_buffer(batch, model, paths) -> None:
    def opened():
        for path in paths:
            with Image.open(path) as image:
                yield image

    def buffered(shape, dtype):
        buffer = np.empty(shape, dtype)
        for value in (0, 60, 120, 180, 240):
            buffer[:] = value
            yield buffer

    assert_same(model.embed(opened(), batch), model.embed(paths, batch))
    assert len(np.unique(model.embed(buffered((20, 30, 3), np.uint8), batch).round(3), axis=0)) == 5
    if model.manifest.input.dtype == "float32":
        assert len(np.unique(model.embed(buffered((3, SIDE, SIDE), np.float32), batch).round(3), axis=0)) == 5


def test_a_generator_is_read_only_so_far_ahead(tiny) -> None:
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield np.zeros((8, 8, 3), np.uint8)

    with load(tiny) as model:
        batches = module.batches(endless(), model.manifest, 4)
        next(batches)
        batches.close()
    assert taken <= 4 + 2 * 4 + 1


@pytest.mark.parametrize(
    "images",
    [[], (), iter(()), np.zeros((0, 3, SIDE, SIDE), np.float32), np.zeros((0, 9, 9, 3), np.uint8), np.array([], str)],
)
def test_no_picture_gives_no_row(images, model) -> None:
    got = model.embed(images)
    assert (got.shape, got.dtype) == ((0, model.width), np.float32)


@pytest.mark.parametrize("buffering", [0, -1])
def test_open_files_are_one_picture_each(buffering, model, paths) -> None:
    want = model.embed(paths[:2])
    with paths[0].open("rb", buffering) as first, paths[1].open("rb", buffering) as second:
        assert_same(model.embed(first), want[:1])
        assert_same(model.embed([first, second]), want)


@pytest.mark.parametrize("dtype", [str, object])
def test_an_array_of_paths_is_several_pictures(dtype, model, paths) -> None:
    assert_same(model.embed(np.array([str(path) for path in paths], dtype)), model.embed(paths))
    assert_same(model.embed(np.array(str(paths[0]), dtype)), model.embed(paths[:1]))


def test_no_picture_gives_no_row_of_any_output(make_model, tmp_path, tiny_weights) -> None:
    with load(make_model(tmp_path, outputs=ALL)) as model:
        full = model.run(np.zeros((1, 9, 9, 3), np.uint8))
        assert {name: (array.shape, array.dtype) for name, array in model.run([]).items()} == {
            name: ((0, *array.shape[1:]), array.dtype) for name, array in full.items()
        }


# What can't be used


@functools.cache
def bomb() -> bytes:
    """A PNG of 20,000 x 20,000 pixels, in a few kilobytes."""
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    return file.getvalue()


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


HOSTILE = {
    "no byte": (lambda: b"", r"is empty \(0 bytes\)"),
    "zeros": (lambda: bytes(1000), "holds only zeros at its beginning: damaged"),
    "truncated": (lambda: jpeg()[: len(jpeg()) // 2], "can't be decoded"),
    "a bomb": (bomb, "pixels"),
    "text": (lambda: memoryview(b"GET / HTTP/1.1"), "is damaged"),
    "no file": (lambda: "nowhere.png", "nowhere.png: does not exist"),
    "a folder": (lambda: Path(), "is a folder"),
    "a name with a zero": (lambda: "a\0b", "can't be decoded"),
    "a lazy image, truncated": (lambda: Image.open(io.BytesIO(jpeg()[:900])), "can't be decoded"),
    "a lazy image, closed": (lambda: closed(), "can't be decoded"),
    "32-bit grey": (lambda: Image.new("I", (4, 4)), "32-bit grey"),
    "grey array": (lambda: np.zeros((8, 8), np.uint8), r"an array of uint8 \(8, 8\)"),
    "array with alpha": (lambda: np.zeros((8, 8, 4), np.uint8), r"\(8, 8, 4\)"),
    "array of nothing": (lambda: np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\)"),
    "float array": (lambda: np.zeros((8, 8, 3), np.float32), "float32"),
    "float64 array": (lambda: np.zeros((3, SIDE, SIDE)), "float64"),
    "channels first": (lambda: np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\)"),
    "objects": (lambda: np.array([None]), "object|NoneType"),
    "a number": (lambda: 3, "not int"),
    "nothing": (lambda: None, "not NoneType"),
    "a list": (lambda: ["a.png"], "not list"),
    "a file as text": (lambda: io.StringIO("a.png"), "opened as text"),
    "a file that is awaited": (Upload, "must be awaited: give its `file`"),
    "a closed file": (lambda: closed_file(), "can't be read .ValueError"),
    "an empty file": (io.BytesIO, r"is empty \(0 bytes\)"),
}


def closed_file() -> io.BytesIO:
    file = io.BytesIO(b"x")
    file.close()
    return file


def closed() -> Image.Image:
    image = Image.open(io.BytesIO(jpeg()))
    image.close()
    return image


@pytest.mark.parametrize("place", [0, 1, 5])
@pytest.mark.parametrize("kind", HOSTILE)
def test_what_cannot_be_used_is_named_by_its_number(kind, place, model, paths) -> None:
    make, reason = HOSTILE[kind]
    good = (paths * 2)[:6]
    with pytest.raises(InputError, match=rf"^image {place}: .*{reason}"):
        model.embed([*good[:place], make(), *good[place:]], batch=2)


@pytest.mark.parametrize("kind", [kind for kind in HOSTILE if kind != "a list"])
def test_a_single_picture_that_cannot_be_used_is_refused(kind, model) -> None:
    make, reason = HOSTILE[kind]
    with pytest.raises(InputError, match=reason):
        model.embed(make())


def test_the_first_of_two_bad_pictures_is_named(tiny, paths) -> None:
    with load(tiny) as model, pytest.raises(InputError, match=r"^image 2: "):
        model.embed([*paths[:2], b"", paths[0], b""])


def test_float32_pictures_are_refused_by_a_uint8_model(make_model, tmp_path) -> None:
    with load(make_model(tmp_path, dtype="uint8")) as model:
        with pytest.raises(InputError, match="image 0: is an array of float32"):
            model.embed([np.zeros((3, SIDE, SIDE), np.float32)])
        with pytest.raises(InputError, match="the model takes `images` as uint8"):
            model.embed(np.zeros((1, 3, SIDE, SIDE), np.float32))


def test_what_a_generator_raises_is_passed_on_and_no_thread_is_left(tiny, paths) -> None:
    def failing():
        yield from paths
        raise KeyError("mine")

    before = threading.active_count()
    with load(tiny) as model, pytest.raises(KeyError, match="mine"):
        model.embed(failing())
    assert threading.active_count() == before


def test_nan_is_told_with_the_images_that_it_came_from(make_model, tmp_path) -> None:
    dark, bright = np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 255, np.uint8)
    with (
        load(make_model(tmp_path, nan=True)) as model,
        pytest.raises(CheckError, match=r"^images 2 to 3: .* NaN or infinity in `embedding` for 1 of 2 images"),
    ):
        model.embed([dark, dark, dark, bright, dark], batch=2)


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_bad_pictures_are_skipped_and_reported(batch, model, paths) -> None:
    given = [b"", *paths[:2], "nowhere.png", None, *paths[2:], io.BytesIO(b"x")]
    kept = model.embed(given, batch, on_error="skip")
    assert kept.indices.tolist() == [number for number, one in enumerate(given) if isinstance(one, Path)]
    assert_same(kept.embedding, model.embed(paths))
    assert list(kept.errors) == [0, 3, 4, len(given) - 1]
    assert kept.errors[0] == "is empty (0 bytes)"
    assert kept.errors[3].startswith("nowhere.png: does not exist")


def test_a_picture_that_gave_nan_is_skipped_alone(make_model, tmp_path) -> None:
    dark, bright = np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 255, np.uint8)
    with load(make_model(tmp_path, nan=True)) as model:
        kept = model.run([dark, b"", bright, dark], on_error="skip")
    assert (kept.indices.tolist(), list(kept.errors)) == ([0, 3], [1, 2])
    assert "NaN or infinity" in kept.errors[2]
    assert np.isfinite(kept.embedding).all()


def test_an_input_with_nan_is_skipped_alone(tiny) -> None:
    given = np.zeros((3, 3, SIDE, SIDE), np.float32)
    given[1, 0, 0, 0] = np.nan
    with load(tiny) as model:
        kept = model.embed(given, on_error="skip")
    assert (kept.indices.tolist(), kept.errors) == ([0, 2], {1: "is an array that holds NaN or infinity"})


@pytest.mark.parametrize("given", [[], [b""]], ids=["none", "only a bad one"])
def test_skipping_may_leave_no_row(given, tiny) -> None:
    with load(tiny) as model:
        kept = model.embed(given, on_error="skip")
    assert (kept.embedding.shape, kept.indices.tolist(), len(kept.errors)) == ((0, model.width), [], len(given))


def test_an_unknown_word_for_errors_is_refused(tiny, paths) -> None:
    with load(tiny) as model, pytest.raises(UsageError, match="on_error='ignore': give 'raise' or 'skip'"):
        model.embed(paths, on_error="ignore")


# Other outputs, and what a model says of itself


def test_run_gives_every_output_or_those_asked_for(make_model, tmp_path, paths, tiny_weights) -> None:
    with load(make_model(tmp_path, outputs=ALL)) as model:
        got = model.run(paths, batch=3)
        assert tuple(got) == model.outputs == ALL
        pixels = np.stack([preprocess(load_image(path), model.manifest.preprocessing) for path in paths])
        want = tiny_weights.outputs(pixels)
        for name in ALL:
            np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-4)
        assert tuple(model.run(paths[0], ["artifact_mask"])) == ("artifact_mask",)
        assert_same(model.embed(paths, 3), got["embedding"])


def test_run_refuses_an_output_that_the_model_lacks(tiny, paths) -> None:
    with load(tiny) as model, pytest.raises(UsageError, match="no output `patch_tokens`, only embedding"):
        model.run(paths, ["patch_tokens"])


def test_a_model_tells_its_name_and_width(tiny) -> None:
    with load(tiny) as model:
        assert (model.name, model.width, model.outputs) == ("tiny.onnx", 6, ("embedding",))
        assert repr(model).startswith("<Model tiny.onnx: vits14, fp32, 6 wide, on ONNX Runtime ")
        assert model.embed(np.zeros((2, 3, SIDE, SIDE), np.float32)).shape == (2, model.width)


def test_public_names_are_there() -> None:
    assert runtime.Model is Model
    assert runtime.ItaeError is ItaeError
    assert {name for name in runtime.__all__ if not hasattr(runtime, name)} == set()
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = runtime.Nothing


# Threads


def test_many_threads_get_what_one_gets(model, pictures) -> None:
    files = sorted(pictures.rglob("*.*"))
    want = {path: model.embed(path) for path in files}

    def work(number: int) -> bool:
        mine = files[number % 8 :] + files[: number % 8]
        assert_same(model.embed(mine, 1 + number % 3), np.concatenate([want[path] for path in mine]))
        return True

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(work, range(60)))


def test_threads_may_share_an_image_that_is_not_decoded_yet(tiny, tmp_path) -> None:
    path = tmp_path / "large.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)).save(path)
    with load(tiny) as model, ThreadPoolExecutor(8) as pool:
        want = model.embed(path)
        for _ in range(5):
            image = Image.open(path)
            for got in pool.map(model.embed, [image] * 8):
                assert_same(got, want)
            assert_same(model.embed([Image.open(path)] * 4), np.repeat(want, 4, axis=0))


@pytest.fixture
def twelve_bit(tmp_path) -> tuple[Path, Path]:
    """A picture of 8 bits, and the same in 12 bits of a 16-bit file."""
    grey = np.random.default_rng(3).integers(0, 256, (40, 50))
    grey[0, :2] = 0, 255
    eight, twelve = tmp_path / "eight.png", tmp_path / "twelve.png"
    Image.fromarray(grey.astype(np.uint8)).save(eight)
    Image.fromarray(np.round(grey * (4095 / 255)).astype(np.uint16)).save(twelve)
    return eight, twelve


def test_twelve_bits_are_widened_on_demand_and_remarked_on_however_they_are_given(tiny, twelve_bit, caplog) -> None:
    eight, twelve = twelve_bit
    with load(tiny) as model:
        want = model.embed(eight)
        assert not caplog.records
        assert np.abs(model.embed(twelve) - want).max() > 0.5
        assert [one.getMessage() for one in caplog.records] == [f"{Note.FEW_BITS.text}: 1"]
        caplog.clear()
        for given in (twelve, twelve.read_bytes(), io.BytesIO(twelve.read_bytes()), Image.open(twelve)):
            np.testing.assert_allclose(model.embed(given, sixteen_bit="auto"), want, atol=1e-5)
        found = model.run([twelve] * 3, sixteen_bit="auto")
        np.testing.assert_allclose(found["embedding"], np.repeat(want, 3, axis=0), atol=1e-5)
        assert caplog.records[-1].getMessage() == f"{Note.WIDENED.text}: 3"  # once a call


def test_remarks_are_returned_by_number_where_errors_are(tiny, twelve_bit, caplog) -> None:
    eight, twelve = twelve_bit
    with load(tiny) as model:
        kept = model.embed([eight, b"no picture", twelve, Image.open(twelve)], on_error="skip")
        assert kept.notes == {2: (Note.FEW_BITS,), 3: (Note.FEW_BITS,)}
        assert list(kept.errors) == [1]
        kept = model.run([twelve, eight], on_error="skip", sixteen_bit="auto")
        assert kept.notes == {0: (Note.WIDENED,)}
    assert not caplog.records


@pytest.mark.parametrize("wrong", ["12", "Auto", None, True])
def test_another_sixteen_bit_is_refused(tiny, twelve_bit, wrong) -> None:
    with load(tiny) as model, pytest.raises(UsageError, match="sixteen_bit"):
        model.embed(twelve_bit, sixteen_bit=wrong)


def test_pictures_are_decoded_by_several_threads(tiny, paths, monkeypatch) -> None:
    met = threading.Barrier(2, timeout=20)  # broken, so an error, where one thread decodes all

    def together(*given):
        met.wait()
        return load_image(*given)

    monkeypatch.setattr(module, "load_image", together)
    monkeypatch.setattr("runtime.images.batches.usable_cores", lambda: 2)
    with load(tiny) as model:
        assert model.embed(paths[:2]).shape == (2, 6)


class SlowSession:
    """A `Session` whose runs wait for `go`; it tells of a run that was going on when it was closed."""

    name = "slow"

    def __init__(self, manifest) -> None:
        self.manifest = manifest
        self.running, self.go = threading.Event(), threading.Event()
        self.inside = 0
        self.closed_amid = False

    def run(self, batch, outputs=None):
        self.inside += 1
        self.running.set()
        assert self.go.wait(20)
        self.inside -= 1
        return {name: np.zeros((len(batch), 6), np.float32) for name in check_names(self.manifest, outputs)}

    def close(self) -> None:
        self.closed_amid = self.inside > 0


def test_closing_waits_for_the_batch_that_another_thread_runs(tiny) -> None:
    with load(tiny) as real:
        session = SlowSession(real.manifest)
    model = Model(session)
    with ThreadPoolExecutor(2) as pool:
        embedding = pool.submit(model.embed, np.zeros((4, 3, SIDE, SIDE), np.float32), 2)
        assert session.running.wait(20)
        closing = pool.submit(model.close)
        time.sleep(0.05)
        assert not closing.done()
        session.go.set()
        closing.result(20)
        assert not session.closed_amid
        with pytest.raises(UsageError, match="the model is closed"):  # its second batch
            embedding.result(20)


def test_closing_under_threads_that_embed_ends_in_results_or_a_clear_error(make_model, tmp_path) -> None:
    path = make_model(tmp_path)
    inputs = np.random.default_rng(0).standard_normal((64, 3, SIDE, SIDE), np.float32)
    with load(path) as model:
        want = model.embed(inputs)
    ended = {"result": 0, "the model is closed": 0}
    for _ in range(20):
        model = load(path)
        begun = threading.Barrier(7)

        def work(model=model, begun=begun) -> str:
            begun.wait()
            try:
                for _ in range(30):
                    assert_same(model.embed(inputs, 4), want)
            except UsageError as error:
                return str(error)
            return "result"

        with ThreadPoolExecutor(6) as pool:
            tasks = [pool.submit(work) for _ in range(6)]
            begun.wait()
            time.sleep(0.01)
            model.close()
            model.close()
            for task in tasks:
                ended[task.result(60)] += 1
    assert ended["the model is closed"] > 0


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_a_model_embeds_what_its_manifests_fit_shows_it(fit, make_model, tmp_path) -> None:
    path = make_model(tmp_path / "model")
    if fit != "crop":
        reseal(path, lambda fields: fields["preprocessing"].update(fit=fit, resize_cover=None))
    first = Image.fromarray(np.random.default_rng(9).integers(0, 256, (80, 120, 3), dtype=np.uint8))
    second = first.copy()
    second.paste((255, 0, 255), (0, 0, 6, 80))
    with load(path) as model:
        vectors = model.embed([first, second])
        expected = model.run(np.stack([preprocess(one, model.manifest.preprocessing) for one in (first, second)]))
    np.testing.assert_array_equal(vectors, expected["embedding"])
    assert np.array_equal(*vectors) == (fit == "crop")
