"""Each way for a manifest, or the files that it names, to be wrong has its own message, on one line."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifests import reseal

from runtime.contract.errors import ManifestError, one_line
from runtime.contract.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    check_file,
    manifest_path,
    parity_path,
    read_checked,
    read_manifest,
    record_file,
    verified_manifest,
)

Edit = Callable[[dict[str, Any]], object]


def put(*path: str | int, value: object) -> Edit:
    def edit(fields: Any) -> None:
        for key in path[:-1]:
            fields = fields[key]
        fields[path[-1]] = value

    return edit


def drop(*path: str) -> Edit:
    def edit(fields: Any) -> None:
        for key in path[:-1]:
            fields = fields[key]
        del fields[path[-1]]

    return edit


def refused(model: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        read_manifest(model)
    assert caught.value.exit_code == 2
    return one_line(caught.value)


def test_a_manifest_survives_writing_and_reading(tiny):
    manifest = verified_manifest(tiny)
    assert manifest.format_version == FORMAT_VERSION
    assert manifest.files.model == record_file(tiny)
    manifest_path(tiny).write_bytes(manifest.to_json())
    again = read_manifest(tiny)
    assert again == manifest
    assert again.to_json() == manifest.to_json()
    assert set(again.manifest_sha256) != {"0"}  # it was made anew, not copied from the field's default


def test_the_own_hash_is_that_of_the_files_bytes_with_zeros_in_its_place(tiny):
    text = manifest_path(tiny).read_bytes()
    digits = json.loads(text)["manifest_sha256"].encode()
    assert hashlib.sha256(text.replace(digits, b"0" * 64)).hexdigest().encode() == digits


def test_any_spelling_of_the_same_json_is_taken_if_its_bytes_are_hashed(tiny):
    before = read_manifest(tiny)
    reseal(tiny, lambda fields: fields.update(reversed(list(fields.items()))))
    assert read_manifest(tiny).model_copy(update={"manifest_sha256": before.manifest_sha256}) == before


def test_digits_of_the_hash_that_stand_elsewhere_too_are_refused(tiny):
    """Else two readers could replace different ones."""
    path = manifest_path(tiny)
    text = path.read_bytes()
    digits = json.loads(text)["manifest_sha256"]
    path.write_bytes(text.replace(b'"versions": {}', f'"versions": {{"x": "{digits}"}}'.encode()))
    assert "does not match its own hash" in refused(tiny)


def test_two_members_of_one_name_are_refused(tiny):
    path = manifest_path(tiny)
    path.write_bytes(path.read_bytes().replace(b'"options": {', b'"options": {}, "options": {', 1))
    assert "is not JSON (an object has two members of one name)" in refused(tiny)


def test_unknown_fields_of_this_format_are_ignored_and_kept(tiny):
    reseal(tiny, put("surprise", value={"a": [1]}))
    reseal(tiny, put("files", "model", "surprise", value="b"))
    manifest = read_manifest(tiny)
    assert manifest.input.dtype == "float32"
    manifest_path(tiny).write_bytes(manifest.to_json())
    fields = json.loads(manifest_path(tiny).read_bytes())
    assert fields["surprise"] == {"a": [1]}
    assert fields["files"]["model"]["surprise"] == "b"
    assert read_manifest(tiny).to_json() == manifest.to_json()


def test_an_unknown_field_that_is_called_as_the_hash_does_not_confuse_the_writer(tiny):
    reseal(tiny, put("later", value={"manifest_sha256": "0" * 64}))
    manifest_path(tiny).write_bytes(read_manifest(tiny).to_json())
    read_manifest(tiny)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("options", "method", value={"name": "registers"}), "options.method: Input tag 'registers' found"),
        (put("preprocessing", "alpha", value="black"), "preprocessing.alpha: Input should be 'white'"),
    ],
    ids=["method", "word"],
)
def test_a_word_that_a_newer_version_may_know_asks_for_an_upgrade(tiny, edit, message):
    reseal(tiny, edit)
    said = refused(tiny)
    assert message in said
    assert "upgrade itae, or export tiny.onnx again" in said


def test_files_lie_beside_the_model_under_its_whole_name():
    assert manifest_path(Path("a/x.onnx")) == Path("a/x.onnx.json")
    assert parity_path(Path("a/x.engine")) == Path("a/x.engine.parity.npz")


@pytest.mark.parametrize("name", ["nowhere.onnx", "nul\0.onnx"], ids=["missing", "nul"])
def test_a_model_that_is_no_file_is_refused_with_what_makes_one(tmp_path, name):
    assert "no such model file; make one with `python -m exporter --out " in refused(tmp_path / name)


def test_a_folder_is_refused_as_one(tmp_path):
    assert refused(tmp_path) == f"{tmp_path} is a folder, expected a model: X.onnx or X.engine"


def test_a_name_too_long_for_the_file_system_is_refused(tmp_path):
    assert refused(tmp_path / ("x" * 300)).endswith("File name too long")


def test_a_model_without_its_manifest_is_refused(tiny):
    manifest_path(tiny).unlink()
    assert "has no manifest tiny.onnx.json beside it: copy it along, or export tiny.onnx again" in refused(tiny)


def test_a_folder_in_the_manifests_place_is_refused(tiny):
    manifest_path(tiny).unlink()
    manifest_path(tiny).mkdir()
    assert refused(tiny).endswith("tiny.onnx.json: Is a directory")


NOT_JSON = {
    "empty": b"",
    "cut": None,
    "words": b"not json",
    "two": b"{} {}",
    "binary": bytes(range(256)),
    "bad utf-8": b'{"a": "\xff"}',
    "NaN": b'{"format_version": NaN}',
    "Infinity": b'{"format_version": -Infinity}',
    "deep": b"[" * 100_000,
    "endless number": b'{"format_version": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("case", NOT_JSON)
def test_what_is_not_json_is_refused(tiny, case):
    path = manifest_path(tiny)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if NOT_JSON[case] is None else NOT_JSON[case])
    assert re.search(r"is not JSON \(.*\): it was truncated or altered; export tiny\.onnx again", refused(tiny))


def test_a_huge_file_is_refused_before_it_is_parsed(tiny, monkeypatch):
    with manifest_path(tiny).open("r+b") as file:
        file.truncate(1 << 40)  # sparse: a terabyte that takes no room, and would never fit into memory
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("it was parsed"))
    assert f"is larger than {MANIFEST_FILE.max_bytes} bytes: not a manifest" in refused(tiny)


@pytest.mark.parametrize("text", ["[]", "null", "1", '"x"', "{}"])
def test_json_that_is_no_manifest_is_refused(tiny, text):
    manifest_path(tiny).write_text(text)
    assert "has no format_version: not a manifest of this project" in refused(tiny)


@pytest.mark.parametrize("version", [True, 1.0, "1", None, [1]], ids=repr)
def test_a_format_version_that_is_no_integer_is_refused(tiny, version):
    reseal(tiny, put("format_version", value=version))
    assert "has no format_version" in refused(tiny)


def test_a_newer_format_is_refused_naming_both_versions_whatever_else_it_holds(tiny):
    newer = FORMAT_VERSION + 41
    manifest_path(tiny).write_text(json.dumps({"format_version": newer, "what": "ever"}))
    said = refused(tiny)
    assert f"has manifest format {newer}, this version reads up to {FORMAT_VERSION}: upgrade itae" in said


@pytest.mark.parametrize("version", [0, -1])
def test_a_format_before_the_first_is_refused(tiny, version):
    reseal(tiny, put("format_version", value=version))
    assert "format_version: Input should be 2" in refused(tiny)


@pytest.mark.parametrize(
    "edit",
    [
        put("manifest_sha256", value="0" * 64),
        put("manifest_sha256", value=None),
        drop("manifest_sha256"),
        put("options", "size", value="vitb14"),
        put("versions", "torch", value="0"),
    ],
    ids=["other hash", "null", "no hash", "field altered", "field added"],
)
def test_a_manifest_that_does_not_match_its_own_hash_is_refused(tiny, edit):
    path = manifest_path(tiny)
    fields = json.loads(path.read_bytes())
    edit(fields)
    path.write_text(json.dumps(fields))
    assert "does not match its own hash: it was altered or only partly written" in refused(tiny)


@pytest.mark.parametrize(
    "value", ['"\\ud800"', "1e999", "[" * 5000 + "]" * 5000], ids=["half a surrogate pair", "infinite", "deep"]
)
@pytest.mark.parametrize("version", [1, 2])
def test_json_that_python_alone_would_read_is_refused(tiny, version, value):
    manifest_path(tiny).write_text(f'{{"format_version": {version}, "x": {value}}}')
    assert re.search(r"does not match its own hash|is not JSON", refused(tiny))


WRONG_FIELDS = {
    "no method": (put("options", "method", value=None), "options.method: Input should be an object"),
    "method without a name": (put("options", "method", value={}), "options.method: Unable to extract tag"),
    "ITAE in no layer": (
        put("options", "method", "layers", value=[]),
        "options.method.itae.layers: Tuple should have at",
    ),
    "missing field": (drop("builder"), "builder: Field required"),
    "missing inner field": (drop("files", "parity", "sha256"), "files.parity.sha256: Field required"),
    "text for a number": (put("model", "width", value="6"), "model.width: Input should be a valid integer"),
    "true for a number": (put("model", "width", value=True), "model.width: Input should be a valid integer"),
    "fraction for a count": (put("model", "width", value=6.0), "model.width: Input should be a valid integer"),
    "zero width": (put("model", "width", value=0), "model.width: Input should be greater than 0"),
    "negative size": (put("files", "model", "bytes", value=-1), "files.model.bytes: Input should be greater"),
    "null": (put("preprocessing", value=None), "preprocessing: Input should be an object"),
    "list for an object": (put("options", value=[]), "options: Input should be an object"),
    "deep": (put("versions", "x", value=json.loads("[" * 150 + "]" * 150)), "versions.x: Input should be"),
    "unknown precision": (put("options", "precision", value="fp12"), "options.precision: Input should be 'fp32'"),
    "three sides": (put("options", "image_size", value=[42, 42, 42]), "options.image_size: Tuple should have at most"),
    "no input": (put("inputs", value=[]), "inputs: Tuple should have at least 1"),
    "short hash": (put("files", "model", "sha256", value="ab"), "files.model.sha256: String should match"),
    "capitals in a hash": (put("files", "model", "sha256", value="A" * 64), "files.model.sha256: String should match"),
    "unknown colour order": (put("preprocessing", "color", value="BGR"), "preprocessing.color: Input should be 'RGB'"),
}


@pytest.mark.parametrize("case", WRONG_FIELDS)
def test_a_wrong_field_is_named_even_when_the_hash_fits(tiny, case):
    edit, message = WRONG_FIELDS[case]
    reseal(tiny, edit)
    assert f"tiny.onnx.json: {message}" in refused(tiny)


OUTSIDE = ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b", "..\\x", "a\0b", "a/", "x" * 256]


@pytest.mark.parametrize("name", OUTSIDE, ids=[repr(name[:12]) for name in OUTSIDE])
@pytest.mark.parametrize("which", ["model", "parity", "external_data"])
def test_a_file_name_that_leads_elsewhere_is_refused(tiny, which, name):
    reseal(tiny, put("files", which, value={"name": name, "bytes": 1, "sha256": "0" * 64}))
    assert f"files.{which}.name: String should" in refused(tiny)


@pytest.mark.parametrize("name", ["a", ".a", "..a", "...", "a.b", "a..", "é 猫", "x" * 255], ids=lambda n: n[:9])
def test_an_odd_file_name_of_the_same_folder_is_taken(tiny, name):
    reseal(tiny, put("files", "parity", "name", value=name))
    assert read_manifest(tiny).files.parity.name == name


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("at", [0, 100, -1])
def test_a_model_with_one_altered_bit_is_refused(tiny, at):
    flip(tiny, at)
    with pytest.raises(ManifestError, match=r"tiny\.onnx has not the SHA-256 that tiny\.onnx\.json gives"):
        verified_manifest(tiny)
    read_manifest(tiny)  # which does not read the model, as it says


def test_a_truncated_model_is_refused_with_both_sizes(tiny):
    size = tiny.stat().st_size
    os.truncate(tiny, size - 1)
    with pytest.raises(ManifestError, match=rf"has {size - 1} bytes, not the {size} that tiny\.onnx\.json gives"):
        verified_manifest(tiny)


def test_a_swapped_model_is_refused(tmp_path, make_model):
    one = make_model(tmp_path / "one")
    other = make_model(tmp_path / "other", outputs=("embedding", "patch_tokens"))
    shutil.copy(other, one)
    with pytest.raises(ManifestError, match="it was swapped, altered or only partly written"):
        verified_manifest(one)


def test_a_swapped_manifest_is_refused(tmp_path, make_model):
    one = make_model(tmp_path / "one")
    other = make_model(tmp_path / "other", outputs=("embedding", "patch_tokens"))
    shutil.copy(manifest_path(other), manifest_path(one))
    read_manifest(one)  # a good manifest, of another model
    with pytest.raises(ManifestError, match="it was swapped, altered or only partly written"):
        verified_manifest(one)


def test_a_model_may_be_renamed_along_with_its_manifest(tiny):
    renamed = tiny.rename(tiny.with_name("mine.onnx"))
    manifest_path(tiny).rename(manifest_path(renamed))
    assert verified_manifest(renamed).files.model.name == "tiny.onnx"


def test_external_data_is_checked_too(tiny):
    data = tiny.with_name("tiny.onnx.data")
    data.write_bytes(b"weights")
    reseal(tiny, put("files", "external_data", value=record_file(data).model_dump()))
    verified_manifest(tiny)
    flip(data, 0)
    with pytest.raises(ManifestError, match=r"tiny\.onnx\.data has not the SHA-256"):
        verified_manifest(tiny)
    data.unlink()
    with pytest.raises(ManifestError, match=r"can't read .*tiny\.onnx\.data, which the manifest of .*No such file"):
        verified_manifest(tiny)


def test_the_bytes_that_were_checked_are_given(tiny):
    record = record_file(tiny)
    assert read_checked(tiny, record, tiny) == tiny.read_bytes()
    flip(tiny, 100)
    with pytest.raises(ManifestError, match=r"tiny\.onnx has not the SHA-256 that tiny\.onnx\.json gives"):
        read_checked(tiny, record, tiny)
    assert read_checked(tiny, record, tiny, check_hash=False) == tiny.read_bytes()
    os.truncate(tiny, record.bytes - 1)
    with pytest.raises(ManifestError, match=rf"has {record.bytes - 1} bytes, not the {record.bytes}"):
        read_checked(tiny, record, tiny, check_hash=False)
    tiny.unlink()
    with pytest.raises(ManifestError, match=r"can't read .*: No such file"):
        read_checked(tiny, record, tiny)


def test_a_file_is_not_hashed_where_its_size_tells_already(tiny, monkeypatch):
    record = record_file(tiny).model_copy(update={"bytes": 1})
    monkeypatch.setattr("runtime.contract.manifest.sha256_file", lambda _: pytest.fail("it was hashed"))
    with pytest.raises(ManifestError, match="not the 1 that"):
        check_file(tiny, record, tiny)


fuzzing = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
"""The files are written anew in each example, so that a fixture may be shared between them."""


@fuzzing
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_manifest_with_one_byte_changed_is_refused(tiny, pristine, at, byte):
    data = bytearray(pristine)
    data[at % len(data)] = byte
    assert (read_or_none(tiny, bytes(data)) is None) == (bytes(data) != pristine)


@fuzzing
@given(at=st.integers(0, 10**6))
def test_a_truncated_manifest_is_refused(tiny, pristine, at):
    assert read_or_none(tiny, pristine[: at % len(pristine)]) is None


@fuzzing
@given(at=st.integers(0, 10**6), more=st.binary(min_size=1, max_size=8))
def test_a_manifest_with_bytes_put_in_is_refused(tiny, pristine, at, more):
    where = at % (len(pristine) + 1)
    assert read_or_none(tiny, pristine[:where] + more + pristine[where:]) is None


@pytest.fixture
def pristine(tiny) -> bytes:
    return manifest_path(tiny).read_bytes()


def read_or_none(model: Path, text: bytes) -> object:
    """The manifest, or None where it is refused; any other error is a failure."""
    manifest_path(model).write_bytes(text)
    try:
        return read_manifest(model)
    except ManifestError:
        return None
