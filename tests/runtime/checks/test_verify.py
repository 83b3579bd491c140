"""The golden sample replayed, and its reports."""

import dataclasses
import json
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from runtime.checks.junit import clean
from runtime.checks.verify import as_json, as_junit, as_text, verify
from runtime.contract.errors import BackendError, CheckError, ManifestError
from runtime.contract.golden import golden_bytes, read_golden
from runtime.contract.manifest import ParityCheck, manifest_path, parity_path, read_manifest, record_file

ALL = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")


def change_golden(path, **changes) -> None:
    """Put another golden sample beside the model, with a manifest that fits it."""
    manifest = read_manifest(path)
    golden = dataclasses.replace(read_golden(path, manifest), **changes)
    parity_path(path).write_bytes(golden_bytes(golden))
    files = manifest.files.model_copy(update={"parity": record_file(parity_path(path))})
    manifest_path(path).write_bytes(manifest.model_copy(update={"files": files}).to_json())


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("outputs", [("embedding",), ALL], ids=["embedding", "all"])
def test_a_good_model_passes(outputs, dtype, make_model, tmp_path) -> None:
    result = verify(make_model(tmp_path, outputs=outputs, dtype=dtype))
    assert result.passed
    assert result.samples == 4
    assert 0 < result.parity.max_abs < 1e-4  # float32 against float64: not the same to the bit
    assert result.parity.flags_checked == ("artifact_mask" in outputs)


@pytest.mark.parametrize("name", ["embedding", "patch_tokens", "artifact_norm"])
def test_a_figure_that_is_off_fails(name, make_model, tmp_path) -> None:
    path = make_model(tmp_path, outputs=ALL)
    expected = getattr(read_golden(path, read_manifest(path)), name).copy()
    expected[(2,) + (0,) * (expected.ndim - 1)] += 0.1
    change_golden(path, **{name: expected})
    result = verify(path)
    assert not result.passed
    assert "FAILED" in as_text(result)


def test_a_flag_that_differs_far_from_the_threshold_fails(make_model, tmp_path) -> None:
    path = make_model(tmp_path, outputs=ALL)
    golden = read_golden(path, read_manifest(path))
    flags = golden.flags.copy()
    flags[1, 0, 3] ^= True
    change_golden(path, flags=flags, flag_distance=np.ones_like(golden.flag_distance))
    result = verify(path)
    assert not result.passed
    assert result.parity.flags_differing == 1
    assert "sample 1" in as_text(result)


def test_a_flag_that_differs_at_the_threshold_is_borderline_and_passes(make_model, tmp_path) -> None:
    path = make_model(tmp_path, outputs=ALL)
    golden = read_golden(path, read_manifest(path))
    flags, distance = golden.flags.copy(), golden.flag_distance.copy()
    flags[1, 0, 3] ^= True
    distance[1, 0, 3] = 1e-6
    change_golden(path, flags=flags, flag_distance=distance)
    result = verify(path)
    assert result.passed
    assert result.parity.borderline == (1,)
    assert re.search("flags differing +1 +1 borderline samples, 1 left out", as_text(result))


def test_nan_from_the_model_is_a_failed_check(make_model, tmp_path) -> None:
    with pytest.raises(CheckError, match="NaN or infinity in `embedding`") as info:
        verify(make_model(tmp_path, nan=True))
    assert info.value.exit_code == 1


def test_an_engine_without_a_gpu_is_no_failed_check(make_model, tmp_path, monkeypatch) -> None:
    def no_driver(name):
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", no_driver)
    path = make_model(tmp_path, "tiny.engine", builder="tensorrt-rtx", batch=(1, 2, 4))
    with pytest.raises(BackendError) as info:
        verify(path)
    assert info.value.exit_code == 2


# A golden sample that is not the model's


@pytest.mark.parametrize("where", [0, 200, -1])
def test_golden_sample_altered_by_one_bit_is_refused(where, tiny) -> None:
    data = bytearray(parity_path(tiny).read_bytes())
    data[where] ^= 1
    parity_path(tiny).write_bytes(data)
    with pytest.raises(ManifestError, match=r"parity.npz .*SHA-256"):
        verify(tiny)


def test_truncated_golden_sample_is_refused(tiny) -> None:
    parity_path(tiny).write_bytes(parity_path(tiny).read_bytes()[:-1])
    with pytest.raises(ManifestError, match="bytes"):
        verify(tiny)


def test_swapped_golden_sample_is_refused(tiny, make_model, tmp_path) -> None:
    other = make_model(tmp_path / "other", outputs=ALL)
    parity_path(tiny).write_bytes(parity_path(other).read_bytes())
    with pytest.raises(ManifestError, match=r"parity\.npz"):
        verify(tiny)


def test_missing_golden_sample_is_named(tiny) -> None:
    parity_path(tiny).unlink()
    with pytest.raises(ManifestError, match=r"tiny\.onnx\.parity\.npz"):
        verify(tiny)


def test_golden_sample_without_an_output_of_the_model_is_refused(make_model, tmp_path) -> None:
    path = make_model(tmp_path, outputs=ALL)
    change_golden(path, patch_tokens=None)
    with pytest.raises(ManifestError, match="`patch_tokens`"):
        verify(path)


# Reports


def test_json_holds_the_figures(make_model, tmp_path) -> None:
    report = as_json(verify(make_model(tmp_path, outputs=ALL)))
    assert report["passed"] is True
    assert report["failures"] == []
    assert report["limits"]["max_abs"] == 1e-4
    assert report["max_abs"] < 1e-4
    json.dumps(report, allow_nan=False)


def test_json_of_a_figure_that_is_nan_is_null(tiny) -> None:
    result = verify(tiny)
    bad = dataclasses.replace(result, parity=dataclasses.replace(result.parity, max_abs=math.nan, failures=("NaN",)))
    assert as_json(bad)["max_abs"] is None
    assert as_json(bad)["passed"] is False


def test_table_says_what_was_found_and_the_limit(make_model, tmp_path) -> None:
    text = as_text(verify(make_model(tmp_path, outputs=ALL)))
    for part in ("tiny.onnx on ONNX Runtime", "4 golden samples", "max abs", "limit <= 0.0001", "not limited"):
        assert part in text
    assert text.endswith("passed")


def test_table_leaves_out_what_the_model_does_not_output(tiny) -> None:
    text = as_text(verify(tiny))
    assert "norms" not in text
    assert "flags differing" not in text


@pytest.mark.parametrize("flags", ["some", "none", "none at all"])
def test_it_says_where_the_golden_sample_shows_no_attenuation(flags, tiny) -> None:
    result = verify(tiny)
    assert result.has_itae
    assert result.flagged > 0
    check = result.flagged_at_export
    if flags == "none":
        check = ParityCheck(
            purpose="threshold", threshold="ratio:1.2", samples=4, patches=48, flagged=7, margins=(), borderline=(),
            max_abs=0, min_cosine=1,
        )  # fmt: skip
    if flags != "some":
        result = dataclasses.replace(result, flagged=0, flagged_at_export=check if flags == "none" else None)
    text = as_text(result)
    assert f"  flagged          {result.flagged} patches" in text
    assert as_json(result)["flagged"] == result.flagged
    assert ("the export compared it at ratio:1.2, 7 patches flagged" in text) == (flags == "none")
    assert ("as it is without ITAE" in text) == (flags == "none at all")


def outcomes(tiny):
    good = verify(tiny)
    parity = dataclasses.replace(good.parity, failures=("max abs 1 < & > limit", 'a "quoted"\x00 \ud800 one'))
    return {
        "passed": (good, {"failures": "0", "errors": "0"}, "system-out"),
        "failed": (dataclasses.replace(good, parity=parity), {"failures": "1", "errors": "0"}, "failure"),
        "check failed": (CheckError("NaN\x1b[0m"), {"failures": "1", "errors": "0"}, "failure"),
        "no backend": (BackendError("no <driver>"), {"failures": "0", "errors": "1"}, "error"),
    }


@pytest.mark.parametrize("outcome", ["passed", "failed", "check failed", "no backend"])
def test_junit_is_xml_and_counts(outcome, tiny) -> None:
    result, counts, tag = outcomes(tiny)[outcome]
    suite = ElementTree.fromstring(as_junit(tiny, result)).find("testsuite")
    assert suite.get("tests") == str(len(suite)) == ("2" if outcome in ("passed", "failed") else "1")
    assert {name: suite.get(name) for name in counts} == counts
    case = suite[0]
    assert {one.get("name") for one in suite} == {str(tiny)}
    assert tag in [child.tag for child in case]
    if tag != "system-out":
        assert case[0].get("message")
        assert all(child.text for child in case if child.tag == "system-out" or len(case) == 1)
    if outcome == "failed":
        assert case[0].get("message").startswith('max abs 1 < & > limit; a "quoted"\ufffd \ufffd one')


def test_every_character_that_xml_cannot_hold_is_replaced() -> None:
    text = "".join(map(chr, range(0x300))) + "\ud800\udfff\ufffe\uffff\U0001f600"
    cleaned = clean(text)
    assert len(cleaned) == len(text)
    assert ElementTree.fromstring(f"<a>{cleaned.replace('&', '').replace('<', '')}</a>").text.endswith("\U0001f600")
