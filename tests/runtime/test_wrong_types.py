"""Every error of a public function is an `ItaeError`, whatever is passed to it."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import exporter
import runtime
from runtime.contract.errors import ItaeError
from runtime.embedding.model import Model
from runtime.evaluation.datasets import open_dataset
from runtime.store import Store

WRONG = {
    "None": None,
    "True": True,
    "0": 0,
    "-1": -1,
    "10**30": 10**30,
    "1.5": 1.5,
    "NaN": math.nan,
    "empty text": "",
    "text": "no such thing",
    "NUL": "a\0b",
    "surrogate": "\udcff",
    "surrogate that no file name has": "\ud800",
    "bytes": b"no picture",
    "object": object(),
    "class": int,
    "function": print,
    "empty list": [],
    "list of None": [None],
    "nested list": [[1, 2], [3]],
    "empty tuple": (),
    "dict": {"a": 1},
    "set": {1},
    "generator": (one for one in (1, "a")),
    "path": Path("/no/such/file"),
    "scalar array": np.array(3),
    "no rows": np.zeros((0, 3, 42, 42), np.float32),
    "float64": np.zeros((2, 3, 42, 42)),
    "integers": np.zeros((2, 3, 42, 42), np.int64),
    "complex": np.zeros((1, 3, 42, 42), np.complex64),
    "objects": np.array([None, "a"], object),
    "texts": np.array(["a", "b"]),
    "vector": np.zeros(5, np.float32),
    "matrix": np.zeros((3, 4), np.float32),
    "NaN inside": np.full((1, 3, 42, 42), np.nan, np.float32),
    "not contiguous": np.zeros((42, 42, 3, 2), np.float32).T[:, :, :, ::2],
}
"""What is wrong nearly everywhere; where one of them is right, nothing is raised."""


def array_of_embeddings(folder: Path) -> Path:
    """Two embeddings as an array, and the lines beside it."""
    np.save(folder / "two.npy", np.eye(2, 6, dtype=np.float32))
    lines = "".join(f'{{"row": {row}, "root": "/r", "path": "{row}.png"}}\n' for row in range(2))
    (folder / "two.jsonl").write_text(lines, "utf-8")
    return folder / "two.npy"


def calls(folder: Path, model: Model) -> dict[str, tuple[Callable[..., object], dict[str, object]]]:
    """Every public function, and arguments that are right for those of its parameters that have no default."""
    picture = np.zeros((1, 3, 42, 42), np.float32)
    return {
        "runtime.load": (runtime.load, {"path": folder / "tiny.onnx"}),
        "Model.embed": (model.embed, {"images": picture}),
        "Model.run": (model.run, {"images": picture}),
        "Model.run_inputs": (model.run_inputs, {"inputs": picture}),
        "Store": (Store, {"path": folder / "store"}),
        "Store.load": (Store(array_of_embeddings(folder)).load, {}),
        "Store.search": (Store(array_of_embeddings(folder)).search, {"queries": 0}),
        "open_dataset": (open_dataset, {"text": "folder:x"}),
        "ItaeConfig": (exporter.ItaeConfig, {}),
        "ExportSpec": (exporter.ExportSpec, {"out": "x.onnx"}),
        "exporter.export": (exporter.export, {"spec": exporter.ExportSpec(folder / "no folder" / "x.onnx")}),
    }


NAMES = {
    "runtime.load": runtime.load,
    "Model.embed": Model.embed,
    "Model.run": Model.run,
    "Model.run_inputs": Model.run_inputs,
    "Store": Store,
    "Store.load": Store.load,
    "Store.search": Store.search,
    "open_dataset": open_dataset,
    "ItaeConfig": exporter.ItaeConfig,
    "ExportSpec": exporter.ExportSpec,
    "exporter.export": exporter.export,
}
CASES = [
    (name, parameter)
    for name, function in NAMES.items()
    for parameter in inspect.signature(function).parameters
    if parameter != "self"
]


@pytest.mark.parametrize(("name", "parameter"), CASES, ids=[f"{name} {parameter}" for name, parameter in CASES])
def test_whatever_is_passed_every_error_is_ours(name, parameter, make_model, tmp_path) -> None:
    if name == "exporter.export":
        pytest.importorskip("torch")
    leaks = []
    path = make_model(tmp_path)
    with runtime.load(path) as model:
        for label, value in WRONG.items():
            if parameter == "tell" and callable(value):
                continue  # right, and what it raises is its own
            function, arguments = calls(tmp_path, model)[name]
            try:
                function(**{**arguments, parameter: value})
            except ItaeError as error:
                if "\n" in str(error):
                    leaks.append(f"{label}: several lines: {error}")
            except Exception as error:
                leaks.append(f"{label}: {type(error).__name__}: {error}")
    assert not leaks, "\n".join(leaks)


def test_every_public_name_is_among_them() -> None:
    """What the packages name for others, less results, errors and what is made by another of them."""
    named = {*runtime.__all__, *exporter.__all__, *runtime.store.__all__, *runtime.evaluation.datasets.__all__}
    passive = {"ItaeError", "ExportResult", "Embeddings", "Neighbour", "Dataset", "KINDS"}
    assert named - passive == {name.split(".")[0 if name.startswith(("Model", "Store")) else -1] for name in NAMES}
    methods = {name for name, _ in inspect.getmembers(Model, inspect.isfunction) if not name.startswith("_")}
    assert methods - {"close"} == {name.split(".")[1] for name in NAMES if name.startswith("Model.")}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.run("cat.jpg", []), "outputs: name at least one of embedding, or give None for all"),
        (lambda model: model.run("cat.jpg", "embedding"), "outputs 'embedding': must be a list of names"),
        (
            lambda model: model.run_inputs(None),
            "a batch is a numpy array, not NoneType: the model",
        ),
        (lambda model: model.embed("cat.jpg", 1.5), "batch 1.5: must be a whole number"),
        (lambda model: model.embed("cat.jpg", math.nan), "batch nan: must be a whole number"),
        (lambda model: model.embed("cat.jpg", True), "batch True: must be a whole number"),
        (lambda _: runtime.load(None), "path None: must be a path, as text or pathlib.Path"),
        (lambda _: runtime.load(b"x.onnx"), "path b'x.onnx': must be a path"),
        (lambda _: runtime.load("\ud800"), r"path '\ud800': must be a path"),
        (lambda _: runtime.load("x.onnx", device="0"), "device '0': must be a whole number"),
        (lambda _: runtime.load("x.onnx", verify_hash=1), "verify_hash 1: must be True or False"),
    ],
)
def test_the_message_names_the_argument_and_what_it_must_be(call, message, tiny) -> None:
    with runtime.load(tiny) as model, pytest.raises(ItaeError, match=re.escape(message)):
        call(model)


def test_numpys_whole_numbers_are_taken(tiny) -> None:
    with runtime.load(tiny, threads=np.int64(1)) as model:
        assert model.embed(np.zeros((3, 3, 42, 42), np.float32), np.uint8(2)).shape == (3, 6)
