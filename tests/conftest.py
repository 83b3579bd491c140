"""What holds for all tests."""

import functools
import os
import signal
import sys

import pytest
import traces
from hypothesis import settings

# A shell without job control starts what it puts into the background with Ctrl-C ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("itae", deadline=None)  # how long an example takes says only how busy the machine is
settings.load_profile("itae")


@pytest.fixture(scope="session")
def kept_traces(tmp_path_factory):
    """The folder of a run's traces, which its processes share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traces"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def traced_once(kept_traces):
    """Models of the same weights are traced once, not at each export, in a module that asks for it."""
    with traces.traced_once(kept_traces):
        yield


_OPERATORS = "torch.onnx._internal.exporter._registration"


def pytest_runtest_setup() -> None:
    """Have torch collect its table of operators once in a process, not at each export: half a second of each."""
    table = getattr(sys.modules.get(_OPERATORS), "ONNXRegistry", None)  # torch is not imported for this
    if table is not None and not isinstance(vars(table)["from_torchlib"], staticmethod):
        table.from_torchlib = staticmethod(functools.cache(table.from_torchlib))
