"""`embed --ray`: the rows, counts and errors of a run on one machine, by a cluster that is started here."""

import contextlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from ray_nodes import Driver, cluster, wait_until

from runtime.__main__ import main
from runtime.store import Store

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`")

AS_ON_GPUS = """
from pathlib import Path
from runtime.embedding import distributed
distributed.uses_gpu = lambda _: Path({!r}).exists()
"""
"""Lets a run on CPUs take the steps of one on GPUs, in so far as Ray has them, while a file exists."""
TOLERANCE = 1e-5
"""Between rows of batches of other sizes: ONNX Runtime may add in another order. They are of order 10."""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    flag = tmp_path_factory.mktemp("driver") / "as-on-gpus"

    @contextlib.contextmanager
    def as_on_gpus():
        flag.touch()
        yield
        flag.unlink()

    with (
        cluster({"cpus": 2, "gpus": 1}) as (address, nodes),
        contextlib.closing(Driver(address, AS_ON_GPUS.format(str(flag)))) as made,
    ):
        made.memory = lambda: nodes[0].memory()
        made.as_on_gpus = as_on_gpus
        yield made


def picture(number: int, suffix: str = "png") -> bytes:
    brightest = 256 if number % 2 else 100
    pixels = np.random.default_rng(number).integers(0, brightest, (40 + number % 7, 50, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, suffix)
    return data.getvalue()


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A folder of 60 pictures, two bad ones and a text; two tars; a parquet file; a list of some of them."""
    here = tmp_path_factory.mktemp("sources")
    photos = here / "photos"
    for number in range(60):
        (photos / f"{number % 3}").mkdir(parents=True, exist_ok=True)
        (photos / f"{number % 3}" / f"{number}.png").write_bytes(picture(number))
    (photos / "bad.png").write_bytes(b"no picture")
    (photos / "cut.png").write_bytes(picture(1)[:200])
    (photos / "notes.txt").write_text("no picture")
    for shard in range(2):
        with tarfile.open(here / f"{shard}.tar", "w") as tar:
            for number in range(20):
                data = b"bad" if number == 7 else picture(100 * shard + number)
                for name, content in ((f"{number:03}.png", data), (f"{number:03}.txt", b"a label")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    rows = [{"bytes": None if number == 3 else picture(300 + number), "path": f"{number}.png"} for number in range(15)]
    parquet.write_table(pa.table({"image": rows}), here / "rows.parquet", row_group_size=4)
    (here / "some.txt").write_text("".join(f"{photos}/{number % 3}/{number}.png\n" for number in range(0, 60, 5)))
    return here


def summary(answer: tuple[int, str, str]) -> dict:
    code, out, err = answer
    assert code == 0, err
    return json.loads(out)  # and nothing else


def sorted_rows(out: Path) -> dict[tuple[str, str], np.ndarray]:
    rows = Store(out).read()
    found = dict(zip(rows.images(), rows.vectors, strict=True))
    assert len(found) == len(rows)  # no key comes twice
    return found


def assert_same_rows(got: Path, expected: Path, atol: float = TOLERANCE) -> None:
    one, other = sorted_rows(got), sorted_rows(expected)
    assert one.keys() == other.keys()
    for key, vector in other.items():
        np.testing.assert_allclose(one[key], vector, rtol=0, atol=atol, err_msg=str(key))


def failures(out: Path) -> list[str]:
    return sorted((out / "_errors.jsonl").read_text().splitlines())


def on_one_machine(capsys, *words) -> dict:
    code = main(["embed", *map(str, words), "--json"])
    captured = capsys.readouterr()
    return summary((code, captured.out, captured.err))


FOLDERS_TARS_PARQUET = ("photos", "0.tar", "1.tar", "rows.parquet")
LIST_BESIDE_TAR = ("photos", "some.txt", "0.tar", "0.tar")
"""Of which keys may come twice, so that one process must read them all."""


@pytest.mark.parametrize(
    ("names", "scheme", "on_gpus"),
    [
        (FOLDERS_TARS_PARQUET, "", False),
        (LIST_BESIDE_TAR, "", False),
        (FOLDERS_TARS_PARQUET, "", True),
        (FOLDERS_TARS_PARQUET, "file://", False),
    ],
    ids=["apart", "together", "as-on-gpus", "remote"],
)
def test_rows_counts_and_errors_are_those_of_one_machine(
    names, scheme, on_gpus, driver, sources, tiny, tmp_path, capsys
) -> None:
    places = [f"{scheme}{sources / name}" for name in names]
    expected = on_one_machine(capsys, tiny, *places, "--out", tmp_path / "one")
    with driver.as_on_gpus() if on_gpus else contextlib.nullcontext():
        got = summary(driver.run("embed", tiny, *places, "--out", tmp_path / "ray", "--ray", "auto", "--json"))
    assert {"engine": "ray", "nodes": 1, "actors": 1}.items() <= got.items()
    for count in ("embedded", "present", "failed", "missing", "skipped", "notes"):
        assert got[count] == expected[count], count
    assert got["embedded"] > 70
    assert got["failed"] >= 3
    assert_same_rows(tmp_path / "ray", tmp_path / "one")
    assert failures(tmp_path / "ray") == failures(tmp_path / "one")
    assert Store(tmp_path / "ray").origin == Store(tmp_path / "one").origin
    assert Store(tmp_path / "ray").complete
    assert len([*(tmp_path / "ray").glob("part-*")]) == 1  # small ones become one
    assert {path.name[0] for path in (tmp_path / "ray").iterdir()} <= {"p", "_"}  # nothing hidden is left


def test_either_goes_on_with_a_store_of_the_other(driver, sources, tiny, tmp_path, capsys) -> None:
    out = tmp_path / "store"
    first = (sources / "photos", sources / "0.tar")
    second = (*first, sources / "1.tar", sources / "rows.parquet")
    ray = ("--ray", "auto", "--json")
    on_one_machine(capsys, tiny, sources / "0.tar", "--out", out)
    one = summary(driver.run("embed", tiny, *first, "--out", out, *ray))
    assert (one["embedded"], one["present"], one["missing"]) == (60, 19, 0)
    two = on_one_machine(capsys, tiny, *second, "--out", out)
    assert (two["embedded"], two["present"], two["missing"]) == (19 + 14, 79, 0)
    again = summary(driver.run("embed", tiny, *second, "--out", out, *ray))
    assert (again["embedded"], again["present"], again["failed"]) == (0, 112, two["failed"])
    less = summary(driver.run("embed", tiny, sources / "1.tar", "--out", out, *ray))
    assert (less["embedded"], less["present"], less["missing"]) == (0, 19, 93)
    nothing = summary(driver.run("embed", tiny, sources / "photos" / "0", "--out", tmp_path / "other", *ray))
    assert nothing["embedded"] == 20
    nothing = summary(driver.run("embed", tiny, sources / "photos" / "0", "--out", tmp_path / "other", *ray))
    assert (nothing["embedded"], nothing["present"], nothing["actors"]) == (0, 20, 0)
    on_one_machine(capsys, tiny, *second, "--out", tmp_path / "whole")
    assert_same_rows(out, tmp_path / "whole")


@pytest.mark.parametrize("on_gpus", [False, True], ids=["cpu", "as-on-gpus"])
def test_images_are_prepared_to_the_bit_as_on_one_machine(on_gpus, driver, make_model, tmp_path, capsys) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    large = np.random.default_rng(3).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(large).resize((900, 800)).save(photos / "large.jpg")  # --draft decodes it at a part of its size
    Image.fromarray(large).save(photos / "alpha.png")
    Image.fromarray(large.astype(np.uint16)[..., 0] * 16).save(photos / "twelve-bits.png")
    with driver.as_on_gpus() if on_gpus else contextlib.nullcontext():
        for name, more in (("float32", ("--draft", "--sixteen-bit", "auto")), ("uint8", ())):
            model = make_model(tmp_path / f"{name}-model", dtype=name)
            words = (model, photos, "--batch", 1, *more)  # so that batches are the same
            one = on_one_machine(capsys, *words, "--out", tmp_path / name)
            ray = summary(driver.run("embed", *words, "--out", tmp_path / f"{name}-ray", "--ray", "auto", "--json"))
            assert ray["notes"] == one["notes"]
            assert_same_rows(tmp_path / f"{name}-ray", tmp_path / name, atol=0)
    assert Store(tmp_path / "float32-ray").origin["draft"] is True


def test_other_commands_read_what_ray_wrote(driver, sources, tiny, tmp_path, capsys) -> None:
    out = tmp_path / "store"
    good = [sources / "photos" / f"{number}" for number in range(3)]
    summary(driver.run("embed", tiny, *good, "--out", out, "--batch", 4, "--ray", "auto", "--json"))
    on_one_machine(capsys, tiny, *good, "--out", tmp_path / "one", "--batch", "4")
    assert_same_rows(out, tmp_path / "one", atol=0)  # to the bit, since all batches are of one size
    assert main(["search", str(out), str(sources / "photos" / "1" / "1.png"), "--model", str(tiny), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "1/1.png" in json.dumps(found)
    assert main(["cluster", str(out), "--k", "3", "--out", str(tmp_path / "clusters"), "--json", "--quiet"]) == 0
    assert sum(json.loads(capsys.readouterr().out)["sizes"]) == 60
    assert main(["dedup", str(out), "--out", str(tmp_path / "duplicates"), "--json", "--quiet"]) == 0


def test_errors_are_those_of_one_machine(driver, sources, tiny, make_model, tmp_path, capsys) -> None:
    words = ("--out", tmp_path / "store", "--ray", "auto")
    code, out, err = driver.run("embed", tiny, sources / "photos" / "bad.png", *words)
    assert (code, out) == (1, "")
    assert "none of 1 images could be embedded; the first: " in err
    code, _, err = driver.run("embed", tiny, sources / "0.tar", *words, "--max-failures", "0.01")
    assert code == 1
    assert "--max-failures 0.01" in err
    nan = make_model(tmp_path / "nan", nan=True)
    for out, ray in ((tmp_path / "nan1", ()), (tmp_path / "nan2", ("--ray", "auto"))):
        words = ("embed", str(nan), str(sources / "photos"), "--out", str(out), "--json")
        got = driver.run(*words, *ray) if ray else (main(list(words)), *capsys.readouterr())
        assert summary(got)["failed"] > 2
    assert failures(tmp_path / "nan1") == failures(tmp_path / "nan2")
    altered = make_model(tmp_path / "altered")
    altered.write_bytes(altered.read_bytes() + b"!")
    code, out, err = driver.run("embed", altered, sources / "photos", *words[3:5], "--ray", "auto")
    assert code == 2
    assert len(err.splitlines()) == 1
    code, _, err = driver.run("embed", tiny, sources / "photos", *words[3:5], "--ray", "auto", "--workers", "2")
    assert code == 2
    assert "--workers is not for --ray" in err


def test_images_larger_than_rays_object_store_are_embedded_in_bounded_memory(driver, tiny, tmp_path, capsys) -> None:
    side, count = 512, 200  # 157 MB, which come with the tar through an object store of 100
    with tarfile.open(tmp_path / "large.tar", "w") as tar:
        for number in range(count):
            data = io.BytesIO()
            Image.fromarray(np.full((side, side, 3), number % 256, np.uint8)).save(data, "bmp")
            member = tarfile.TarInfo(f"{number:03}.bmp")
            member.size = data.tell()
            tar.addfile(member, io.BytesIO(data.getvalue()))
    words = (tiny, tmp_path / "large.tar", "--out", tmp_path / "store", "--ray", "auto", "--json")
    driver.start("embed", *words)
    largest = 0
    while driver.is_running():
        largest = max([largest, *driver.memory()])
        time.sleep(0.1)
    assert summary(driver.end())["embedded"] == count
    assert 0 < largest < 600 << 20
    on_one_machine(capsys, tiny, tmp_path / "large.tar", "--out", tmp_path / "one")
    assert_same_rows(tmp_path / "store", tmp_path / "one")


def test_ray_on_this_machine_prints_json_alone_and_leaves_nothing(sources, tiny, tmp_path) -> None:
    scratch = tempfile.mkdtemp(prefix="r", dir="/tmp")  # a socket's path must be short
    home = tmp_path / "home"
    home.mkdir()
    command = ["embed", tiny, sources / "photos", "--out", tmp_path / "store", "--ray", "local", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "runtime", *map(str, command)],
        env={**os.environ, "TMPDIR": scratch, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["embedded"] == 60
    assert all("embedded" in line or "failed" in line or "passed over" in line or " images (" in line
               for line in done.stderr.splitlines()), done.stderr  # fmt: skip
    assert list(Path(scratch).iterdir()) == []
    assert list(home.iterdir()) == []
    Path(scratch).rmdir()
    mark = "itae-ray-"
    assert not [line for line in _command_lines() if scratch in line and mark in line]


def test_ctrl_c_while_ray_starts_leaves_nothing(sources, tiny, tmp_path) -> None:
    scratch = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    words = ["embed", tiny, sources / "photos", "--out", tmp_path / "store", "--ray", "local"]
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime", *map(str, words)],
        env={**os.environ, "TMPDIR": str(scratch)},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: process.poll() is not None or list(scratch.glob("itae-ray-*/session_*")))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "interrupted; the same command goes on" in err
    assert list(scratch.iterdir()) == []
    scratch.rmdir()
    assert not (tmp_path / "store").exists()
    assert not [line for line in _command_lines() if str(scratch) in line]


def _command_lines() -> list[str]:
    lines = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            lines.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return lines


@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.1:9", "there is no such Ray cluster"), ("ray://127.0.0.1:9", "run the command on a machine of")],
)
def test_a_cluster_that_is_not_there_is_an_error_of_one_line(address, said, sources, tiny, tmp_path) -> None:
    words = ["embed", tiny, sources / "photos", "--out", tmp_path / "store", "--ray", address]
    done = subprocess.run(
        [sys.executable, "-m", "runtime", *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "store").exists()


def test_without_ray_the_command_says_what_to_install(sources, tiny, tmp_path, monkeypatch, capsys) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else real(name, *rest))
    words = ["embed", str(tiny), str(sources / "photos"), "--out", str(tmp_path / "store"), "--ray", "local"]
    assert main(words) == 2
    assert capsys.readouterr().err == (
        "runtime: --ray needs Ray Data, which is not installed here: pip install 'itae[ray]'\n"
    )
