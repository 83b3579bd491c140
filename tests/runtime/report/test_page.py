"""The file: nothing from elsewhere, nothing escapes, every image has words, headings in order."""

import base64
import hashlib
import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from preprocessing import standard_preprocessing
from reports import Parsed, described, parse, picture, small_report

from runtime.commands.report_clusters import count_confusion
from runtime.report import (
    Artifacts,
    Cluster,
    Curve,
    Headline,
    Norms,
    Places,
    Report,
    Shown,
    Table,
    draw_map,
    pictures,
    write_report,
)
from runtime.report.content import Confusion
from runtime.report.elements import visible
from runtime.sources.at_hand import at_hand

HOSTILE = [
    "<script>alert(1)<script>.png",
    '"onmouseover="alert(1).png',
    "'><img src=x onerror=alert(1)>.png",
    "a\u2028b.png",
    "a\u202egnp.exe.png",
    "--><!--<script>.png",
    "&lt;b&gt;.png",
    "new\nline.png",
    "javascript:alert(1).png",
    "]]>\u2066.png",
]
"""Names of files. A real `</script>` has a slash, which is a folder and a file: see below."""


@pytest.fixture
def page(tmp_path):
    write_report(tmp_path / "r.html", small_report(tmp_path / "images"), at_hand)
    return parse(tmp_path / "r.html")


def test_nothing_is_loaded_from_elsewhere(page):
    links = {"xmlns", "href", "src", "srcset", "action", "poster", "data"}
    for tag, attributes in page.tags:
        for name in links & attributes.keys():
            assert attributes[name].startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in "".join(page.code["style"])
    assert not re.findall(r"url\(|@font-face", "".join(page.code["style"]))
    outside = set(re.findall(r"https?://[^\s\"'<]*", page.html))
    assert outside == {"http://www.w3.org/2000/svg"}  # a name, which is never loaded


def test_the_policy_lets_only_this_style_and_script_run(page):
    (policy,) = [got["content"] for got in page.all("meta", **{"http-equiv": "Content-Security-Policy"})]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["base-uri"] == rules["form-action"] == "'none'"

    def hashed(code: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"

    assert rules["style-src"] == hashed(page.code["style"][0])
    assert rules["script-src"] == hashed(page.code["script"][-1])
    assert "unsafe" not in policy
    places = [tag for tag, _ in page.tags]
    assert places.index("meta") < places.index("style")
    assert not any(name == "style" or name.startswith("on") for _, got in page.tags for name in got)


def test_every_image_has_words_and_every_drawing_a_name_or_none(page):
    images = page.all("img")
    assert len(images) > 10
    for image in images:
        assert image["alt"].strip()
    for drawing in page.all("svg"):
        assert drawing.get("aria-hidden") == "true" or drawing["aria-label"].strip()


def test_headings_go_down_a_step_at_a_time(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_ids_are_unique_and_every_link_leads_somewhere(page):
    ids = [got["id"] for _, got in page.tags if "id" in got]
    assert len(ids) == len(set(ids))
    for tag, got in page.tags:
        if tag in ("a", "use"):
            assert got["href"].removeprefix("#") in ids, got


def test_language_width_and_color_scheme_are_declared(page):
    assert page.all("html", lang="en")
    assert page.all("meta", name="viewport", content="width=device-width, initial-scale=1")
    assert page.all("meta", name="color-scheme", content="light dark")
    style = page.code["style"][0]
    for query in ("prefers-color-scheme: dark", "prefers-reduced-motion", "@media print"):
        assert query in style


def test_everything_that_it_was_given_is_told(page):
    for words in (
        "Clusters of pictures", "for a test", "0.9444", "These weights are random.", "command", "cluster pictures",
        "Models", "ITAE", "of one seed", "Chosen: k = 3", "All its images", "mostly class1 (100%)", "Layer 11",
        "1 of 9 patches flagged", "key norm, mad:5 on both",
    ):  # fmt: skip
        assert words in page.text + page.html, words
    for title in (
        "Summary",
        "Comparison",
        "Number of clusters",
        "Sizes",
        "Map",
        "Classes",
        "Clusters",
        "Artifacts",
        "Run",
    ):
        assert title in page.text


def test_a_thumbnail_is_in_the_file_once(page):
    data = page.map()
    sources = [got["src"] for got in page.all("img") if got.get("id")]
    assert len(sources) == 18
    assert all(re.fullmatch(r"#t\d+", where) for where in data["thumbnail"])
    assert {where[1:] for where in data["thumbnail"]} == {got["id"] for got in page.all("img") if "id" in got}


def test_the_map_tells_cluster_class_and_name_of_each_point(page):
    data = page.map()
    assert [name for name, _, _ in data["clusters"]] == ["0", "1", "2"]
    assert [size for _, size, _ in data["clusters"]] == [6, 6, 6]
    assert [name for name, _, _ in data["labels"]] == ["class0", "class1", "class2"]
    assert data["name"][0] == "class0/0.png"
    assert data["labels"][data["label"][0]][0] == "class2"
    xy = np.array(data["layouts"][0]["xy"])
    assert len(xy) == 36
    assert xy.min() >= 3 - 0.01
    assert xy.max() <= 97 + 0.01


def test_the_same_report_is_the_same_file(tmp_path):
    report = small_report(tmp_path / "images")
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, report, at_hand)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


class Structure(HTMLParser):
    """Tags and names of attributes, without their values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.seen.append((tag, tuple(name for name, _ in attrs)))


def structure(path) -> list[tuple[str, tuple[str, ...]]]:
    parser = Structure()
    parser.feed(path.read_text("utf-8"))
    return parser.seen


@pytest.mark.parametrize("hostile", [*HOSTILE, "</script><script>alert(1)</script>/x.png", "</style>/x.png"])
def test_a_hostile_name_changes_no_tag_of_the_page(tmp_path, hostile):
    """The same tags with the same attributes as with a harmless name, wherever the name stands."""

    def write(name: str, word: str, to: str) -> None:
        key = picture(tmp_path / to, name)
        points = np.eye(3, dtype=np.float32)
        labels = np.zeros(3, np.int32)
        report = Report(
            title=word, lead=word, facts=[(word, word)], headlines=[Headline(word, word, word)], notes=[word],
            tables=[Table(word, [word, word], [[word, word]], word)],
            clusters=described(points[:1], labels[:1], lambda _: key, classes=[word]),
            map=draw_map(points[:1].__getitem__, labels[:1], lambda _: key, classes=[word]),
            confusion=count_confusion(labels, [word, "b", "c"]),
            artifacts=replace(small_report(tmp_path / "artifacts").artifacts, model=word, note=word, detection=word),
        )  # fmt: skip
        write_report(tmp_path / f"{to}.html", report, at_hand)

    write(hostile, hostile, "hostile")
    write("sub/x.png" if "/" in hostile else "x.png", "x", "harmless")
    assert structure(tmp_path / "hostile.html") == structure(tmp_path / "harmless.html")
    text = (tmp_path / "hostile.html").read_text()
    assert "<script>alert" not in text
    for character in "\u2028\u202e\u2066":
        assert character not in text
    assert parse(tmp_path / "hostile.html").map()["name"] == [visible(hostile)]  # nothing is lost on the way


def test_a_name_that_is_no_utf8_is_told(tmp_path):
    report = Report("t", [], clusters=[Cluster(0, 1, [Shown(("/nowhere", "\udcff.png"))])])
    write_report(tmp_path / "r.html", report, at_hand)
    assert "\\udcff.png" in (tmp_path / "r.html").read_text("utf-8")


def test_only_what_is_there_is_shown(tmp_path):
    write_report(tmp_path / "r.html", Report("t", [("a", "b")]), at_hand)
    page = parse(tmp_path / "r.html")
    assert [got["id"] for got in page.all("section")] == ["facts"]
    assert not page.all("img")


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "no labels"])
@pytest.mark.parametrize(("k", "each"), [(1, 1), (1, 30), (2, 1), (45, 2)], ids=str)
def test_any_number_of_clusters_makes_a_page(tmp_path, k, each, labels):
    write_report(tmp_path / "r.html", small_report(tmp_path / "images", k, each, labels=labels), at_hand)
    page = parse(tmp_path / "r.html")
    assert len(page.all("section", class_="sheet")) == k
    assert bool(page.map()["labels"]) == labels
    assert ("confusion" in {got.get("id") for got in page.all("section")}) == labels


def test_noise_is_named_and_has_its_own_mark(tmp_path):
    key = picture(tmp_path, "x.png")
    points, labels = np.eye(4, dtype=np.float32), np.array([0, 0, -1, -1])
    report = Report(
        "t", [], clusters=described(points, labels, lambda row: (key[0], f"{row}.png")),
        map=draw_map(points.__getitem__, labels, lambda row: (key[0], f"{row}.png")),
    )  # fmt: skip
    write_report(tmp_path / "r.html", report, at_hand)
    page = parse(tmp_path / "r.html")
    assert page.all("section", id="cluster-noise")
    assert page.map()["clusters"] == [["0", 2, 0], ["noise", 2, -1]]
    assert "Noise" in page.text


def test_large_confusion_is_a_picture_with_words(tmp_path):
    classes = [f"class {number}" for number in range(60)]
    report = Report("t", [], confusion=count_confusion(np.arange(60) % 40, classes))
    write_report(tmp_path / "r.html", report, at_hand)
    (image,) = parse(tmp_path / "r.html").all("img")
    assert "60 classes and 40 clusters" in image["alt"]


def test_a_flat_or_single_score_is_still_a_curve(tmp_path):
    for curve in (Curve([2], [0.1], 2), Curve([2, 3], [0.1, 0.1], 3)):
        write_report(tmp_path / "r.html", Report("t", [], curve=curve), at_hand)
        assert "nan" not in (tmp_path / "r.html").read_text().lower().split("<script")[0].split("</style>")[1]


def test_a_large_confusion_has_each_class_with_its_cluster_in_a_table(tmp_path):
    labels = np.repeat(np.arange(39), 4)
    classes = [f"class {number:02d}" for number in labels]
    classes[:3] = ["class 01"] * 2 + ["class 40"]  # of cluster 0: one its own class's, one of a class that gets none
    write_report(tmp_path / "r.html", Report("t", [], confusion=count_confusion(labels, classes)), at_hand)
    text = " ".join(parse(tmp_path / "r.html").text.split())
    assert "All classes as a table" in text
    assert "class 01 1 4 of 6 67%" in text
    assert "class 02 2 4 of 4 100%" in text
    assert "class 40 none 0 of 1 0%" in text


def test_a_confusion_of_more_classes_than_a_picture_has_pixels_is_a_table(tmp_path):
    n = 16_384
    confusion = Confusion([str(number) for number in range(n)], [0], np.ones((n, 1), np.int64), ["0"])
    write_report(tmp_path / "r.html", Report("t", [], confusion=confusion), at_hand)
    page = parse(tmp_path / "r.html")
    assert not page.all("img")
    assert "All classes as a table" in page.text


def test_the_map_of_places_has_a_cell_for_each_place_that_is_ever_flagged():
    share = [0.0, 0.4, 0.1, 0.0, 0.0, 0.0]
    found = Artifacts(
        "m.onnx",
        "residual",
        (2, 3),
        standard_preprocessing((28, 42), "uint8"),
        [],
        [Norms(1, [0.0, 1.0], [5], [0])],
        drawn="of half of them",
        places=Places(share, "of 8 images"),
    )
    page = Parsed(pictures.artifacts(found, lambda key: None))
    (drawn,) = page.all("svg", class_="places")
    assert drawn["viewbox" if "viewbox" in drawn else "viewBox"] == "0 0 3 2"
    cells = [one for one in page.all("rect") if "opacity" in one]
    assert [(one["x"], one["y"], float(one["opacity"])) for one in cells] == [("1", "0", 1.0), ("2", "0", 0.25)]
    assert "row 0, column 1 (patch 1): 40.0%" in page.text
    assert "of half of them" in page.text
