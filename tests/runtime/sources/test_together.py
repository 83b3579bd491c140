"""The same images from every source at once, through the model."""

import io
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from runtime.__main__ import main
from runtime.sources import Item, open_sources, read_image
from runtime.store import Store


@pytest.fixture
def everywhere(pictures, tmp_path) -> dict[str, list[str]]:
    """The eight pictures as each source has them: argument to the paths that it gives."""
    files = sorted(path for path in pictures.rglob("*") if path.is_file())
    names = [path.relative_to(pictures).as_posix() for path in files]
    with tarfile.open(tmp_path / "shard-000.tar", "w") as tar:
        for path, name in zip(files, names, strict=True):
            tar.add(path, name)
    with tarfile.open(tmp_path / "packed.tgz", "w:gz") as tar:
        tar.add(pictures, ".")
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    parquet.write_table(pa.table({"image": rows}), tmp_path / "rows.parquet")
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in files))
    memory = fsspec.filesystem("memory")
    for path, name in zip(files, names, strict=True):
        memory.pipe_file(f"/{tmp_path.name}/{name}", path.read_bytes())
    return {
        str(pictures): names,
        f"{tmp_path}/shard-{{000..000}}.tar": names,
        str(tmp_path / "packed.tgz"): [f"./{name}" for name in names],
        str(tmp_path / "rows.parquet"): [f"{row}/{path.name}" for row, path in enumerate(files)],
        str(tmp_path / "list.txt"): [path.name for path in files],
        f"file://{pictures}": names,
        f"memory://{tmp_path.name}": names,
    }


def test_every_source_gives_the_same_embeddings(everywhere, tiny, tmp_path) -> None:
    assert main(["embed", str(tiny), *everywhere, "--out", str(tmp_path / "out")]) == 0
    read = Store(tmp_path / "out").read()
    rows = dict(zip(zip(read.roots, read.paths, strict=True), read.vectors, strict=True))
    assert len(rows) == 8 * len(everywhere)
    first = np.stack(list(rows.values())[:8])
    assert len({row.tobytes() for row in first}) == 8
    for argument, paths in everywhere.items():
        found = [one for one in open_sources([argument]).items() if isinstance(one, Item)]
        assert sorted(item.path for item in found) == sorted(paths)
        by_name = {item.path: rows[item.root, item.path] for item in found}
        got = np.stack([by_name[path] for path in paths])
        np.testing.assert_allclose(got, first, rtol=0, atol=1e-6, err_msg=argument)
        for item in found:
            assert read_image(item.root, item.path).mode == "RGB"


def test_a_second_run_finds_all_of_them_there(everywhere, tiny, tmp_path, capsys) -> None:
    command = ["embed", str(tiny), *everywhere, "--out", str(tmp_path / "out")]
    assert main(command) == 0
    before = len(Store(tmp_path / "out"))
    capsys.readouterr()
    assert main(command) == 0
    assert len(Store(tmp_path / "out")) == before == 8 * len(everywhere)


def test_a_list_comes_by_standard_input(pictures, tiny, tmp_path, monkeypatch) -> None:
    paths = sorted(str(path) for path in pictures.rglob("*.png"))
    stdin = io.TextIOWrapper(io.BytesIO("\0".join(paths).encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert main(["embed", str(tiny), "-", "--out", str(tmp_path / "out")]) == 0
    assert len(Store(tmp_path / "out")) == len(paths) == 4
