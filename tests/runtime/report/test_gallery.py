"""The picture has a row for each cluster, its images in order, and a placeholder for what can't be read."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.contract.labels import NOISE
from runtime.report import gallery as gallery_module
from runtime.report.gallery import MAX_IMAGES, MAX_ROWS, TILE, Cluster, Gallery, Key, count, draw_gallery
from runtime.sources import read_image

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)
PURPLE = (190, 0, 190)


def image_file(folder: Path, name: str, color: tuple[int, int, int] = RED, size: tuple[int, int] = (40, 30)) -> Key:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, format="PNG")
    return str(folder), name


def pixels(gallery: Gallery) -> np.ndarray:
    with Image.open(io.BytesIO(gallery.png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def test_each_cluster_is_a_row_and_its_images_stand_in_order(tmp_path):
    red, green, blue = (image_file(tmp_path, f"{number}.png", color) for number, color in enumerate((RED, GREEN, BLUE)))
    gallery = draw_gallery([Cluster(0, 5, [red, green, green]), Cluster(1, 2, [blue, red])], read_image)
    assert (gallery.clusters, gallery.images, gallery.unreadable) == (2, 5, ())
    picture = pixels(gallery)
    columns = [np.flatnonzero((picture == color).all(axis=2).any(axis=0)) for color in (RED, GREEN, BLUE)]
    rows = [np.flatnonzero((picture == color).all(axis=2).any(axis=1)) for color in (RED, GREEN, BLUE)]
    assert rows[1].max() < rows[2].min()  # green only in the first row, blue only in the second
    assert columns[0].min() == columns[2].min()  # red is the first of the first row, blue of the second
    assert columns[1].min() > columns[2].max()
    assert len(columns[1]) == 2 * TILE  # two green ones
    assert len(rows[1]) == len(rows[2]) == TILE


def test_every_row_has_a_label_and_the_labels_differ(tmp_path):
    red = image_file(tmp_path, "red.png")
    picture = pixels(draw_gallery([Cluster(0, 1, [red]), Cluster(1, 1, [red]), Cluster(1, 1, [red])], read_image))
    tops = np.flatnonzero(np.diff((picture == RED).all(axis=2).any(axis=1).astype(int)) == 1) + 1
    labels = [picture[top : top + TILE, : np.flatnonzero((picture[top] == RED).all(axis=1))[0]] for top in tops]
    assert len(labels) == 3
    assert (labels[0] < 128).any()  # dark ink on white
    assert not np.array_equal(labels[0], labels[1])
    assert np.array_equal(labels[1], labels[2])


@pytest.mark.parametrize("count", [1, MAX_IMAGES, MAX_IMAGES + 1])
def test_a_row_holds_so_many_images_at_most(tmp_path, count):
    red = image_file(tmp_path, "red.png")
    gallery = draw_gallery([Cluster(0, count, [red] * count)], read_image)
    assert gallery.images == min(count, MAX_IMAGES)
    row = (pixels(gallery) == RED).all(axis=2).any(axis=0)
    assert row.sum() == gallery.images * TILE


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_the_picture_has_so_many_rows_at_most_and_its_height_follows(tmp_path, monkeypatch, count):
    red = image_file(tmp_path, "red.png", size=(1, 1))
    monkeypatch.setattr(gallery_module, "MAX_ROWS", 3)
    gallery = draw_gallery([Cluster(number, 1, [red]) for number in range(count)], read_image)
    assert gallery.clusters == min(count, 3)
    picture = pixels(gallery)
    assert (picture == RED).all(axis=2).any(axis=1).sum() == gallery.clusters * TILE
    assert gallery.clusters * TILE < len(picture) < gallery.clusters * TILE + 150


def test_the_largest_picture_opens_anywhere(tmp_path):
    red = image_file(tmp_path, "red.png", size=(1, 1))
    height, width, _ = pixels(
        draw_gallery([Cluster(i, 99, [red] * MAX_IMAGES) for i in range(MAX_ROWS)], read_image)
    ).shape
    assert height < 16_384  # the textures of graphics cards, and so many viewers, end there
    assert width < 1_600


def test_left_out_clusters_and_unreadable_images_are_told_in_the_picture():
    clusters = [Cluster(number, 2, [("/nowhere", "x.png")]) for number in range(MAX_ROWS + 2)]
    header = gallery_module._header(clusters, 3)
    assert header[0] == "204 images in 102 clusters"
    assert f"only the first {MAX_ROWS} clusters are drawn, not the other 2 with 4 images" in header
    assert "crossed out: 3 images that can't be read any more" in header
    assert len(gallery_module._header(clusters[:1], 0)) == 2


@pytest.mark.parametrize(
    ("clusters", "words"),
    [(MAX_ROWS, "not the noise with 9 images"), (MAX_ROWS + 2, "not the other 2 and the noise with 13 images")],
)
def test_noise_that_is_left_out_is_no_cluster(clusters, words):
    rows = [Cluster(number, 2, []) for number in range(clusters)] + [Cluster(NOISE, 9, [])]
    assert any(words in line for line in gallery_module._header(rows, 0))


def unreadable(folder: Path, case: str) -> Key:
    path = folder / "x.png"
    if case == "truncated":
        Image.effect_noise((200, 200), 90).convert("RGB").save(path)
        os.truncate(path, 500)
    elif case == "empty":
        path.touch()
    elif case == "text":
        path.write_text("not an image")
    elif case == "a folder":
        path.mkdir()
    elif case == "a pipe":
        os.mkfifo(path)
    elif case == "a link to itself":
        path.symlink_to(path)
    elif case == "nul in its name":
        return str(folder), "x.png\0"
    elif case == "too long a name":
        return str(folder), "x" * 300
    return str(folder), "x.png"


@pytest.mark.parametrize(
    "case",
    ["gone", "truncated", "empty", "text", "a folder", "a pipe", "a link to itself", "nul in its name",
     "too long a name"],
)  # fmt: skip
def test_an_unreadable_image_is_a_tile_of_its_own_color_and_never_fatal(tmp_path, monkeypatch, case):
    monkeypatch.setattr(gallery_module, "_GREY", PURPLE)  # the edges of letters have every grey
    bad = unreadable(tmp_path, case)
    red = image_file(tmp_path, "red.png")
    gallery = draw_gallery([Cluster(0, 3, [red, bad, red])], read_image)
    assert gallery.unreadable == (bad,)
    picture = pixels(gallery)
    middle = np.flatnonzero((picture == PURPLE).all(axis=2).any(axis=0))
    reds = np.flatnonzero((picture == RED).all(axis=2).any(axis=0))
    assert len(middle) == TILE
    assert reds.min() < middle.min() < middle.max() < reds.max()


@pytest.mark.parametrize("name", ["é 猫.png", "new\nline.png", "[red]x[/].png", "'\"; %s {0}.png", "no suffix"])
def test_hostile_names_are_drawn_like_others(tmp_path, name):
    assert draw_gallery([Cluster(0, 1, [image_file(tmp_path, name)])], read_image).unreadable == ()


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000), (TILE, TILE)], ids=str)
def test_an_image_of_any_shape_fills_its_tile(tmp_path, size):
    picture = pixels(draw_gallery([Cluster(0, 1, [image_file(tmp_path, "x.png", size=size)])], read_image))
    assert (picture == RED).all(axis=2).sum() == TILE * TILE


def test_an_image_is_shown_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: what lies on the left comes to the top
    half = Image.new("RGB", (100, 100), BLUE)
    half.paste(RED, (0, 0, 50, 100))
    half.save(tmp_path / "x.png", exif=exif)
    picture = pixels(draw_gallery([Cluster(0, 1, [(str(tmp_path), "x.png")])], read_image))
    red_rows, blue_rows = (np.flatnonzero((picture == color).all(axis=2).any(axis=1)) for color in (RED, BLUE))
    assert red_rows.max() < blue_rows.min()


def test_the_same_clusters_give_the_same_bytes(tmp_path):
    clusters = [Cluster(0, 2, [image_file(tmp_path, f"{number}.png") for number in range(8)])]
    assert draw_gallery(clusters, read_image).png == draw_gallery(clusters, read_image).png


@pytest.mark.parametrize(("number", "words"), [(0, "0 images"), (1, "1 image"), (1234, "1,234 images")])
def test_numbers_are_written_with_their_noun(number, words):
    assert count(number, "image") == words
