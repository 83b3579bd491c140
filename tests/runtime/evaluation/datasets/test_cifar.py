"""CIFAR in the official binary version, and every way in which its files can be wrong."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from runtime.contract.errors import InputError
from runtime.evaluation.datasets import open_dataset
from runtime.sources import load_item


def pixels_of(dataset, row) -> np.ndarray:
    (item,) = dataset.entries([dataset.keys[row]])
    return np.asarray(load_item(item))


def by_hand(file, row: int, record: int) -> np.ndarray:
    """The pixels of a record, by the words of the official page: red, green, blue, each row by row."""
    data = file.read_bytes()[row * record : (row + 1) * record][-3_072:]
    picture = np.empty((32, 32, 3), np.uint8)
    for channel in range(3):
        for y in range(32):
            start = channel * 1_024 + y * 32
            picture[y, :, channel] = list(data[start : start + 32])
    return picture


def test_cifar10_is_read_as_its_page_describes_it(cifar10_folder) -> None:
    dataset = open_dataset(f"cifar10:{cifar10_folder}")
    assert (dataset.kind, dataset.name, len(dataset)) == ("cifar10", "cifar10", 10_000)
    assert dataset.classes[:3] == ("airplane", "automobile", "bird")
    data = (cifar10_folder / "test_batch.bin").read_bytes()
    assert dataset.labels.tolist() == list(data[::3_073])
    with pytest.raises(InputError, match="is no image of this data set"):
        dataset.read_image(dataset.keys[0][0], "10000.png")
    for row in (0, 1, 9_999):
        assert np.array_equal(np.asarray(dataset.read_image(*dataset.keys[row])), pixels_of(dataset, row))
        assert np.array_equal(pixels_of(dataset, row), by_hand(cifar10_folder / "test_batch.bin", row, 3_073))


def test_cifar100_has_fine_labels_second_and_coarse_ones_first(cifar100_folder) -> None:
    fine = open_dataset(f"cifar100:{cifar100_folder}")
    coarse = open_dataset(f"cifar100-coarse:{cifar100_folder}")
    data = (cifar100_folder / "test.bin").read_bytes()
    assert fine.labels.tolist() == list(data[1::3_074])
    assert coarse.labels.tolist() == list(data[::3_074])
    assert (fine.classes[99], coarse.classes[19]) == ("fine_99", "coarse_19")
    assert np.array_equal(pixels_of(fine, 7), by_hand(cifar100_folder / "test.bin", 7, 3_074))
    assert fine.identity == coarse.identity  # the same images: their embeddings serve both


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_the_official_archive_gives_the_same_without_being_extracted(mode, cifar10_folder, pack, tmp_path) -> None:
    archive = pack(cifar10_folder, tmp_path / ("c.tar.gz" if mode == "w:gz" else "c.tar"), mode)
    packed, unpacked = open_dataset(f"cifar10:{archive}"), open_dataset(f"cifar10:{cifar10_folder}")
    assert packed.identity == unpacked.identity
    assert packed.classes == unpacked.classes
    assert np.array_equal(packed.labels, unpacked.labels)
    assert np.array_equal(pixels_of(packed, 5), pixels_of(unpacked, 5))
    assert [one.name for one in tmp_path.iterdir()] == [archive.name]


def test_the_folder_that_holds_the_official_one_will_do(cifar10_folder) -> None:
    assert len(open_dataset(f"cifar10:{cifar10_folder.parent}")) == 10_000


def refused(text: str) -> str:
    with pytest.raises(InputError) as caught:
        open_dataset(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "has 30,729,999 bytes, expected 30,730,000: it is cut short"),
        (lambda data: data[:-3_073], "has 30,726,927 bytes, expected 30,730,000: it is cut short"),
        (lambda data: data + b"x", "has 30,730,001 bytes, expected 30,730,000: it is another file"),
        (lambda data: b"", "has 0 bytes, expected 30,730,000"),
    ],
    ids=["a byte short", "a record short", "a byte more", "empty"],
)
def test_a_file_of_another_size_is_refused_with_both_sizes(
    change, message, cifar10_folder, link, pack, tmp_path
) -> None:
    folder = link(cifar10_folder)
    file = folder / "test_batch.bin"
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(change(data))
    assert f"{file}: {message}" in refused(f"cifar10:{folder}")
    (folder / "batches.meta.txt").unlink()
    (folder / "readme.html").unlink()
    archive = pack(folder, tmp_path / "x.tar", "w")
    assert f"{archive}/cifar-10-batches-bin/test_batch.bin: {message}" in refused(f"cifar10:{archive}")


def test_a_label_out_of_range_is_named_with_its_image(cifar10_folder, link) -> None:
    file = link(cifar10_folder) / "test_batch.bin"
    data = bytearray(file.read_bytes())
    data[17 * 3_073] = 10
    file.unlink()
    file.write_bytes(data)
    assert f"{file}: image 17 has the label 10, expected 0 to 9" in refused(f"cifar10:{file.parent}")


@pytest.mark.parametrize("name", ["test_batch.bin", "batches.meta.txt"])
def test_a_missing_file_is_named(name, cifar10_folder, link, pack, tmp_path) -> None:
    folder = link(cifar10_folder)
    (folder / name).unlink()
    wanted = f"has no {name}, which CIFAR-10's binary version has (cifar-10-binary.tar.gz)"
    assert wanted in refused(f"cifar10:{folder}")
    small = tmp_path / "small"
    small.mkdir()
    (small / "other").write_bytes(b"x")
    assert "has no test_batch.bin" in refused(f"cifar10:{pack(small, tmp_path / 'x.tar')}")


@pytest.mark.parametrize(
    ("text", "message"),
    [("cat\ndog\n", "found 2"), ("cat\n" * 10, "found 10, some of them twice"), ("é" * 40_000, "65,536 at most")],
    ids=["two", "twice", "too large"],
)
def test_class_names_must_be_ten_and_different(text, message, cifar10_folder, link) -> None:
    file = link(cifar10_folder) / "batches.meta.txt"
    file.unlink()
    file.write_text(text)
    said = refused(f"cifar10:{file.parent}")
    assert str(file) in said
    assert message in said


def test_class_names_that_are_no_text_are_refused(cifar10_folder, link) -> None:
    file = link(cifar10_folder) / "batches.meta.txt"
    file.unlink()
    file.write_bytes(b"\xff\xfe\x00")
    assert "batches.meta.txt: is not text" in refused(f"cifar10:{file.parent}")


class Attack:
    def __reduce__(self):
        return os.abort, ()


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
@pytest.mark.parametrize("form", ["folder", "inside", "tar"])
def test_the_pickled_version_is_never_opened_and_the_binary_one_pointed_to(kind, form, pack, tmp_path) -> None:
    names = {"cifar10": ("cifar-10-batches-py", "test_batch"), "cifar100": ("cifar-100-python", "test")}[kind]
    folder = tmp_path / names[0]
    folder.mkdir()
    (folder / names[1]).write_bytes(pickle.dumps(Attack()))
    place = {"folder": tmp_path, "inside": folder, "tar": tmp_path / "python.tar.gz"}[form]
    if form == "tar":
        pack(folder, place)
    said = refused(f"{kind}:{place}")
    assert "is the Python version, a pickle, which runs code when it is read: not opened" in said
    assert f"cifar-{kind[5:]}-binary.tar.gz" in said


def test_the_matlab_version_is_refused(tmp_path) -> None:
    (tmp_path / "test_batch.mat").write_bytes(b"MATLAB 5.0")
    assert "test_batch.mat is the Matlab version" in refused(f"cifar10:{tmp_path}")


def tar_of(path, *found: tuple[tarfile.TarInfo, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for info, data in found:
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def test_a_tar_is_searched_for_the_official_names_alone(tmp_path) -> None:
    found = []
    for name in ("../cifar-10-batches-bin/test_batch.bin", "/cifar-10-batches-bin/test_batch.bin", "test_batch.bin"):
        info = tarfile.TarInfo(name)
        info.size = 4
        found.append((info, b"evil"))
    assert "has no test_batch.bin" in refused(f"cifar10:{tar_of(tmp_path / 'a.tar', *found)}")
    assert [one.name for one in tmp_path.iterdir()] == ["a.tar"]


def test_a_link_in_a_tar_is_refused_by_name(tmp_path) -> None:
    info = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    said = refused(f"cifar10:{tar_of(tmp_path / 'a.tar', (info, b''))}")
    assert "test_batch.bin: is a symbolic link to `/etc/passwd` inside a tar" in said


def test_a_member_that_claims_more_than_there_is_is_cut_short(tmp_path) -> None:
    info = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    info.size = 30_730_000
    (tmp_path / "a.tar").write_bytes(info.tobuf() + b"x" * 5_000)
    assert "is cut short, 5,000 of 30,730,000 bytes are there" in refused(f"cifar10:{tmp_path / 'a.tar'}")


def test_a_damaged_archive_is_named(cifar10_folder, pack, tmp_path) -> None:
    archive = pack(cifar10_folder, tmp_path / "c.tar.gz")
    data = archive.read_bytes()
    for broken in (data[: len(data) // 2], data[:100], b"\x1f\x8bnothing", b"nothing at all", b""):
        archive.write_bytes(broken)
        assert refused(f"cifar10:{archive}").startswith(f"{archive}")


def test_a_named_pipe_in_a_files_place_is_not_waited_for(cifar10_folder, link) -> None:
    folder = link(cifar10_folder)
    (folder / "test_batch.bin").unlink()
    os.mkfifo(folder / "test_batch.bin")
    assert "test_batch.bin: is a folder or a device" in refused(f"cifar10:{folder}")
