"""OpenVINO: its settings, its telemetry that stays off, and real models on it."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from exporter import ExportSpec, export
from exporter.models.architecture import Architecture
from runtime.__main__ import main
from runtime.backends import open_session
from runtime.backends.openvino import import_openvino
from runtime.checks.verify import verify
from runtime.contract.errors import BackendError
from runtime.contract.instructions import has_bf16

if importlib.util.find_spec("openvino") is None:  # looked for, not imported: that would send telemetry
    pytest.skip("openvino is not installed: pip install 'itae[openvino]'", allow_module_level=True)

ROOT = Path(__file__).parents[3]
ALL = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")
pytestmark = pytest.mark.usefixtures("traced_once")
TINY = Architecture("tiny", width=48, heads=3, depth=2)


# Real models


def test_a_real_model_of_uint8_keeps_parity_in_every_output_and_batch(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "m.onnx"
    export(ExportSpec(path, TINY, "random:0", image_size=56, input="uint8", outputs=ALL))
    result = verify(path, "openvino")
    assert result.failures == ()
    assert "OpenVINO" in result.backend
    assert result.outputs == ALL
    assert result.parity.flags_checked
    assert 0 < result.parity.max_abs < 1e-4  # not the same to the bit: it did compute
    assert result.batches.rows > 0


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_precision_keeps_parity(precision, tmp_path):
    pytest.importorskip("torch")
    if precision == "bf16" and not has_bf16():
        pytest.skip("needs a CPU with bf16 (AVX512-BF16 or AMX)")
    path = tmp_path / "m.onnx"
    export(ExportSpec(path, TINY, "random:0", image_size=56, precision=precision, outputs=ALL))
    result = verify(path, "openvino")
    assert result.failures == ()
    assert result.parity.flags_checked


# Settings


def test_it_computes_in_float32_on_every_core_there_is(tiny):
    """The CPU of the test may have no bf16, so that the precision is seen in the settings only."""
    with closing(open_session(tiny, "openvino")) as session:
        compiled = session._request.get_compiled_model()
        assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
        assert compiled.get_property("INFERENCE_NUM_THREADS") <= len(os.sched_getaffinity(0))
        assert compiled.get_property("NUM_STREAMS") == 1


def test_it_leaves_the_callers_cores_as_they_were(tiny):
    before = os.sched_getaffinity(0)
    with closing(open_session(tiny, "openvino")) as session:
        session.run(np.zeros((1, 3, 42, 42), np.float32))
        assert os.sched_getaffinity(0) == before


# Manners


def test_a_failure_while_running_is_one_error_of_ours(tiny):
    with closing(open_session(tiny, "openvino")) as session:
        real = session._request

        class Failing:
            def infer(self, *arguments, **options):
                real.infer({"pixel_values": np.zeros((1, 3, 10, 10), np.float32)})  # an error of OpenVINO's own

        session._request = Failing()
        with pytest.raises(BackendError, match=r"OpenVINO failed on 2 images \(a smaller --batch") as info:
            session.run(np.zeros((2, 3, 42, 42), np.float32))
        assert "\n" not in str(info.value)


def test_missing_openvino_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # what import takes for "not there"
    with pytest.raises(BackendError, match=r"pip install 'itae\[openvino\]'"):
        open_session(tiny, "openvino")


def test_it_sends_no_telemetry_and_leaves_nothing_in_the_home_folder(tmp_path):
    """In a process that looks like no CI, where OpenVINO's telemetry would switch itself off."""
    code = (
        "import sys\n"
        "from runtime.backends.openvino import import_openvino\n"
        "import_openvino().Core()\n"
        "assert sys.modules['openvino.tools.ovc.telemetry_utils'].tm.__name__.endswith('telemetry_stub')\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
    )
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_telemetry_that_somebody_else_imported_stays_theirs(monkeypatch):
    theirs = object()
    monkeypatch.setitem(sys.modules, "openvino_telemetry", theirs)
    import_openvino()
    assert sys.modules["openvino_telemetry"] is theirs


def test_verify_says_nothing_but_its_table(tiny, capfd):
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["verify", str(tiny), "--provider", "openvino"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capfd.readouterr()
    assert said.err == ""
    assert said.out.startswith(f"{tiny} on OpenVINO 20")
    assert said.out.endswith("  passed\n")
