"""Files that hold their own hash: every kind is refused in the same words, as that kind's error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.calibration.recommendation import CALIBRATION_FILE
from runtime.backends.tuned import TUNED_FILE
from runtime.contract.errors import ItaeError
from runtime.contract.hashed_json import NO_HASH, HashedJson
from runtime.contract.manifest import MANIFEST_FILE
from runtime.serving.images_record import RECORD_FILE

KINDS = {one.name: one for one in (MANIFEST_FILE, CALIBRATION_FILE, TUNED_FILE, RECORD_FILE)}
FIELDS = {"colour": "blau ü", "numbers": [1, 2.5]}


@pytest.fixture(params=KINDS)
def kind(request) -> HashedJson:
    return KINDS[request.param]


def refused(kind: HashedJson, path: Path) -> str:
    with pytest.raises(ItaeError) as caught:
        kind.read(path, "make it again")
    assert type(caught.value) is kind.error
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_read(kind, tmp_path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(kind.to_bytes(FIELDS, indent=2))
    fields = kind.read(path, "make it again")
    assert {name: fields[name] for name in FIELDS} == FIELDS
    assert fields[kind.version_field] == kind.version
    assert list(fields)[-1] == kind.hash_field


def test_each_way_to_be_wrong_has_its_words(kind, tmp_path) -> None:
    path = tmp_path / "file.json"
    whole = kind.to_bytes(FIELDS, indent=2)
    digits = json.loads(whole)[kind.hash_field].encode()
    name = kind.name
    cases = {
        b"": "is not JSON (",
        whole[:-9]: "is not JSON (",
        whole.decode().encode("utf-16"): "is not JSON (",
        whole.replace(b"2.5", b"NaN"): "is not JSON (NaN is not JSON): it was truncated or altered; make it again",
        whole.replace(b"2.5", b"1e999"): "is not JSON (1e999 is too large a number)",
        whole.replace(b'"numbers"', b'"colour"'): "is not JSON (an object has two members of one name)",
        b"[" * 100_000: "is not JSON (",
        b"[]": f"has no {kind.version_field}: not a {name} of this project; make it again",
        b"{}": f"has no {kind.version_field}: not a {name} of this project; make it again",
        kind.to_bytes({kind.version_field: True}, indent=2): f"has no {kind.version_field}",
        kind.to_bytes({kind.version_field: 99}, indent=2): f"has {name} format 99, this version reads up to ",
        whole.replace(b"blau", b"grau"): "does not match its own hash: it was altered or only partly written; make it",
        whole.replace(digits, NO_HASH.encode()): "does not match its own hash",
        whole.replace(digits, digits.upper()): "does not match its own hash",
        whole.replace(b"blau", digits): "does not match its own hash",
        whole + b" " * kind.max_bytes: f"is larger than {kind.max_bytes} bytes: not a {name}; make it again",
    }
    if kind.format is not None:
        other = kind.to_bytes({"format": "x"}, indent=2)
        cases[other] = f"has not the format {kind.format}: not a {name} of this project; make it again"
    for content, words in cases.items():
        path.write_bytes(content)
        assert f"{path} {words}" in refused(kind, path)


def test_a_file_that_is_not_there_is_for_its_caller_and_a_folder_is_refused(kind, tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        kind.read(tmp_path / "none", "make it again")
    assert refused(kind, tmp_path) == f"can't read {tmp_path}: Is a directory"
