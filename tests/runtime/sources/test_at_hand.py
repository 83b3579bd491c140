"""Images of packed tars and parquet, read in one pass beforehand."""

import io
import tarfile

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from runtime.contract.errors import InputError, OutputFileError
from runtime.sources import read_image
from runtime.sources.at_hand import at_hand


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


PICTURES = [*map(png, range(20)), b"no picture"]


def tar(path):
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as made:
        for number, data in enumerate(PICTURES):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return [(str(path), f"{number}.png") for number in range(len(PICTURES))]


def rows(path):
    parquet.write_table(pa.table({"image": pa.array(PICTURES, pa.binary())}), path, row_group_size=7)
    return [(str(path), str(number)) for number in range(len(PICTURES))]


@pytest.mark.parametrize(("name", "write"), [("a.tar.gz", tar), ("a.parquet", rows)], ids=["tar", "parquet"])
def test_each_image_is_its_own_though_the_file_is_read_no_more(name, write, tmp_path) -> None:
    *keys, damaged = write(tmp_path / name)
    with at_hand([*keys[3:], damaged]) as read:
        (tmp_path / name).unlink()
        assert [read(*key).getpixel((0, 0)) for key in reversed(keys[3:])] == [(n, 0, 0) for n in range(19, 2, -1)]
        with pytest.raises(InputError, match="is damaged, or none of JPEG"):
            read(*damaged)
        with pytest.raises(InputError):  # not asked for beforehand, so that it is sought in the file
            read(*keys[0])


def test_what_can_be_had_by_itself_is_not_copied(tmp_path) -> None:
    keys = tar(tmp_path / "a.tar")[:2]
    (tmp_path / "a.png").write_bytes(PICTURES[7])
    asked = []

    def read(root: str, path: str, *, sixteen_bit: str) -> Image.Image:
        asked.append((root, path))
        return read_image(root, path, sixteen_bit=sixteen_bit)

    keys.append((str(tmp_path), "a.png"))
    with at_hand(keys, read) as given:
        assert [given(*key).getpixel((0, 0))[0] for key in keys] == [0, 1, 7]
    assert asked == keys


def test_a_file_that_is_gone_or_holds_no_images_is_told_where_it_is_read(tmp_path) -> None:
    parquet.write_table(pa.table({"number": [1, 2]}), tmp_path / "b.parquet")
    for root in (str(tmp_path / "a.tar.gz"), str(tmp_path / "b.parquet")):
        with at_hand([(root, "0")]) as read, pytest.raises(InputError):
            read(root, "0")


def test_a_temporary_folder_without_room_is_told(tmp_path, monkeypatch) -> None:
    keys = tar(tmp_path / "a.tar.gz")
    monkeypatch.setattr("tempfile.tempdir", "/proc/self")
    with pytest.raises(OutputFileError, match="can't write /proc/self/itae-images: "), at_hand(keys):
        pass
