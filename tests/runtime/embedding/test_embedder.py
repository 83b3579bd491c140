"""Images from sources into a store: each is a row or a line of errors, once, whatever happened before."""

import contextlib
import functools
import json
import shutil
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from runtime.backends import open_session
from runtime.backends.session import NOT_FINITE
from runtime.contract.errors import BackendError, CheckError, InputError, UsageError
from runtime.contract.manifest import read_manifest
from runtime.contract.progress import Silent
from runtime.embedding import stream
from runtime.embedding.embedder import embed_sources
from runtime.embedding.stream import embed_stream
from runtime.images.decode import load_image
from runtime.images.preprocess import preprocess
from runtime.sources import open_sources
from runtime.sources.item import Item, Unreadable
from runtime.store import Store
from runtime.store.moved import Moved
from runtime.store.writer import open_writer

TOLERANCE = 1e-4
"""Of float32 sums over 588 products against float64; the figures are of order 1."""


@dataclass
class Told(Silent):
    """A progress that remembers."""

    last: tuple[int, int, int] = (0, 0, 0)

    def show(self, embedded, present, failed) -> None:
        self.last = embedded, present, failed


def embed(path, arguments, out, *, progress=None, origin=None, max_failures=None, moved=None, **options):
    """A run of the command, without the command."""
    with open_writer(out, origin or {}) as writer:
        sources = open_sources([str(argument) for argument in arguments])
        with contextlib.closing(open_session(path)) as session:
            return embed_sources(
                functools.partial(embed_stream, session, **options),
                sources,
                writer,
                progress or Silent(),
                max_failures=max_failures,
                moved=moved,
            )


def expected(weights, path, files) -> np.ndarray:
    """The embeddings by the tiny model's own arithmetic."""
    how = read_manifest(path).preprocessing.model_copy(
        update={"dtype": "float32", "layout": "NCHW", "normalized_by": "caller"}
    )
    return weights.outputs(np.stack([preprocess(load_image(file), how) for file in files]))["embedding"]


def files_of(store: Store) -> list[str]:
    return [f"{root}/{path}" for root, path in store.images()]


def errors_of(out) -> dict[str, str]:
    lines = (out / "_errors.jsonl").read_text().splitlines()
    return {record["path"]: record["error"] for record in map(json.loads, lines)}


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch", [1, 3, 8, 100, None])
def test_store_gets_the_embedding_of_each_image_in_order(
    batch, workers, dtype, make_model, pictures, tmp_path, tiny_weights
) -> None:
    path = make_model(tmp_path / "model", dtype=dtype)
    outcome = embed(path, [pictures], tmp_path / "out", batch=batch, workers=workers)
    assert (outcome.embedded, outcome.present, outcome.failed, outcome.missing) == (8, 0, 0, 0)
    store = Store(tmp_path / "out")
    files = sorted(pictures.rglob("*.*"))
    assert files_of(store) == [str(file) for file in files]
    np.testing.assert_allclose(store.load(), expected(tiny_weights, path, files), rtol=0, atol=TOLERANCE)
    assert len({row.tobytes() for row in store.load()}) == 8  # so that an order mixed up would show


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_what_cannot_be_read_is_recorded_and_the_rest_embedded(batch, tiny, pictures, tmp_path) -> None:
    (pictures / "cats" / "0.png").write_bytes(b"")
    (pictures / "cats" / "1.png").write_bytes((pictures / "cats" / "1.png").read_bytes()[:60])
    (pictures / "dogs" / "z.png").symlink_to("nowhere")
    told = Told()
    outcome = embed(tiny, [pictures], tmp_path / "out", batch=batch, progress=told)
    assert (outcome.embedded, outcome.failed) == (6, 3)
    assert told.last == (6, 0, 3)
    errors = errors_of(tmp_path / "out")
    assert list(errors) == ["cats/0.png", "cats/1.png", "dogs/z.png"]
    assert errors["cats/0.png"] == "is empty (0 bytes)"
    assert [path for _, path in Store(tmp_path / "out").images()] == [
        "cats/2.png",
        "cats/3.png",
        *[f"dogs/deep/{number}.jpg" for number in range(4, 8)],
    ]


def test_embeddings_do_not_depend_on_what_was_unreadable_beside_them(tiny, pictures, tmp_path) -> None:
    embed(tiny, [pictures], tmp_path / "all", batch=3)
    (pictures / "cats" / "1.png").write_bytes(b"")
    embed(tiny, [pictures], tmp_path / "rest", batch=3)
    everything, rest = Store(tmp_path / "all").read(), Store(tmp_path / "rest").read()
    kept = [everything.paths.index(path) for path in rest.paths]
    assert len(kept) == 7
    np.testing.assert_allclose(rest.vectors, everything.vectors[kept], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("batch", "batches"), [(1, [1] * 7), (3, [3, 3, 1]), (100, [7])])
def test_batches_are_filled_across_what_is_unreadable(batch, batches, tiny, pictures) -> None:
    (pictures / "cats" / "1.png").write_bytes(b"")
    with contextlib.closing(open_session(tiny)) as session:
        entries = open_sources([str(pictures)]).items()
        given = list(embed_stream(session, entries, lambda problem: None, batch=batch))
    assert [len(batch.paths) for batch in given] == batches


def test_nan_is_an_error_of_that_image_and_never_stored(make_model, pictures, tmp_path) -> None:
    Image.new("RGB", (50, 50), "white").save(pictures / "cats" / "bright.png")
    Image.new("RGB", (50, 50), "black").save(pictures / "cats" / "dark.png")
    path = make_model(tmp_path / "bad", nan=True)
    outcome = embed(path, [pictures], tmp_path / "out", batch=4)
    errors = errors_of(tmp_path / "out")
    assert errors["cats/bright.png"] == NOT_FINITE
    assert "cats/dark.png" not in errors
    assert outcome.failed == len(errors)
    assert outcome.embedded == 10 - len(errors)
    assert np.isfinite(Store(tmp_path / "out").load()).all()
    assert "cats/bright.png" not in Store(tmp_path / "out").read().paths


# Going on


def test_only_what_is_missing_is_embedded(tiny, pictures, tmp_path) -> None:
    embed(tiny, [pictures / "cats"], tmp_path / "out")
    before = Store(tmp_path / "out").read()
    Image.new("RGB", (9, 9), "red").save(pictures / "cats" / "added.png")
    (pictures / "cats" / "2.png").unlink()
    told = Told()
    outcome = embed(tiny, [pictures / "cats"], tmp_path / "out", progress=told)
    assert (outcome.embedded, outcome.present, outcome.missing) == (1, 3, 1)
    assert outcome.first_missing == (f"{pictures}/cats/2.png",)
    assert told.last == (1, 3, 0)
    after = Store(tmp_path / "out").read()
    assert after.paths == [*before.paths, "added.png"]
    np.testing.assert_array_equal(after.vectors[:4], before.vectors)


def test_what_failed_is_tried_again(tiny, pictures, tmp_path) -> None:
    picture = pictures / "cats" / "1.png"
    good = picture.read_bytes()
    picture.write_bytes(b"")
    assert embed(tiny, [pictures], tmp_path / "out").failed == 1
    picture.write_bytes(good)
    outcome = embed(tiny, [pictures], tmp_path / "out")
    assert (outcome.embedded, outcome.present, outcome.failed) == (1, 7, 0)
    assert errors_of(tmp_path / "out") == {}


def test_a_run_with_nothing_to_do_changes_no_file(tiny, pictures, tmp_path) -> None:
    embed(tiny, [pictures], tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    outcome = embed(tiny, [pictures], tmp_path / "out")
    assert (outcome.embedded, outcome.present) == (0, 8)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_two_runs_write_the_same_bytes(tiny, pictures, tmp_path) -> None:
    for name in ("a", "b"):
        embed(tiny, [pictures], tmp_path / name, workers=3)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_images_that_moved_are_known_by_their_old_root(tiny, pictures, tmp_path) -> None:
    embed(tiny, [pictures], tmp_path / "out")
    moved = pictures.rename(tmp_path / "elsewhere")
    Image.new("RGB", (9, 9), "red").save(moved / "added.png")
    (moved / "bad.png").touch()
    outcome = embed(tiny, [moved], tmp_path / "out", moved=Moved.parse([f"{pictures}={moved}"], [str(pictures)]))
    assert (outcome.embedded, outcome.present, outcome.failed, outcome.missing) == (1, 8, 1, 0)
    assert {root for root, _ in Store(tmp_path / "out").images()} == {str(pictures)}
    assert json.loads((tmp_path / "out" / "_errors.jsonl").read_text())["root"] == str(pictures)


def test_images_from_both_places_of_a_folder_that_moved_are_refused_not_doubled(tiny, pictures, tmp_path) -> None:
    embed(tiny, [pictures], tmp_path / "out")
    moved = shutil.copytree(pictures, tmp_path / "elsewhere")
    for folder in (pictures, moved):
        Image.new("RGB", (9, 9), "red").save(folder / "added.png")
    names = Moved.parse([f"{pictures}={moved}"], [str(pictures)])
    with pytest.raises(UsageError, match=f"some are taken from {pictures}: leave out one"):
        embed(tiny, [moved, pictures], tmp_path / "out", moved=names)
    assert embed(tiny, [moved], tmp_path / "out", moved=names).missing == 0
    assert len(set(Store(tmp_path / "out").images())) == len(Store(tmp_path / "out")) == 9


# Ending early


@pytest.mark.parametrize(("share", "stops"), [(0.0, True), (0.3, True), (0.37, True), (0.38, False), (1.0, False)])
def test_too_many_failures_end_the_run(share, stops, tiny, pictures, tmp_path) -> None:
    for number in range(3):  # of eight: 37.5 %
        (pictures / "cats" / f"{number}.png").write_bytes(b"")
    if not stops:
        assert embed(tiny, [pictures], tmp_path / "out", max_failures=share).embedded == 5
        return
    with pytest.raises(CheckError, match=rf"of \d images failed, more than --max-failures {share:g} allows; "):
        embed(tiny, [pictures], tmp_path / "out", max_failures=share)


def test_too_many_failures_end_the_run_early(tiny, pictures, tmp_path) -> None:
    for number in range(200):
        (pictures / "cats" / f"bad{number:03}.png").touch()
    with pytest.raises(CheckError, match=r"^21 of "):
        embed(tiny, [pictures], tmp_path / "out", max_failures=0.1)
    assert len(errors_of(tmp_path / "out")) == 21


def test_what_was_embedded_before_the_model_failed_is_kept(tiny, pictures, tmp_path) -> None:
    real = open_session(tiny)

    class Failing:
        manifest, name = real.manifest, "failing"

        def stream(self, batches, outputs=None):
            for number, given in enumerate(real.stream(batches, outputs)):
                if number == 2:
                    raise BackendError("out of memory")
                yield given

    def run() -> None:
        with contextlib.closing(real), open_writer(tmp_path / "out", {}) as writer:
            failing = functools.partial(embed_stream, Failing(), batch=3)
            embed_sources(failing, open_sources([str(pictures)]), writer, Silent())

    with pytest.raises(BackendError, match="out of memory"):
        run()
    assert len(Store(tmp_path / "out")) == 6
    assert embed(tiny, [pictures], tmp_path / "out").embedded == 2


def test_a_source_that_fails_ends_the_run_with_its_error(tiny) -> None:
    def entries():
        raise InputError("the tar is damaged")
        yield

    with contextlib.closing(open_session(tiny)) as session, pytest.raises(InputError, match="the tar is damaged"):
        list(embed_stream(session, entries(), lambda problem: None))


def test_model_without_embedding_is_refused(make_model, tmp_path) -> None:
    path = make_model(tmp_path / "model", outputs=("patch_tokens",))
    with contextlib.closing(open_session(path)) as session, pytest.raises(UsageError, match="no output `embedding`"):
        list(embed_stream(session, iter(()), lambda problem: None))


# Memory and threads


def png(side: int = 20) -> bytes:
    import io

    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "PNG")
    return file.getvalue()


def test_a_source_is_read_only_so_far_ahead(tiny) -> None:
    content, taken = png(), 0

    def entries():
        nonlocal taken
        for number in range(10_000):
            taken += 1
            yield Item("/r", f"{number}.png", content)

    with contextlib.closing(open_session(tiny)) as session:
        stream = embed_stream(session, entries(), lambda problem: None, batch=4, workers=2)
        for _ in range(3):
            next(stream)
        time.sleep(0.3)
        assert taken <= 3 * 4 + (2 * 4 + 2) + 4 + 2
        stream.close()


def test_large_files_do_not_pile_up_in_memory(tiny, monkeypatch) -> None:
    monkeypatch.setattr(stream, "_WAITING_BYTES", 2500)
    alive = peak = 0

    class File(bytes):
        def __new__(cls, size):
            nonlocal alive, peak
            alive += 1
            peak = max(peak, alive)
            return super().__new__(cls, size)

        def __del__(self):
            nonlocal alive
            alive -= 1

    def decode(item, *how):
        time.sleep(0.005)
        return Image.new("RGB", (20, 20))

    monkeypatch.setattr(stream, "load_item", decode)
    sizes = [1000] * 40 + [9000] + [1000] * 40
    with contextlib.closing(open_session(tiny)) as session:
        entries = (Item("/r", f"{number}.png", File(size)) for number, size in enumerate(sizes))
        given = list(embed_stream(session, entries, lambda problem: None, batch=4, workers=4))
    assert sum(len(batch.paths) for batch in given) == 81
    assert peak <= 5  # two that wait or are decoded, one that was asked for, what a thread has just let go


def test_threads_end_with_the_stream(tiny) -> None:
    content = png()
    before = threading.active_count()
    with contextlib.closing(open_session(tiny)) as session:
        entries = (Item("/r", f"{number}.png", content) for number in range(1000))
        stream = embed_stream(session, entries, lambda problem: None, batch=4, workers=3)
        next(stream)
        assert threading.active_count() > before
        stream.close()
    for _ in range(100):
        if threading.active_count() == before:
            break
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_decoder_out_of_memory_is_an_error_of_that_image(tiny, monkeypatch) -> None:
    def decode(item, *how):
        if item.path == "1.png":
            raise MemoryError
        return Image.new("RGB", (20, 20))

    monkeypatch.setattr(stream, "load_item", decode)
    problems = []
    with contextlib.closing(open_session(tiny)) as session:
        entries = (Item("/r", f"{number}.png") for number in range(3))
        (batch,) = embed_stream(session, entries, problems.append)
    assert batch.paths == ["0.png", "2.png"]
    assert problems == [Unreadable("/r", "1.png", "there is not enough memory to decode it")]
