"""Remarks on pictures that `embed` decoded: counted, in words and in JSON; white of 16-bit images."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from tiffs import written

from runtime.__main__ import main
from runtime.store import Store

EIGHT = np.asarray(Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12), np.uint8)).resize((60, 50)))


@pytest.fixture
def odd(tmp_path):
    """A folder of a sound picture, two JPEGs without their end marker, a 12-bit picture and a TIFF without colours."""
    folder = tmp_path / "odd"
    folder.mkdir()
    file = io.BytesIO()
    Image.fromarray(EIGHT).save(file, "JPEG")
    Image.fromarray(EIGHT).save(folder / "sound.png")
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(file.getvalue()[:-2])
    Image.fromarray(np.round(EIGHT * (4095 / 255)).astype(np.uint16)).save(folder / "twelve.png")
    (folder / "map.tif").write_bytes(written(EIGHT[..., None].repeat(3, axis=2), 1, (0, 0)))
    return folder


def vectors(out) -> dict[str, np.ndarray]:
    found = Store(out).read()
    return dict(zip(found.paths, found.vectors, strict=True))


@pytest.mark.parametrize("devices", [[], ["--devices", "cpu,cpu"]], ids=["one process", "two processes"])
def test_remarks_are_counted(devices, tiny, odd, tmp_path, capsys) -> None:
    assert main(["embed", str(tiny), str(odd), "--out", str(tmp_path / "out"), "--json", *devices]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert (found["embedded"], found["failed"]) == (5, 0)
    assert found["notes"] == {"few_of_16_bits": 1, "jpeg_without_end_marker": 2, "three_bands_as_rgb": 1}
    assert "JPEGs without their end marker, otherwise whole: 2\n" in printed.err
    assert "come out dark; --sixteen-bit auto widens them: 1\n" in printed.err


def test_sound_pictures_have_no_remark(tiny, odd, tmp_path, capsys) -> None:
    assert main(["embed", str(tiny), str(odd / "sound.png"), "--out", str(tmp_path / "out"), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["notes"] == {}
    assert len(printed.err.splitlines()) == 1


def test_twelve_bits_are_widened_on_demand_and_never_mixed_in_a_store(tiny, odd, tmp_path, capsys) -> None:
    dark, wide = tmp_path / "dark", tmp_path / "wide"
    assert main(["embed", str(tiny), str(odd), "--out", str(dark)]) == 0
    assert main(["embed", str(tiny), str(odd), "--out", str(wide), "--sixteen-bit", "auto", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"]["widened_16_bits"] == 1
    rows = vectors(wide)
    np.testing.assert_allclose(rows["twelve.png"], rows["sound.png"], atol=1e-5)
    assert np.abs(vectors(dark)["twelve.png"] - rows["sound.png"]).max() > 0.5
    assert main(["embed", str(tiny), str(odd), "--out", str(wide)]) != 0
    assert "sixteen_bit is auto there, full here" in capsys.readouterr().err


def test_evaluate_counts_remarks_and_widens_into_another_cache(tiny, tmp_path, capsys) -> None:
    rng = np.random.default_rng(0)
    for name in ("a/0", "a/1", "a/2", "b/0", "b/1", "b/2"):
        path = tmp_path / "classes" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 4096, (20, 20), np.uint16)).save(path)
    command = ["evaluate", str(tiny), "--data", f"folder:{tmp_path / 'classes'}", "--cache", str(tmp_path / "cache")]
    command += ["--seeds", "2", "--n-init", "1"]
    (tmp_path / "classes" / "readme.txt").write_text("no picture")
    assert main([*command, "--json"]) == 0
    printed = capsys.readouterr()
    assert "--sixteen-bit auto widens them: 6\n" in printed.err
    (dataset,) = json.loads(printed.out)["datasets"]
    assert dataset["skipped"] == {"text": 1}
    assert [one["notes"] for one in dataset["evaluations"]] == [{"few_of_16_bits": 6}] * len(dataset["evaluations"])
    assert main([*command, "--sixteen-bit", "auto"]) == 0
    said = capsys.readouterr().err
    assert "6 images embedded" in said
    assert "images of 16 bits that use 14 or less, widened: 6\n" in said
