"""Every Python block of the documents runs as it stands there."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stores import write

from exporter.models.architecture import Architecture
from runtime.store import Embeddings

TINY = Architecture("tiny", width=48, heads=3, depth=3)
"""Exported in place of a real size, to save time."""
ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "exporter/README.md", "runtime/README.md")
BLOCKS = [
    (document, code)
    for document in DOCUMENTS
    for code in re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
]
EXPORTS = "import ExportSpec"
"""Stands in the block that makes the model which the other blocks load."""


def block(word: str) -> str:
    """The one block that has `word` in it."""
    (found,) = [code for _, code in BLOCKS if word in code]
    return found


def run(code: str, folder: Path) -> str:
    """What the code prints, run in a process of its own; stderr must stay empty."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def write_store(folder: Path) -> np.ndarray:
    """Write `embeddings` of 12 images that lie around a circle, and return their vectors (12, 2)."""
    angles = np.linspace(0, 3, 12)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    rows = Embeddings(["/photos"] * 12, [f"{number:02}.jpg" for number in range(12)], vectors)
    write(folder / "embeddings", rows, {"model": "itae.onnx"})
    return vectors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the blocks read: images, `embeddings`, and `itae.onnx`, which the exporter's block makes."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("cat.jpg", "dog.png"):
        Image.new("RGB", (60, 50), "red").save(folder / name)
    write_store(folder)
    code = block(EXPORTS)
    assert 'size="vits14"' in code
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code.replace('size="vits14"', "size=tiny"), {"tiny": TINY})
    assert printed.getvalue().startswith("itae.onnx ")
    return folder


def test_every_document_with_python_has_a_block():
    assert {document for document, _ in BLOCKS} == set(DOCUMENTS)


@pytest.mark.parametrize(
    "code",
    [code for _, code in BLOCKS if EXPORTS not in code],
    ids=[one for one, code in BLOCKS if EXPORTS not in code],
)
def test_a_block_runs(code, folder):
    indent = "    " if code.splitlines()[-1].startswith("    vectors") else ""
    vectors = f"\n{indent}print(vectors.shape)\n" if "vectors = " in code else ""
    printed = run(code + vectors, folder)
    assert not vectors or printed == f"(2, {TINY.width})\n"


def test_pandas_polars_and_duckdb_open_the_store(tmp_path, monkeypatch) -> None:
    vectors = write_store(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block("import duckdb"), names)
    for frame in (names["pandas_frame"], names["polars_frame"]):
        np.testing.assert_array_equal(np.stack(list(frame["embedding"])), vectors)
        assert list(frame["path"]) == [f"{number:02}.jpg" for number in range(12)]
    assert [path for path, _ in names["nearest"]] == [f"{number:02}.jpg" for number in range(10)]
    assert names["nearest"][0][1] == pytest.approx(1)


def test_the_store_class_reads_it_in_parts(tmp_path, monkeypatch, capsys) -> None:
    vectors = write_store(tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(block("import Store"), {})
    first, second, *hits = capsys.readouterr().out.splitlines()
    assert (first, second) == ("12 2 itae.onnx", f"00.jpg {vectors.mean()!s}")
    directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similar = directions @ directions[0]
    similar[0] = -np.inf
    nearest = np.argsort(-similar, kind="stable")[:3]
    assert [line.split()[1] for line in hits] == [str(row) for row in nearest]
    assert [line.split()[3] for line in hits] == [f"{row:02}.jpg" for row in nearest]
