"""Tiny-ImageNet's val folder."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.contract.errors import InputError
from runtime.evaluation.datasets import open_dataset
from runtime.sources import load_item

IDS = [f"n{number:08d}" for number in range(1_443_537, 1_443_537 + 200)]


def annotation(number: int) -> str:
    return f"val_{number}.JPEG\t{IDS[(7 * number) % 200]}\t0\t32\t44\t62\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """`tiny-imagenet-200` with two pictures, each linked 5,000 times."""
    made = tmp_path_factory.mktemp("tiny") / "tiny-imagenet-200"
    images = made / "val" / "images"
    images.mkdir(parents=True)
    for parity, color in enumerate(["red", "blue"]):
        Image.new("RGB", (64, 64), color).save(made / f"{parity}.JPEG", "JPEG")
    for number in range(10_000):
        os.link(made / f"{number % 2}.JPEG", images / f"val_{number}.JPEG")
    (made / "val" / "val_annotations.txt").write_text("".join(map(annotation, range(10_000))))
    (made / "words.txt").write_text("".join(f"{one}\tgoldfish {one}, Carassius\n" for one in IDS[:199]))
    return made


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """The same, whose annotations a test may replace."""
    made = tmp_path / "tiny-imagenet-200" / "val"
    made.mkdir(parents=True)
    (made / "images").symlink_to(whole / "val" / "images")
    (made / "val_annotations.txt").write_bytes((whole / "val" / "val_annotations.txt").read_bytes())
    return made


@pytest.mark.parametrize("place", ["tiny-imagenet-200", "val"])
def test_images_come_in_the_order_of_the_annotations_with_their_words(place, whole) -> None:
    path = whole / "val" if place == "val" else whole
    dataset = open_dataset(f"tiny-imagenet:{path}")
    assert (len(dataset), len(dataset.classes)) == (10_000, 200)
    assert dataset.labels[:3].tolist() == [0, 7, 14]
    assert dataset.keys[2] == (str(whole / "val" / "images"), "val_2.JPEG")
    assert dataset.classes[0] == f"{IDS[0]} goldfish {IDS[0]}"
    assert dataset.classes[199] == IDS[199]
    (item,) = dataset.entries([dataset.keys[3]])
    assert np.asarray(load_item(item))[30, 30].argmax() == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "expected val_0.JPEG, WordNet ID and 4 numbers"),
        (lambda text: "".join(text.splitlines(keepends=True)[:-1]), "has 9,999 images of 200 classes, expected 10,000"),
        (lambda text: text.replace(IDS[5], IDS[6]), "10,000 images of 199 classes, expected 10,000 of 200"),
        (lambda text: text.replace("val_1.JPEG", "val_0.JPEG"), "line 2: val_0.JPEG comes a second time"),
        (lambda text: text.replace("val_1.JPEG", "../../../etc/passwd"), "line 2 is '../../../etc/passwd"),
        (lambda text: text.replace("\t", " "), "line 1 is 'val_0.JPEG n01443537 0 32 44 62', expected"),
        (lambda text: text * 20, "bytes, expected 2,097,152 at most"),
        (lambda text: "", "has 0 images of 0 classes"),
    ],
    ids=["cut in a line", "a line less", "a class less", "twice", "a path", "no tabs", "too large", "empty"],
)
def test_annotations_that_are_wrong_are_named_by_line(change, message, folder) -> None:
    file = folder / "val_annotations.txt"
    file.write_text(change(file.read_text()))
    with pytest.raises(InputError) as caught:
        open_dataset(f"tiny-imagenet:{folder}")
    assert str(file) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_parts_are_named(folder, tmp_path) -> None:
    (folder / "images").unlink()
    with pytest.raises(InputError, match=r"val: has no folder images"):
        open_dataset(f"tiny-imagenet:{folder}")
    (folder / "val_annotations.txt").unlink()
    with pytest.raises(InputError, match=r"val_annotations\.txt: No such file"):
        open_dataset(f"tiny-imagenet:{folder}")
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=r"unpack it and give the folder tiny-imagenet-200"):
        open_dataset(f"tiny-imagenet:{tmp_path / 'tiny-imagenet-200.zip'}")


def test_a_missing_image_changes_the_identity_and_is_told_when_it_is_decoded(whole, folder, tmp_path) -> None:
    before = open_dataset(f"tiny-imagenet:{whole}")
    assert open_dataset(f"tiny-imagenet:{folder}").identity == before.identity  # the same files elsewhere
    (folder / "images").unlink()
    (folder / "images").mkdir()
    dataset = open_dataset(f"tiny-imagenet:{folder}")
    assert dataset.identity != before.identity
    (item,) = dataset.entries([dataset.keys[0]])
    with pytest.raises(InputError, match="does not exist"):
        load_item(item)
