"""The README's Python on stores runs as it stands there; that on models: tests/exporter/test_export.py."""

import re
from pathlib import Path

import numpy as np
import pytest
from stores import write

from runtime.store import Embeddings

ROOT = Path(__file__).parents[1]


def block(word: str) -> str:
    """The one Python block of the README that has `word` in it."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (found,) = [text for text in blocks if word in text]
    return found


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with `embeddings`, of 12 images that lie around a circle."""
    angles = np.linspace(0, 3, 12)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    rows = Embeddings(["/photos"] * 12, [f"{number:02}.jpg" for number in range(12)], vectors)
    write(tmp_path / "embeddings", rows, {"model": "itae.onnx"})
    monkeypatch.chdir(tmp_path)
    return vectors


def test_pandas_polars_and_duckdb_open_the_store(here) -> None:
    names: dict = {}
    exec(block("import duckdb"), names)
    for frame in (names["pandas_frame"], names["polars_frame"]):
        np.testing.assert_array_equal(np.stack(list(frame["embedding"])), here)
        assert list(frame["path"]) == [f"{number:02}.jpg" for number in range(12)]
    assert [path for path, _ in names["nearest"]] == [f"{number:02}.jpg" for number in range(10)]
    assert names["nearest"][0][1] == pytest.approx(1)


def test_the_store_class_reads_it_in_parts(here, capsys) -> None:
    exec(block("import Store"), {})
    assert capsys.readouterr().out == f"12 2 itae.onnx\n00.jpg {here.mean()!s}\n"
