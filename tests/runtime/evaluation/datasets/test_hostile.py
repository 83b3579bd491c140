"""Damaged files: a data set is read, or an `InputError` of one line is raised, and no other exception."""

import io
import tarfile

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from runtime.contract.errors import InputError
from runtime.evaluation.datasets import Dataset, open_dataset


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def make_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in range(4):
            info = tarfile.TarInfo(f"set/{'ab'[number % 2]}/{number}.png")
            info.size = len(png(number))
            tar.addfile(info, io.BytesIO(png(number)))
    return file.getvalue()


def make_parquet() -> bytes:
    metadata = '{"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}'
    table = pa.table({"image": [{"bytes": png(row), "path": f"{row}.png"} for row in range(4)], "label": [0, 1, 0, 1]})
    file = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({"huggingface": metadata}), file)
    return file.getvalue()


WHOLE = {"folder": ("set.tar", make_tar()), "parquet": ("set.parquet", make_parquet())}


def opened(text: str) -> Dataset | str:
    """The data set, or what is said."""
    try:
        return open_dataset(text)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("kind", WHOLE)
@settings(
    deadline=None, derandomize=True, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damage_gives_a_data_set_or_one_line(kind, data, tmp_path) -> None:
    name, whole = WHOLE[kind]
    content = bytearray(whole[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))])
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=6)):
        if place < len(content):
            content[place] = value
    (tmp_path / name).write_bytes(content)
    found = opened(f"{kind}:{tmp_path / name}")
    if isinstance(found, str):
        assert "\n" not in found
        assert str(tmp_path / name) in found
        return
    assert len(found.keys) == len(found.labels)
    assert set(found.labels.tolist()) <= set(range(len(found.classes)))
    list(found.entries(found.keys))
