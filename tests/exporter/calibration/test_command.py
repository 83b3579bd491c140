"""`python -m exporter calibrate` on a small model: its file, its report, and the export that follows."""

import dataclasses
import io
import json
import os
import re
import signal
import sys
import tarfile
import time
from pathlib import Path

import marked_dinov2 as marked
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from exporter.__main__ import main
from exporter.calibration.blocks import Blocks
from exporter.calibration.recommendation import NOTHING, read
from exporter.models.architecture import ARCHITECTURES
from runtime.contract.manifest import read_manifest


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A size `tiny`; a checkpoint that marks patches, one that doesn't; and the folder of the test."""
    torch.set_num_threads(1)
    monkeypatch.setitem(ARCHITECTURES, "tiny", marked.TINY)
    monkeypatch.chdir(tmp_path)
    torch.save(marked.tensors(), "marked.pth")
    torch.save(marked.tensors(times=0), "clean.pth")


def calibrate_words(weights="marked.pth"):
    size = f"{marked.SIZE[0]}x{marked.SIZE[1]}"
    argv = ["calibrate", "--size", "tiny", "--weights", weights, "--image-size", size, "--fit", "squash"]
    return [*argv, "--images", "pictures", "--out", "itae.json", "--report", "itae.html"]


def calibrate(*words, weights="marked.pth", expect=0):
    code = main([*calibrate_words(weights), *words])
    assert code == expect
    return json.loads(Path("itae.json").read_text()) if code == 0 else None


def test_artifacts_are_found_reported_and_exported(tmp_path, capsys):
    masks = marked.some_masks(48)
    marked.save(marked.pictures(masks), tmp_path / "pictures", classes=3)
    (tmp_path / "pictures/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (tmp_path / "pictures/notes.txt").write_text("hello")
    found = calibrate("--labels", "folders", "--json")
    shown = capsys.readouterr()
    assert json.loads(shown.out) == found
    assert found["itae"]["source"] == "residual"
    assert found["itae"]["side"] == "high"
    assert found["images"] == {"choosing": 25, "reporting": 23, "failed": 1, "skipped": {"text": 1}}
    assert "1 image can't be read; the first: " in shown.err
    assert "broken.png" in shown.err
    assert found["figures"]["flagged"] == pytest.approx(masks.mean(), rel=0.25)
    assert found["figures"]["attention_after"] < found["figures"]["attention_before"]
    assert len(found["settings"]) <= 16
    assert found["settings"][0]["itae"] == found["itae"]
    assert found["settings"][0]["agreement"] == 1
    assert {"nmi", "acc", "ari", "less_plain"} <= found["settings"][-1].keys()
    assert len(found["norms"]) == marked.TINY.depth * 4

    page = (tmp_path / "itae.html").read_text()
    assert page.count('class="overlay"') == 12
    assert 'class="valley"' in page
    assert 'class="places"' in page
    then = "python -m exporter --config itae.json --size tiny --weights marked.pth --image-size 70x84 --fit squash"
    assert f"next: {then} --out itae.engine" in shown.err
    assert then in page

    size = f"{marked.SIZE[0]}x{marked.SIZE[1]}"
    words = ["--config", "itae.json", "--size", "tiny", "--weights", "marked.pth", "--image-size", size]
    assert main([*words, "--out", "x.onnx", "--outputs", "embedding,artifact_mask"]) == 0
    manifest = read_manifest(tmp_path / "x.onnx")
    assert manifest.calibration is not None
    assert manifest.calibration.sha256 == found["sha256"]
    assert manifest.calibration.figures == found["figures"]
    assert manifest.options.method.name == "itae"
    assert "other weights" not in capsys.readouterr().err
    words[words.index("marked.pth")] = "clean.pth"
    assert main([*words, "--out", "y.onnx"]) == 0
    assert "the calibration was made with other weights" in capsys.readouterr().err


def test_nothing_is_found_where_nothing_is(tmp_path, capsys):
    marked.save(marked.pictures(marked.some_masks(40)), tmp_path / "pictures")
    found = calibrate(weights="clean.pth")
    assert found["itae"] is None
    assert found["reason"].startswith("no artifacts in these images")
    assert NOTHING in capsys.readouterr().err
    assert NOTHING in (tmp_path / "itae.html").read_text()
    size = f"{marked.SIZE[0]}x{marked.SIZE[1]}"
    words = ["--config", "itae.json", "--size", "tiny", "--weights", "clean.pth", "--image-size", size]
    assert main([*words, "--out", "x.onnx"]) == 0
    shown = capsys.readouterr()
    assert NOTHING in shown.err
    assert "none, plain DINOv2: no artifacts in these images" in shown.out
    manifest = read_manifest(tmp_path / "x.onnx")
    assert manifest.options.method.name == "none"
    assert manifest.calibration is not None


def test_constant_places_become_positions_and_other_sizes_are_refused(tmp_path, capsys):
    masks = np.zeros((40, 30), bool)
    masks[:, [0, 1, 6, 7]] = True
    marked.save(marked.pictures(masks), tmp_path / "pictures")
    found = calibrate()
    assert found["itae"]["threshold"] == "positions:0,1,6,7"
    assert found["itae"].keys() == {"layers", "threshold", "attenuate"}
    assert found["settings"][0]["flagged"] == pytest.approx(4 / 30, rel=1e-4)
    words = ["--config", "itae.json", "--size", "tiny", "--weights", "marked.pth", "--out", "x.onnx"]
    assert main([*words, "--image-size", "56x56"]) == 2
    assert "positions of patches in images of 70x84" in capsys.readouterr().err


def test_the_same_images_give_the_same_bytes_and_the_halves_are_disjoint(tmp_path):
    marked.save(marked.pictures(marked.some_masks(24)), tmp_path / "pictures")
    calibrate()
    first = (tmp_path / "itae.json").read_bytes()
    calibrate("--batch", "5")
    second = read(tmp_path / "itae.json")
    assert json.loads(first)["itae"] == dict(second.options)
    calibrate()
    assert (tmp_path / "itae.json").read_bytes() == first
    limited = calibrate("--limit", "10")
    assert (limited["images"]["choosing"], limited["images"]["reporting"]) == (5, 5)


def pack(names, path):
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name in names:
            tar.add(name, arcname=Path(name).relative_to("pictures"))


def sources(names):
    """Pairs of a source's kind and its arguments: all of the same 24 pictures."""
    pack(names, Path("shard.tar"))
    pack(names[:12], Path("shard-000.tar"))
    pack(names[12:], Path("shard-001.tar"))
    pack(names, Path("packed.tar.gz"))
    content = [Path(name).read_bytes() for name in names]
    table = pyarrow.table({"image": [{"bytes": one, "path": name} for one, name in zip(content, names, strict=True)]})
    pyarrow.parquet.write_table(table, "images.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"front": content, "depth": content[::-1]}), "columns.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"path": names}), "paths.parquet")
    Path("list.txt").write_text("\n".join(names))
    return {
        "folder": ["pictures"],
        "files": names,
        "list": ["list.txt"],
        "standard input": ["-"],
        "parquet": ["images.parquet"],
        "parquet of paths": ["paths.parquet"],
        "a named column": ["columns.parquet", "--image-column", "front"],
        "tar": ["shard.tar"],
        "tars": ["shard-{000..001}.tar"],
        "packed tar": ["packed.tar.gz"],
        "URL": [Path("shard.tar").absolute().as_uri()],
    }


def test_every_source_that_embed_takes_works(tmp_path, monkeypatch):
    marked.save(marked.pictures(marked.some_masks(24)), tmp_path / "pictures", classes=3)
    names = sorted(str(one.relative_to(tmp_path)) for one in tmp_path.glob("pictures/*/*.png"))
    for kind, words in sources(names).items():
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(names).encode())))
        found = calibrate("--images", *words)
        assert found["itae"]["source"] == "residual", kind
        assert (found["images"]["choosing"], found["images"]["reporting"]) == (12, 12), kind
        assert found["images"]["failed"] == 0, kind
        page = Path("itae.html").read_text()
        assert page.count('class="overlay"') == 12, kind


def test_of_a_packed_tar_no_more_is_read_than_the_limit_asks_for(tmp_path, capsys):
    marked.save(marked.pictures(marked.some_masks(24)), tmp_path / "pictures")
    pack(sorted(str(one.relative_to(tmp_path)) for one in tmp_path.glob("pictures/*/*.png")), Path("packed.tar.gz"))
    Path("packed.tar.gz").write_bytes(Path("packed.tar.gz").read_bytes()[:-20_000])  # damaged behind the limit
    found = calibrate("--images", "packed.tar.gz", "--limit", "10")
    assert found["images"] == {"choosing": 5, "reporting": 5, "failed": 0, "skipped": {}}
    assert "can't be read" not in capsys.readouterr().err


def test_patterns_choose_and_leave_out(tmp_path):
    marked.save(marked.pictures(marked.some_masks(24)), tmp_path / "pictures", classes=3)
    found = calibrate("--include", "*.png", "--exclude", "class1/")
    assert (found["images"]["choosing"], found["images"]["reporting"]) == (8, 8)
    assert found["images"]["skipped"] == {"excluded": 8}
    calibrate("--include", "*.jpg", expect=2)
    calibrate("--exclude", "/", expect=2)


def test_stdout_has_json_alone_where_it_is_asked_for_and_progress_goes_to_stderr(tmp_path, capsys):
    marked.save(marked.pictures(marked.some_masks(12)), tmp_path / "pictures")
    calibrate()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "load" in shown.err
    assert "itae.json: 6 images to choose by, 6 to report on" in shown.err
    found = calibrate("--json", "--quiet")
    shown = capsys.readouterr()
    assert (json.loads(shown.out), shown.err) == (found, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.txt"], "must end in .json"),
        (["--out", "no/x.json"], "there is no folder"),
        (["--report", "x.txt"], "must end in .html"),
        (["--limit", "3"], "needs at least 4 images"),
        (["--limit", "0"], "a whole number above 0"),
        (["--device", "gpu"], "give cpu, cuda or cuda:N"),
        (["--device", "cuda:99"], "PyTorch finds"),
        (["--images", "none"], "No such file"),
        (["--size", "huge"], "unknown size"),
        (["--weights", "none.pth"], "no such file"),
        (["--labels", "names"], "invalid choice"),
        (["--labels", "folders"], "all 5 images lie in one folder"),
    ],
    ids=" ".join,
)
def test_bad_use_is_said_in_one_line(words, message, tmp_path, capsys):
    marked.save(marked.pictures(marked.some_masks(10)), tmp_path / "pictures")
    calibrate(*words, expect=2)
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "itae.json").exists()


@pytest.mark.parametrize("content", ["", "notes", '{"format": "itae"}', "[1]"], ids=["empty", "text", "JSON", "list"])
def test_a_file_that_is_no_calibration_is_not_overwritten(content, tmp_path, capsys):
    marked.save(marked.pictures(marked.some_masks(8)), tmp_path / "pictures")
    Path("model.onnx.json").write_text(content)
    calibrate("--out", "model.onnx.json", expect=2)
    assert "is there already and is no calibration" in capsys.readouterr().err
    assert Path("model.onnx.json").read_text() == content


def test_a_run_that_fails_leaves_the_calibration_before_it_and_nothing_else(tmp_path, monkeypatch):
    marked.save(marked.pictures(marked.some_masks(8)), tmp_path / "pictures")
    calibrate()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("exporter.calibration.work.Calibration._report", stopped)
    assert main(calibrate_words()) == 130
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    "where", ["exporter.calibration.work.Calibration._report", "runtime.contract.atomic.sync_file"]
)
def test_sigkill_leaves_the_calibration_before_it_and_the_next_run_cleans_up(where, tmp_path, monkeypatch):
    """It comes between the two halves, or when the page is written and not yet renamed."""
    marked.save(marked.pictures(marked.some_masks(8)), tmp_path / "pictures")
    calibrate()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    child = os.fork()  # a process that has to import PyTorch would need seconds
    if child == 0:
        monkeypatch.setattr(where, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        try:
            main([*calibrate_words(), "--seed", "1"])
        finally:
            os._exit(1)
    ended, deadline = (0, 0), time.monotonic() + 100
    while ended[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
        ended = os.waitpid(child, os.WNOHANG)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)[0], 1
    assert os.waitstatus_to_exitcode(ended[1]) == -signal.SIGKILL
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert {name: after[name] for name in before} == before
    assert (len(after) > len(before)) == ("atomic" in where)  # what the killed process could not remove
    calibrate("--seed", "1")
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == before.keys()
    assert Path("itae.json").read_bytes() != before["itae.json"]


def test_too_few_images_that_can_be_read_are_refused_with_the_first_reason(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    for number in range(6):
        (tmp_path / f"pictures/{number}.jpg").write_bytes(b"\xff\xd8\xffno")
    calibrate(expect=2)
    assert re.search(r"of that half 0 could be; the first that can not: .*\.jpg: ", capsys.readouterr().err)


def test_a_model_that_gives_nan_is_said(tmp_path, capsys, monkeypatch):
    marked.save(marked.pictures(marked.some_masks(8)), tmp_path / "pictures")
    made = marked.tensors()
    made["blocks.2.ls2.gamma"][5] = 3e38
    made["blocks.2.mlp.fc2.bias"][5] = 3e38
    torch.save(made, "loud.pth")
    calibrate(weights="loud.pth", expect=1)
    assert "NaN or infinity" in capsys.readouterr().err


def test_places_that_no_norms_set_apart_are_found_by_attention_reported_and_exported(tmp_path, capsys, monkeypatch):
    marked.save(marked.pictures(marked.some_masks(40)), tmp_path / "pictures", classes=2)
    look = Blocks.look

    def drawn(blocks, pixels, keep=()):
        """As if the CLS token gave two places half of its attention in the last blocks."""
        seen = look(blocks, pixels, keep)
        attention = seen.attention.clone()
        attention[:, 2:] *= 0.5
        attention[:, 2:, [3, 9]] += 0.25
        return dataclasses.replace(seen, attention=attention)

    monkeypatch.setattr(Blocks, "look", drawn)
    found = calibrate("--labels", "folders", weights="clean.pth")
    assert found["itae"]["threshold"] == "positions:3,9"
    assert "the CLS token looks at the same 2 places in every image" in found["reason"]
    assert "no norms set them apart, from block 2 on" in found["reason"]
    assert found["figures"]["images_with_artifacts"] == 1
    assert "gap" not in found["figures"]
    assert "recommended" in [one["name"] for one in found["settings"]]
    assert "ITAE: layers" in capsys.readouterr().err
    page = Path("itae.html").read_text()
    assert "CLS attention on them" in page
    assert 'class="places"' in page
    size = f"{marked.SIZE[0]}x{marked.SIZE[1]}"
    words = ["--config", "itae.json", "--size", "tiny", "--weights", "clean.pth", "--image-size", size]
    assert main([*words, "--out", "x.onnx"]) == 0
    assert read_manifest(tmp_path / "x.onnx").options.method.name == "itae"
