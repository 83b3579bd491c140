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
from runtime.__main__ import parser as runtime_parser
from runtime.contract import machine
from runtime.contract.errors import BackendError, UsageError
from runtime.contract.machine import MAX_THREADS, cpu_quota, limited_threads, thread_limit, usable_cores

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
    monkeypatch.setattr(machine, "_quota", lambda: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


# Quotas of control groups

V2 = "31 23 0:28 {top} /sys/fs/cgroup rw - cgroup2 cgroup rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 {top} /sys/fs/cgroup/cpu\\040acct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 {top} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
CPU = "sys/fs/cgroup/cpu acct"


def group(period: int, quota: int, folder: str = CPU) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


QUOTAS = {  # mounts, groups of the process, files, quota
    "version 2 in a container": (V2.format(top="/"), "0::/", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
    "a part of a core": (V2.format(top="/"), "0::/", {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
    "rounded up": (V2.format(top="/"), "0::/", {"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 3),
    "no limit": (V2.format(top="/"), "0::/", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
    "no file": (V2.format(top="/"), "0::/", {}, None),
    "damaged": (V2.format(top="/"), "0::/", {"sys/fs/cgroup/cpu.max": "2000 0\n"}, None),
    "of a service": (
        V2.format(top="/"), "0::/a.slice/b.service", {"sys/fs/cgroup/a.slice/b.service/cpu.max": "300000 100000\n"}, 3,
    ),
    "the smallest of those above": (
        V2.format(top="/"), "0::/a/b",
        {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n", "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
         "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 2,
    ),
    "the container's group is the mount's root": (
        V2.format(top="/docker/1f"), "0::/docker/1f", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2,
    ),
    "the container's group is not to be seen": (
        V2.format(top="/"), "0::/docker/1f", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2,
    ),
    "another's namespace": (V2.format(top="/.."), "0::/../x", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
    "version 1": (V1.format(top="/"), "4:cpu,cpuacct:/\n3:memory:/", group(100000, 400000), 4),
    "version 1 without limit": (V1.format(top="/"), "4:cpu,cpuacct:/\n", group(100000, -1), None),
    "version 1 of a service": (
        V1.format(top="/"), "4:cpu,cpuacct:/a/b:c\n3:memory:/m", group(50000, 100000, f"{CPU}/a/b:c"), 2,
    ),
    "version 1 in a container": (
        V1.format(top="/docker/1f"), "4:cpu,cpuacct:/docker/1f", group(100000, 150000), 2,
    ),
    "both versions": (HYBRID.format(top="/"), "4:cpu,cpuacct:/\n0::/", group(100000, 100000), 1),
    "no control groups": ("22 1 8:1 / / rw - ext4 /dev/sda1 rw\nnonsense\n - cgroup\n", "", {}, None),
}  # fmt: skip


@pytest.mark.parametrize(("mounts", "groups", "files", "expected"), QUOTAS.values(), ids=QUOTAS)
def test_the_quota_of_a_container_is_read(mounts, groups, files, expected, tmp_path) -> None:
    for name, text in {"proc/self/mountinfo": mounts, "proc/self/cgroup": groups, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == expected


def test_where_nothing_is_known_of_groups_there_is_no_quota(tmp_path) -> None:
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("allowed", "quota", "cores", "limit"), [(64, 2, 2, 2), (2, 64, 2, None), (4, None, 4, None), (4, 4, 4, None)]
)
def test_threads_follow_the_quota_where_it_is_less_than_the_cores(allowed, quota, cores, limit, monkeypatch) -> None:
    monkeypatch.setattr(machine, "_allowed_cores", lambda: allowed)
    monkeypatch.setattr(machine, "_quota", lambda: quota)
    assert (usable_cores(), thread_limit()) == (cores, limit)


def test_a_chosen_number_is_stronger_than_the_quota_and_ends_with_the_block(monkeypatch) -> None:
    monkeypatch.setattr(machine, "_allowed_cores", lambda: 8)
    monkeypatch.setattr(machine, "_quota", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with limited_threads(None):
        assert (usable_cores(), os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == (2, "5", "2")
        with limited_threads(3):
            assert (usable_cores(), os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == (3, "3", "3")
    assert (usable_cores(), os.environ["OMP_NUM_THREADS"]) == (2, "5")
    assert "MKL_NUM_THREADS" not in os.environ


def test_threads_of_openmp_sleep_while_they_wait_unless_the_user_says_otherwise(monkeypatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with limited_threads(None):
        assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    with limited_threads(2):
        assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_libraries_that_a_command_loads_take_its_number_of_threads() -> None:
    code = (
        "from runtime.contract.machine import limited_threads\n"
        "with limited_threads(1):\n"
        "    import numpy, sklearn.cluster, threadpoolctl\n"
        "    print({one['num_threads'] for one in threadpoolctl.threadpool_info()})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "{1}\n"


@pytest.mark.parametrize("chosen", [None, 1])
def test_onnx_runtime_follows_the_quota_and_an_argument_is_stronger(chosen, tiny, monkeypatch) -> None:
    import onnxruntime

    seen = []
    real = onnxruntime.InferenceSession

    def session(source, settings, **rest):
        seen.append(settings.intra_op_num_threads)
        return real(source, settings, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(machine, "_allowed_cores", lambda: 8)
    monkeypatch.setattr(machine, "_quota", lambda: 2)
    load(tiny, threads=chosen).close()
    monkeypatch.setattr(machine, "_quota", lambda: None)
    load(tiny, threads=chosen).close()
    assert seen == ([2, 0] if chosen is None else [1, 1])


COMPUTING = {
    "embed": ["m.onnx", "photos", "--out", "e"], "cluster": ["e", "--out", "c"], "verify": ["m.onnx"],
    "evaluate": ["m.onnx", "--data", "folder:photos"], "bench": ["m.onnx"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMPUTING)
def test_every_command_that_computes_takes_a_number_of_threads(command, monkeypatch, capsys) -> None:
    seen = []
    monkeypatch.setattr(f"runtime.commands.{command}.run", lambda _: seen.append(usable_cores()) or 0)
    assert runtime_main([command, *COMPUTING[command], "--threads", "3"]) == 0
    assert seen == [3]
    for bad in ("0", "-1", "x", "1.5", str(MAX_THREADS + 1), ""):
        with pytest.raises(UsageError, match=f"--threads.*must be|--threads.*from 1 to {MAX_THREADS}"):
            runtime_parser().parse_args([command, *COMPUTING[command], f"--threads={bad}"])


def test_the_exporter_takes_a_number_of_threads(monkeypatch, tmp_path) -> None:
    seen = []

    def export(spec, progress):
        seen.append(usable_cores())
        raise UsageError("seen")

    monkeypatch.setattr("exporter.__main__.export", export)
    assert exporter_main(["--out", str(tmp_path / "m.onnx"), "--threads", "3"]) == 2
    assert seen == [3]


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
