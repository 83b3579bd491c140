"""Decoded pixels are processed like image files: the embedding of a CIFAR record is that of its picture."""

import json

import numpy as np
from PIL import Image

import runtime
from runtime.__main__ import main
from runtime.store import Store


def test_a_record_is_embedded_as_a_file_of_its_pixels(cifar10_folder, tiny, tmp_path, capsys) -> None:
    cache = tmp_path / "cache"
    data = f"cifar10:{cifar10_folder}"
    arguments = [str(tiny), "--data", data, "--limit", "20", "--seeds", "2", "--cache", str(cache), "--json"]
    assert main(["evaluate", *arguments]) == 0
    summary = json.loads(capsys.readouterr().out)["datasets"][0]
    assert (summary["images"], summary["evaluated"], len(summary["classes"])) == (10_000, 20, 10)
    (store,) = cache.iterdir()
    found = Store(store).read()
    assert len(found) == 20
    records = np.frombuffer((cifar10_folder / "test_batch.bin").read_bytes(), np.uint8).reshape(10_000, 3_073)
    files = []
    for path in found.paths:
        files.append(tmp_path / path)
        pixels = records[int(path.removesuffix(".png")), 1:].reshape(3, 32, 32).transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(pixels)).save(files[-1], "BMP")  # another lossless way
    with runtime.load(tiny) as model:
        np.testing.assert_array_equal(found.vectors, model.embed(files))


def test_fine_and_coarse_labels_are_scored_from_one_set_of_embeddings(cifar100_folder, tiny, tmp_path, capsys) -> None:
    cache = tmp_path / "cache"
    data = ["--data", f"cifar100:{cifar100_folder}", "--data", f"cifar100-coarse:{cifar100_folder}"]
    arguments = [str(tiny), *data, "--limit", "200", "--seeds", "1", "--n-init", "1", "--cache", str(cache)]
    assert main(["evaluate", *arguments]) == 0
    out = capsys.readouterr().out
    assert "in 100 classes" in out
    assert "in 20 classes" in out
    assert len(list(cache.iterdir())) == 1
