"""The JSON Schema of a manifest, as it lies in the package: that of the records, and what it takes and refuses."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from manifests import sealed

from runtime.contract.errors import ManifestError
from runtime.contract.manifest import manifest_path, read_manifest
from runtime.contract.schema import json_schema

FORMAT1 = Path(__file__).parents[2] / "data" / "format1"


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    text = resources.files("runtime.contract").joinpath("manifest.schema.json").read_text()
    assert text == json_schema(), "python -m runtime.contract.schema > runtime/contract/manifest.schema.json"
    schema = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def fields_of(model: Path) -> dict[str, Any]:
    return json.loads(manifest_path(model).read_bytes())


@pytest.mark.parametrize("builder", ["onnx", "tensorrt"])
def test_the_schema_takes_what_is_written(validator, make_model, tmp_path, builder):
    batch = None if builder == "onnx" else (1, 2, 4)
    validator.validate(fields_of(make_model(tmp_path / "m", builder=builder, batch=batch)))


def test_the_schema_takes_what_format_1_becomes(validator):
    for name in ("itae.onnx", "plain.onnx"):
        validator.validate(json.loads(read_manifest(FORMAT1 / name).to_json()))


def test_the_schema_takes_unknown_fields(validator, tiny):
    fields = fields_of(tiny)
    validator.validate({**fields, "later": 1, "files": {**fields["files"], "later": 1}})


@pytest.mark.parametrize(
    ("fit", "cover", "valid"),
    [
        (None, [256, 256], True), ("crop", [256, 256], True), ("pad", None, True), ("squash", None, True),
        (None, None, False), ("crop", None, False), ("pad", [256, 256], False), ("squash", [256, 256], False),
        ("fill", None, False), ("fill", [256, 256], False), (None, [256], False),
    ],
    ids=str,
)  # fmt: skip
def test_only_a_crop_covers_and_an_older_manifest_means_a_crop(validator, tiny, fit, cover, valid):
    fields = fields_of(tiny)
    del fields["preprocessing"]["fit"]
    fields["preprocessing"] |= {"resize_cover": cover} | ({} if fit is None else {"fit": fit})
    assert validator.is_valid(fields) == valid
    manifest_path(tiny).write_bytes(sealed(fields))
    if valid:
        assert read_manifest(tiny).preprocessing.fit == (fit or "crop")
    else:
        with pytest.raises(ManifestError, match="preprocessing"):
            read_manifest(tiny)


def unset(fields: dict[str, Any], *path: str) -> None:
    *parents, last = path
    for one in parents:
        fields = fields[one]
    del fields[last]


@pytest.mark.parametrize(
    "path",
    [
        ("options",), ("options", "method"), ("options", "method", "name"), ("options", "method", "layers"),
        ("model", "weights", "kind"), ("files", "model", "sha256"), ("preprocessing", "mean"), ("inputs",),
        ("format_version",), ("manifest_sha256",),
    ],
    ids=".".join,
)  # fmt: skip
def test_the_schema_refuses_a_manifest_that_lacks_a_field(validator, tiny, path):
    fields = fields_of(tiny)
    unset(fields, *path)
    assert not validator.is_valid(fields)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format_version",), 3),
        (("options", "method", "name"), "other"),
        (("preprocessing", "alpha"), "blended over white"),
        (("files", "model", "name"), "../x"),
        (("files", "model", "sha256"), "0" * 63),
        (("model", "width"), 0),
    ],
    ids=lambda one: ".".join(one) if isinstance(one, tuple) else str(one)[:9],
)
def test_the_schema_refuses_a_wrong_value(validator, tiny, path, value):
    fields = inner = fields_of(tiny)
    for one in path[:-1]:
        inner = inner[one]
    inner[path[-1]] = value
    assert not validator.is_valid(fields)


def test_every_field_says_what_it_is():
    schema = json.loads(json_schema())
    for name, record in {"Manifest": schema, **schema["$defs"]}.items():
        assert record["description"], name
