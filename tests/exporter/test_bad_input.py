"""Whatever goes wrong in an export: one line, the right exit code, nothing half-written, older results as they were.

The slow stations (eager PyTorch, the trace) run once; their results are handed to every export of this file.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import importlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fake_driver import FakeDriver, no_driver
from odd_file_systems import lacking

from exporter import pipeline, trace
from exporter.__main__ import main
from exporter.build import engine
from exporter.models import architecture, hub, weights
from exporter.models.architecture import Architecture
from exporter.proof import golden_sample
from exporter.surgery import materialize, runner
from runtime.contract.comparison import LIMITS
from runtime.contract.errors import BuildError
from runtime.contract.golden import read_golden
from runtime.contract.manifest import manifest_path, verified_manifest

TINY = Architecture("tiny", width=48, heads=3, depth=2, registers=4, swiglu=True)
ARGV = ("--size", "tiny", "--weights", "random:1", "--image-size", "28x42", "--parity-samples", "2")
OLD_ARGV = (*ARGV, "--outputs", "embedding,patch_tokens")
"""The older output's; its file differs from that of a new export."""
OUT = "model.onnx"
REAL_TRACE = trace.to_onnx


@dataclass(frozen=True)
class Made:
    """Results of a real export."""

    folder: Path
    """With `model.onnx` and what belongs to it."""
    traced: Path
    """A folder with a copy of the traced graph."""
    samples: list[golden_sample.Sample]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Files = dict[str, bytes]
Export = Callable[..., Outcome]


@contextlib.contextmanager
def sigterm_restored() -> Iterator[None]:
    """The command takes SIGTERM for itself."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def bad_input_made(tmp_path_factory) -> Made:
    """One real export, all stations."""
    folder, traced = tmp_path_factory.mktemp("old"), tmp_path_factory.mktemp("traced")
    samples: list[golden_sample.Sample] = []
    real_samples, real_trace = golden_sample.make_samples, trace.to_onnx

    def keep_samples(*args, **kwargs):
        samples.extend(real_samples(*args, **kwargs))
        return list(samples)

    def keep_trace(*args, **kwargs):
        path = real_trace(*args, **kwargs)
        for file in path.parent.glob("traced.onnx*"):
            shutil.copy(file, traced)
        return path

    with pytest.MonkeyPatch.context() as patch, sigterm_restored():
        patch.setitem(architecture.ARCHITECTURES, "tiny", TINY)
        patch.setattr(golden_sample, "make_samples", keep_samples)
        patch.setattr(trace, "to_onnx", keep_trace)
        assert main([*OLD_ARGV, "--quiet", "--out", str(folder / OUT)]) == 0
    assert sum(sample.flagged for sample in samples) > 0
    # Later exports take them in other precisions too.
    rounding = dict.fromkeys(LIMITS, samples[0].rounding["fp32"])
    samples = [dataclasses.replace(one, limits={**LIMITS, **one.limits}, rounding=rounding) for one in samples]
    return Made(folder, traced, samples)


@pytest.fixture
def bad_input_export(bad_input_made, monkeypatch, capfd) -> Iterator[Export]:
    """The command with the slow stations' results at hand: `export(*argv) -> Outcome`; quiet unless verbose."""

    def ready_trace(_model, _spec, folder):
        for file in bad_input_made.traced.iterdir():
            shutil.copyfile(file, folder / file.name)  # as the real one, it sets no mode
        return folder / "traced.onnx"

    monkeypatch.setitem(architecture.ARCHITECTURES, "tiny", TINY)
    monkeypatch.setattr(golden_sample, "make_samples", lambda *_: list(bad_input_made.samples))
    monkeypatch.setattr(trace, "to_onnx", ready_trace)

    def export(*argv: str) -> Outcome:
        capfd.readouterr()
        code = main([*ARGV, *([] if "--verbose" in argv else ["--quiet"]), *argv])
        return Outcome(code, *capfd.readouterr())

    with sigterm_restored():
        yield export


@pytest.fixture
def bad_input_old(bad_input_made, tmp_path) -> Path:
    """An older good output in a folder of its own: the file `model.onnx`."""
    shutil.copytree(bad_input_made.folder, tmp_path / "out")
    return tmp_path / "out" / OUT


def files(folder: Path) -> Files:
    """Everything in a folder, hidden files and folders too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"a folder"
        for path in folder.rglob("*")
    }


def assert_one_line(outcome: Outcome, code: int, words: str) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert outcome.err.startswith("exporter: ")
    assert outcome.err.count("\n") == 1
    assert outcome.err.endswith("\n")
    assert len(outcome.err) < 700
    assert words in outcome.err


def assert_readable(model: Path) -> None:
    read_golden(model, verified_manifest(model))


def test_a_good_export_is_quiet_and_replaces_the_older_one(bad_input_export, bad_input_old):
    before = files(bad_input_old.parent)
    assert bad_input_export("--out", str(bad_input_old)) == Outcome(0, "", "")
    after = files(bad_input_old.parent)
    assert after.keys() == before.keys()
    assert after[OUT] != before[OUT]  # so that below "as before" says something
    assert_readable(bad_input_old)


def save(path: Path, tensors: object) -> str:
    torch.save(tensors, path)
    return str(path)


class RunsCode:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def tiny_tensors(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**weights.random_tensors(TINY, 1), **changes}


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def truncated(path: Path) -> str:
    save(path, tiny_tensors())
    os.truncate(path, path.stat().st_size // 2)
    return str(path)


OTHER = Architecture("other", width=24, heads=3, depth=1, registers=4, swiglu=True)
BAD_WEIGHTS: dict[str, tuple[Callable[[Path], str], str]] = {
    "missing": (lambda folder: str(folder / "no.pth"), "no such file or folder"),
    "empty": (lambda folder: write(folder / "w.pth", b""), "is empty"),
    "truncated": (lambda folder: truncated(folder / "w.pth"), "is truncated or not a checkpoint"),
    "no checkpoint": (lambda folder: write(folder / "w.safetensors", b"x" * 99), "is not a readable safetensors"),
    "with code": (lambda folder: save(folder / "w.pth", {"cls_token": RunsCode(folder / "ran")}), "could run code"),
    "another size": (
        lambda folder: save(folder / "w.pth", weights.random_tensors(OTHER, 1)),
        "is not a checkpoint of",
    ),
    "NaN": (
        lambda folder: save(folder / "w.pth", tiny_tensors(**{"norm.bias": torch.full((48,), torch.nan)})),
        "norm.bias holds NaN or infinity",
    ),
    "too large for float16": (
        lambda folder: save(folder / "w.pth", tiny_tensors(**{"norm.bias": torch.full((48,), 1e6)})),
        "",  # fine in float32: the one case that passes, so that the others fail for their own reason
    ),
}


@pytest.mark.parametrize(("make", "words"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_bad_weights_leave_the_older_output_as_it_was(bad_input_export, bad_input_old, tmp_path, make, words):
    before = files(bad_input_old.parent)
    outcome = bad_input_export("--out", str(bad_input_old), "--weights", make(tmp_path))
    if not words:
        assert outcome.code == 0
        return
    assert_one_line(outcome, 2, words)
    assert not (tmp_path / "ran").exists()
    assert files(bad_input_old.parent) == before
    assert_readable(bad_input_old)


BAD_OPTIONS = {
    "unknown size": (["--size", "vith14"], "unknown size 'vith14': choose one of vits14"),
    "layer out of range": (["--layers", "2"], "no layer 2, this model has layers 0 to 1"),
    "ratio below 1": (["--threshold", "ratio:0.5"], "ratio needs a number λ > 1"),
    "absolute without a side": (["--threshold", "absolute:3"], "needs its side, --side high or --side low"),
    "image size": (["--image-size", "28x43"], "--image-size 28x43: each side must be a multiple of 14"),
    "no official weights": (["--weights", "auto"], "tiny has no official weights"),
    "bad seed": (["--weights", "random:x"], "the seed must be a whole number"),
}


@pytest.mark.parametrize(("argv", "words"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_leave_the_older_output_as_it_was(bad_input_export, bad_input_old, argv, words):
    before = files(bad_input_old.parent)
    assert_one_line(bad_input_export("--out", str(bad_input_old), *argv), 2, words)
    assert files(bad_input_old.parent) == before
    assert_readable(bad_input_old)


def test_a_hub_that_cannot_be_reached_is_one_line(bad_input_export, bad_input_old, monkeypatch):
    def offline(*_args, **_kwargs):
        raise hub.hub_errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(hub, "hf_hub_download", offline)
    before = files(bad_input_old.parent)
    outcome = bad_input_export("--out", str(bad_input_old), "--weights", "hf:someone/model")
    assert_one_line(outcome, 2, "can't reach the Hugging Face hub")
    assert files(bad_input_old.parent) == before


@pytest.mark.parametrize("form", ["missing", "a file in its place", "a folder in the file's place", "the manifest's"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(bad_input_export, tmp_path, monkeypatch, form):
    (tmp_path / "file").touch()
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "taken.onnx.json").mkdir()
    before = files(tmp_path)
    out, words = {
        "missing": ("no/a.onnx", "there is no folder"),
        "a file in its place": ("file/a.onnx", "there is no folder"),
        "a folder in the file's place": ("folder.onnx", "folder.onnx: it is a folder"),
        "the manifest's": ("taken.onnx", "taken.onnx.json: it is a folder"),
    }[form]
    monkeypatch.setattr(weights, "load", None)  # calling it would be a TypeError
    assert_one_line(bad_input_export("--out", str(tmp_path / out)), 2, words)
    assert files(tmp_path) == before


def test_verbose_has_the_traceback_and_the_line_last(bad_input_export, tmp_path):
    outcome = bad_input_export("--verbose", "--out", str(tmp_path / OUT), "--weights", "no.pth")
    assert outcome.code == 2
    assert "Traceback (most recent call last):" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("exporter: --weights no.pth: no such file")


# What a full disk does, station by station.


def full_disk(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_a_trace(_model, _spec, folder):
    (folder / "traced.onnx").write_bytes(b"half")
    full_disk()


def half_a_model(_model, path):
    Path(path).write_bytes(b"half")
    full_disk()


FULL_DISK = {
    "trace": (trace, "to_onnx", half_a_trace),
    "materialize": (materialize.onnx, "save", half_a_model),
    "golden sample": (Path, "write_bytes", full_disk),
    "work folder": (importlib.import_module("tempfile"), "mkdtemp", full_disk),
    "the first move": (Path, "replace", full_disk),
}


@pytest.mark.parametrize(("owner", "name", "fails"), FULL_DISK.values(), ids=FULL_DISK)
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "over an older output"])
def test_a_full_disk_leaves_nothing_behind(bad_input_export, bad_input_old, monkeypatch, owner, name, fails, fresh):
    if fresh:
        for path in bad_input_old.parent.iterdir():
            path.unlink()
    before = files(bad_input_old.parent)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        outcome = bad_input_export("--out", str(bad_input_old))
    assert_one_line(outcome, 2, f"can't write {bad_input_old}: No space left on device")
    assert files(bad_input_old.parent) == before
    if not fresh:
        assert_readable(bad_input_old)


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A tmpfs of its own on `folder`; the test is skipped where that isn't allowed."""
    folder.mkdir(exist_ok=True)
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"can't mount a tmpfs here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


KIBIBYTES = (32, 300, 500, 700, 900, 1100)


def test_a_disk_that_is_really_full_leaves_nothing_behind(bad_input_export, tmp_path):
    """Ever larger disks, so that one station after another finds it full."""
    codes = []
    for size in KIBIBYTES:
        with mounted(tmp_path / "disk", f"size={size}k") as disk:
            outcome = bad_input_export("--out", str(disk / OUT))
            codes.append(outcome.code)
            if outcome.code == 0:
                assert_readable(disk / OUT)
            else:
                assert_one_line(outcome, 2, "No space left on device")
                assert files(disk) == {}
    assert codes[0] == 2
    assert codes[-1] == 0


def test_a_real_trace_onto_a_full_disk_is_one_line(bad_input_export, tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "to_onnx", REAL_TRACE)
    with mounted(tmp_path / "disk", "size=100k") as disk:
        assert_one_line(bad_input_export("--out", str(disk / OUT)), 2, "No space left on device")
        assert files(disk) == {}


def test_a_read_only_folder_is_refused_before_the_work(bad_input_export, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "load", None)
    with mounted(tmp_path / "disk", "size=64k", "ro") as disk:
        assert_one_line(bad_input_export("--out", str(disk / OUT)), 2, "is read-only")


# What is missing on the machine, and what is found wrong.


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("auto", "pip install 'itae[rtx]'"),
        ("tensorrt-rtx", "pip install 'itae[rtx]'"),
        ("tensorrt", "needs an NVIDIA GPU"),
    ],
)
def test_a_missing_tensorrt_is_told_before_the_work(bad_input_export, tmp_path, monkeypatch, backend, words):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    monkeypatch.setattr(weights, "load", None)
    outcome = bad_input_export("--out", str(tmp_path / "a.engine"), "--backend", backend)
    assert_one_line(outcome, 2, words)
    assert files(tmp_path) == {}


def test_a_gpu_without_tensorrt_is_told_what_to_install(bad_input_export, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: FakeDriver(["9.0"]))
    outcome = bad_input_export("--out", str(tmp_path / "a.engine"), "--backend", "tensorrt")
    assert_one_line(outcome, 2, "tensorrt, which is not installed here: pip install 'itae[gpu]'")


@pytest.fixture
def bad_input_backend(monkeypatch) -> None:
    """A backend that is there, whose `build` the test replaces."""
    monkeypatch.setattr(engine, "choose_backend", lambda _: engine.Choice("tensorrt-rtx", None))


@pytest.mark.usefixtures("bad_input_backend")
def test_a_failing_build_is_exit_code_1_and_publishes_not_even_the_onnx(bad_input_export, bad_input_old, monkeypatch):
    def fails(_onnx, plan, *_):
        plan.write_bytes(b"half a plan")
        raise BuildError("tensorrt-rtx 1.7 gave no engine: no kernel\nfor this")

    monkeypatch.setattr(engine, "build", fails)
    before = files(bad_input_old.parent)
    out = bad_input_old.with_name("a.engine")
    outcome = bad_input_export("--out", str(out), "--keep-onnx", str(bad_input_old), "--precision", "fp32")
    assert_one_line(outcome, 1, "gave no engine: no kernel for this")
    assert files(bad_input_old.parent) == before
    assert_readable(bad_input_old)


def wrong_attenuation(monkeypatch):
    """The surgery masks where the reference takes the minimum."""
    inject = importlib.import_module("exporter.methods.itae.graph.inject")
    real = inject.attenuate

    def mask(edit, site, artifact, itae, facts):
        return real(edit, site, artifact, dataclasses.replace(itae, attenuate="mask"), facts)

    monkeypatch.setattr(inject, "attenuate", mask)


def wrong_artifacts(monkeypatch):
    """The surgery looks at the low side alone."""
    inject = importlib.import_module("exporter.methods.itae.graph.inject")
    real = inject.find_artifacts

    def low(edit, norm, itae, prefix):
        return real(edit, norm, dataclasses.replace(itae, side="low", threshold="zscore:0"), prefix)

    monkeypatch.setattr(inject, "find_artifacts", low)


def wrong_weights(monkeypatch):
    """A layer's weights are a little off."""
    real = materialize._load

    def off(tensor, folder, half):
        array = real(tensor, folder, half)
        return array * np.float32(1.01) if array.ndim == 2 else array

    monkeypatch.setattr(materialize, "_load", off)


def not_finite(monkeypatch):
    """Half of the embedding is NaN."""
    real = materialize._load

    def nan(tensor, folder, half):
        array = real(tensor, folder, half).copy()
        array[..., 0] = np.nan
        return array

    monkeypatch.setattr(materialize, "_load", nan)


@pytest.mark.parametrize(
    "spoil", [wrong_attenuation, wrong_artifacts, wrong_weights, not_finite], ids=lambda one: one.__name__
)
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "over an older output"])
def test_a_graph_that_computes_something_else_is_not_published(
    bad_input_export, bad_input_old, monkeypatch, spoil, fresh
):
    if fresh:
        for path in bad_input_old.parent.iterdir():
            path.unlink()
    before = files(bad_input_old.parent)
    spoil(monkeypatch)
    outcome = bad_input_export("--out", str(bad_input_old))
    assert_one_line(outcome, 1, "the fp32 graph disagrees with eager PyTorch")
    assert files(bad_input_old.parent) == before
    if not fresh:
        assert_readable(bad_input_old)


def test_a_graph_that_the_checker_refuses_is_not_published(bad_input_export, bad_input_old, monkeypatch):
    real = runner.run

    def broken(*args):
        model, reports = real(*args)
        model.graph.node[-1].input[0] = "nothing"
        return model, reports

    monkeypatch.setattr(runner, "run", broken)
    before = files(bad_input_old.parent)
    assert_one_line(bad_input_export("--out", str(bad_input_old)), 1, "does not pass onnx.checker")
    assert files(bad_input_old.parent) == before


def test_a_graph_without_attention_is_refused_with_what_was_looked_for(bad_input_export, tmp_path, monkeypatch):
    def other_graph(_model, _spec, folder):
        path = folder / "traced.onnx"
        model = onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 20]> g (float[batch, 3, 28, 42] pixel_values) '
            "=> (float[batch, 3, 28, 42] tokens) { tokens = Relu(pixel_values) }"
        )
        onnx.save(model, path)
        return path

    monkeypatch.setattr(trace, "to_onnx", other_graph)
    outcome = bad_input_export("--out", str(tmp_path / OUT))
    assert_one_line(outcome, 2, "surgery pass scale_queries")
    assert files(tmp_path) == {}


def test_weights_too_large_for_float16_are_told_with_the_way_out(bad_input_export, tmp_path, monkeypatch):
    real = materialize.numpy_helper.to_array

    def large(*args, **kwargs):
        array = real(*args, **kwargs)
        return array * 1e6 if array.ndim == 2 else array

    monkeypatch.setattr(materialize.numpy_helper, "to_array", large)
    outcome = bad_input_export("--out", str(tmp_path / OUT), "--precision", "fp16")
    assert_one_line(outcome, 2, "more than float16 can: use --precision bf16, whose range is float32's, or fp32")
    assert files(tmp_path) == {}


# Interrupts.

STATIONS = {
    "load": (weights, "load"),
    "eager": (golden_sample, "make_samples"),
    "trace": (trace, "to_onnx"),
    "surgery": (runner, "run"),
    "materialize": (materialize, "materialize"),
    "gate": (pipeline.gate, "open_checked"),
    "parity": (pipeline.parity, "run"),
    "build": (engine, "build"),
    "publish": (importlib.import_module("exporter.build.publish"), "record_file"),
}


@pytest.mark.usefixtures("bad_input_backend")
@pytest.mark.parametrize(("owner", "name"), STATIONS.values(), ids=STATIONS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_at_any_station_leaves_nothing_behind(
    bad_input_export, bad_input_old, monkeypatch, owner, name, when
):
    real = getattr(owner, name)

    def interrupted(*args, **kwargs):
        if when == "after" and owner is not engine:
            real(*args, **kwargs)
        for folder in bad_input_old.parent.glob(".*.work-*"):
            (folder / "half-written").write_bytes(b"half")
        raise KeyboardInterrupt

    before = files(bad_input_old.parent)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        if owner is engine:
            argv = ["--out", str(bad_input_old.with_name("a.engine")), "--precision", "fp32"]
        else:
            argv = ["--out", str(bad_input_old)]
        assert_one_line(bad_input_export(*argv), 130, "exporter: interrupted")
    assert files(bad_input_old.parent) == before
    assert_readable(bad_input_old)


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "over an older output"])
def test_the_manifest_goes_first_and_comes_last(bad_input_export, bad_input_old, monkeypatch, fresh):
    if fresh:
        for path in bad_input_old.parent.iterdir():
            path.unlink()
    real, seen = Path.replace, []

    def watch(self, target):
        seen.append(self if target.parent.name == "older" else target)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", watch)
    assert bad_input_export("--out", str(bad_input_old)).code == 0
    assert len(seen) == (3 if fresh else 6)
    assert seen[0] == (bad_input_old if fresh else manifest_path(bad_input_old))
    assert seen[-1] == manifest_path(bad_input_old)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("more", [(), ("chmod",), ("chmod", "flock", "link")], ids=" ".join)
def test_a_file_system_that_lacks_something_is_said_once_and_written_to(bad_input_export, bad_input_old, more, number):
    before = files(bad_input_old.parent)
    with lacking("fsyncdir", *more, number=number):
        outcome = bad_input_export("--out", str(bad_input_old))
    assert_one_line(outcome, 0, f"no fsync of folders ({os.strerror(number)}): a power cut may undo what was just")
    assert_readable(bad_input_old)
    assert files(bad_input_old.parent).keys() == before.keys()
    assert bad_input_old.read_bytes() != before[OUT]


def test_a_file_that_may_not_be_on_the_disk_is_an_error(bad_input_export, bad_input_old):
    before = files(bad_input_old.parent)
    with lacking("fsync", number=errno.EIO):
        outcome = bad_input_export("--out", str(bad_input_old))
    assert_one_line(outcome, 2, f"can't write {bad_input_old}: Input/output error; what was there is as before")
    assert files(bad_input_old.parent) == before


@pytest.mark.parametrize("length", [244, 245, 255])
def test_a_name_is_as_long_as_its_golden_samples_may_be_or_refused_before_the_work(
    bad_input_export, tmp_path, monkeypatch, length
):
    out = tmp_path / ("x" * (length - 5) + ".onnx")
    if length > 244:
        monkeypatch.setattr(weights, "load", None)  # calling it would be a TypeError
    outcome = bad_input_export("--out", str(out))
    if length > 244:
        assert_one_line(
            outcome, 2, f"can't write {out}.{'parity.npz' if length == 245 else 'json'}: File name too long"
        )
        assert files(tmp_path) == {}
    else:
        assert outcome == Outcome(0, "", "")
        assert_readable(out)


IN_THE_MIDDLE = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the parent ignores
from exporter import trace
from exporter.models import architecture
from exporter.__main__ import main
architecture.ARCHITECTURES["tiny"] = architecture.Architecture(
    "tiny", width=48, heads=3, depth=2, registers=4, swiglu=True
)
def forever(_model, _spec, folder):
    (folder / "traced.onnx").write_bytes(bytes(100_000))
    print("tracing", flush=True)
    while True:
        time.sleep(0.01)
trace.to_onnx = forever
*argv, outs = sys.argv[1:]
for out in outs.split(":"):
    print(main([*argv, "--quiet", "--out", out]), flush=True)
"""
SIGNALS = ("SIGINT", "SIGTERM", "SIGKILL")


@dataclass(frozen=True)
class Stopped:
    """An export that a signal ended in the middle of a station."""

    model: Path
    before: Files
    code: int
    err: str


@pytest.fixture(scope="module")
def bad_input_stopped(bad_input_made, tmp_path_factory) -> dict[str, Stopped]:
    """One export per signal, all in one process, which needs seconds to import PyTorch."""
    models = {
        name: shutil.copytree(bad_input_made.folder, tmp_path_factory.mktemp(name) / "out") / OUT for name in SIGNALS
    }
    before = files(bad_input_made.folder)
    codes = {}
    with subprocess.Popen(
        [sys.executable, "-c", IN_THE_MIDDLE, *ARGV, ":".join(map(str, models.values()))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for name, model in models.items():
            assert process.stdout.readline() == "tracing\n", process.stderr.read()
            assert any(path.name == "traced.onnx" for path in model.parent.rglob("*"))
            process.send_signal(getattr(signal, name))
            codes[name] = process.wait() if name == "SIGKILL" else int(process.stdout.readline())
        lines = dict(zip(SIGNALS, process.stderr.read().splitlines(keepends=True), strict=False))
    return {name: Stopped(model, before, codes[name], lines.get(name, "")) for name, model in models.items()}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_export_in_one_line_and_leaves_nothing_behind(bad_input_stopped, name):
    one = bad_input_stopped[name]
    assert_one_line(Outcome(one.code, "", one.err), 130, "exporter: interrupted")
    assert files(one.model.parent) == one.before
    assert_readable(one.model)


def test_after_sigkill_the_older_output_is_as_it_was_and_the_next_export_cleans_up(bad_input_stopped, bad_input_export):
    one = bad_input_stopped["SIGKILL"]
    assert (one.code, one.err) == (-signal.SIGKILL, "")
    after = files(one.model.parent)
    assert {name: data for name, data in after.items() if ".work-" not in name} == one.before
    assert len(after) > len(one.before)  # what the killed process could not remove
    assert_readable(one.model)
    assert bad_input_export("--out", str(one.model)).code == 0
    assert files(one.model.parent).keys() == one.before.keys()
    assert_readable(one.model)
