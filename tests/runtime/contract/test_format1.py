"""A model and its manifest that the project's first version wrote (tests/data/format1) still read, verify and embed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import runtime.__main__
from runtime import load
from runtime.contract import format1
from runtime.contract.errors import ManifestError
from runtime.contract.golden import read_golden
from runtime.contract.manifest import FORMAT_VERSION, ItaeMethod, NoMethod, manifest_path, verified_manifest

FORMAT1 = Path(__file__).parents[2] / "data" / "format1"


@pytest.fixture
def old(tmp_path) -> Path:
    for path in FORMAT1.glob("itae.onnx*"):
        shutil.copy(path, tmp_path)
    return tmp_path / "itae.onnx"


def edit(model: Path, change) -> None:
    path = manifest_path(model)
    fields = json.loads(path.read_bytes())
    change(fields)
    fields["manifest_sha256"] = format1.own_hash(fields)
    path.write_text(json.dumps(fields))


def test_the_fields_of_format_1_are_those_of_format_2():
    assert json.loads(manifest_path(FORMAT1 / "itae.onnx").read_bytes())["format_version"] == 1
    manifest = verified_manifest(FORMAT1 / "itae.onnx")
    assert manifest.format_version == FORMAT_VERSION
    assert manifest.options.method == ItaeMethod(
        layers=(2,), source="key", threshold="mad:1", side="both", attenuate="min"
    )
    assert (manifest.model.weights.kind, manifest.model.weights.source) == ("random", "random:1")
    assert manifest.has_random_weights
    assert (manifest.preprocessing.alpha, manifest.preprocessing.resize_cover) == ("white", (64, 80))
    assert [check.purpose for check in manifest.parity.checks] == ["exported"]
    assert verified_manifest(FORMAT1 / "plain.onnx").options.method == NoMethod()


def test_a_model_of_format_1_verifies_and_embeds(capsys):
    assert runtime.__main__.main(["verify", str(FORMAT1 / "itae.onnx")]) == 0
    capsys.readouterr()
    with load(FORMAT1 / "itae.onnx") as model:
        assert model.embed(sorted((FORMAT1 / "pictures").rglob("*.png"))).shape == (6, 48)
        golden = read_golden(FORMAT1 / "itae.onnx", model.manifest)
    assert golden.flags.shape == (2, 1, 20)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("random", "random"), ("random:7", "random"), ("random_crops.pth", "path"), ("random:x.pth", "path"),
        ("hf:facebook/dinov2-base", "hub"), ("dinov2.pth", "path"),
    ],
)  # fmt: skip
def test_random_weights_are_those_of_a_seed_and_no_file_called_so(old, source, kind):
    edit(old, lambda fields: fields["model"].update(weight_source=source))
    assert verified_manifest(old).model.weights.kind == kind


def test_a_field_altered_without_the_hash_is_refused(old):
    path = manifest_path(old)
    path.write_bytes(path.read_bytes().replace(b'"mad:1"', b'"mad:2"'))
    with pytest.raises(ManifestError, match="does not match its own hash"):
        verified_manifest(old)


MISSHAPEN = {
    "no options": lambda fields: fields.pop("options"),
    "options no object": lambda fields: fields.update(options=[1]),
    "no itae": lambda fields: fields["options"].pop("itae"),
    "itae a word": lambda fields: fields["options"].update(itae="yes"),
    "weights a number": lambda fields: fields["model"].update(weight_source=1),
    "unknown purpose": lambda fields: fields["parity"]["checks"][0].update(purpose="other"),
    "purpose a list": lambda fields: fields["parity"]["checks"][0].update(purpose=[]),
    "checks a number": lambda fields: fields["parity"].update(checks=1),
    "fusion a list": lambda fields: fields.update(fusion=[]),
    "fusion empty": lambda fields: fields.update(fusion={}),
}


@pytest.mark.parametrize("case", MISSHAPEN)
def test_what_is_misshapen_is_refused_in_one_line(old, case):
    edit(old, MISSHAPEN[case])
    with pytest.raises(ManifestError) as caught:
        verified_manifest(old)
    assert re.search(r"itae\.onnx\.json: .*; export itae\.onnx again$", str(caught.value))
