"""`cluster --report`: what it shows, what it refuses, and where it finds moved images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps
from pyarrow import parquet
from reports import HUES, parse

from runtime.__main__ import main
from runtime.contract.manifest import read_manifest
from runtime.store import Store
from runtime.store.origin import origin_of
from runtime.store.writer import open_writer

OUTPUTS = ("embedding", "artifact_mask", "artifact_norm")
NAMES = ["red", "green", "blue"]


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    """Nine images in three folders, embedded near an axis of their color; one lies in the wrong folder."""
    paths, vectors = [], []
    for axis, name in enumerate(NAMES):
        for number in range(3):
            path = f"{NAMES[2] if (axis, number) == (0, 2) else name}/{axis}{number}.png"
            (tmp_path / "pictures" / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 50), HUES[axis]).save(tmp_path / "pictures" / path)
            vector = np.full(4, 0.01 * number)
            vector[axis] = 1
            paths.append(path)
            vectors.append(vector)
    origin = {
        "model": "m.onnx", "model_sha256": "ab" * 32, "provider": "cpu",
        "options": {"size": "vits14", "weights": "random:0", "precision": "fp32", "image_size": [224, 224],
                    "itae": None},
    }  # fmt: skip
    with open_writer(tmp_path / "embeddings", origin) as writer:
        writer.add([str(tmp_path / "pictures")] * 9, paths, np.array(vectors, np.float32))
    return tmp_path / "embeddings"


def run(embeddings: Path, *arguments: object) -> int:
    out = embeddings.parent / "out"
    return main(["cluster", *map(str, [embeddings, "--k", 3, "--out", out, *arguments])])


def test_the_page_tells_what_was_found(embeddings, tmp_path, capsys):
    assert run(embeddings, "--report", tmp_path / "r.html", "--labels", "folders", "--seed", 4) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    page = parse(tmp_path / "r.html")
    for words in (
        "Clusters of embeddings", "9 images in 3 clusters", f"{summary['metrics']['acc']:.4f}", "ACC", "NMI", "ARI",
        "vits14, fp32, random:0", "224 x 224", "none (the plain model)", "ab" * 32, "weights are random", "--k 3",
        "--seed 4", "UTC", "scikit-learn", str(embeddings), "cpu", "seconds",
    ):  # fmt: skip
        assert words in page.text, words
    assert len(page.all("section", class_="sheet")) == 3
    assert len(page.map()["name"]) == 9
    assert page.all("section", id="confusion")
    assert not page.all("section", id="artifacts")
    said = capsys.readouterr().err
    assert "writing the report" in said
    assert f"report {tmp_path / 'r.html'}: {(tmp_path / 'r.html').stat().st_size / 1000:.0f} kB, 9 images" in said
    assert "can't be read" not in said


@pytest.mark.parametrize(
    "options",
    ["fp32", None, {"weights": 3, "image_size": 224, "itae": "x"}, {"size": {}, "itae": {"layers": 1}}],
    ids=str,
)
def test_what_another_program_says_of_its_embeddings_is_told_as_it_is(tmp_path, options):
    with open_writer(tmp_path / "embeddings", {"options": options, "model": 3, "model_sha256": 5}) as writer:
        writer.add(["/nowhere"] * 4, list("abcd"), np.eye(4, dtype=np.float32))
    assert run(tmp_path / "embeddings", "--report", tmp_path / "r.html") == 0
    assert "4 images in 3 clusters" in parse(tmp_path / "r.html").text


@pytest.mark.parametrize("weights", ["random", "random:0"])
def test_random_weights_are_said_however_the_option_was_written(weights, embeddings, tiny, tmp_path):
    manifest = read_manifest(tiny)
    assert manifest.model.weights.kind == "random"
    options = manifest.options.model_copy(update={"weights": weights})
    with open_writer(
        tmp_path / "of-model", origin_of(manifest.model_copy(update={"options": options}), "cpu")
    ) as writer:
        writer.add(["/nowhere"] * 4, list("abcd"), np.eye(4, dtype=np.float32))
    assert run(tmp_path / "of-model", "--report", tmp_path / "r.html") == 0
    text = parse(tmp_path / "r.html").text
    assert "weights are random (random:0)" in text
    assert "itae, layers 0, source key, threshold absolute:8.0" in text


def test_a_report_may_lie_in_the_folder_of_results_that_is_not_there_yet(embeddings, tmp_path, capsys):
    assert run(embeddings, "--report", tmp_path / "out" / "r.html") == 0
    assert (tmp_path / "out" / "r.html").exists()
    nowhere = tmp_path / "nowhere" / "out"
    assert main(["cluster", *map(str, [embeddings, "--k", 3, "--out", nowhere, "--report", nowhere / "r.html"])]) == 2
    assert f"the folder {nowhere.parent} does not exist" in capsys.readouterr().err


def test_without_labels_there_are_no_classes(embeddings, tmp_path):
    assert run(embeddings, "--report", tmp_path / "r.html", "--quiet") == 0
    page = parse(tmp_path / "r.html")
    assert not page.all("section", id="confusion")
    assert page.map()["labels"] == []


def test_moved_images_are_found(embeddings, tmp_path, capsys):
    shutil.move(tmp_path / "pictures", tmp_path / "elsewhere")
    assert run(embeddings, "--report", tmp_path / "r.html", "--images-root", tmp_path / "elsewhere") == 0
    assert not parse(tmp_path / "r.html").all("span", class_="missing")
    assert run(embeddings, "--report", tmp_path / "r.html") == 0
    assert len(parse(tmp_path / "r.html").all("span", class_="missing")) == 9
    assert "9 images, 9 of them can't be read any more" in capsys.readouterr().err


def test_a_model_shows_what_it_flags(embeddings, tmp_path, make_model):
    model = make_model(tmp_path / "model", outputs=OUTPUTS)
    assert run(embeddings, "--report", tmp_path / "r.html", "--model", model) == 0
    page = parse(tmp_path / "r.html")
    assert len(page.all("div", class_="overlay")) == 9
    assert "not the model that made the embeddings" in page.text


def refusal(capsys, code: int, expected: str) -> None:
    assert code == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert expected in captured.err
    assert captured.out == ""


def test_what_cannot_work_is_refused_before_anything_is_done(embeddings, tmp_path, make_model, capsys):
    plain = make_model(tmp_path / "model")
    (tmp_path / "folder.html").mkdir()
    refusal(capsys, run(embeddings, "--report", tmp_path / "folder.html"), "a folder is in its place")
    refusal(capsys, run(embeddings, "--report", tmp_path / "r.png"), "must end in .html")
    refusal(capsys, run(embeddings, "--model", plain), "--model is only for --report")
    report = tmp_path / "r.html"
    refusal(capsys, run(embeddings, "--report", report, "--model", plain), "has no output artifact_mask")
    refusal(capsys, run(embeddings, "--report", report, "--model", tmp_path / "no.onnx"), "no such model file")
    engine = make_model(tmp_path / "model", "x.engine", outputs=OUTPUTS, batch=(1, 1, 8), builder="tensorrt")
    refusal(capsys, run(embeddings, "--report", report, "--model", engine), "tensorrt")
    assert not (tmp_path / "out").exists()
    assert not report.exists()


def test_the_page_and_the_table_tell_the_same_distances(embeddings, tmp_path):
    assert run(embeddings, "--report", tmp_path / "r.html") == 0
    table = parquet.read_table(tmp_path / "out" / "labels.parquet").to_pydict()
    alts = [one["alt"] for one in parse(tmp_path / "r.html").all("img") if "distance" in one["alt"]]
    told = {alt.split("; ")[0]: float(alt.rpartition("distance ")[2]) for alt in alts}
    assert told == {path: round(one, 3) for path, one in zip(table["path"], table["distance"], strict=True)}


def test_a_report_of_minibatch_never_holds_all_embeddings(embeddings, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Store, "load", refuse)
    monkeypatch.setattr(Store, "read", refuse)
    assert run(embeddings, "--algorithm", "minibatch", "--report", tmp_path / "r.html") == 0
    assert len(parse(tmp_path / "r.html").map()["name"]) == 9


def test_a_sample_is_drawn_by_the_seed_also_where_none_is_given(embeddings, tmp_path, monkeypatch):
    from runtime.report import layout

    monkeypatch.setattr(layout, "MOST_POINTS", 5)
    names = []
    for seed in ([], ["--seed", 0], ["--seed", 1]):
        assert run(embeddings, "--report", tmp_path / "r.html", "--quiet", *seed) == 0
        page = parse(tmp_path / "r.html")
        assert f"drawn at random (seed {seed[-1] if seed else 0})" in page.text
        names.append(page.map()["name"])
    assert names[0] == names[1]
    assert len(names[0]) == 5


@pytest.mark.parametrize("sixteen_bit", ["full", "auto"])
@pytest.mark.parametrize("packed", [False, True], ids=["files", "parquet"])
def test_twelve_bit_pictures_are_shown_as_they_were_embedded(tmp_path, sixteen_bit, packed, monkeypatch):
    folder = tmp_path / "pictures"
    folder.mkdir()
    values = np.linspace(2000, 4095, 60 * 50).astype(np.uint16).reshape(50, 60)
    names = [f"{number}.png" for number in range(6)]
    for name in names:
        Image.fromarray(values).save(folder / name)
    root, paths = str(folder), names
    if packed:
        root, paths = str(tmp_path / "images.parquet"), [str(number) for number in range(6)]
        parquet.write_table(pa.table({"image": [(folder / name).read_bytes() for name in names]}), root)
    origin = {"model": "m.onnx", "model_sha256": "ab" * 32, "provider": "cpu", "options": {}}
    with open_writer(tmp_path / "embeddings", origin | ({"sixteen_bit": "auto"} if sixteen_bit == "auto" else {})) as w:
        w.add([root] * 6, paths, np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))
    seen = []
    real = ImageOps.fit
    monkeypatch.setattr(ImageOps, "fit", lambda image, *given: seen.append(image) or real(image, *given))
    assert run(tmp_path / "embeddings", "--report", tmp_path / "r.html") == 0
    assert len(seen) >= 12  # the page's and the picture's
    assert {np.asarray(one).max() for one in seen} == {16 if sixteen_bit == "full" else 255}
