"""Which column of a parquet file is taken, where images without bytes lie, and keys that say where an image is."""

import base64
import os
from urllib.parse import quote_from_bytes

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from runtime.contract.errors import InputError, UsageError
from runtime.sources import Columns, Item, Unreadable, load_item, open_sources, read_image
from runtime.sources.at_hand import at_hand

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write(path, row_group_size=None, /, **columns) -> str:
    parquet.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return str(path)


def entries(path, image=None, key=None) -> list[Item | Unreadable]:
    return list(open_sources([str(path)], columns=Columns(image, key)).items())


def seen(found, number_of) -> dict[str, int]:
    """Path and number of each image, which is the same when it is read by its key, alone and among all."""
    images = {item.path: number_of(load_item(item)) for item in found}
    assert {item.path: number_of(read_image(item.root, item.path)) for item in found} == images
    with at_hand([(item.root, item.path) for item in found]) as read:
        assert {item.path: number_of(read(item.root, item.path)) for item in found} == images
    return images


# Columns by their types, names and content


NAMES = ["image_bytes", "Image_Bytes", "imageBytes", "img_bytes", "IMAGE", "Image", "Jpg", "image.bytes", "image_data"]


@pytest.mark.parametrize("name", NAMES)
def test_columns_of_bytes_are_known_in_any_spelling(name, tmp_path, picture, number_of) -> None:
    path = write(tmp_path / "a.parquet", id=[7, 8], **{name: [picture(1), picture(2)]}, url=["a", "b"])
    assert seen(entries(path), number_of) == {"0": 1, "1": 2}


@pytest.mark.parametrize("name", ["blob", "content", "data", "Foto"])
def test_bytes_of_another_name_are_images_by_their_content(name, tmp_path, picture, number_of) -> None:
    columns = {"md5": [b"0" * 16] * 3, name: [None, picture(1), picture(2)]}
    path = write(tmp_path / "a.parquet", **columns)
    found = entries(path)
    assert found[0] == Unreadable(path, "0", "holds no bytes (null)")
    assert seen(found[1:], number_of) == {"1": 1, "2": 2}


@pytest.mark.parametrize("path", ["file_name", "url", "path"])
def test_bytes_of_another_name_come_before_paths(path, tmp_path, picture, number_of, caplog) -> None:
    columns = {path: ["https://x.org/1.png", "2.png"], "photo": [picture(1), picture(2)]}
    assert seen(entries(write(tmp_path / "a.parquet", **columns)), number_of) == {"0": 1, "1": 2}
    assert f"images are taken from column `photo`, not by paths in `{path}`" in caplog.text


@pytest.mark.parametrize("name", ["thumbnail", "Preview_Bytes", "mask"])
def test_thumbnails_beside_paths_are_not_taken_for_the_images(name, tmp_path, picture, number_of) -> None:
    (tmp_path / "1.png").write_bytes(picture(1))
    path = write(tmp_path / "a.parquet", image_path=[str(tmp_path / "1.png")], **{name: [picture(2)]})
    assert [number_of(load_item(item)) for item in entries(path)] == [1]
    assert seen(entries(path, name), number_of) == {f"0:{name}": 2}


@pytest.mark.parametrize("more", ["length", "modificationTime", None])
def test_binary_files_of_spark_are_images_named_by_their_paths(more, tmp_path, picture, number_of) -> None:
    columns = {"path": ["dbfs:/a.png", "s3://b/c/d.png"], "content": [picture(1), picture(2)]}
    columns |= {more: [1, 2]} if more else {}
    path = write(tmp_path / "part-00000-x.c000.snappy.parquet", **columns)
    assert seen(entries(path), number_of) == {"0/dbfs:/a.png": 1, "1/s3:/b/c/d.png": 2}


def arrays(pictures: list[bytes | None]) -> dict[str, pa.Array]:
    """The same pictures in every type that parquet holds bytes in."""
    width = max(len(one or b"") for one in pictures)
    padded = [None if one is None else one.ljust(width, b"\0") for one in pictures]
    numbers = [None if one is None else list(one) for one in pictures]
    signed = [None if one is None else np.frombuffer(one, np.int8).tolist() for one in pictures]
    return {
        "large_binary": pa.array(pictures, pa.large_binary()),
        "binary_view": pa.array(pictures, pa.binary_view()),
        "fixed_size": pa.array(padded, pa.binary(width)),
        "dictionary": pa.array(pictures, pa.binary()).dictionary_encode(),
        "list<uint8>": pa.array(numbers, pa.list_(pa.uint8())),
        "large_list<uint8>": pa.array(numbers, pa.large_list(pa.uint8())),
        "list<int8>": pa.array(signed, pa.list_(pa.int8())),
    }


TYPES = list(arrays([b""]))


@pytest.mark.parametrize("name", ["image", "blob"])
@pytest.mark.parametrize("kind", TYPES)
def test_bytes_are_read_in_every_type(kind, name, tmp_path, picture, number_of) -> None:
    column = arrays([picture(1), None, picture(2), picture(1)])[kind]
    path = write(tmp_path / "a.parquet", id=[7, 8, 9, 10], **{name: column})
    found = entries(path)
    assert found.pop(1) == Unreadable(path, "1", "holds no bytes (null)")
    assert seen(found, number_of) == {"0": 1, "2": 2, "3": 1}


@pytest.mark.parametrize("kind", ["large_binary", "dictionary", "list<uint8>"])
def test_bytes_of_every_type_are_read_inside_structs_and_lists(kind, tmp_path, picture, number_of) -> None:
    column = arrays([picture(1), picture(2)])[kind]
    struct = pa.StructArray.from_arrays([column, pa.array(["a", "b"])], ["bytes", "path"])
    assert seen(entries(write(tmp_path / "a.parquet", photo=struct)), number_of) == {"0/a": 1, "1/b": 2}
    lists = pa.ListArray.from_arrays([0, 2], column)
    assert seen(entries(write(tmp_path / "b.parquet", images=lists)), number_of) == {"0.0": 1, "0.1": 2}


def test_lists_of_numbers_with_a_null_are_no_image(tmp_path, picture) -> None:
    column = pa.array([list(picture(1)), [137, None, 78]], pa.list_(pa.uint8()))
    path = write(tmp_path / "a.parquet", image=column)
    assert entries(path)[1] == Unreadable(path, "1", "is a list of numbers of which some are null")


def test_embeddings_of_eight_bits_are_no_images(tmp_path, picture) -> None:
    (tmp_path / "1.png").write_bytes(picture(1))
    numbers = pa.array([[1, 2, 3]], pa.list_(pa.int8()))
    path = write(tmp_path / "a.parquet", path=[str(tmp_path / "1.png")], embedding=numbers)
    assert entries(path) == [Item(str(tmp_path), "1.png")]


# Pictures written as text


def as_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


FORMS = {
    "data URI": as_uri,
    "data URI with parameters": lambda data: as_uri(data).replace(";base64", ";name=a.png;base64"),
    "data URI with escapes": lambda data: as_uri(data).replace("+", "%2B").replace("/", "%2F").replace("%2F", "/", 1),
    "data URI of bytes": lambda data: f"data:image/png,{quote_from_bytes(data)}",
    "base64": lambda data: base64.b64encode(data).decode(),
    "base64 in lines": lambda data: base64.encodebytes(data).decode(),
    "base64 for URLs": lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
}


@pytest.mark.parametrize("name", ["image", "image_base64", "url", "photo"])
@pytest.mark.parametrize("form", FORMS)
def test_pictures_written_as_text_are_decoded(form, name, tmp_path, picture, number_of) -> None:
    path = write(tmp_path / "a.parquet", id=["a", "b"], **{name: [FORMS[form](picture(1)), FORMS[form](picture(2))]})
    assert seen(entries(path), number_of) == {"0": 1, "1": 2}
    assert seen(entries(path, name), number_of) == {"0": 1, "1": 2}


def test_text_beside_another_image_column_is_read_by_its_name(tmp_path, picture, number_of) -> None:
    path = write(tmp_path / "a.parquet", image=[picture(1)], mask=[as_uri(picture(2))])
    assert seen(entries(path), number_of) == {"0": 1}
    assert seen(entries(path, "mask"), number_of) == {"0:mask": 2}


def test_bytes_that_are_a_data_uri_are_decoded(tmp_path, picture, number_of) -> None:
    path = write(tmp_path / "a.parquet", image=[as_uri(picture(1)).encode()])
    assert seen(entries(path), number_of) == {"0": 1}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("data:image/png;base64", "is a data URI without data"),
        ("data:image/png;base64,???", "is text, and neither a path nor a picture in base64"),
        ("x" * 50_000 + "!", "is text, and neither a path nor a picture in base64"),
        (None, "holds no bytes (null)"),
    ],
    ids=["no data", "no base64", "long text", "null"],
)
def test_text_that_is_no_picture_is_a_short_error(text, error, tmp_path, picture) -> None:
    path = write(tmp_path / "a.parquet", image=[as_uri(picture(1)), text])
    assert entries(path)[1] == Unreadable(path, "1", error)


def test_large_text_is_refused_before_it_is_decoded(tmp_path, picture) -> None:
    path = write(tmp_path / "a.parquet", image=[as_uri(picture(1)), "A" * (150 << 20)])
    (_, large) = open_sources([path], max_pixels=1).items()
    assert large == Unreadable(path, "1", f"has {150 << 20:,} characters, more than {128 << 20:,}")


@pytest.mark.parametrize("length", [100, 5_000, 100_000])
def test_a_list_of_paths_with_a_picture_as_text_has_a_short_error(length, tmp_path) -> None:
    (tmp_path / "list.txt").write_text(f"data:image/png;base64,{'A' * length}\n{'b' * 5000}.png\n")
    uri, long = open_sources([str(tmp_path / "list.txt")]).items()
    assert uri.error == "is a picture written as a data URI, not a path: such pictures are read from columns of parquet"
    assert long.error == "has 5,004 characters, too many for a path"
    assert max(len(uri.path), len(long.path)) <= 201


def test_content_that_is_no_image_leaves_the_paths(tmp_path, picture) -> None:
    (tmp_path / "1.png").write_bytes(picture(1))
    path = write(tmp_path / "a.parquet", path=[str(tmp_path / "1.png")], content=[b"a text about it"])
    assert entries(path) == [Item(str(tmp_path), "1.png")]


@pytest.mark.parametrize("name", ["URL", "Url", "image_url", "ImagePath", "FILE_NAME", "uri"])
def test_columns_of_paths_are_known_in_any_spelling(name, tmp_path, picture) -> None:
    path = write(tmp_path / "a.parquet", TEXT=["a cat"], **{name: [f"file://{tmp_path}/1.png"]})
    assert entries(path) == [Item(f"file://{tmp_path}", "1.png")]


def test_columns_of_one_name_or_of_names_with_dots_are_told_apart(tmp_path, picture, number_of) -> None:
    path = write(tmp_path / "a.parquet", **{"image.bytes": [picture(1)], "image": [picture(2)], "image.path": ["x"]})
    assert seen(entries(path), number_of) == {"0": 2}
    assert seen(entries(path, "image.bytes", "image.path"), number_of) == {"0:image.bytes/x": 1}
    table = pa.table([pa.array([picture(3)]), pa.array([picture(4)]), pa.array(["a"])], names=["image", "image", "id"])
    parquet.write_table(table, tmp_path / "b.parquet")
    assert number_of(load_item(entries(tmp_path / "b.parquet")[0])) == 3


def test_of_url_in_two_spellings_ours_is_taken_and_the_log_says_so(tmp_path, caplog) -> None:
    path = write(tmp_path / "a.parquet", URL=["file:///x/1.png"], url=["file:///x/2.png"])
    assert entries(path) == [Item("file:///x", "2.png")]
    assert "paths are taken from column `url`, not from ['URL']" in caplog.text


# Lists


LISTS = [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)]


@pytest.mark.parametrize("make", LISTS, ids=["list", "large list", "list of a fixed size"])
def test_lists_of_images_are_images(make, tmp_path, picture, number_of) -> None:
    rows = [[{"bytes": picture(2 * row + n), "path": f"{n}.png" if n else None} for n in range(2)] for row in range(5)]
    path = write(tmp_path / "a.parquet", 2, label=range(5), images=pa.array(rows, make(IMAGE)))
    sources = open_sources([path])
    assert sources.total is None
    expected = {f"{row}.{n}{'/1.png' if n else ''}": 2 * row + n for row in range(5) for n in range(2)}
    assert seen(list(sources.items()), number_of) == expected
    asked = []
    wanted = sources.items(lambda root, key: asked.append(key) or key == "3.1/1.png")
    assert [item.path for item in wanted] == ["3.1/1.png"]
    assert asked == list(expected)


def test_lists_of_bytes_empty_and_null_ones(tmp_path, picture, number_of) -> None:
    rows = [[picture(1), None], [], None, [picture(2)]]
    path = write(tmp_path / "a.parquet", images=pa.array(rows, pa.list_(pa.binary())))
    first, bad, last = entries(path)
    assert seen([first, last], number_of) == {"0.0": 1, "3.0": 2}
    assert bad == Unreadable(path, "0.1", "holds no bytes (null)")
    path = write(tmp_path / "b.parquet", images=pa.array([[], None], pa.list_(pa.binary())))
    assert entries(path) == [Unreadable(path, "", "holds no image: all lists in column `images` are empty")]


def test_lists_of_paths_are_paths(tmp_path, picture, number_of) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    rows = [[str(tmp_path / "1.png"), str(tmp_path / "2.png")], [], [str(tmp_path / "3.png")]]
    path = write(tmp_path / "a.parquet", images=rows)
    found = entries(path)
    assert [number_of(load_item(item)) for item in found] == [1, 2, 3]
    assert {item.root for item in found} == {str(tmp_path)}


# Images without bytes


@pytest.mark.parametrize(
    "kind", ["absolute", "URL", "as Spark has it", "beside the file", "in the current folder", "below", "above"]
)
def test_an_image_without_bytes_is_read_from_its_path(kind, tmp_path, picture, number_of, monkeypatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there / "below"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    place = {"in the current folder": here, "below": there / "below", "above": tmp_path}.get(kind, there) / "1.png"
    place.write_bytes(picture(1))
    stored = {
        "absolute": str(place),
        "URL": f"file://{place}",
        "as Spark has it": f"file:{place}",
        "below": "below/1.png",
        "above": "../1.png",
    }.get(kind, "1.png")
    rows = [{"bytes": picture(2), "path": "2.png"}, {"bytes": None, "path": stored}, {"bytes": b"", "path": stored}]
    path = write(there / "a.parquet", image=pa.array(rows, IMAGE))
    found = entries(path)
    assert list(seen(found, number_of).values()) == [2, 1, 1]
    assert [item.root for item in found] == [path] * 3
    assert found[0].path == "0/2.png"


@pytest.mark.parametrize("lists", [False, True], ids=["images", "lists"])
def test_a_column_that_holds_no_bytes_at_all_is_known_by_its_paths(lists, tmp_path, picture, number_of) -> None:
    rows = []
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
        row = {"bytes": None, "path": str(tmp_path / f"{number}.png")}  # pyarrow infers the type null
        rows.append([row] if lists else row)
    found = entries(write(tmp_path / "a.parquet", photo=rows, label=[0, 1]))
    assert list(seen(found, number_of).values()) == [1, 2]


def test_a_column_of_bytes_without_some_takes_the_path_beside_it(tmp_path, picture, number_of) -> None:
    (tmp_path / "1.png").write_bytes(picture(1))
    path = write(tmp_path / "a.parquet", image_bytes=[None, picture(2)], image_path=[str(tmp_path / "1.png"), None])
    assert seen(entries(path), number_of) == {"0": 1, "1": 2}


def test_lists_without_bytes_take_their_paths(tmp_path, picture, number_of) -> None:
    (tmp_path / "1.png").write_bytes(picture(1))
    rows = [[{"bytes": None, "path": "1.png"}, {"bytes": picture(2), "path": None}]]
    path = write(tmp_path / "a.parquet", images=pa.array(rows, pa.list_(IMAGE)))
    assert seen(entries(path), number_of) == {"0.0/1.png": 1, "0.1": 2}


@pytest.mark.parametrize("stored", ["gone.png", "/gone/x.png", "a\0b", "..", "a.parquet/0/x"])
def test_an_image_without_bytes_whose_path_leads_nowhere_is_told(stored, tmp_path) -> None:
    path = write(tmp_path / "a.parquet", image=pa.array([{"bytes": None, "path": stored}], IMAGE))
    (problem,) = entries(path)
    assert problem.error.startswith("holds no bytes (null), and ")


@pytest.mark.parametrize(
    "stored", ["zip://a.png::/x.zip", "nosuch://a/b.png", "file:///gone/a.png", "memory://x.parquet/0"]
)
def test_a_url_that_can_not_be_read_is_told_and_does_not_end_the_run(stored, tmp_path) -> None:
    path = write(tmp_path / "a.parquet", image=pa.array([{"bytes": None, "path": stored}], IMAGE))
    found = entries(path)
    assert len(found) == 1
    with pytest.raises(InputError, match=r"holds no bytes \(null\), and its path "):
        raise InputError(found[0].error) if isinstance(found[0], Unreadable) else load_item(found[0]) and AssertionError


# Columns that the user names


def test_a_named_column_is_taken_and_its_keys_say_so(tmp_path, picture, number_of) -> None:
    columns = {"image": [picture(1)], "back/side:2": [picture(2)], "side": [{"bytes": picture(3), "path": "s.png"}]}
    path = write(tmp_path / "a.parquet", **columns)
    assert seen(entries(path, "side"), number_of) == {"0/s.png": 3}  # a struct: taken by default
    assert seen(entries(path, "image"), number_of) == {"0:image": 1}
    assert seen(entries(path, "back/side:2"), number_of) == {"0:back%2Fside%3A2": 2}


def test_a_named_column_of_paths_is_preferred_to_images(tmp_path, picture, number_of) -> None:
    (tmp_path / "1.png").write_bytes(picture(1))
    path = write(tmp_path / "a.parquet", image=[picture(2)], where=[str(tmp_path / "1.png")])
    assert [number_of(load_item(item)) for item in entries(path, "where")] == [1]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["cat", "../a b", None], ["0/cat", "1/a b", "2"]),
        ([11, 12, None], ["0/11", "1/12", "2"]),
        (["same", "same", "same"], ["0/same", "1/same", "2/same"]),
    ],
    ids=["text", "numbers", "not unique"],
)
@pytest.mark.parametrize("lists", [False, True], ids=["images", "lists"])
def test_a_key_column_names_images(values, names, lists, tmp_path, picture, number_of) -> None:
    rows = [{"bytes": picture(n), "path": "x.png"} for n in range(3)]
    images = pa.array([[row] for row in rows], pa.list_(IMAGE)) if lists else pa.array(rows, IMAGE)
    path = write(tmp_path / "a.parquet", 2, other=["o"] * 3, image=images, id=values)
    expected = [f"{name[0]}.0{name[1:]}" if lists else name for name in names]
    assert seen(entries(path, key="id"), number_of) == {name: n for n, name in enumerate(expected)}
    changed = expected[0].replace("/", "/not-")
    with pytest.raises(InputError, match="is not in the parquet file"):  # a file that was swapped shows no other image
        read_image(path, changed)


ALL = r"its 3 columns: image \(struct.*\), id \(int64\), name \(string\)"


@pytest.mark.parametrize(
    ("image", "key", "message"),
    [
        ("picture", None, rf"a.parquet: no column `picture` \(--image-column\) among {ALL}"),
        ("Image", None, rf"no column `Image` \(--image-column\) among {ALL}"),
        ("id", None, rf"column `id` holds int64: expected images .* or paths \(text\); {ALL}"),
        (None, "key", rf"no column `key` \(--key-column\) among {ALL}"),
        (None, "image", r"column `image` \(--key-column\) holds struct.*, expected text or numbers"),
        ("name", "id", rf"--key-column names the images in a column, and this file has none: paths are keys .*; {ALL}"),
    ],
)
def test_a_column_that_is_not_there_is_refused_with_those_that_are(image, key, message, tmp_path, picture) -> None:
    image_column = pa.array([{"bytes": picture(1), "path": "a"}], IMAGE)
    path = write(tmp_path / "a.parquet", image=image_column, id=[1], name=["x"])
    with pytest.raises(InputError, match=message):
        entries(path, image, key)


def test_a_refusal_of_a_file_with_many_columns_stays_short(tmp_path) -> None:
    path = write(tmp_path / "a.parquet", **{f"c{number}": [number] for number in range(500)})
    with pytest.raises(
        InputError, match=r"its 500 columns: c0 \(int64\), .* and 460 more; name one by --image-column"
    ) as caught:
        entries(path)
    assert len(str(caught.value)) < 1500


def test_a_column_is_named_where_there_is_no_parquet_file(tmp_path, picture) -> None:
    (tmp_path / "1.png").write_bytes(picture(1))
    with pytest.raises(UsageError, match="are for parquet files: none is named"):
        entries(tmp_path / "1.png", "image")


@pytest.mark.parametrize("path", ["0:nosuch", "0:label", "0:", "0.7", "7.0", "0:images/x", "0/x/y"])
def test_a_key_of_another_column_is_refused(path, tmp_path, picture) -> None:
    root = write(tmp_path / "a.parquet", label=[1], image=[picture(1)])
    with pytest.raises(InputError):
        read_image(root, path)
    assert os.path.exists(root)  # noqa: PTH110
