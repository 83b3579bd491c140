"""Thumbnails keep to their budget and come from any source; the file replaces another whole or not at all."""

import io
import tarfile

import pytest
from PIL import Image
from preprocessing import standard_preprocessing
from reports import HUES, noise, parse, picture, small_report

from runtime.contract.errors import OutputFileError, UsageError
from runtime.report import Cluster, Report, Shown, check_target, write, write_report
from runtime.report.thumbnails import BUDGET, Wanted, make_thumbnails
from runtime.sources import read_image
from runtime.sources.at_hand import at_hand


def opened(webp: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(webp))
    assert image.format == "WEBP"
    return image


def test_a_thumbnail_is_the_middle_of_the_image(tmp_path):
    whole = Image.new("RGB", (300, 100), HUES[0])
    whole.paste(HUES[2], (100, 0, 200, 100))
    whole.save(tmp_path / "x.png")
    (webp,) = make_thumbnails([Wanted((str(tmp_path), "x.png"), 96)], read_image)
    small = opened(webp).convert("RGB")
    assert small.size == (96, 96)
    for place in ((2, 2), (93, 48), (48, 93)):
        assert max(abs(a - b) for a, b in zip(small.getpixel(place), HUES[2], strict=True)) < 16


def test_a_tiny_image_is_not_enlarged(tmp_path):
    (webp,) = make_thumbnails([Wanted(picture(tmp_path, "x.png", size=(20, 40)), 96)], read_image)
    assert opened(webp).size == (40, 40)


def test_the_models_view_is_its_crop(tmp_path):
    whole = Image.new("RGB", (400, 100), HUES[0])
    whole.paste(HUES[2], (160, 0, 240, 100))
    whole.save(tmp_path / "x.png")
    how = standard_preprocessing((42, 28), "uint8").model_copy(update={"resize_cover": (50, 50), "crop": (40, 30)})
    wanted = Wanted((str(tmp_path), "x.png"), 224, how)
    (webp,) = make_thumbnails([wanted], read_image)
    small = opened(webp).convert("RGB")
    assert small.size == (30, 40)
    assert max(abs(a - b) for a, b in zip(small.getpixel((2, 20)), HUES[2], strict=True)) < 24


def test_what_cannot_be_read_is_none_and_the_others_go_on(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    good = picture(tmp_path, "good.png")
    keys = [(str(tmp_path), "gone.png"), good, (str(tmp_path), "text.png"), (str(tmp_path), "../../etc/passwd")]
    made = make_thumbnails([Wanted(key, 64) for key in keys], read_image)
    assert [webp is not None for webp in made] == [False, True, False, False]


def test_an_image_inside_a_tar_is_found(tmp_path):
    picture(tmp_path, "x.png")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(tmp_path / "x.png", "a/x.png")
    (webp,) = make_thumbnails([Wanted((str(tmp_path / "t.tar"), "a/x.png"), 64)], read_image)
    assert webp is not None


@pytest.mark.parametrize("budget", [200_000, 40_000, 12_000])
def test_what_compresses_worst_keeps_to_the_budget(tmp_path, budget):
    keys = [noise(tmp_path, f"{number}.png", number) for number in range(20)]
    wanted = [Wanted(key, 96 if number % 2 else 64) for number, key in enumerate(keys)]
    sizes = [len(webp) for webp in make_thumbnails(wanted, read_image, budget)]
    assert 0 < sum(sizes) <= budget
    assert sum(sizes) > budget / 20  # and it is used


def test_the_largest_report_keeps_below_15_megabytes(tmp_path):
    """As many images as there can be, of noise: 3,000 on contact sheets, 2,000 on the map."""
    noise(tmp_path, "x.png", 0)
    names = [f"{number}.png" for number in range(40)]
    for name in names:
        (tmp_path / name).symlink_to(tmp_path / "x.png")
    side, map_side = 96, 64
    wanted = [Wanted((str(tmp_path), name), side) for name in names[:24]]
    wanted += [Wanted((str(tmp_path), name), map_side) for name in names[24:]]
    share = sum(one.side**2 for one in wanted) / (3000 * side**2 + 2000 * map_side**2)
    made = make_thumbnails(wanted, read_image, int(BUDGET * share))
    assert sum(map(len, made)) <= BUDGET * share
    assert min(opened(webp).width for webp in made) >= 32
    assert BUDGET * 4 / 3 < 15e6 - 2.5e6  # so much is left for markup and the map's data


def test_an_image_that_is_gone_is_a_placeholder_with_words(tmp_path):
    report = small_report(tmp_path / "images")
    gone = report.clusters[0].central[0].key
    (tmp_path / "images" / gone[1]).unlink()
    written = write_report(tmp_path / "r.html", report, at_hand)
    assert written.unreadable == (gone,)
    assert written.images == 18
    page = parse(tmp_path / "r.html")
    (placeholder, *_) = page.all("span", class_="missing")
    assert placeholder["role"] == "img"
    assert f"{gone[1]};" in placeholder["aria-label"]
    assert "can't be read any more" in placeholder["aria-label"]
    assert page.map()["thumbnail"][page.map()["name"].index(gone[1])] == ""


def test_an_image_is_read_where_it_lies_now(tmp_path):
    key = picture(tmp_path / "new", "x.png")
    report = Report("t", [], clusters=[Cluster(0, 1, [Shown(key)])])
    assert write_report(tmp_path / "r.html", report, at_hand).unreadable == ()


def test_another_file_is_replaced_and_the_size_told(tmp_path):
    target = tmp_path / "r.html"
    target.write_text("old")
    written = write_report(target, Report("new", []), at_hand)
    assert target.read_text().startswith("<!doctype html>")
    assert target.stat().st_size == written.bytes


def test_a_report_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    target = tmp_path / "r.html"
    target.write_text("old")

    def fail(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime.contract.atomic.os.fsync", fail)
    with pytest.raises(OutputFileError, match="No space left"):
        write_report(target, Report("new", []), at_hand)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("r.html", "old")]


def test_targets_that_are_no_file_are_refused(tmp_path):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(OutputFileError, match="a folder is in its place"):
        check_target(tmp_path / "folder.html")
    with pytest.raises(OutputFileError, match="does not exist; make it first"):
        check_target(tmp_path / "no" / "r.html")
    with pytest.raises(OutputFileError, match="File name too long"):
        check_target(tmp_path / ("x" * 300 + ".html"))
    with pytest.raises(UsageError, match=r"must end in \.html"):
        check_target(tmp_path / "photo.jpg")
    check_target(tmp_path / "r.HTM")
    assert set(write.SUFFIXES) == {".html", ".htm"}
