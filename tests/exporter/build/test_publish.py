"""Models take the place of older ones: whatever fails or dies at any step, none is mixed of two exports."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from odd_file_systems import count_steps, failing, killed

from exporter.build.publish import Product, publish
from exporter.models.architecture import Architecture
from exporter.options import ExportSpec
from exporter.proof.golden_sample import Sample
from runtime.contract import atomic
from runtime.contract.atomic import work_folder
from runtime.contract.comparison import LIMITS
from runtime.contract.errors import ManifestError, OutputFileError
from runtime.contract.file_set import recover
from runtime.contract.golden import Golden, read_golden
from runtime.contract.manifest import Builder, Weights, verified_manifest

SPEC = ExportSpec("m.onnx", size=Architecture("tiny", width=48, heads=3, depth=2), image_size=28, weights="random:0")


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch):
    """What is on the disk can't be seen here, and these tests would wait for it thousands of times."""
    monkeypatch.setattr(atomic.os, "fsync", lambda _: None)


@dataclass(frozen=True)
class Case:
    """An export over an older one; sizes are the same, so that they tell nothing."""

    older: tuple[str, ...]
    """Names of the older models, with a + if their weights lie beside them."""
    new: tuple[str, ...]


CASES = {
    "none before": Case((), ("m.onnx",)),
    "data goes": Case(("m.onnx+",), ("m.onnx",)),
    "data comes": Case(("m.onnx",), ("m.onnx+",)),
    "engine and ONNX": Case(("m.engine", "m.onnx+"), ("m.engine", "m.onnx+")),
}


def export(folder: Path, names: tuple[str, ...], mark: int) -> None:
    """As `pipeline.export` does, with models that are a few bytes of `mark`."""
    zeros = np.zeros((1, 1, 4), np.float32)
    golden = Golden(
        input=np.full((1, 3, 28, 28), mark, np.float32),
        embedding=np.full((1, 48), mark, np.float32),
        flags=zeros.astype(bool),
        flag_distance=zeros,
    )
    recover(folder)
    with work_folder(beside=folder / "m.onnx") as work:
        products = []
        for name in names:
            made = work / name
            made.mkdir()
            (made / "model").write_bytes(bytes([mark] * 9))
            (made / "data").write_bytes(bytes([mark] * 9))
            data = made / "data" if name.endswith("+") else None
            builder = Builder(name="onnx" if "onnx" in name else "tensorrt", version="0", platform="test")
            products.append(Product(folder / name.removesuffix("+"), made / "model", data, builder))
        sample = Sample(itae=SPEC.itae, golden=golden, flagged=0, mixed=0, effect=None, limits=LIMITS, rounding={})
        weights = Weights(kind="random", source="random:0", revision=None, sha256=f"{mark}" * 64)
        publish(products, SPEC, weights, sample, (), work)


def read(model: Path) -> int | None:
    """The mark of a model, all of whose files must have it; None where it is refused.

    Hashes are left out, as `--no-verify-hash` does: what a reader sees is whole even so.
    """
    try:
        manifest = verified_manifest(model, check_hash=False)
    except ManifestError as refused:
        message = str(refused)
        assert "\n" not in message
        assert "an export was interrupted" in message or "no such model file" in message
        return None
    marks = {int(manifest.model.weights.sha256[0]), *model.read_bytes()}
    marks |= {int(one) for one in np.unique(read_golden(model, manifest).embedding)}
    if manifest.files.external_data is not None:
        marks |= {*model.with_name(manifest.files.external_data.name).read_bytes()}
    (mark,) = marks
    return mark


def read_all(folder: Path, case: Case) -> set[int | None]:
    return {read(folder / name.removesuffix("+")) for name in case.new}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture
def whole(case, tmp_path) -> list[str]:
    """The names that are there after an export that nothing stops."""
    start(case, tmp_path / "whole")
    export(tmp_path / "whole", case.new, 2)
    assert read_all(tmp_path / "whole", case) == {2}
    return names(tmp_path / "whole")


def start(case: Case, folder: Path) -> None:
    folder.mkdir()
    if case.older:
        export(folder, case.older, 1)


@pytest.fixture
def copies(case, tmp_path) -> Iterator[tuple[int, Path]]:
    """For each step of an export: its number and a fresh copy of what is there before."""
    start(case, tmp_path / "start")
    rehearsal = shutil.copytree(tmp_path / "start", tmp_path / "rehearsal")
    steps = count_steps(lambda: export(rehearsal, case.new, 2))
    assert len(steps) > 15
    return ((step, shutil.copytree(tmp_path / "start", tmp_path / str(step))) for step in range(len(steps)))


@pytest.mark.parametrize(("how", "number"), [("once", errno.ENOSPC), ("late", errno.EIO)])
def test_a_failure_at_any_step_leaves_the_older_models_or_the_new_ones(case, copies, whole, how, number, monkeypatch):
    monkeypatch.setattr(atomic, "is_alive", lambda _: False)  # as for the next process
    before = {1} if case.older else {None}
    said = set()
    for step, folder in copies:
        try:
            with failing(step, number, how):
                export(folder, case.new, 2)
        except OutputFileError as error:
            assert read_all(folder, case) == before
            said.add(str(error).rpartition("; ")[2])
        except OSError:  # while models were made: the pipeline translates it
            assert read_all(folder, case) == before
        else:
            assert read_all(folder, case) == {2}
        export(folder, case.new, 2)
        assert names(folder) == whole
    assert "what was there is as before" in said if case.older else "nothing was left there" in said


def test_a_kill_at_any_step_leaves_no_mixed_model_and_the_next_export_mends_it(case, copies, whole):
    older = 1 if case.older else None
    seen = set()
    for step, folder in copies:
        assert killed(step, lambda folder=folder: export(folder, case.new, 2))
        found = read_all(folder, case)
        assert found <= {older, None, 2}
        seen |= found
        recover(folder)  # as the next export of any model does, before its work
        assert read_all(folder, case) <= {older, 2}
        export(folder, case.new, 2)
        assert names(folder) == whole
        assert read_all(folder, case) == {2}
    assert seen == {older, None, 2}
