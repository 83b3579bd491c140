"""Python's verdicts on the cases of the contract; C++'s are in runtime/cpp/tests/contract/conformance_test.cpp."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.contract.comparison import compare
from runtime.contract.errors import ManifestError, one_line
from runtime.contract.golden import read_golden
from runtime.contract.manifest import read_manifest, verified_manifest
from tests.conformance import make

LISTED = json.loads((make.CASES / "contract.json").read_text())


def laid_out(case: dict[str, Any], folder: Path) -> Path:
    """A copy of the base with the case's files over it; the path of its model."""
    shutil.copytree(make.CASES / "base", folder, dirs_exist_ok=True)
    if (own := make.CASES / case["name"]).is_dir():
        shutil.copytree(own, folder, dirs_exist_ok=True)
    for name in case["remove"]:
        (folder / name).unlink()
    return folder / make.MODEL


def run(case: dict[str, Any], model: Path) -> dict[str, Any] | None:
    """Do what the case asks for; what a comparison finds, None for other calls."""
    if case["call"] == "manifest":
        read_manifest(model)
        return None
    if case["call"] == "files":
        verified_manifest(model)
        return None
    manifest = read_manifest(model)
    golden = read_golden(model, manifest)
    if case["call"] == "golden":
        return None
    with np.load(model.with_name("got.npz")) as got:
        outputs = {name: got[name] for name in got.files}
    return dataclasses.asdict(compare(outputs, golden, manifest.parity.limits))


@pytest.mark.parametrize("case", LISTED, ids=itemgetter("name"))
def test_python_gives_the_verdict_of(case, tmp_path):
    case = copy.deepcopy(case)
    model = laid_out(case, tmp_path)
    if case["says"] is None:
        found = run(case, model)
        if found is not None:
            figures = {name: found.pop(name) for name in make.FIGURES}
            expected = {name: float(case["parity"].pop(name)) for name in make.FIGURES}
            assert figures == pytest.approx(expected, nan_ok=True, rel=1e-12)
            assert json.loads(json.dumps(found)) == case["parity"]
        return
    with pytest.raises(ManifestError) as caught:
        run(case, model)
    for words in case["says"]:
        assert words in one_line(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    mine = {"base", "manifest", "files", "golden", "compare", "npy", "contract.json"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] in mine
    }


def test_the_cases_are_those_that_the_script_makes(tmp_path):
    make.write(tmp_path / "cases")
    assert contents(make.CASES) == contents(tmp_path / "cases"), "python tests/conformance/make.py"


def test_each_verdict_is_there():
    for call in ("manifest", "files", "golden"):
        assert {case["says"] is None for case in LISTED if case["call"] == call} == {True, False}
    assert {not case["parity"]["failures"] for case in LISTED if case["call"] == "compare"} == {True, False}
