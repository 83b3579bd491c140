"""The file of `calibrate`, and what an export takes from it by `--config`."""

import json

import pytest

from exporter import arguments
from exporter.calibration import recommendation
from exporter.calibration.recommendation import NOTHING, to_json
from exporter.method_arguments import method_of, remarks
from exporter.methods.itae.options import ItaeConfig
from runtime.contract.errors import UsageError
from runtime.contract.hashed_json import NO_HASH

FOUND = {"layers": "7-11", "source": "residual", "threshold": "ratio:6", "side": "high", "attenuate": "min"}
FOUND |= {"detect_layer": 7}
FIXED = {"layers": "last", "threshold": "positions:0,1,16-17", "attenuate": "min"}


def content(itae=None, size="vits14", image_size=(224, 224), **more):
    model = {"size": size, "weights": "x", "sha256": "1" * 64, "image_size": list(image_size)}
    images = {"choosing": 10, "reporting": 9, "failed": 0, "skipped": {}}
    return {"itae": itae, "reason": "because", "model": model, "images": images, "figures": {"gap": 20.5}, **more}


@pytest.fixture
def write(tmp_path):
    def write(fields, raw=False):
        path = tmp_path / "itae.json"
        path.write_bytes(fields if raw else to_json(fields))
        return path

    return write


def spec(path, *words):
    given = arguments.parser().parse_args(["--out", "x.onnx", "--size", "vits14", "--config", str(path), *words])
    method = method_of(given)
    return arguments.to_spec(given, method), remarks(given, method)


def test_a_file_gives_an_export_its_options_and_its_record(write):
    made, remarks = spec(write(content(FOUND)))
    assert made.itae == ItaeConfig(**FOUND)
    assert made.calibration is not None
    assert (made.calibration.images, made.calibration.figures, made.calibration.reason) == (
        19,
        {"gap": 20.5},
        "because",
    )
    assert made.calibration.sha256 in to_json(content(FOUND)).decode()
    assert remarks == []
    assert spec(write(content(FIXED)))[0].itae == ItaeConfig(**FIXED)


def test_null_exports_plain_and_says_so(write):
    made, remarks = spec(write(content(None)))
    assert made.itae is None
    assert made.calibration is not None
    assert NOTHING in remarks[0]


def test_options_that_are_given_win(write):
    made, remarks = spec(write(content(FOUND)), "--attenuate", "mask", "--layers", "last")
    assert made.itae == ItaeConfig(**FOUND | {"attenuate": "mask", "layers": "last"})
    assert [line.partition(": ")[2] for line in remarks] == [
        "--layers last is taken in place of 7-11",
        "--attenuate mask is taken in place of min",
    ]
    assert spec(write(content(FOUND)), "--threshold", "positions:5")[0].itae == ItaeConfig(
        layers="7-11", threshold="positions:5"
    )
    assert spec(write(content(None)), "--source", "value")[0].itae == ItaeConfig(source="value")
    assert spec(write(content(FOUND)), "--no-itae")[0].itae is None


def test_a_file_for_another_model_or_size_is_refused(write):
    with pytest.raises(UsageError, match="was made for --size vitb14, not for vits14"):
        spec(write(content(FOUND, size="vitb14")))
    assert spec(write(content(FOUND, image_size=(518, 518))))[0].itae == ItaeConfig(**FOUND)
    with pytest.raises(UsageError, match="positions of patches in images of 518x518"):
        spec(write(content(FIXED, image_size=(518, 518))))
    with pytest.raises(UsageError, match="contradicts --preset"):
        spec(write(content(FOUND)), "--preset", "paper", "--threshold", "absolute:3")


def hashed(text: str) -> bytes:
    return to_json(json.loads(text))


BAD = {
    "empty": (b"", "is not JSON"),
    "not JSON": (b"{", "is not JSON"),
    "not text": (b"\xff\xfe\x00", "is not JSON"),
    "deep": (b"[" * 100_000, "is not JSON"),
    "infinite": (b'{"a": 1e999}', "too large a number"),
    "NaN": (b'{"a": NaN}', "NaN is not JSON"),
    "twice": (b'{"a": 1, "a": 2}', "two members"),
    "a list": (b"[1]", "has no version"),
    "another format": (b'{"format": "x", "version": 1}', "has not the format itae-calibration"),
    "no version": (b'{"format": "itae-calibration"}', "has no version"),
    "newer": (b'{"format": "itae-calibration", "version": 2}', "upgrade"),
    "too large": (b" " * (recommendation.CALIBRATION_FILE.max_bytes + 1), "is larger than"),
    "no hash": (b'{"format": "itae-calibration", "version": 1}', "does not match its own hash"),
    "zero hash": (json.dumps(content() | {"format": "itae-calibration", "version": 1, "sha256": NO_HASH}).encode(),
                  "does not match its own hash"),
    "altered": (to_json(content(FOUND)).replace(b"ratio:6", b"ratio:2"), "does not match its own hash"),
    "no model": (to_json({"itae": None}), "has no model"),
    "no itae": (to_json({}), "has no itae"),
    "itae a word": (to_json(content("last")), "itae must be an object or null"),
    "foreign option": (to_json(content({"colour": "red"})), "'colour', which is no option"),
    "unknown word": (to_json(content(FOUND | {"source": "gaze"})), "must be one of query"),
    "a number for a word": (to_json(content(FOUND | {"threshold": 6})), "threshold"),
    "sizes": (to_json(content(FOUND, image_size=(224,))), "values to unpack"),
    "sizes that are words": (to_json(content(FOUND, image_size=("a", "b"))), "must have its size"),
    "weights": (to_json(content(FOUND) | {"model": {"size": "vits14", "image_size": [1, 1], "sha256": "x"}}), "sha256"),
    "figures": (to_json(content(FOUND) | {"figures": {"gap": "wide"}}), "figures"),
    "reason": (to_json(content(FOUND) | {"reason": 3}), "reason"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_foreign_or_hostile_file_is_refused_in_one_line(case, write):
    data, words = BAD[case]
    with pytest.raises(UsageError) as caught:
        spec(write(data, raw=True))
    assert "--config " in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(UsageError, match="there is no such file; make one with"):
        spec(tmp_path / "none.json")
    with pytest.raises(UsageError, match="Is a directory"):
        spec(tmp_path)
