"""Golden embeddings of each option: a library that changes the numbers is noticed, and named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from exporter.declaration import Declared, Flag, Instance, WordList, Words, declared
from exporter.methods.itae.options import ATTENUATIONS, THRESHOLDS, ItaeConfig
from exporter.options import ExportSpec
from tests.drift import make

GOLDEN, SETTINGS = make.read()
MARGIN = 3e-4
"""Smallest distance of a norm from its threshold, as a share of the norm; rounding moves norms by 2e-6."""
NO_NUMBERS = {
    "out": "a file's name",
    "weights": "all weights are seeded ones; how files are read is tested by equality",
    "calibration": "a record",
    "backend": "engines run on GPUs only",
    "batch": "of an engine",
    "keep_onnx": "a file's name",
    "workspace_mib": "of an engine",
    "hardware_compatibility": "of an engine",
    "version_compatible": "of an engine",
    "timing_cache": "a file's name",
    "require_fusion": "of an engine",
    "calibrate_images": "of int8",
    "calibrate_limit": "of int8",
    "min_cosine": "of int8",
    "replay": "a check",
    "parity_samples": "a check",
}
"""Options that have no case, with the reason."""
NO_CASE = {
    ("precision", "bf16"): "ONNX Runtime's CPU has no kernels for it",
    ("precision", "int8"): "it follows the user's pictures",
}
SAME_AS_BASE = {"base", "outputs", "no-cls-only", "input uint8", "unfused"}
"""Cases whose embeddings must not differ from the base's."""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> make.Models:
    return make.Models(tmp_path_factory.mktemp("drift"))


def explained(name: str, fault: str, models: make.Models) -> str:
    """A fault with all that helps to find its cause."""
    eager = models.eager(name).embedding.numpy()
    want = GOLDEN[name]["embedding"]
    alike = eager.shape == want.shape and np.abs(eager - want).max() <= make.LIMITS["fp32"]
    return (
        f"case `{name}`: {fault}. Eager PyTorch {'still gives' if alike else 'does not give'} the golden embeddings. "
        f"Libraries {make.changed(SETTINGS['versions'])}. If this is meant: python tests/drift/make.py"
    )


def test_the_file_is_of_the_scripts_cases():
    now = make.settings()
    assert {"cases": SETTINGS["cases"]} == {"cases": now["cases"]}, "python tests/drift/make.py"
    assert set(GOLDEN) == set(make.CASES)
    assert set(SETTINGS["versions"]) == set(make.LIBRARIES)
    assert make.GOLDEN.stat().st_size < 100_000


def test_the_seeded_weights_are_those_of_the_file():
    """If not, all cases fail, and their libraries are not to blame."""
    assert SETTINGS["weights_sha256"] == make.weights_sha256()


@pytest.mark.parametrize("name", make.CASES)
def test_the_numbers_are_those_of_the_file(name, models):
    if fault := make.compare(name, models.run(name), GOLDEN[name]):
        pytest.fail(explained(name, fault, models))


@pytest.mark.parametrize("name", [name for name, case in make.CASES.items() if case.spec.itae is not None])
def test_no_flag_lies_at_its_threshold(name, models):
    """So that rounding turns none, and each case has artifacts and others."""
    found = models.eager(name)
    assert found.margin.min() > MARGIN
    assert found.is_mixed.all()


@pytest.mark.parametrize("name", sorted(set(make.CASES) - {"base"}))
def test_a_case_shows_its_option(name):
    base, own = GOLDEN["base"]["embedding"], GOLDEN[name]["embedding"]
    moved = np.inf if base.shape != own.shape else float(np.abs(base - own).max())
    if name in SAME_AS_BASE:
        assert moved <= 1e-5
    else:
        assert moved > (1e-4 if name == "precision fp16" else 1e-2)


@pytest.mark.parametrize(("name", "output"), [("base", "embedding"), *(("outputs", one) for one in make.OUTPUTS)])
def test_a_change_of_a_ten_thousandth_is_seen(name, output, models, monkeypatch):
    changed = {key: value.copy() for key, value in GOLDEN[name].items()}
    if output == "artifact_mask":
        changed[output].flat[3] ^= True
    else:
        changed[output].flat[3] += 1e-4
    fault = make.compare(name, changed, GOLDEN[name])
    assert fault is not None
    monkeypatch.setattr(make, "versions", lambda: SETTINGS["versions"] | {"torch": "99.0"})
    said = explained(name, fault, models)
    assert said.startswith(f"case `{name}`: {'1 of' if output == 'artifact_mask' else f'`{output}` is off by 0.0001,'}")
    assert f"changed: torch {SETTINGS['versions']['torch']} -> 99.0; the same: transformers" in said
    assert "Eager PyTorch still gives the golden embeddings" in said


def test_other_outputs_shapes_and_nan_are_seen():
    good = GOLDEN["base"]
    assert make.compare("base", good, good) is None
    for wrong in ({}, good | {"more": good["embedding"]}, {"embedding": good["embedding"][:1]},
                  {"embedding": good["embedding"] * np.nan}):  # fmt: skip
        assert make.compare("base", wrong, good) is not None


def values(name: str) -> list[object]:
    """The values that an option has in all cases."""
    specs = [case.spec for case in make.CASES.values()]
    if name in declared(ExportSpec):
        return [spec.resolved_precision if name == "precision" else getattr(spec, name) for spec in specs]
    return [getattr(spec.itae, name) for spec in specs if spec.itae is not None]


@pytest.mark.parametrize(
    "one", [*declared(ExportSpec).values(), *declared(ItaeConfig).values()], ids=lambda one: one.name
)
def test_every_option_has_a_case(one: Declared):
    found = values(one.name)
    if one.name in NO_NUMBERS:
        return
    if isinstance(one.form, Words):
        assert set(one.form.words) - set(found) == {word for option, word in NO_CASE if option == one.name}
    elif isinstance(one.form, WordList):
        assert {word for words in found for word in words} == set(one.form.words)
    elif isinstance(one.form, Flag):
        assert set(found) == {True, False}
    elif isinstance(one.form, Instance):
        assert {value is None for value in found} == {True, False}
    else:
        assert len({str(value) for value in found}) > 1, "a value beside the base's"


@pytest.mark.parametrize(("option", "kinds"), [("threshold", THRESHOLDS), ("attenuate", ATTENUATIONS)])
def test_every_kind_has_a_case(option, kinds):
    assert {str(value).partition(":")[0] for value in values(option)} == set(kinds)


def test_the_exceptions_are_options():
    assert set(NO_NUMBERS) < {field.name for field in dataclasses.fields(ExportSpec)}
