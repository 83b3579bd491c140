"""Compute types: named, never silent, asked of the compiled model, and part of a store's identity."""

from __future__ import annotations

import importlib.util
import json
from contextlib import closing

import numpy as np
import pytest

import runtime
from runtime.__main__ import main
from runtime.backends import open_session, openvino
from runtime.backends.compute import COMPUTES, least_precise, resolve_compute
from runtime.checks.verify import verify
from runtime.contract.comparison import LIMITS
from runtime.contract.errors import BackendError, UsageError
from runtime.contract.instructions import has_bf16
from runtime.contract.manifest import read_manifest
from runtime.store import Store
from runtime.store.origin import compute_of, differences, identity, origin_of

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None  # looked for, not imported: that would send telemetry
needs_bf16 = pytest.mark.skipif(
    not (HAS_OPENVINO and has_bf16()), reason="needs OpenVINO and a CPU with bf16 (AVX512-BF16 or AMX)"
)


@pytest.mark.skipif(not HAS_OPENVINO, reason="needs OpenVINO")
def test_openvino_and_the_system_agree_on_bf16() -> None:
    core = openvino.import_openvino().Core()
    assert ("BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")) == has_bf16()


def of_precision(manifest, precision):
    return manifest.model_copy(update={"options": manifest.options.model_copy(update={"precision": precision})})


def images(count=2):
    return np.random.default_rng(5).standard_normal((count, 3, 42, 42)).astype(np.float32)


# What can be asked for


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("provider", ["cpu", "openvino", "cuda"])
def test_by_default_a_file_computes_in_its_own_precision(precision, provider, tiny) -> None:
    manifest = of_precision(read_manifest(tiny), precision)
    assert resolve_compute(manifest, provider, None) == resolve_compute(manifest, provider, precision) == precision


def test_an_fp32_file_computes_in_bf16_where_that_is_named(tiny) -> None:
    assert resolve_compute(read_manifest(tiny), "openvino", "bf16") == "bf16"


def test_what_is_not_int8_computes_in_bf16_where_that_is_named(tiny) -> None:
    manifest = of_precision(read_manifest(tiny), "int8")
    assert resolve_compute(manifest, "openvino", "bf16") == "bf16"
    assert origin_of(manifest, "openvino", compute="bf16") != origin_of(manifest, "openvino", compute="int8")


def test_the_limits_of_int8_leave_room_for_bf16() -> None:
    int8, bf16 = LIMITS["int8"], LIMITS["bf16"]
    assert int8.min_cosine <= bf16.min_cosine
    assert int8.flag_margin >= bf16.flag_margin
    assert int8.batch_distance >= bf16.batch_distance


@pytest.mark.parametrize(
    ("precision", "provider", "compute", "message"),
    [
        ("fp32", "cpu", "bf16", "by the provider openvino alone, not cpu"),
        ("fp32", "cuda", "bf16", "by the provider openvino alone, not cuda"),
        ("bf16", "openvino", "fp32", "tiny.onnx is bf16, which its graph holds: export it with --precision fp32"),
        ("fp16", "openvino", "bf16", "tiny.onnx is fp16"),
        ("int8", "openvino", "fp32", "tiny.onnx is int8, which its graph holds"),
        ("int8", "cpu", "bf16", "an int8 file computes in it by the provider openvino alone, not cpu"),
        ("fp32", "openvino", "tf32", "no compute type 'tf32': choose from fp32, bf16"),
        ("fp32", "openvino", 16, "compute 16: must be text"),
    ],
)
def test_what_makes_no_sense_is_refused(precision, provider, compute, message, tiny) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_compute(of_precision(read_manifest(tiny), precision), provider, compute)


def test_an_engine_computes_as_it_was_built(make_model, tmp_path) -> None:
    manifest = read_manifest(make_model(tmp_path, "tiny.engine", builder="tensorrt", batch=(1, 2, 4)))
    assert resolve_compute(manifest, "tensorrt", "fp32") == "fp32"
    with pytest.raises(UsageError, match=r"tiny\.engine is an engine, which computes in fp32 as it was built"):
        resolve_compute(manifest, "tensorrt", "bf16")


def test_the_least_precise_of_several_types_counts() -> None:
    assert least_precise(["bf16", "fp32"]) == "bf16"
    assert least_precise(["fp16", "fp32"]) == "fp16"
    assert least_precise(["bf16", "int8", "fp32"]) == "int8"


# What computes


@needs_bf16
def test_what_computes_is_asked_of_the_compiled_model(tiny) -> None:
    with closing(open_session(tiny, "openvino", compute="bf16")) as session:
        assert session.compute == "bf16"
        assert session.name.endswith(" (CPU, bf16)")
        rounded = session.run(images())["embedding"]
    with closing(open_session(tiny, "openvino")) as session:
        assert session.compute == "fp32"
        assert session.name.endswith(" (CPU)")
        exact = session.run(images())["embedding"]
    assert 1e-4 < np.abs(rounded - exact).max() / np.abs(exact).max() < 2e-2


@needs_bf16
def test_a_library_that_computes_in_another_type_is_refused(tiny, monkeypatch) -> None:
    monkeypatch.setattr(openvino, "BF16", {})
    with pytest.raises(BackendError, match="OpenVINO computes it in fp32 here, not in bf16"):
        open_session(tiny, "openvino", compute="bf16")
    monkeypatch.setitem(openvino.SETTINGS, "INFERENCE_PRECISION_HINT", "bf16")
    with pytest.raises(BackendError, match="OpenVINO computes it in bf16 here, not in fp32"):
        open_session(tiny, "openvino")


@needs_bf16
def test_a_cpu_without_bf16_is_refused_in_one_line(tiny, monkeypatch) -> None:
    class Core:
        def get_property(self, device, name):
            return {"OPTIMIZATION_CAPABILITIES": ["FP32", "INT8"], "FULL_DEVICE_NAME": "Old CPU "}[name]

    monkeypatch.setattr(openvino.import_openvino(), "Core", Core)
    message = r"--compute bf16: this CPU \(Old CPU\) has no bf16 .* OpenVINO would convert it to float32"
    with pytest.raises(BackendError, match=message) as info:
        open_session(tiny, "openvino", compute="bf16")
    assert "\n" not in str(info.value)


@needs_bf16
def test_load_verify_and_bench_take_it(tiny, capsys) -> None:
    with runtime.load(tiny, "openvino", compute="bf16") as model:
        assert model.session.compute == "bf16"
    result = verify(tiny, "openvino", compute="bf16")
    assert result.failures == ()
    assert result.limits.max_abs is None  # those of bf16
    assert result.parity.min_cosine < 1 - 1e-7
    assert main(["verify", str(tiny), "--provider", "openvino", "--compute", "bf16"]) == 0
    assert "(CPU, bf16)" in capsys.readouterr().out
    words = ["--provider", "openvino", "--compute", "bf16", "--batch", "1", "--runs", "1", "--json"]
    assert main(["bench", str(tiny), *words]) == 0
    assert "(CPU, bf16)" in json.loads(capsys.readouterr().out)["backend"]


# Stores


def test_the_compute_type_is_part_of_the_identity_where_it_is_not_the_files_own(tiny) -> None:
    manifest = read_manifest(tiny)
    usual = origin_of(manifest, "openvino")
    assert origin_of(manifest, "openvino", compute="fp32") == usual  # a store of before goes on
    rounded = origin_of(manifest, "openvino", compute="bf16")
    assert identity(rounded) != identity(usual)
    assert differences(usual, rounded) == "compute is the model's own there, bf16 here"
    assert (compute_of(rounded), compute_of(usual)) == ("bf16", None)
    assert "compute" not in origin_of(of_precision(manifest, "bf16"), "openvino", compute="bf16")


@needs_bf16
def test_rows_of_two_compute_types_never_mix(tiny, pictures, tmp_path, capsys) -> None:
    out = tmp_path / "store"
    command = ["embed", str(tiny), str(pictures / "cats"), "--out", str(out), "--provider", "openvino"]
    assert main([*command, "--compute", "bf16"]) == 0
    assert Store(out).origin["compute"] == "bf16"
    capsys.readouterr()
    assert main(command) == 2
    assert "compute is bf16 there, the model's own here" in capsys.readouterr().err
    assert main([*command, "--compute", "bf16"]) == 0
    query = str(pictures / "cats" / "0.png")
    assert main(["search", str(out), query, "--model", str(tiny), "--provider", "openvino"]) == 0


@needs_bf16
def test_the_cache_of_evaluate_keeps_compute_types_apart(tiny, pictures, tmp_path, capsys) -> None:
    command = ["evaluate", str(tiny), "--data", f"folder:{pictures}", "--seeds", "1", "--cache", str(tmp_path / "c")]
    command += ["--provider", "openvino"]
    assert main(command) == main([*command, "--compute", "bf16"]) == 0
    assert capsys.readouterr().err.count("8 images embedded") == 2


def test_a_command_refuses_it_without_openvino_in_one_line(tiny, pictures, tmp_path, capsys) -> None:
    code = main(["embed", str(tiny), str(pictures), "--out", str(tmp_path / "out"), "--compute", "bf16"])
    assert code == 2
    assert capsys.readouterr().err == (
        "runtime: compute bf16: an fp32 file computes in it by the provider openvino alone, not cpu\n"
    )
    assert not (tmp_path / "out").exists()


def test_every_compute_type_has_limits() -> None:
    assert set(COMPUTES) <= set(LIMITS)
