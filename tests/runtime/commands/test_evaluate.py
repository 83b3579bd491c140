"""The command `evaluate`: its tables, files and cache, what it leaves out and what it refuses."""

import errno
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

import runtime
from runtime.__main__ import main
from runtime.contract.errors import InputError, OutputFileError
from runtime.contract.manifest import manifest_path, read_manifest
from runtime.evaluation import paper
from runtime.evaluation.scores import SCORES
from runtime.store import Store
from runtime.store.result_folder import SUMMARY

COLORS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}


@pytest.fixture
def colors(tmp_path) -> Path:
    """Three classes of eight pictures, told apart by their color."""
    rng = np.random.default_rng(0)
    for name, color in COLORS.items():
        (tmp_path / "colors" / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.clip(np.array(color) + rng.integers(-20, 21, (40, 50, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "colors" / name / f"{number}.png")
    return tmp_path / "colors"


@pytest.fixture
def call(capsys, tmp_path):
    """Run the command with a cache of this test; give its exit code, stdout and stderr."""

    def run(*arguments: object, cache: bool = True) -> tuple[int, str, str]:
        place = ["--cache", str(tmp_path / "cache")] if cache else []
        code = main(["evaluate", *map(str, arguments), *place])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def cells(out: str, start: str) -> list[str]:
    (line,) = [line for line in out.splitlines() if line.strip().startswith(start)][:1]
    return line.split()


def test_the_table_has_every_score_with_its_deviation(call, tiny, colors) -> None:
    code, out, err = call(tiny, "--data", f"folder:{colors}", "--seeds", 3)
    assert code == 0
    assert out.startswith("colors: 24 images in 3 classes; k-means with k = 3, best of 10 starts, seeds 0 to 2\n")
    assert cells(out, "tiny.onnx  ") == ["tiny.onnx", *(["1.0000", "±", "0.0000"] * 3)]
    assert out.count("tiny.onnx  ") == 2  # as they are, and normalised
    assert "note: random weights (tiny.onnx): scores of a try, which say nothing of DINOv2 or ITAE" in out
    assert "paper" not in out
    assert "colors, tiny.onnx: 24 images embedded in" in err


def test_json_is_alone_on_stdout_and_is_the_file(call, tiny, colors, tmp_path) -> None:
    out = tmp_path / "out"
    code, text, _ = call(tiny, "--data", f"folder:{colors}", "--seeds", 2, "--seed", 7, "--json", "--out", out)
    assert code == 0
    summary = json.loads(text)
    written = json.loads((out / SUMMARY).read_text())
    scores = (out / SCORES).read_bytes()
    assert written.pop("files") == {SCORES: {"bytes": len(scores), "sha256": hashlib.sha256(scores).hexdigest()}}
    assert written == summary
    assert summary["seeds"] == [7, 8]
    assert (summary["models"][0]["name"], summary["models"][0]["random_weights"]) == ("tiny.onnx", True)
    (data,) = summary["datasets"]
    assert (data["name"], data["images"], data["evaluated"], data["left_out"], data["paper"]) == (
        "colors",
        24,
        24,
        [],
        None,
    )
    raw, l2 = data["evaluations"]
    assert (raw["normalisation"], l2["normalisation"], raw["k"]) == ("raw", "l2", 3)
    assert raw["acc"] == {"mean": 1.0, "std": 0.0, "by_seed": [1.0, 1.0]}
    assert raw["confusion"] == (8 * np.eye(3, dtype=int)).tolist()
    rows = parquet.read_table(out / SCORES).to_pylist()
    assert {(row["k"], row["starts"], row["images"]) for row in rows} == {(3, 10, 24)}
    assert [(row["normalisation"], row["seed"], row["acc"]) for row in rows] == [
        ("raw", 7, 1.0), ("raw", 8, 1.0), ("l2", 7, 1.0), ("l2", 8, 1.0),
    ]  # fmt: skip


def test_a_second_run_runs_no_model(call, tiny, colors, monkeypatch) -> None:
    first = call(tiny, "--data", f"folder:{colors}", "--seeds", 2)
    monkeypatch.setattr("runtime.backends.open_session", None)  # called, it would be an error
    second = call(tiny, "--data", f"folder:{colors}", "--seeds", 2)
    assert (second[0], second[1]) == (0, first[1])
    assert "colors, tiny.onnx: 0 images embedded" in second[2]


def test_the_cache_serves_a_larger_limit_and_data_that_moved(call, tiny, colors, tmp_path) -> None:
    arguments = [tiny, "--seeds", 1, "--data"]
    assert "9 images embedded" in call(*arguments, f"folder:{colors}", "--limit", 9)[2]
    assert "6 images embedded" in call(*arguments, f"folder:{colors}", "--limit", 15)[2]
    shutil.move(colors, tmp_path / "moved")
    _, out, err = call(*arguments, f"folder:{tmp_path / 'moved'}")
    assert " 9 images embedded" in err
    assert out.startswith("moved: 24 images")
    (store,) = (tmp_path / "cache").iterdir()
    assert len(Store(store)) == 24
    assert Store(store).complete


def test_what_the_cache_holds_is_what_the_model_gives(call, tiny, colors, tmp_path) -> None:
    call(tiny, "--data", f"folder:{colors}", "--seeds", 1)
    (store,) = (tmp_path / "cache").iterdir()
    found = Store(store).read()
    with runtime.load(tiny) as model:
        expected = model.embed([colors / path for path in found.paths])
    np.testing.assert_array_equal(found.vectors, expected)


def test_changed_pictures_are_embedded_again(call, tiny, colors) -> None:
    call(tiny, "--data", f"folder:{colors}", "--seeds", 1)
    Image.new("RGB", (9, 9)).save(colors / "red" / "0.png")
    assert "24 images embedded" in call(tiny, "--data", f"folder:{colors}", "--seeds", 1)[2]


def test_without_a_cache_nothing_is_kept(call, tiny, colors, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    code, _, err = call(tiny, "--data", f"folder:{colors}", "--seeds", 1, "--no-cache", cache=False)
    assert code == 0
    assert "kept" not in err
    assert not (tmp_path / "xdg").exists()
    assert list((tmp_path / "tmp").iterdir()) == []
    code, _, err = call(tiny, "--data", f"folder:{colors}", "--seeds", 1, cache=False)
    assert f"embeddings are kept in {tmp_path / 'xdg' / 'itae' / 'evaluate'}" in err
    assert (tmp_path / "xdg" / "itae" / "evaluate").is_dir()


def not_to_be_made(monkeypatch, tmp_path) -> str:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    return "Not a directory"


def not_to_be_written(monkeypatch, tmp_path) -> str:
    home = tmp_path / "home"
    (home / ".cache/itae/evaluate").mkdir(parents=True)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(home))
    real = os.open

    def read_only(path, flags, *rest, **more):
        if str(path).startswith(str(home)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", read_only)
    return "Read-only file system"


def no_home(monkeypatch, _) -> str:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    return "this user has no home folder"


@pytest.mark.parametrize("without", [not_to_be_made, not_to_be_written, no_home])
def test_a_default_cache_that_cannot_be_used_does_not_stop_the_run(
    without, call, tiny, colors, tmp_path, monkeypatch
) -> None:
    reason = without(monkeypatch, tmp_path)
    code, out, err = call(tiny, "--data", f"folder:{colors}", "--seeds", 1, cache=False)
    assert (code, "24 images embedded in" in err) == (0, True)
    assert "tiny.onnx" in out
    (line,) = (line for line in err.splitlines() if line.startswith("warning: "))
    assert reason in line
    assert "no embedding is kept" in line
    assert "--cache DIR" in line


def test_a_given_cache_that_cannot_be_made_is_refused_before_the_model_is_loaded(
    call, tiny, colors, tmp_path, monkeypatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr("runtime.backends.open_session", None)
    place = tmp_path / "file" / "cache"
    code, out, err = call(tiny, "--data", f"folder:{colors}", "--cache", place, cache=False)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith(f"runtime: can't write the cache {place}: Not a directory")
    assert last.endswith(": give another --cache DIR, or --no-cache")


def test_a_damaged_cache_is_told_with_what_to_do(call, tiny, colors, tmp_path) -> None:
    call(tiny, "--data", f"folder:{colors}", "--seeds", 1)
    (store,) = (tmp_path / "cache").iterdir()
    (store / "part-00000.parquet").write_bytes(b"PAR1")
    code, out, err = call(tiny, "--data", f"folder:{colors}", "--seeds", 1)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"runtime: the cache {store} can't be used (")
    assert err.endswith("remove it, or give --no-cache\n")


def test_a_model_that_does_not_load_is_not_the_caches_fault(call, tiny, colors, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("odd.onnx: ONNX Runtime opens no path that is not UTF-8; rename it")

    monkeypatch.setattr("runtime.backends.open_session", refuse)
    code, _, err = call(tiny, "--data", f"folder:{colors}", "--seeds", 1)
    assert code == 2
    assert err.splitlines()[-1] == "runtime: odd.onnx: ONNX Runtime opens no path that is not UTF-8; rename it"


def test_unreadable_pictures_are_told_and_left_out(call, tiny, colors) -> None:
    (colors / "red" / "3.png").write_bytes(b"no picture")
    code, out, err = call(tiny, "--data", f"folder:{colors}", "--seeds", 1, "--json")
    assert code == 0
    assert "23 images embedded" in err
    assert "1 can't be embedded" in err
    (data,) = json.loads(out)["datasets"]
    assert (data["chosen"], data["evaluated"], data["left_out"]) == (24, 23, [f"{colors}/red/3.png"])
    _, out, _ = call(tiny, "--data", f"folder:{colors}", "--seeds", 1)  # it is tried again and told again
    assert "note: 1 images left out, that not every model could embed; " in out
    assert "red/3.png: is damaged, or none of JPEG" in out


def test_no_picture_at_all_is_exit_1(call, tiny, tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "x.png").write_bytes(b"no picture")
    code, out, err = call(tiny, "--data", f"folder:{tmp_path / 'bad'}")
    assert (code, out) == (1, "")
    assert "runtime: none of 2 images of bad could be embedded; the first: " in err


def two_models(make_model, tmp_path, **options) -> list[Path]:
    return [make_model(tmp_path / "one", "plain.onnx"), make_model(tmp_path / "two", "itae.onnx", **options)]


def test_models_are_compared_with_the_first_by_the_same_seeds(call, make_model, colors, tmp_path) -> None:
    code, out, _ = call(*two_models(make_model, tmp_path), "--data", f"folder:{colors}", "--seeds", 3, "--json")
    assert code == 0
    comparisons = json.loads(out)["datasets"][0]["comparisons"]
    assert [(one["model"], one["baseline"], one["normalisation"]) for one in comparisons] == [
        ("itae.onnx", "plain.onnx", "raw"),
        ("itae.onnx", "plain.onnx", "l2"),
    ]
    assert comparisons[0]["acc"] == {
        "mean": 0.0,
        "over_images": {"low": 0.0, "high": 0.0, "p": None, "resamples": 1000, "seeds": 3},
        "over_seeds": {"low": 0.0, "high": 0.0, "t_p": None, "wilcoxon_p": None},
    }
    _, out, _ = call(*two_models(make_model, tmp_path), "--data", f"folder:{colors}", "--seeds", 3)
    assert cells(out, "less plain.onnx")[2:] == ["+0.0000"] * 3
    for what, p in (("images", ["-"]), ("seeds", ["-", "/", "-"])):
        assert cells(out, f"over {what}")[2:] == ["+0.0000", "to", "+0.0000"] * 3
        assert cells(out, f"p over {what}")[3:] == p * 3
    assert "small p says that other seeds would show the difference again, and nothing about other images." in out


def test_pictures_that_one_model_cannot_embed_are_left_out_for_all(call, make_model, colors, tmp_path) -> None:
    Image.new("RGB", (40, 40), "white").save(colors / "red" / "3.png")  # the second model gives NaN
    models = two_models(make_model, tmp_path, nan=True)
    code, out, _ = call(*models, "--data", f"folder:{colors}", "--seeds", 2, "--json")
    assert code == 0
    (data,) = json.loads(out)["datasets"]
    assert (data["evaluated"], data["left_out"]) == (23, [f"{colors}/red/3.png"])
    assert all(sum(map(sum, one["confusion"])) == 23 for one in data["evaluations"])


def test_models_of_one_name_are_told_apart_by_their_path(call, make_model, colors, tmp_path) -> None:
    models = [make_model(tmp_path / name) for name in ("one", "two")]
    _, out, _ = call(*models, "--data", f"folder:{colors}", "--seeds", 1)
    assert f"\n  {models[1]}: vits14, ITAE min in layers 0" in out


def test_data_sets_of_one_name_are_told_apart_by_their_path(call, tiny, colors, tmp_path) -> None:
    shutil.copytree(colors, tmp_path / "copy" / "colors")
    data = [f"folder:{colors}", f"folder:{tmp_path / 'copy' / 'colors'}"]
    _, out, _ = call(tiny, "--data", data[0], "--data", data[1], "--seeds", 1, "--json")
    assert [one["name"] for one in json.loads(out)["datasets"]] == data


def test_a_name_with_a_line_break_breaks_no_table(call, make_model, colors, tmp_path) -> None:
    shutil.move(colors, tmp_path / "two\nlines")
    model = make_model(tmp_path / "m", "of\ntwo.onnx")
    _, out, err = call(model, "--data", f"folder:{tmp_path}/two\nlines", "--seeds", 1)
    assert out.startswith("two lines: 24 images")
    assert cells(out, "of two.onnx  ")[2] == "1.0000"
    assert "two lines, of two.onnx: 24 images embedded" in err


def test_the_last_seed_of_all_can_be_had_and_none_beyond(call, tiny, colors) -> None:
    arguments = [tiny, "--data", f"folder:{colors}", "--seeds", 2, "--n-init", 1, "--seed"]
    assert "seeds 4294967294 to 4294967295" in call(*arguments, 2**32 - 2)[1]
    assert "--seed 4294967295: must be from 0 to 4294967294" in call(*arguments, 2**32 - 1)[2]


def test_starts_are_told(call, tiny, colors) -> None:
    _, out, _ = call(tiny, "--data", f"folder:{colors}", "--seeds", 1, "--n-init", 1)
    assert out.startswith("colors: 24 images in 3 classes; k-means with k = 3, a single start, seed 0\n")
    _, out, _ = call(tiny, "--data", f"folder:{colors}", "--seeds", 1, "--n-init", 3, "--json")
    assert json.loads(out)["starts"] == 3


def test_a_provider_for_engines_alone_is_refused(call, make_model, colors, tmp_path) -> None:
    engine = make_model(tmp_path / "e", "tiny.engine", builder="tensorrt-rtx", batch=(1, 2, 4))
    code, _, err = call(engine, "--data", f"folder:{colors}", "--provider", "cuda")
    assert code == 2
    assert err == f"runtime: --provider cuda is for ONNX models, and {engine} is an engine\n"


def test_a_class_of_which_nothing_can_be_read_is_told_in_the_table(call, tiny, colors) -> None:
    for path in (colors / "red").iterdir():
        path.write_bytes(b"no picture")
    (colors / "blue" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    code, out, _ = call(tiny, "--data", f"folder:{colors}", "--seeds", 1)
    assert code == 0
    assert "note: 1 parts of the data can't be read and are not among these images; the first: " in out
    assert "blue/\\udcff.png: its name is not UTF-8: rename it" in out
    assert "note: 1 of the classes have no image left: k = 2 is the number of the others" in out


def test_several_data_sets_have_a_table_each(call, tiny, colors, tmp_path) -> None:
    shutil.copytree(colors, tmp_path / "other")
    _, out, _ = call(tiny, "--data", f"folder:{colors}", "--data", f"folder:{tmp_path / 'other'}", "--seeds", 1)
    assert "colors: 24 images in 3 classes; k-means with k = 3, best of 10 starts, seed 0" in out
    assert "\nother: 24 images" in out


def test_an_interrupted_run_keeps_what_it_has_and_the_next_goes_on(call, tiny, colors, tmp_path, monkeypatch) -> None:
    from runtime.embedding import stream

    real, seen = stream.load_item, []

    def interrupt(item, *how):
        seen.append(item.path)
        if len(seen) > 20:
            raise KeyboardInterrupt
        return real(item, *how)

    monkeypatch.setattr("runtime.embedding.stream.load_item", interrupt)
    out = tmp_path / "out"
    arguments = [tiny, "--data", f"folder:{colors}", "--seeds", 1, "--batch", 2, "--out", out]
    code, text, err = call(*arguments)
    assert (code, text) == (130, "")
    assert f"what was embedded is kept in {tmp_path / 'cache'}, the same command goes on" in err
    assert not out.exists()
    monkeypatch.undo()
    (store,) = (tmp_path / "cache").iterdir()
    kept = len(Store(store))
    assert 0 < kept < 24
    assert f"{24 - kept} images embedded" in call(*arguments)[2]


def as_vitb14(model: Path, kind: str = "random") -> Path:
    """The model, its manifest saying that it is a ViT-B."""
    manifest = read_manifest(model)
    options = manifest.options.model_copy(update={"size": "vitb14"})
    weights = manifest.model.weights.model_copy(update={"kind": kind})
    backbone = manifest.model.model_copy(update={"weights": weights})
    manifest_path(model).write_bytes(manifest.model_copy(update={"options": options, "model": backbone}).to_json())
    return model


@pytest.mark.parametrize("weights", ["random", "hub", "path"])
def test_the_papers_figures_stand_beside_a_vitb14_alone_and_say_of_what_they_are(
    call, tiny, colors, weights, monkeypatch
) -> None:
    monkeypatch.setitem(paper.FIGURES, "folder", paper.FIGURES["cifar10"])
    arguments = ["--data", f"folder:{colors}", "--seeds", 1]
    assert "paper" not in call(tiny, *arguments)[1]
    as_vitb14(tiny, weights)
    _, out, _ = call(tiny, *arguments)
    assert cells(out, "paper, with ITAE (")[-3:] == ["0.8449", "0.8682", "0.7946"]
    assert "note: paper, with ITAE: ViT-B/14, official weights, the whole test split; as published" in out
    warned = "models here have random weights: the paper's figures are no measure for them" in out
    assert warned == (weights == "random")
    assert "the paper's figures are of all images, these are not" not in out
    (data,) = json.loads(call(tiny, *arguments, "--json")[1])["datasets"]
    assert data["paper"]["comparable"] == (not warned)
    _, out, _ = call(tiny, *arguments, "--limit", 12)
    assert "the paper's figures are of all images, these are not" in out
    monkeypatch.setitem(paper.FIGURES, "folder", paper.FIGURES["tiny-imagenet"])
    assert "whose labels were never published: here it is the validation split; as" in call(tiny, *arguments)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}"], "required: --data"),
        (["--data", "folder:{data}"], "required: MODEL"),
        (["{model}", "--data", "mnist:{data}"], "NAME one of cifar10"),
        (["{model}", "--data", "cifar10:{data}"], "has no test_batch.bin"),
        (["{model}", "--data", "folder:{data}", "--seeds", "0"], "--seeds 0: must be from 1"),
        (["{model}", "--data", "folder:{data}", "--seed", "-1"], "--seed -1: must be from 0"),
        (["{model}", "--data", "folder:{data}", "--limit", "0"], "--limit 0: must be 1 or more"),
        (["{model}", "--data", "folder:{data}", "--limit", "2"], "--limit 2: there are 3 classes"),
        (["{model}", "--data", "folder:{data}", "--no-cache", "--cache", "x"], "not allowed with"),
        (["{model}", "nowhere.onnx", "--data", "folder:{data}"], "nowhere.onnx: no such model file"),
        (["{model}", "--data", "folder:{data}", "--out", "{out}/a/b"], "make it first"),
        (["{model}", "--data", "folder:{data}", "--batch", "0"], "a batch of 0"),
        (["{model}", "--data", "folder:{data}", "--n-init", "0"], "--n-init 0: must be 1 or more"),
        (["{model}", "{folder}/../{folder.name}/{model.name}", "--data", "folder:{data}"], "is given twice"),
        (["{model}", "--data", "folder:{data}", "--data", "folder:{data}/."], "is given twice"),
    ],
    ids=["no data", "no model", "no such data", "not that data", "seeds", "seed", "limit", "limit below classes",
         "cache twice", "missing model", "out", "batch", "starts", "model twice", "data twice"],
)  # fmt: skip
def test_bad_use_is_one_line_and_exit_2_before_anything_is_embedded(
    arguments, message, capsys, tiny, colors, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("runtime.backends.open_session", None)
    places = {"model": tiny, "folder": tiny.parent, "data": colors, "out": tmp_path / "out"}
    code = main(["evaluate", *(argument.format(**places) for argument in arguments)])
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert message in captured.err.splitlines()[-1]
    assert captured.err.splitlines()[-1].startswith("runtime: ")


def test_a_folder_of_embeddings_is_refused_as_out(call, tiny, colors, tmp_path) -> None:
    call(tiny, "--data", f"folder:{colors}", "--seeds", 1)
    (store,) = (tmp_path / "cache").iterdir()
    before = sorted(path.name for path in store.iterdir())
    code, _, err = call(tiny, "--data", f"folder:{colors}", "--seeds", 1, "--out", store)
    assert code == 2
    assert "holds embeddings (part-00000.parquet): give it a folder of its own" in err
    assert sorted(path.name for path in store.iterdir()) == before


@pytest.mark.parametrize("failing", [SCORES, SUMMARY])
def test_files_of_two_runs_never_pass_as_one(failing, call, tiny, colors, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    arguments = [tiny, "--data", f"folder:{colors}", "--out", out, "--seeds"]
    call(*arguments, 1)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    real = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if target == out / failing and ".exchange" not in str(path):
            raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        assert call(*arguments, 2)[0] == 130
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert call(*arguments, 2)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == sorted([SCORES, SUMMARY])


def test_the_result_of_a_clustering_is_not_replaced(call, tiny, colors, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / SUMMARY).write_text('{"files": {"labels.parquet": {}, "centroids.npy": {}}}')
    code, _, err = call(tiny, "--data", f"folder:{colors}", "--seeds", 1, "--out", out)
    assert code == 2
    assert "holds a summary.json that `evaluate` did not write: give it a folder of its own" in err
    assert [path.name for path in out.iterdir()] == [SUMMARY]


# The report


def test_the_report_has_the_table_the_models_and_the_best_ones_clusters(call, make_model, colors, tmp_path) -> None:
    one, other = make_model(tmp_path / "a", "one.onnx"), make_model(tmp_path / "b", "other.onnx", dtype="uint8")
    page = tmp_path / "report.html"
    code, _, err = call(one, other, "--data", f"folder:{colors}", "--seeds", 3, "--report", page)
    assert code == 0
    assert f"report {page}: " in err
    text = page.read_text()
    for words in (
        "Evaluation on colors",
        "less one.onnx",
        "other.onnx",
        "1.0000",
        "are random",
        "divided by their L2 norm",
    ):
        assert words in text
    assert text.count("data:image/webp;base64,") >= 24
    assert "Artifacts" not in text  # no model has outputs that tell


def test_the_report_has_a_remark_and_the_first_models_scores_beside_the_best_ones(
    call, make_model, colors, tmp_path
) -> None:
    one, other = make_model(tmp_path / "a", "one.onnx"), make_model(tmp_path / "b", "other.onnx", dtype="uint8")
    page = tmp_path / "report.html"
    given = (one, other, "--data", f"folder:{colors}", "--seeds", 2)
    code, out, err = call(*given, "--report", page, "--note", "a < remark", "--json")
    assert code == 0, err
    text = page.read_text()
    assert "a &lt; remark" in text
    best = re.search(r"highest mean ACC: (\w+\.onnx)", text)
    assert best is not None
    beside = re.findall(r"2 seeds; one\.onnx: \d\.\d{4}", text)
    assert len(beside) == (0 if best[1] == "one.onnx" else 3), (best[1], out)
    code, _, err = call(*given, "--note", "no page")
    assert (code, err) == (2, "runtime: --note is for the page of --report\n")


def test_the_report_shows_what_a_model_flags_and_pictures_that_lie_in_an_array(call, make_model, tmp_path) -> None:
    rng = np.random.default_rng(0)
    records = b"".join(
        bytes([number % 10]) + rng.integers(0, 256, 3072, dtype=np.uint8).tobytes() for number in range(10_000)
    )
    (tmp_path / "test_batch.bin").write_bytes(records)
    (tmp_path / "batches.meta.txt").write_text("\n".join(f"class{number}" for number in range(10)) + "\n")
    model = make_model(tmp_path / "m", outputs=("embedding", "artifact_mask", "artifact_norm"))
    page = tmp_path / "report.html"
    code, _, err = call(
        model, "--data", f"cifar10:{tmp_path}", "--limit", 40, "--seeds", 1, "--report", page, cache=False
    )
    assert code == 0, err
    text = page.read_text()
    assert "Artifacts" in text
    assert text.count("data:image/webp;base64,") >= 40
    assert "can't be read any more" not in err


def test_the_table_is_printed_even_if_the_report_then_fails(call, tiny, colors, tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OutputFileError("can't write the report: the disk is full")

    monkeypatch.setattr("runtime.report.write_report", full)
    code, out, err = call(tiny, "--data", f"folder:{colors}", "--seeds", 1, "--report", tmp_path / "r.html")
    assert code == 2
    assert out.startswith("colors: 24 images")
    assert err.endswith("runtime: can't write the report: the disk is full\n")


def test_the_report_may_lie_in_the_folder_that_the_command_makes(call, tiny, colors, tmp_path) -> None:
    out = tmp_path / "out"
    code, _, err = call(tiny, "--data", f"folder:{colors}", "--seeds", 1, "--out", out, "--report", out / "r.html")
    assert code == 0, err
    assert sorted(path.name for path in out.iterdir()) == ["r.html", SCORES, SUMMARY]


def test_the_report_says_what_p_means_where_models_are_compared(call, make_model, colors, tmp_path) -> None:
    models = two_models(make_model, tmp_path)
    for given, is_told in ((models, True), (models[:1], False)):
        assert call(*given, "--data", f"folder:{colors}", "--seeds", 2, "--report", tmp_path / "r.html")[0] == 0
        text = (tmp_path / "r.html").read_text()
        assert ("paired t-test / Wilcoxon" in text) == is_told
        assert "\\u000a" not in text  # a line break that would be seen


@pytest.mark.parametrize(("name", "message"), [("r.txt", "must end in .html"), ("no/r.html", "does not exist")])
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_embedded(
    name, message, call, tiny, colors, tmp_path
) -> None:
    code, _, err = call(tiny, "--data", f"folder:{colors}", "--report", tmp_path / name)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
