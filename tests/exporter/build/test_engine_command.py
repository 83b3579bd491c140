"""The whole command for engines: fusion in summary and manifest, the timing cache, the same bytes twice."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
from pathlib import Path

import pytest
from fake_driver import no_driver

from exporter import ExportSpec, pipeline, trace
from exporter import export as run_export
from exporter.__main__ import main
from exporter.build import engine, fusion, timing_cache
from exporter.models import architecture
from exporter.models.architecture import Architecture
from runtime.__main__ import main as runtime_main
from runtime.contract.errors import InputError, UsageError
from runtime.contract.manifest import read_manifest

pytestmark = pytest.mark.usefixtures("traced_once")
TINY = Architecture("tiny", width=128, heads=2, depth=3)
TRACE = trace.to_onnx
"""The real one, which traces each time."""
ARGV = ["--size", "tiny", "--weights", "random:1", "--image-size", "56", "--parity-samples", "1", "--batch", "1,2,4"]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(architecture.ARCHITECTURES, "tiny", TINY)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def export(out: Path, *argv: str) -> int:
    return main([*ARGV, "--out", str(out), *argv])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_same_command_twice_gives_the_same_onnx_file_and_the_same_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "to_onnx", TRACE)
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        assert export(folder / "m.engine", "--keep-onnx", str(folder / "m.onnx"), "--quiet") == 0
    for name in ("m.engine", "m.onnx", "m.engine.parity.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert read_manifest(tmp_path / "a" / "m.engine") == read_manifest(tmp_path / "b" / "m.engine")


@pytest.mark.parametrize(
    ("argv", "unfused", "line"),
    [
        pytest.param(["--attenuate", "mask", "--layers", "all"], (), "attention fused: 3 of 3;", id="mask"),
        pytest.param(["--attenuate", "min", "--layers", "0,2"], (), "attention fused: 3 of 3;", id="min"),
        pytest.param(
            ["--precision", "fp32", "--no-itae"],
            (0, 1, 2),
            "attention fused: 0 of 3; not layers 0-2: TensorRT fuses attention over all queries in fp16 and bf16 only;",
            id="fp32",
        ),
    ],
)
def test_summary_and_manifest_tell_which_attentions_are_fused_and_all_that_can_be_are(
    tmp_path, capfd, argv, unfused, line
):
    assert export(tmp_path / "m.engine", "--require-fusion", *argv) == 0
    assert f"\n  fusion   {line}" in capfd.readouterr().out
    found = read_manifest(tmp_path / "m.engine").fusion
    assert found is not None
    assert (found.sites, found.expected, found.fused) == (3, 3 - len(unfused), 3 - len(unfused))
    assert found.unfused_layers == unfused
    for layer, kernels in enumerate(found.kernels):
        assert (len(kernels) > 1) == (layer in unfused)
    assert f"; {found.engine_kernels} kernels in all" in fusion.describe(found)
    assert runtime_main(["info", str(tmp_path / "m.engine")]) == 0
    assert f'"fused": {found.fused}' in capfd.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        ["--no-itae"],
        ["--attenuate", "mask", "--layers", "all", "--no-cls-only"],
        ["--attenuate", "mean", "--layers", "all", "--precision", "bf16"],
        ["--attenuate", "scale:0.1", "--layers", "last"],
    ],
    ids=" ".join,
)
def test_unfused_leaves_no_attention_that_is_one_kernel(tmp_path, capfd, argv):
    assert export(tmp_path / "m.engine", "--unfused", *argv) == 0
    assert "\n  fusion   attention fused: 0 of 3; not layers 0-2: --unfused was given;" in capfd.readouterr().out
    manifest = read_manifest(tmp_path / "m.engine")
    assert manifest.options.unfused
    assert manifest.fusion is not None
    assert (manifest.fusion.expected, manifest.fusion.fused, manifest.fusion.reasons) == (0, 0, ("unfused",) * 3)


def test_unfused_leaves_parity_as_it_is(tmp_path):
    argv = ["--attenuate", "min", "--layers", "all"]
    assert export(tmp_path / "fused.engine", "--require-fusion", *argv) == 0
    assert export(tmp_path / "unfused.engine", "--unfused", *argv) == 0
    fused, unfused = (read_manifest(tmp_path / f"{name}.engine") for name in ("fused", "unfused"))
    assert unfused.parity == fused.parity
    assert not fused.options.unfused


def test_an_engine_whose_attention_is_fused_all_the_same_is_refused_with_unfused(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(pipeline, "unfuse_attention", lambda graph, facts: [])
    assert export(tmp_path / "m.engine", "--unfused", "--quiet") == 1
    assert "--unfused: the builder made one kernel of the attention in layers 0-2" in capfd.readouterr().err
    assert names(tmp_path) == set()


def test_less_fused_than_the_options_allow_is_exit_code_1_and_leaves_nothing(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(fusion, "FUSES", ("fp32",))  # as if it could be, which the builder then does not do
    out, kept = tmp_path / "m.engine", tmp_path / "m.onnx"
    argv = ["--precision", "fp32", "--no-cls-only", "--keep-onnx", str(kept), "--quiet"]
    assert export(out, "--require-fusion", *argv) == 1
    printed = capfd.readouterr()
    assert printed.err.count("\n") == 1
    assert "attention is not fused in layers 0-2, where the options allow it (0 of 3 are)" in printed.err
    assert names(tmp_path) == set()
    assert export(out, *argv) == 0  # without it: an engine, and the manifest tells
    found = read_manifest(out).fusion
    assert found is not None
    assert (found.expected, found.fused, found.reasons) == (3, 0, (None, None, None))


def test_a_builder_that_names_no_kernels_is_told_and_refused_where_fusion_is_required(tmp_path, capfd, monkeypatch):
    real = engine.build
    monkeypatch.setattr(engine, "build", lambda *given: dataclasses.replace(real(*given), kernels=()))
    out = tmp_path / "m.engine"
    assert export(out, "--require-fusion", "--quiet") == 1
    assert "the builder names no kernels" in capfd.readouterr().err
    assert names(tmp_path) == set()
    assert export(out) == 0
    assert "\n  fusion   not known: the builder names no kernels\n" in capfd.readouterr().out
    assert read_manifest(out).fusion is None


def test_an_onnx_file_has_no_fusion(tmp_path, capfd):
    assert export(tmp_path / "m.onnx") == 0
    assert "fusion" not in capfd.readouterr().out
    assert read_manifest(tmp_path / "m.onnx").fusion is None


def test_the_summary_says_why_auto_chose_its_backend(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    assert export(tmp_path / "m.engine") == 0
    assert "  backend  tensorrt-rtx: there is no usable GPU here" in capfd.readouterr().out
    assert export(tmp_path / "m.engine", "--backend", "tensorrt-rtx") == 0
    assert "  backend  " not in capfd.readouterr().out


def test_an_export_gives_its_reason_as_data(tmp_path, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    spec = ExportSpec(
        str(tmp_path / "m.engine"), size="tiny", weights="random:1", image_size=(56, 56), parity_samples=1
    )
    reason = run_export(spec).backend_reason
    assert reason is not None
    assert reason.startswith("there is no usable GPU here")


# --timing-cache


@pytest.fixture
def _timing(monkeypatch):
    """TensorRT-RTX under the name of TensorRT: it takes caches too, though it puts nothing in them."""
    real = engine.build
    monkeypatch.setattr(engine, "choose_backend", lambda _: engine.Choice("tensorrt", None))
    monkeypatch.setattr(engine, "known_faults_here", lambda *_: [])  # which asks TensorRT for its version

    def build(onnx, plan, request, log):
        return real(onnx, plan, dataclasses.replace(request, backend="tensorrt-rtx"), log)

    monkeypatch.setattr(engine, "build", build)


@pytest.mark.usefixtures("_timing")
@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_a_timing_cache_is_made_by_the_first_build_and_a_damaged_one_is_refused_and_kept(tmp_path, capfd):
    cache = tmp_path / "cache"
    argv = ["--timing-cache", str(cache), "--quiet"]
    assert export(tmp_path / "m.engine", *argv) == 0
    assert cache.stat().st_size > 0
    assert names(tmp_path) == {"cache", "m.engine", "m.engine.json", "m.engine.parity.npz"}
    cache.write_bytes(b"damaged")
    before = (tmp_path / "m.engine").read_bytes()
    assert export(tmp_path / "m.engine", *argv) == 2
    assert "--timing-cache: TensorRT refuses the file" in capfd.readouterr().err
    assert cache.read_bytes() == b"damaged"
    assert (tmp_path / "m.engine").read_bytes() == before


@pytest.mark.parametrize("backend", ["auto", "tensorrt-rtx"])
def test_an_engine_that_travels_is_refused_with_tensorrt_rtx_before_the_work(tmp_path, capfd, backend):
    argv = ["--hardware-compatibility", "ampere-plus", "--version-compatible", "--backend", backend, "--quiet"]
    assert export(tmp_path / "m.engine", *argv) == 2
    said = capfd.readouterr().err
    assert "--hardware-compatibility ampere-plus is for TensorRT, and tensorrt-rtx would build this engine" in said
    assert said.count("\n") == 1
    assert names(tmp_path) == set()


def test_a_timing_cache_with_tensorrt_rtx_is_bad_use_before_the_work(tmp_path, capfd):
    argv = ["--timing-cache", str(tmp_path / "cache"), "--backend", "tensorrt-rtx", "--quiet"]
    assert export(tmp_path / "m.engine", *argv) == 2
    assert "--timing-cache has no effect with --backend tensorrt-rtx" in capfd.readouterr().err
    assert names(tmp_path) == set()


def test_a_timing_cache_that_the_chosen_builder_does_not_use_is_told(tmp_path, capfd):
    assert export(tmp_path / "m.engine", "--timing-cache", str(tmp_path / "cache")) == 0
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("note: ")]
    assert f"note: --timing-cache {tmp_path / 'cache'} is not used: {timing_cache.NO_TIMINGS}" in told
    assert names(tmp_path) == {"m.engine", "m.engine.json", "m.engine.parity.npz"}


def test_what_the_file_holds_is_read_and_a_missing_file_is_empty(tmp_path):
    assert timing_cache.read(tmp_path / "none", "tensorrt") == b""
    (tmp_path / "cache").write_bytes(b"timings")
    assert timing_cache.read(tmp_path / "cache", "tensorrt") == b"timings"
    with pytest.raises(UsageError, match="no effect with --backend tensorrt-rtx"):
        timing_cache.read(tmp_path / "cache", "tensorrt-rtx")


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def too_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(timing_cache.MAX_BYTES + 1)


def a_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [a_folder, a_pipe, too_large, a_link_to_a_device])
def test_a_file_that_can_be_no_timing_cache_is_refused_unread(tmp_path, make):
    make(tmp_path / "cache")
    with pytest.raises(InputError, match=r"--timing-cache .*cache: (not a file|larger than 256 MiB)"):
        timing_cache.read(tmp_path / "cache", "tensorrt")
