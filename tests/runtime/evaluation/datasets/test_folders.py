"""One folder for each class, or a tar of that."""

import tarfile

import pytest
from PIL import Image

from runtime.contract.errors import InputError, UsageError
from runtime.evaluation.datasets import open_dataset


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(["dog", "cat", "dog", "cat", "cat"]):
        (tmp_path / "pets" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "pets" / name / f"{number}.png")
    return tmp_path / "pets"


def test_the_class_is_the_folder_and_classes_are_sorted(folder) -> None:
    dataset = open_dataset(f"folder:{folder}")
    assert (dataset.kind, dataset.name, dataset.classes) == ("folder", "pets", ("cat", "dog"))
    assert [path for _, path in dataset.keys] == ["cat/1.png", "cat/3.png", "cat/4.png", "dog/0.png", "dog/2.png"]
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1]
    assert dataset.read_image(*dataset.keys[1]).getpixel((0, 0)) == (3, 0, 0)
    assert dataset.remarks == ()


def test_files_of_macos_beside_parquet_are_not_parquet(folder) -> None:
    (folder / "._test.parquet").write_bytes(b"\0\5\x16\7")
    with pytest.raises(InputError, match=r"has no test_batch\.bin"):
        open_dataset(f"cifar10:{folder}")


def test_a_tar_of_the_folder_has_the_same_classes(folder, tmp_path) -> None:
    with tarfile.open(tmp_path / "pets.tar.gz", "w:gz") as tar:
        tar.add(folder, "pets")
    dataset = open_dataset(f"folder:{tmp_path / 'pets.tar.gz'}")
    assert (dataset.name, dataset.classes, sorted(dataset.labels.tolist())) == ("pets", ("cat", "dog"), [0, 0, 0, 1, 1])
    assert [item.path for item in dataset.entries(dataset.keys[2:4])] == [path for _, path in dataset.keys[2:4]]


def test_a_damaged_tar_is_refused_since_whole_classes_may_be_behind_the_damage(folder, tmp_path) -> None:
    tar = tmp_path / "pets.tar"
    with tarfile.open(tar, "w") as file:
        file.add(folder, "pets")
    data = tar.read_bytes()
    for broken, reason in [(data[:6_000], "is cut short"), (data[:5_120] + b"x" * 999, "damaged"), (b"", "cut short")]:
        tar.write_bytes(broken)
        with pytest.raises(InputError, match=rf"pets\.tar: .*{reason}"):
            open_dataset(f"folder:{tar}")


def test_a_link_in_a_tar_is_a_problem_and_the_rest_is_read(folder, tmp_path) -> None:
    (folder / "cat" / "link.png").symlink_to("/etc/passwd")
    with tarfile.open(tmp_path / "pets.tar", "w") as tar:
        tar.add(folder, "pets")
    dataset = open_dataset(f"folder:{tmp_path / 'pets.tar'}")
    assert len(dataset) == 5
    (problem,) = dataset.problems
    assert (problem.path, problem.error[:21]) == ("pets/cat/link.png", "is a symbolic link to")


def test_a_changed_image_is_another_data_set(folder) -> None:
    before = open_dataset(f"folder:{folder}").identity
    assert open_dataset(f"folder:{folder}").identity == before
    Image.new("RGB", (8, 8), (9, 0, 0)).save(folder / "cat" / "1.png")
    assert open_dataset(f"folder:{folder}").identity != before


def test_a_class_in_several_places_is_remarked_on(folder) -> None:
    (folder / "train" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "train" / "cat" / "9.png")
    (remark,) = open_dataset(f"folder:{folder}").remarks
    assert remark == "1 classes, 'cat' the first, have folders in several places (., train)"


def test_what_has_no_classes_is_refused(folder, tmp_path) -> None:
    (folder / "loose.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"pets/loose\.png lies in no class's folder: expected .*pets/CLASS/IMAGE"):
        open_dataset(f"folder:{folder}")
    (tmp_path / "one" / "only").mkdir(parents=True)
    (tmp_path / "one" / "only" / "a.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"all images lie in folders named 'only', expected one for each class"):
        open_dataset(f"folder:{tmp_path / 'one'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image in"):
        open_dataset(f"folder:{tmp_path / 'empty'}")
    with pytest.raises(InputError, match="expected a folder with one folder for each class, or a tar"):
        open_dataset(f"folder:{folder / 'loose.png'}")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("imagenet:/x", UsageError, "NAME one of cifar10, cifar100, cifar100-coarse, stl10, tiny-imagenet, folder"),
        ("cifar10", UsageError, "give NAME:PATH"),
        ("cifar10:", UsageError, "give NAME:PATH"),
        ("folder:s3://bucket/x", UsageError, "download it first"),
        ("folder:/no/where", InputError, "/no/where: No such file"),
        ("folder:/\0", InputError, "null"),
        ("cifar10:/dev/null", InputError, "not CIFAR-10's binary version: give its folder cifar-10-batches-bin"),
    ],
    ids=["no such name", "no path", "empty path", "remote", "missing", "NUL", "a device"],
)
def test_a_senseless_argument_is_one_line(text, error, message) -> None:
    with pytest.raises(error) as caught:
        open_dataset(text)
    assert message in str(caught.value)
