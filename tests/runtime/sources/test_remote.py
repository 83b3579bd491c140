"""Remote sources through fsspec, by `file://` and `memory://`."""

import io
import sys
import tarfile

import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from runtime.contract.errors import BackendError, InputError, UsageError
from runtime.contract.keys import location
from runtime.sources import Item, Unreadable, load_item, open_sources, read_image, remote


@pytest.fixture(params=["file", "memory"])
def store(request, tmp_path):
    """A URL of an empty remote folder, and what puts a file into it."""
    root = f"file://{tmp_path}/data" if request.param == "file" else f"memory://{tmp_path.name}"
    file_system, path = fsspec.url_to_fs(root)

    def put(name: str, data: bytes) -> str:
        file_system.makedirs(f"{path}/{name}".rpartition("/")[0], exist_ok=True)
        file_system.pipe_file(f"{path}/{name}", data)
        return f"{root}/{name}"

    yield root, put
    if request.param == "memory":
        file_system.rm(path, recursive=True)


def tar_of(**members: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"{name}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def parquet_of(**columns) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()


def numbers(number_of, *arguments) -> dict[str, int]:
    found = list(open_sources(arguments).items())
    assert all(isinstance(one, Item) for one in found), found
    for one in found:
        assert number_of(read_image(one.root, one.path)) == number_of(load_item(one))
    return {location(one.root, one.path): number_of(load_item(one)) for one in found}


def test_folder_is_searched_through_in_sorted_order(store, picture, number_of) -> None:
    root, put = store
    for number, name in enumerate(["b/c/2.png", "a.PNG", "b/1.png", "notes.txt"]):
        put(name, picture(number))
    for argument in (root, f"{root}/"):
        sources = open_sources([argument])
        assert [(item.root, item.path) for item in sources.items()] == [
            (root, "a.PNG"),
            (root, "b/1.png"),
            (root, "b/c/2.png"),
        ]
        assert (sources.total, sources.roots) == (3, (root,))
    assert list(numbers(number_of, root).values()) == [1, 2, 0]


def test_file_is_named_by_its_folder(store, picture, number_of) -> None:
    root, put = store
    url = put("a/scan", picture(7))
    assert numbers(number_of, url) == {url: 7}
    (item,) = open_sources([url]).items()
    assert (item.root, item.path) == (f"{root}/a", "scan")


def test_tar_parquet_and_list_are_read_as_local_ones_are(store, picture, number_of) -> None:
    root, put = store
    shard = put("s-0.tar", tar_of(x=picture(1), y=picture(2)))
    rows = put("rows.parquet", parquet_of(image=[picture(3), picture(4)]))
    put("deep/a.png", picture(5))
    listed = put("list.txt", f"deep/a.png\n{root}/deep/a.png\n".encode())
    columns = put("list.parquet", parquet_of(path=["deep/a.png"]))
    assert numbers(number_of, shard, rows) == {
        f"{shard}/x.png": 1,
        f"{shard}/y.png": 2,
        f"{rows}/0": 3,
        f"{rows}/1": 4,
    }
    assert numbers(number_of, listed) == {f"{root}/deep/a.png": 5}
    assert numbers(number_of, columns) == {f"{root}/deep/a.png": 5}
    assert open_sources([shard]).total is None
    assert open_sources([rows]).total == 2


def test_a_remote_list_leads_out_of_its_folder_nowhere(store) -> None:
    _, put = store
    found = open_sources([put("deep/list.txt", b"../a.png\n/etc/passwd\n")]).items()
    assert all("leads out of its root" in one.error for one in found)


def test_patterns_are_expanded(store, picture, number_of) -> None:
    root, put = store
    for number in range(3):
        put(f"s-{number:02}.tar", tar_of(x=picture(number)))
    expected = {f"{root}/s-{number:02}.tar/x.png": number for number in range(3)}
    assert numbers(number_of, f"{root}/s-*.tar") == expected
    assert numbers(number_of, f"{root}/s-{{00..02}}.tar") == expected
    with pytest.raises(InputError, match="nothing there matches"):
        open_sources([f"{root}/t-*.tar"])


def test_a_pattern_stands_for_no_hidden_file_unless_it_says_so(store, picture, number_of) -> None:
    root, put = store
    for number, name in enumerate(["a.png", "._a.png", ".b.png"]):
        put(name, picture(number))
    assert numbers(number_of, f"{root}/*.png") == {f"{root}/a.png": 0}
    assert numbers(number_of, f"{root}/.b*.png") == {f"{root}/.b.png": 2}
    with pytest.raises(InputError, match="nothing there matches"):
        open_sources([f"{root}/*_a.png"])


def test_what_does_not_exist_is_refused(store) -> None:
    root, put = store
    put("a.txt", b"x")
    with pytest.raises(InputError, match=rf"{root}/nowhere: does not exist; give remote files or folders"):
        open_sources([f"{root}/nowhere"])
    with pytest.raises(InputError, match="no image in"):
        open_sources([root])


def test_a_file_that_vanished_is_refused(store, picture) -> None:
    root, put = store
    put("a.png", picture(1))
    item = Item(root, "b.png")
    with pytest.raises(InputError, match="does not exist"):
        load_item(item)
    with pytest.raises(InputError, match="leads out of its root"):
        load_item(Item(root, "../a.png"))


@pytest.mark.parametrize(("failures", "is_read"), [(1, True), (2, True), (3, False)])
def test_a_file_is_tried_three_times(failures, is_read, store, picture, number_of, monkeypatch) -> None:
    root, put = store
    put("a.png", picture(1))
    real, waited, left = remote.open_binary, [], [failures]

    def flaky(where):
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionResetError("gone")
        return real(where)

    monkeypatch.setattr(remote, "open_binary", flaky)
    monkeypatch.setattr(remote.time, "sleep", waited.append)
    if is_read:
        assert number_of(load_item(Item(root, "a.png"))) == 1
    else:
        with pytest.raises(InputError, match=r"can't be read \(ConnectionResetError: gone\)"):
            load_item(Item(root, "a.png"))
    assert waited == list(remote._WAITS)[:failures]


def test_a_listing_that_fails_ends_the_run(store, monkeypatch) -> None:
    root, put = store
    put("a.png", b"x")
    file_system, _ = fsspec.url_to_fs(root, use_listings_cache=False)

    def find(*args, **rest):
        raise ConnectionResetError("gone")

    monkeypatch.setattr(type(file_system), "find", find)
    with pytest.raises(InputError, match=rf"{root}: can't be read \(ConnectionResetError: gone\)"):
        open_sources([root])


def test_too_large_a_file_is_refused(store) -> None:
    root, put = store
    put("a.png", bytes((64 << 20) + 1))
    with pytest.raises(InputError, match="has more than 67,108,864 bytes"):
        load_item(Item(root, "a.png"), max_pixels=1000)


def test_relative_file_urls_have_absolute_roots(tmp_path, monkeypatch, picture) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    monkeypatch.chdir(tmp_path)
    (item,) = open_sources(["file://a.png"]).items()
    assert (item.root, item.path) == (f"file://{tmp_path}", "a.png")


def test_unknown_schemes_and_chains_are_refused() -> None:
    with pytest.raises(UsageError, match=r"nosuch://x: .*give s3://, gs://"):
        open_sources(["nosuch://x"])
    with pytest.raises(UsageError, match="chains"):
        open_sources(["zip://a.png::s3://b/x.zip"])


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_what_is_not_installed_is_named(scheme, package, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendError, match=rf"{scheme}://bucket/x: .*pip install {package}"):
        open_sources([f"{scheme}://bucket/x"])


def test_without_fsspec_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    remote._file_system.cache_clear()
    with pytest.raises(BackendError, match=r"pip install 'itae\[remote\]'"):
        open_sources(["memory://x"])


def test_local_sources_do_not_import_fsspec(tmp_path, picture) -> None:
    import subprocess

    (tmp_path / "a.png").write_bytes(picture(1))
    code = (
        "import sys; from runtime.sources import open_sources, load_item\n"
        "[load_item(item) for item in open_sources([sys.argv[1]]).items()]\n"
        "assert not {'fsspec', 'pyarrow'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_vanished_tar_is_told(store, picture) -> None:
    _, put = store
    url = put("a.tar", tar_of(x=picture(1)))
    sources = open_sources([url])
    file_system, path = fsspec.url_to_fs(url)
    file_system.rm(path)
    assert list(sources.items()) == [Unreadable(url, "", "does not exist")]
