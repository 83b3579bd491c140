"""Platforms and cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from exporter import ExportSpec, export
from exporter.__main__ import main as exporter_main
from runtime import load
from runtime.__main__ import main as runtime_main
from runtime.contract.errors import BackendError
from runtime.contract.machine import usable_cores

ROOT = Path(__file__).parents[3]
REFUSAL = "itae runs on Linux, and this platform is darwin: use a Linux machine, a container or WSL"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="chooses cores as Linux does")
def test_only_cores_that_the_process_may_use_are_counted() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from runtime.contract.machine import usable_cores; print(usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "1\n"


def test_cores_are_counted_where_the_system_knows_no_affinity(monkeypatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 11))
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize(
    ("program", "main"), [("runtime", runtime_main), ("exporter", exporter_main)], ids=["runtime", "exporter"]
)
def test_another_platform_is_refused_in_one_line(program, main, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert main([]) == 2
    assert capsys.readouterr() == ("", f"{program}: {REFUSAL}\n")


def test_the_functions_of_the_packages_refuse_another_platform(tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(BackendError, match=REFUSAL):
        load(tiny)
    with pytest.raises(BackendError, match=REFUSAL):
        export(ExportSpec(str(tmp_path / "x.onnx")))


@pytest.mark.parametrize("package", ["runtime", "exporter"])
def test_the_line_comes_although_modules_of_unix_are_missing(package) -> None:
    """As on Windows: nothing that is imported before the check needs them."""
    code = (
        "import sys\n"
        "for name in ('fcntl', 'resource', 'termios', 'pwd', 'grp'): sys.modules[name] = None\n"
        f"from {package}.__main__ import main\n"
        "sys.platform = 'win32'\n"
        "sys.exit(main(['--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{package}: {REFUSAL.replace('darwin', 'win32')}\n"
