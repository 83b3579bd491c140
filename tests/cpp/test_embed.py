"""`itae-embed` beside Python's `embed`: the same embeddings, the same images, files that Python reads, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from cpp_programs import BUILD, program
from odd_file_systems import killed
from onnx import numpy_helper
from rehash import rehash

import runtime.__main__
from runtime.backends import open_session
from runtime.checks.verify import as_json, as_text, verify
from runtime.contract.errors import InputError
from runtime.contract.manifest import manifest_path, parity_path, read_manifest
from runtime.sources import open_sources
from runtime.store import Store
from runtime.store.array_pair import export_array
from runtime.store.npy_header import npy_header
from scripts.benchmark.peak import run_to_end

TOLERANCE = {"uint8": 1e-6, "float32": 1e-5, "fp16": 2e-3, "int8": 2e-3}
"""What is promised; on one machine, with one ONNX Runtime and as many threads, the bits are the same."""


def lines(pair: Path) -> list[dict]:
    return [json.loads(line) for line in pair.with_suffix(".jsonl").read_text().splitlines()]


def last_line(done: subprocess.CompletedProcess[bytes]) -> str:
    return done.stderr.decode().splitlines()[-1]


def embedded(run, model: Path, out: Path, *arguments: object) -> np.ndarray:
    done = run(model, *arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    return np.load(out)


# The embeddings


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_embeddings_are_those_of_python_at_every_batch_size(batch, model, pictures, run, tmp_path) -> None:
    manifest = read_manifest(model)
    got = embedded(run, model, tmp_path / "x.npy", pictures, "--batch", batch, "--threads", 2)
    with closing(open_session(model, threads=2)) as session:
        expected = load_by(session).embed(sorted(pictures.iterdir()), batch)
    limit = TOLERANCE[manifest.input.dtype if manifest.options.precision == "fp32" else manifest.options.precision]
    assert got.shape == (10, 48)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(got, expected, rtol=0, atol=limit)
    np.testing.assert_array_equal(got, expected)


def load_by(session):  # a model on a session with so many threads
    from runtime.embedding.model import Model

    return Model(session)


def test_rows_are_the_same_at_every_batch_size(model, pictures, run, tmp_path) -> None:
    alone, *others = (
        embedded(run, model, tmp_path / f"{size}.npy", pictures, "--batch", size) for size in (1, 2, 3, 8, 16)
    )
    limit = {"fp16": 2e-3, "int8": 2e-3}.get(read_manifest(model).options.precision, 2e-6)
    for other in others:
        np.testing.assert_allclose(other, alone, rtol=0, atol=limit)


def test_eight_threads_run_one_session(model) -> None:
    done = subprocess.run(
        [program("itae-tests"), "[threads]"],
        env={**os.environ, "ITAE_TEST_MODEL": str(model)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "assertions in 1 test case" in done.stdout


# Verify


def test_verify_has_the_figures_of_python(model, run) -> None:
    done = run(model, "--verify", "--json")
    assert done.returncode == 0, done.stderr
    got, expected = json.loads(done.stdout), as_json(verify(model))
    assert got["passed"]
    assert got.keys() == expected.keys()
    for name in (
        "samples",
        "outputs",
        "flags_checked",
        "flags_differing",
        "flagged",
        "borderline",
        "left_out",
        "limits",
    ):
        assert got[name] == expected[name]
    for name in ("max_abs", "min_cosine", "norm_relative"):
        assert got[name] == pytest.approx(expected[name], rel=1e-6)
    assert got["batches"]["sizes"] == expected["batches"]["sizes"]
    assert got["batches"]["rows"] == expected["batches"]["rows"]


def test_a_golden_sample_without_flags_is_reported_as_by_python(unflagged, run) -> None:
    (row,) = [line for line in as_text(verify(unflagged)).splitlines() if line.startswith("  flagged ")]
    assert "the export compared it at " in row
    assert row in run(unflagged, "--verify").stdout.decode().splitlines()


def test_a_spoilt_model_that_fits_its_manifest_is_off(own, run) -> None:
    graph = onnx.load(own)
    weights = max(graph.graph.initializer, key=lambda one: np.prod(one.dims))
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(1.05), weights.name))
    onnx.save(graph, own)
    rehash(own)
    done = run(own, "--verify")
    assert done.returncode == 1
    assert b"FAILED: max abs" in done.stdout
    assert last_line(done).endswith("is off: it does not give the results of its golden sample")
    report = json.loads(run(own, "--verify", "--json").stdout)
    assert not report["passed"]
    assert report["failures"]


@pytest.mark.parametrize("which", [lambda path: path, manifest_path, parity_path], ids=["model", "manifest", "golden"])
def test_an_altered_file_is_refused(which, own, run) -> None:
    content = bytearray(which(own).read_bytes())
    content[len(content) // 2] ^= 1
    which(own).write_bytes(content)
    done = run(own, "--verify")
    assert done.returncode == 2
    assert done.stdout == b""
    assert len(done.stderr.splitlines()) == 1


def test_a_model_that_refers_to_a_file_of_no_manifest_is_refused(own, run, tmp_path, pictures) -> None:
    onnx.save(onnx.load(own), own, save_as_external_data=True, location="w.data", size_threshold=100)
    rehash(own)
    done = run(own, pictures, "--out", tmp_path / "x.npy", cwd=own.parent)
    assert done.returncode == 2
    assert "keeps weights in another file, which its manifest does not name" in last_line(done)


# Which images


def test_the_images_of_a_folder_are_those_that_python_finds(tiny, pictures, run, tmp_path) -> None:
    folder = tmp_path / "tree"
    picture = (pictures / "0.jpg").read_bytes()
    names = [
        "b.jpg", "B.JPG", "a/z.png", "a.jpg", "a-b/1.jpeg", "ä.jpg", "😀.jpg", "￰.jpg", "no_suffix", "x.unknown",
        ".hidden.jpg", "._a.jpg", "Thumbs.db", "@eaDir/1.jpg", "__MACOSX/x.jpg", "film.mp4", "notes.txt",
        "deep/er/x.gif", "a b'\"\\.jpg", "line\nbreak.jpg", "half.jpg", ".png", "x.tar.gz", "y.", "..jpg", "photo.JPEG",
    ]  # fmt: skip
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture)
    for name in (b"odd\xff.jpg", b"\xe2\x82.jpg", b"\xed\xa0\x80.jpg", b"dir\x80/in.jpg"):
        place = folder / os.fsdecode(name)
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(picture)
    (folder / "half.jpg").write_bytes(picture[:100])
    (folder / "empty").write_bytes(b"")
    (folder / "page").write_bytes(b"  <html>")
    (folder / "archive").write_bytes(b"PK\x03\x04")
    (folder / "link.jpg").symlink_to(folder / "b.jpg")
    (folder / "broken").symlink_to(folder / "nothing")
    (folder / "broken.jpg").symlink_to(folder / "nothing")
    (folder / "to_folder").symlink_to(folder / "a")
    os.mkfifo(folder / "pipe")

    done = run(tiny, folder, "--out", tmp_path / "x.npy", "--json")
    assert done.returncode == 0, done.stderr
    sources = open_sources([str(folder)])
    expected = [(one.root, one.path) for one in sources.items()]
    assert [(one["root"], one["path"]) for one in lines(tmp_path / "x.npy")] == expected
    assert json.loads(done.stdout)["skipped"] == sources.skipped
    errors = {one["path"]: one["error"] for one in lines(tmp_path / "x.npy") if "error" in one}
    assert errors.keys() == {
        "half.jpg", "broken.jpg", "odd\\udcff.jpg", "\\udce2\\udc82.jpg",
        "\\udced\\udca0\\udc80.jpg", "dir\\udc80/in.jpg",
    }  # fmt: skip
    assert errors["odd\\udcff.jpg"] == "its name is not UTF-8: rename it"
    assert errors["broken.jpg"] == "does not exist, or is a link to what does not"


LISTS = {
    "lines": b"0.jpg\n./1.png\n\n  \nsub/../2.webp\r\nmissing.jpg\n0.jpg\n",
    "NULs": b"0.jpg\0./1.png\0 a\nb.jpg\0",
    "odd": b"\xef\xbb\xbf0.jpg\n\t\r\r 1.png\nfile:/nowhere/x.jpg\nhttp://a/b.jpg\nsub/\n..\n\xff.jpg\n" + b"x" * 20000,
}


@pytest.mark.parametrize("content", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("by", ["standard input", "file"])
def test_a_list_means_what_it_means_to_python(content, by, tiny, pictures, run, tmp_path, monkeypatch) -> None:
    absolute = os.fsencode(pictures / "3.jpg")
    content = content + (b"\0" if b"\0" in content else b"\n") + absolute
    monkeypatch.chdir(pictures)
    file = tmp_path / "list.txt"
    file.write_bytes(content)
    argument = "-" if by == "standard input" else str(file)
    done = run(tiny, argument, "--out", tmp_path / "x.npy", input=content, cwd=pictures)
    assert done.returncode == 0, done.stderr
    found = [(one["root"], one["path"]) for one in lines(tmp_path / "x.npy")]
    expected = [(one.root, one.path) for one in open_sources([str(file)]).items()]
    if b"http:" in content:  # a URL is a key to Python, and an error here
        expected = [
            (str(pictures), "http://a/b.jpg") if root == "http://a" else (root, path) for root, path in expected
        ]
    assert found == expected


def test_files_folders_and_lists_go_together_each_image_once(tiny, pictures, run, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(pictures)
    embedded(run, tiny, tmp_path / "x.npy", "4.png", pictures, pictures / "5.webp", ".")
    paths = [one["path"] for one in lines(tmp_path / "x.npy")]
    assert paths == ["4.png", *(f.name for f in sorted(pictures.iterdir()) if f.name != "4.png")]


# The files


def test_python_reads_and_clusters_what_is_written(tiny, pictures, run, tmp_path) -> None:
    folder = Path(shutil.copytree(pictures, tmp_path / "a 'b\"\n\u2028é"))
    (folder / "bad.jpg").write_bytes(b"no picture")
    (folder / 'q"u\\o\te\x7f\x85.jpg').write_bytes((folder / "0.jpg").read_bytes())
    Path(os.fsdecode(os.fsencode(folder) + b"/\xfe.jpg")).write_bytes((folder / "0.jpg").read_bytes())
    out = tmp_path / "x.npy"
    vectors = embedded(run, tiny, out, folder)
    store = Store(out)
    assert len(store) == 11
    np.testing.assert_array_equal(store.load(), vectors)
    rows = [(one["root"], one["path"]) for one in lines(out) if "row" in one]
    assert list(store.images()) == rows
    assert [one["row"] for one in lines(out) if "row" in one] == list(range(11))
    assert {one["path"] for one in lines(out) if "row" not in one} == {"bad.jpg", "\\udcfe.jpg"}
    export_array(store, tmp_path / "again.npy")  # the same bytes but for the lines of errors
    assert (tmp_path / "again.npy").read_bytes() == out.read_bytes()
    kept = [line for line in out.with_suffix(".jsonl").read_bytes().split(b"\n") if b'"error"' not in line]
    assert (tmp_path / "again.jsonl").read_bytes().split(b"\n") == kept
    assert out.read_bytes()[:128] == npy_header(11, 48)
    code = runtime.__main__.main(["cluster", str(out), "--k", "3", "--out", str(tmp_path / "clusters"), "--quiet"])
    assert code == 0


def test_assign_gives_the_labels_of_python(tiny, pictures, run, tmp_path) -> None:
    import pyarrow.parquet as pq

    main = runtime.__main__.main
    embedded(run, tiny, tmp_path / "x.npy", pictures)
    assert main(["cluster", str(tmp_path / "x.npy"), "--k", "3", "--out", str(tmp_path / "old"), "--quiet"]) == 0
    expected = pq.read_table(tmp_path / "old/labels.parquet").column("label").to_pylist()
    assert len(set(expected)) == 3
    done = run(tiny, pictures, "--out", tmp_path / "y.npy", "--assign", tmp_path / "old")
    assert done.returncode == 0, done.stderr
    assert [one["label"] for one in lines(tmp_path / "y.npy")] == expected
    assert "it is not known whether one model made both" in done.stderr.decode()
    shutil.copy(tmp_path / "old/centroids.npy", tmp_path / "others.npy")
    embedded(run, tiny, tmp_path / "z.npy", pictures, "--assign", tmp_path / "others.npy")
    assert lines(tmp_path / "z.npy") == lines(tmp_path / "y.npy")
    np.save(tmp_path / "others.npy", np.zeros((2, 47), np.float32))
    done = run(tiny, pictures, "--out", tmp_path / "z.npy", "--assign", tmp_path / "others.npy")
    assert done.returncode == 2
    assert "centroids of width 47, embeddings of width 48" in last_line(done)
    (tmp_path / "old/centroids.npy").write_bytes((tmp_path / "others.npy").read_bytes())
    done = run(tiny, pictures, "--out", tmp_path / "z.npy", "--assign", tmp_path / "old")
    assert "is not the one that" in last_line(done)


def test_an_older_pair_is_replaced_and_what_is_no_pair_is_not(tiny, pictures, run, tmp_path) -> None:
    out = tmp_path / "x.npy"
    embedded(run, tiny, out, pictures / "0.jpg")
    assert len(embedded(run, tiny, out, pictures)) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.jsonl", "x.npy"]
    out.with_suffix(".jsonl").write_text("mine\n")
    before = out.read_bytes()
    done = run(tiny, pictures, "--out", out)
    assert done.returncode == 2
    assert "does not begin as the lines of embeddings do" in last_line(done)
    out.with_suffix(".jsonl").unlink()
    assert "is there without" in last_line(run(tiny, pictures, "--out", out))
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


KILLER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
static void step(void) {
    static int count = 0;
    const char* at = getenv("KILL_AT");
    if (at != NULL && count++ == atoi(at)) kill(getpid(), SIGKILL);
}
#define COUNTED(name, types, names)                                                    \
    int name types {                                                                   \
        step();                                                                        \
        return ((int(*) types)dlsym(RTLD_NEXT, #name)) names;                          \
    }
COUNTED(rename, (const char* from, const char* to), (from, to))
COUNTED(mkdir, (const char* path, unsigned mode), (path, mode))
COUNTED(unlink, (const char* path), (path))
COUNTED(fsync, (int file), (file))
"""


def found_at(pair: Path) -> object:
    """Number of rows that a reader finds, or why it finds none."""
    try:
        store = Store(pair)
        store.load()
    except InputError as error:
        return str(error)
    return len(store)


def test_a_kill_at_any_step_leaves_one_pair_or_a_line_that_says_so(tiny, pictures, run, tmp_path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    library = tmp_path / "killer.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=KILLER.encode(), check=True)
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "x.npy"
    embedded(run, tiny, out, pictures / "0.jpg")
    seen = set()
    for step in range(100):
        work = Path(shutil.copytree(folder, tmp_path / str(step)))
        env = {**os.environ, "LD_PRELOAD": str(library), "KILL_AT": str(step)}
        done = run(tiny, pictures, "--out", work / "x.npy", env=env)
        if done.returncode != -signal.SIGKILL:
            break
        seen.add(state := found_at(work / "x.npy"))
        assert state in (1, 10) or "was interrupted" in str(state)
        again = Path(shutil.copytree(work, tmp_path / f"{step} again"))
        assert len(embedded(run, tiny, again / "x.npy", pictures)) == 10
        assert sorted(path.name for path in again.iterdir()) == ["x.jsonl", "x.npy"]
        export_array(Store(tmp_path / "out/x.npy"), work / "x.npy")  # Python undoes it as well
        assert found_at(work / "x.npy") == 1
        assert sorted(path.name for path in work.iterdir()) == ["x.jsonl", "x.npy"]
    else:
        pytest.fail("it takes no end of steps")
    assert step > 8
    assert {1, 10} < seen


def test_what_a_killed_export_of_python_left_is_undone(tiny, pictures, run, tmp_path) -> None:
    out = tmp_path / "x.npy"
    embedded(run, tiny, out, pictures / "0.jpg")
    embedded(run, tiny, tmp_path / "y.npy", pictures)
    other = Store(tmp_path / "y.npy")
    interrupted = 0
    for step in range(60):
        if not killed(step, lambda: export_array(other, out)):
            break
        interrupted += "was interrupted" in str(found_at(out))
        assert len(embedded(run, tiny, out, pictures / "0.jpg")) == 1
        assert not list(tmp_path.glob(".*"))
    assert interrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing(number, tiny, pictures, tmp_path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for copy in range(400):
        os.link(pictures / "9.jpg", folder / f"{copy}.jpg")
    out = tmp_path / "out"
    out.mkdir()
    command = [program("itae-embed"), tiny, folder, "--out", out / "x.npy", "--threads", "1", "--batch", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not list(out.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, 0)  # 0: it was done before
    if process.returncode == 130:
        assert errors.decode().splitlines()[-1] == "itae-embed: interrupted; nothing was written"
        assert list(out.iterdir()) == []


# Exit codes and messages


def test_no_image_embedded_is_exit_code_1_and_nothing_written(tiny, run, tmp_path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    for name in ("1.jpg", "2.jpg"):
        (folder / name).write_bytes(b"no picture")
    done = run(tiny, folder, "--out", tmp_path / "x.npy")
    assert done.returncode == 1
    assert last_line(done).startswith(f"itae-embed: none of 2 images could be embedded; the first: {folder}/1.jpg: ")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


BAD = {
    "no model": (["--verify"], "MODEL is required"),
    "no such model": (["nowhere.onnx", "p", "--out", "x.npy"], "nowhere.onnx"),
    "no images": (["MODEL", "--out", "x.npy"], "no IMAGES"),
    "no out": (["MODEL", "PICTURES"], "--out is required"),
    "another ending": (["MODEL", "PICTURES", "--out", "x.npz"], "must end in .npy"),
    "no such folder": (["MODEL", "PICTURES", "--out", "none/x.npy"], "the folder none does not exist; make it first"),
    "no such picture": (["MODEL", "none.jpg", "--out", "x.npy"], "No such file or directory; give image files"),
    "a pattern": (["MODEL", "*.jpg", "--out", "x.npy"], "leave out the quotes"),
    "a tar": (["MODEL", "x.tar", "--out", "x.npy"], "x.tar"),
    "a URL": (["MODEL", "s3://a/b", "--out", "x.npy"], "reads no URLs"),
    "verify and images": (["MODEL", "PICTURES", "--verify"], "--verify takes no IMAGES"),
    "batch 0": (["MODEL", "PICTURES", "--out", "x.npy", "--batch", "0"], "--batch"),
    "threads": (["MODEL", "PICTURES", "--out", "x.npy", "--threads", "many"], "--threads"),
    "a device": (["MODEL", "PICTURES", "--out", "x.npy", "--device", "tpu"], "no device `tpu`"),
    "a backend": (["MODEL", "PICTURES", "--out", "x.npy", "--backend", "tensorrt"], "doesn't run"),
    "an option": (["MODEL", "PICTURES", "--out", "x.npy", "--nonsense"], "--nonsense"),
    "CUDA": (["MODEL", "PICTURES", "--out", "x.npy", "--device", "cuda"], "has no CUDAExecutionProvider"),
    "another library": (["MODEL", "PICTURES", "--out", "x.npy", "--ort-library", "none.so"], "none.so: no such file"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_use_is_one_line_and_exit_code_2(arguments, message, tiny, pictures, run, tmp_path) -> None:
    words = [{"MODEL": tiny, "PICTURES": pictures}.get(word, word) for word in arguments]
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == b""
    assert message in done.stderr.decode()
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_in_memory_once_while_it_is_loaded(own, run, tmp_path) -> None:
    """And not also as the bytes that were checked, beside what ONNX Runtime makes of them."""

    def peak() -> int:
        process = subprocess.Popen([program("itae-embed"), own, "--verify"], stdout=subprocess.DEVNULL)
        found = run_to_end(process)
        assert process.returncode == 0
        return found

    small, count, size = peak(), 16, 4 << 20
    model = onnx.load(own)
    unused = [numpy_helper.from_array(np.zeros(size, np.uint8), f"nobody.uses.{number}") for number in range(count)]
    model.graph.initializer.extend(unused)
    onnx.save(model, own)
    rehash(own)
    assert 0.5 < (peak() - small) / (count * size) < 1.4


def test_a_missing_library_is_told_with_all_the_places(tiny, run, tmp_path) -> None:
    program_alone = Path(shutil.copy(program("itae-embed"), tmp_path))
    env = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    done = subprocess.run([program_alone, tiny, "--verify"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    for place in ("--ort-library", "ITAE_ONNXRUNTIME", "beside the program", "LD_LIBRARY_PATH"):
        assert place in done.stderr
    library = (BUILD / "libonnxruntime.so").resolve()
    for value in (library, library.parent / "libonnxruntime.so.1"):
        found = {**env, "ITAE_ONNXRUNTIME": str(value)}
        done = subprocess.run([program_alone, tiny, "--verify"], env=found, capture_output=True, text=True, check=False)
        assert done.returncode == (0 if value.exists() else 2)
    assert run(tiny, "--verify", "--ort-library", library, env={**env, "ITAE_ONNXRUNTIME": "none"}).returncode == 0


def test_help_has_examples_and_version_the_version(run) -> None:
    done = run("--help")
    assert done.returncode == 0
    assert b"examples:\n  itae-embed itae.onnx photos/ --out embeddings.npy" in done.stdout
    assert run("--version").stdout.startswith(b"itae-embed 0.")
