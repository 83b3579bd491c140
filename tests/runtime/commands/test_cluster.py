"""The command `cluster`: its four files, what it prints, what it refuses, and what it leaves when it is cut short."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from odd_file_systems import lacking
from PIL import Image
from pyarrow import parquet

from runtime.__main__ import main
from runtime.clustering import results as cluster_output
from runtime.clustering.results import CENTROIDS, LABELS, PICTURE, SUMMARY
from runtime.commands import cluster
from runtime.contract.console import INTERRUPTED
from runtime.store import Store
from runtime.store.writer import open_writer

COLORS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}
COUNTS = {"red": 4, "green": 3, "blue": 2}
FILES = sorted([LABELS, CENTROIDS, PICTURE, SUMMARY])


def store(folder: Path, roots: list[str], paths: list[str], vectors: list[list[float]], **origin: str) -> Path:
    with open_writer(folder, origin) as writer:
        writer.add(roots, paths, np.array(vectors, np.float32))
    return folder


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    """Nine images in folders by color, each embedded near an axis of its color, at different lengths."""
    pictures = tmp_path / "pictures"
    paths, vectors = [], []
    for axis, (name, color) in enumerate(COLORS.items()):
        (pictures / name).mkdir(parents=True)
        for number in range(COUNTS[name]):
            paths.append(f"{name}/{number}.png")
            Image.new("RGB", (30, 20), color).save(pictures / paths[-1])
            vector = np.full(4, 0.01 * number)
            vector[axis] = 1
            vectors.append((vector * (number + 1)).tolist())
    return store(tmp_path / "embeddings", [str(pictures)] * 9, paths, vectors, model_sha256="ab" * 32)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(*arguments: object) -> int:
    return main(["cluster", *map(str, arguments)])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def is_whole(out: Path) -> bool:
    """Whether the summary is there; if so, every file must be the one that it tells of."""
    if not (out / SUMMARY).exists():
        return False
    files = json.loads((out / SUMMARY).read_text())["files"]
    assert sorted(files) == sorted({*FILES} - {SUMMARY})
    for name, record in files.items():
        data = (out / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (record["bytes"], record["sha256"])
    return True


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_the_four_files_tell_the_same_story(embeddings, out, capsys):
    assert run(embeddings, "--k", 3, "--out", out, "--seed", 7) == 0
    assert names(out) == FILES
    assert is_whole(out)
    table = parquet.read_table(out / LABELS)
    assert {field.name: str(field.type) for field in table.schema} == {
        "root": "string",
        "path": "string",
        "label": "int32",
        "distance": "float",
    }
    stored = Store(embeddings).read()
    assert table["root"].to_pylist() == stored.roots
    assert table["path"].to_pylist() == stored.paths
    labels = table["label"].to_numpy()
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2]  # the largest first
    centroids = np.load(out / CENTROIDS, allow_pickle=False)
    assert (centroids.shape, centroids.dtype) == ((3, 4), np.float32)
    units = stored.vectors / np.linalg.norm(stored.vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(centroids[1], units[4:7].mean(axis=0), atol=1e-6)
    distances = np.linalg.norm(units - centroids[labels], axis=1)
    np.testing.assert_allclose(table["distance"].to_numpy(), distances, atol=1e-6)
    summary = json.loads((out / SUMMARY).read_text())
    assert summary["inertia"] == pytest.approx((distances**2).sum(), rel=1e-5)
    assert {name: summary[name] for name in ("format", "k", "seed", "n", "width", "sizes", "metrics", "picture")} == {
        "format": 1,
        "k": 3,
        "seed": 7,
        "n": 9,
        "width": 4,
        "sizes": [4, 3, 2],
        "metrics": None,
        "picture": {"clusters": 3, "images": 9, "unreadable": 0},
    }
    assert summary["source"] == {"folder": str(embeddings.resolve()), "model_sha256": "ab" * 32}
    assert {"itae", "scikit-learn", "numpy"} <= summary["versions"].keys()
    assert summary["iterations"] >= 1
    with Image.open(out / PICTURE) as picture:
        seen = [np.flatnonzero((np.asarray(picture) == color).all(axis=2).any(axis=1)) for color in COLORS.values()]
    assert seen[0].max() < seen[1].min() <= seen[1].max() < seen[2].min()
    captured = capsys.readouterr()
    assert "9 images in 3 clusters (seed 7" in captured.out
    assert "0                 4   44.4%" in captured.out
    assert str(out / PICTURE) in captured.out
    assert "ACC" not in captured.out
    assert "clustering 9 embeddings of width 4 into 3" in captured.err


def test_folder_names_are_scored_and_the_scores_kept(embeddings, out, capsys):
    assert run(embeddings, "--k", 3, "--out", out, "--labels", "folders") == 0
    assert "ACC 1.0000  NMI 1.0000  ARI 1.0000  (against 3 folder names)" in capsys.readouterr().out
    metrics = json.loads((out / SUMMARY).read_text())["metrics"]
    assert metrics == {
        "classes_from": "folders",
        "acc": 1.0,
        "nmi": pytest.approx(1),
        "ari": pytest.approx(1),
        "classes": ["blue", "green", "red"],
        "class_of_cluster": ["red", "green", "blue"],
    }
    assert run(embeddings, "--k", 2, "--out", out, "--labels", "folders") == 0
    assert json.loads((out / SUMMARY).read_text())["metrics"]["acc"] == pytest.approx(7 / 9)


def test_one_folder_for_all_images_is_remarked_on(tmp_path, out, capsys):
    folder = store(tmp_path / "e", ["/data/[all]"] * 2, ["a.png", "b.png"], [[1, 0], [0, 1]])
    assert run(folder, "--k", 2, "--out", out, "--labels", "folders") == 0
    assert "all images lie in folders named '[all]': ACC, NMI and ARI say nothing" in capsys.readouterr().err


def test_json_is_alone_on_stdout_and_is_the_file(embeddings, out, capsys):
    assert run(embeddings, "--k", 2, "--out", out, "--json", "--labels", "folders") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / SUMMARY).read_text())


def test_quiet_leaves_stderr_empty(embeddings, out, capsys):
    assert run(embeddings, "--k", 2, "--out", out, "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_many_clusters_are_listed_in_short_and_kept_in_full(tmp_path, out, capsys):
    vectors = np.eye(30, dtype=np.float32)
    folder = store(tmp_path / "e", ["/nowhere"] * 30, [f"{i}.png" for i in range(30)], vectors.tolist())
    assert run(folder, "--k", 30, "--out", out) == 0
    assert "10 more          10   33.3%" in capsys.readouterr().out
    assert json.loads((out / SUMMARY).read_text())["sizes"] == [1] * 30


def test_capped_rows_are_told(tmp_path, out, capsys, monkeypatch):
    monkeypatch.setattr("runtime.report.gallery.MAX_ROWS", 2)
    folder = store(tmp_path / "e", ["/nowhere"] * 3, ["a", "b", "c"], [[1, 0], [0, 1], [-1, 0]])
    assert run(folder, "--k", 3, "--out", out) == 0
    assert f"{out / PICTURE} (the first 2 clusters)" in capsys.readouterr().out
    assert json.loads((out / SUMMARY).read_text())["picture"]["clusters"] == 2


def test_moved_images_are_counted_and_not_fatal(embeddings, tmp_path, out, capsys):
    (tmp_path / "pictures" / "red").rename(tmp_path / "elsewhere")
    assert run(embeddings, "--k", 3, "--out", out) == 0
    assert "4 of the picture's images can't be read any more, the first: " in capsys.readouterr().err
    assert json.loads((out / SUMMARY).read_text())["picture"]["unreadable"] == 4


def test_the_same_seed_gives_the_same_files(embeddings, tmp_path):
    for name in ("one", "two"):
        assert run(embeddings, "--k", 3, "--out", tmp_path / name, "--labels", "folders") == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


HOSTILE = ["é 猫", "new\nline", "[bold]x", "-", "a=b", "'\";$(x)", "x" * 200]


@pytest.mark.parametrize("name", HOSTILE, ids=[name[:9].replace("\n", "~") for name in HOSTILE])
def test_hostile_names_come_through(tmp_path, name):
    (tmp_path / name / "pictures").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / name / "pictures" / f"{name}.png")
    root, paths = str(tmp_path / name), [f"pictures/{name}.png", f"{name}/b.png"]
    folder = store(tmp_path / name / "e", [root] * 2, paths, [[1, 0], [0, 1]])
    out = tmp_path / name / "out"
    assert run(folder, "--k", 2, "--out", out, "--labels", "folders") == 0
    assert is_whole(out)
    assert parquet.read_table(out / LABELS)["path"].to_pylist() == paths
    summary = json.loads((out / SUMMARY).read_text())
    assert sorted(summary["metrics"]["classes"]) == sorted(["pictures", name])
    assert summary["picture"]["unreadable"] == 1
    assert summary["source"]["folder"] == str(folder)


def test_a_folder_whose_name_is_not_utf_8_comes_through(tmp_path):
    base = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    base.mkdir()
    folder = store(base / "e", ["/nowhere"] * 2, ["a", "b"], [[1, 0], [0, 1]])
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "cluster", folder, "--k", "2", "--out", base / "out"],
        capture_output=True,
        check=True,
    )
    assert b"picture  " in done.stdout
    assert json.loads((base / "out" / SUMMARY).read_text())["source"]["folder"] == str(folder)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a run that ends with 2."""
    capsys.readouterr()
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len(lines) == 1
    assert lines[0].startswith("runtime: ")
    return lines[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", 0], "--k 0: must be 1 or more"),
        (["--k", -1], "--k -1: must be 1 or more"),
        (["--k", 10], "--k 10: there are only 9 embeddings"),
        (["--k", "many"], "argument --k: 'many' is neither a number nor auto"),
        ([], "--k is missing: the number of clusters, or auto"),
        (["--k", 2, "--seed", -1], "--seed -1: must be from 0 to 4294967295"),
        (["--k", 2, "--seed", 2**32], "--seed 4294967296: must be from 0 to 4294967295"),
        (["--k", 2, "--labels", "files"], "argument --labels: invalid choice: 'files'"),
    ],
    ids=["k 0", "k -1", "k above n", "k no number", "no k", "seed -1", "seed 2**32", "labels"],
)
def test_a_senseless_option_is_refused_and_makes_nothing(embeddings, out, capsys, options, message):
    assert message in refused(capsys, embeddings, "--out", out, *options)
    assert not out.exists()


@pytest.mark.parametrize("empty", ["embeddings", "out"])
def test_an_empty_path_is_not_the_current_folder(embeddings, tmp_path, capsys, monkeypatch, empty):
    monkeypatch.chdir(embeddings if empty == "embeddings" else tmp_path)
    before = names(tmp_path)
    paths = {"embeddings": embeddings, "out": tmp_path / "out", empty: ""}  # as of a variable that is not set
    assert "an empty path" in refused(capsys, paths["embeddings"], "--k", 2, "--out", paths["out"])
    assert names(tmp_path) == before


def test_k_above_the_distinct_embeddings_is_refused(tmp_path, out, capsys):
    folder = store(tmp_path / "e", ["/r"] * 3, ["a", "b", "c"], [[1, 0], [2, 0], [0, 1]])
    assert "--k 3: 3 embeddings, but only 2 distinct ones" in refused(capsys, folder, "--k", 3, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize("case", ["missing", "a file", "empty", "other parquet", "no rows"])
def test_what_holds_no_embeddings_is_refused(tmp_path, out, capsys, case):
    folder = tmp_path / "e"
    if case == "a file":
        folder.write_text("x")
    elif case != "missing":
        folder.mkdir()
    if case == "other parquet":
        (folder / "labels.parquet").write_bytes(b"PAR1")
    elif case == "no rows":
        folder.rmdir()
        with open_writer(folder, {}):
            pass
    said = refused(capsys, folder, "--k", 1, "--out", out)
    assert str(folder) in said
    assert not out.exists()


def test_a_zero_embedding_is_refused_by_name(tmp_path, out, capsys):
    folder = store(tmp_path / "e", ["/r"] * 3, ["a.png", "dark.png", "c.png"], [[1, 0], [0, 0], [0, 1]])
    assert "the embedding of /r/dark.png (row 1) is all zeros" in refused(capsys, folder, "--k", 2, "--out", out)
    assert not out.exists()


def test_an_embedding_of_nan_is_refused(tmp_path, out, capsys):
    folder = store(tmp_path / "e", ["/r"] * 3, ["a.png", "b.png", "c.png"], [[1, 0], [np.nan, 0], [0, 1]])
    assert "NaN" in refused(capsys, folder, "--k", 2, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize("way", ["itself", "dots", "link"])
def test_the_folder_of_the_embeddings_is_refused_as_out(embeddings, tmp_path, capsys, way):
    (tmp_path / "link").symlink_to(embeddings)
    same = {"itself": embeddings, "dots": embeddings / ".." / embeddings.name, "link": tmp_path / "link"}[way]
    before = contents(embeddings)
    assert "is the folder of the embeddings itself" in refused(capsys, embeddings, "--k", 2, "--out", same)
    assert contents(embeddings) == before


def test_a_folder_of_other_embeddings_is_refused_as_out(embeddings, tmp_path, capsys):
    other = store(tmp_path / "other", ["/r"], ["a"], [[1]])
    assert "holds embeddings (part-00000.parquet)" in refused(capsys, embeddings, "--k", 2, "--out", other)


def test_an_out_that_readers_would_take_for_a_part_is_refused(embeddings, capsys):
    out = embeddings / "x.parquet"
    assert "would look like a part of the embeddings" in refused(capsys, embeddings, "--k", 2, "--out", out)


def test_an_out_inside_the_embeddings_is_fine(embeddings):
    assert run(embeddings, "--k", 2, "--out", embeddings / "clusters") == 0
    assert run(embeddings, "--k", 3, "--out", embeddings / "clusters") == 0
    assert is_whole(embeddings / "clusters")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere/out", "does not exist; make it first"),
        ("file", "is no folder"),
        ("file/out", "can't write"),
    ],
)
def test_an_out_that_can_not_be_made_is_refused(embeddings, tmp_path, capsys, place, message):
    (tmp_path / "file").write_text("mine")
    assert message in refused(capsys, embeddings, "--k", 2, "--out", tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_a_files_place_is_refused_before_anything_is_replaced(embeddings, out, capsys, name):
    (out / name).mkdir(parents=True)
    assert f"{name}: a folder is in its place" in refused(capsys, embeddings, "--k", 2, "--out", out)
    assert names(out) == [name]


def test_a_new_result_replaces_the_old_one_and_leaves_other_files(embeddings, out):
    run(embeddings, "--k", 2, "--out", out)
    (out / "notes.txt").write_text("mine")
    run(embeddings, "--k", 3, "--out", out)
    assert is_whole(out)
    assert json.loads((out / SUMMARY).read_text())["k"] == 3
    assert names(out) == sorted([*FILES, "notes.txt"])


@pytest.mark.parametrize("step", ["clustering", "drawing", "scoring"])
@pytest.mark.parametrize("older", [False, True], ids=["new", "older"])
def test_an_interrupted_run_leaves_what_was_there(embeddings, out, capsys, monkeypatch, step, older):
    if older:
        run(embeddings, "--k", 2, "--out", out)
    before = contents(out) if older else None

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    what = {
        "clustering": "clustering.kmeans.cluster",
        "drawing": "report.gallery.draw_gallery",
        "scoring": "clustering.metrics.score",
    }[step]
    monkeypatch.setattr(f"runtime.{what}", interrupt)
    assert run(embeddings, "--k", 3, "--out", out, "--labels", "folders") == INTERRUPTED
    assert (contents(out) if out.exists() else None) == before


@pytest.mark.parametrize("older", [False, True], ids=["new", "older"])
def test_a_full_disk_leaves_what_was_there(embeddings, out, capsys, monkeypatch, older):
    if older:
        run(embeddings, "--k", 2, "--out", out)
    before = contents(out) if older else None

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    capsys.readouterr()
    assert run(embeddings, "--k", 3, "--out", out, "--quiet") == 2
    assert "labels.parquet: No space left on device" in capsys.readouterr().err
    assert (contents(out) if out.exists() else None) == before


def test_a_move_that_fails_says_what_is_there(embeddings, out, capsys, monkeypatch):
    run(embeddings, "--k", 2, "--out", out)
    before = contents(out)
    real = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if target == out / CENTROIDS:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    said = refused(capsys, embeddings, "--k", 3, "--out", out, "--quiet")
    assert f"can't write {out / CENTROIDS}: Input/output error; what was there is as before" in said
    assert contents(out) == before
    assert is_whole(out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_waits_until_everything_is_published(embeddings, out, capsys, monkeypatch, number):
    run(embeddings, "--k", 2, "--out", out)
    real, moved = Path.replace, []

    def replace(path: Path, target: Path) -> Path:
        signal.raise_signal(number)
        moved.append(target.name)
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    assert run(embeddings, "--k", 3, "--out", out) == INTERRUPTED
    assert len(moved) == 8  # each of four files goes, and comes
    assert (moved[0], moved[-1]) == (SUMMARY, SUMMARY)
    assert is_whole(out)
    assert json.loads((out / SUMMARY).read_text())["k"] == 3


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO, errno.EPERM], ids=errno.errorcode.get)
@pytest.mark.parametrize("more", [(), ("chmod",), ("chmod", "flock", "link")], ids=" ".join)
def test_a_file_system_that_lacks_something_is_said_once_and_written_to(embeddings, out, capsys, more, number):
    run(embeddings, "--k", 2, "--out", out)
    capsys.readouterr()
    for k in (3, 2):
        with lacking("fsyncdir", *more, number=number):
            assert run(embeddings, "--k", k, "--out", out, "--quiet") == 0
        assert is_whole(out)
        assert json.loads((out / SUMMARY).read_text())["k"] == k
        warnings = capsys.readouterr().err.splitlines()
        assert len([line for line in warnings if "no fsync of folders" in line]) == 1
        assert len([line for line in warnings if "no locks" in line]) == ("flock" in more)
        assert len(warnings) == 1 + ("flock" in more)


def test_another_store_is_no_place_for_clusters(embeddings, tmp_path, capsys):
    other = tmp_path / "other"
    with open_writer(other, {}) as writer:
        writer.add(["/r"], ["a.png"], np.ones((1, 4), np.float32))
    before = names(other)
    assert "holds embeddings (" in refused(capsys, embeddings, "--k", 2, "--out", other)
    assert names(other) == before


def test_a_second_run_into_the_same_folder_is_refused(embeddings, out, capsys):
    with cluster_output.output_folder(out, embeddings):
        assert f"another run is writing into {out}" in refused(capsys, embeddings, "--k", 2, "--out", out, "--quiet")
    assert run(embeddings, "--k", 2, "--out", out) == 0


@pytest.mark.parametrize("text", ['{"name": "mine"}', "[1]", '{"files": {"scores.parquet": {}}}', "notes"])
def test_a_summary_of_another_program_is_not_replaced(embeddings, out, capsys, text):
    out.mkdir()
    (out / SUMMARY).write_text(text)
    assert "holds a summary.json that `cluster` did not write" in refused(capsys, embeddings, "--k", 2, "--out", out)
    assert names(out) == [SUMMARY]
    assert (out / SUMMARY).read_text() == text


def test_importing_the_command_costs_nothing():
    heavy = "{'numpy', 'sklearn', 'scipy', 'pyarrow', 'PIL', 'rich'}"
    code = f"import sys, {cluster.__name__}; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
