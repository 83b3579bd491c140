"""The scripts for set-up, tests and quickstart; the long ones run with a stand-in for Python."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

ROOT = Path(__file__).parents[1]
SHELL = [
    "bench", "build-cpp", "build-wheel", "check", "gpu-check", "plant", "quickstart", "sanitize-cpp", "serve", "setup",
    "study", "test", "test-lowest",
]  # fmt: skip

FAKE_PYTHON = """#!/bin/sh
# Stands in for Python: writes what it was called with to $CALLS; fails as the file `answers` beside $CALLS says; leaves
# a manifest as the exporter does, a store as `embed` does.
echo "$*" >>"$CALLS"
for last; do :; done
case "$1 ${2:-} ${3:-}" in
    "-m venv "*) mkdir -p "$last/bin" && cp "$0" "$last/bin/python" ;;
    "-c "*) case "$2" in *runtime.store*) exec "$REAL_PYTHON" "$@" ;; esac ;;
esac
if [ -f "${CALLS%calls}answers" ]; then
    while IFS='|' read -r pattern status message; do
        case "$*" in *$pattern*) [ -z "$message" ] || echo "$message" >&2; exit "$status" ;; esac
    done <"${CALLS%calls}answers"
fi
case "$*" in
    "-m exporter "*) mkdir -p "${last%/*}" && echo "$*" >"$last.json" ;;
    "-m runtime embed "*) mkdir -p "$last" && echo "$5" >>"$last/images" && cp "$EMBEDDED"/* "$last" ;;
esac
"""
"""A store is one that `embedded` holds, with a list of the IMAGES that were embedded into it."""
UNREACHABLE = "exporter: can't reach the Hugging Face hub (offline): give --weights a path"


@pytest.fixture
def checkout(tmp_path):
    """A copy of the scripts with a stand-in for Python: `run(name, ...)` and `calls()`."""
    return Checkout(tmp_path)


class Checkout:
    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        self.folder = folder
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        self.python = folder / "python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)
        self.embedded = folder / "embedded"
        self.embedded.mkdir()
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(12, np.float32)), 4)
        rows = {"root": ["."] * 3, "path": ["a.png", "b.png", "c.png"], "embedding": vectors}
        parquet.write_table(pa.table(rows), self.embedded / "part-00000.parquet")

    def answer(self, *rules: tuple[str, int, str]) -> None:
        """Each: a part of the command line, the exit code, what to say on stderr."""
        lines = "".join(f"{pattern}|{status}|{message}\n" for pattern, status, message in rules)
        (self.folder / "answers").write_text(lines)

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / "scripts" / name, *arguments],
            cwd=self.folder,  # not the checkout: scripts work from anywhere
            env={
                **os.environ,
                "PYTHON": str(self.python),
                "CALLS": str(self.folder / "calls"),
                "EMBEDDED": str(self.embedded),
                "REAL_PYTHON": sys.executable,
            },
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self, start: str) -> list[str]:
        """The calls since the last time that begin so, without this beginning."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line.removeprefix(start).strip() for line in lines if line.startswith(start)]


PIP = "-m pip --disable-pip-version-check install -qq"
IN_PARALLEL = "-n auto --maxprocesses 8 --dist worksteal"


def test_setup_installs_the_exact_torch_first_and_is_quick_when_done(checkout):
    first = checkout.run("setup")
    assert first.returncode == 0, first.stderr
    assert checkout.calls(PIP) == ["torch==2.13.0", "-e .[cpu,rtx,export,dev]", "--no-deps timm==1.0.31"]
    again = checkout.run("setup")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert checkout.calls(PIP) == []


@pytest.mark.parametrize("changed", ["pyproject.toml", "scripts/setup"])
def test_setup_runs_again_after_a_change_of(checkout, changed):
    checkout.run("setup")
    checkout.calls(PIP)
    with (checkout.root / changed).open("a") as file:
        file.write("\n# changed\n")
    assert checkout.run("setup").returncode == 0
    assert len(checkout.calls(PIP)) == 3


@pytest.mark.parametrize("failing", ["torch==2.13.0", "-e .[", "--no-deps timm"])
def test_setup_that_was_cut_short_is_done_again(checkout, failing):
    checkout.answer((failing, 1, "pip: no network"))
    broken = checkout.run("setup")
    assert broken.returncode == 1
    assert "no network" in broken.stderr
    checkout.answer()
    checkout.calls(PIP)
    assert checkout.run("setup").returncode == 0
    assert len(checkout.calls(PIP)) == 3


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        pytest.param("-c import sys", "Python 3.11 or newer is needed", id="an old Python"),
        pytest.param("-c import ensurepip", "python3-venv", id="no venv module"),
    ],
)
def test_setup_says_what_the_machine_lacks(checkout, rule, words):
    checkout.answer((rule, 1, ""))
    result = checkout.run("setup")
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert checkout.calls(PIP) == []


def test_build_wheel_builds_what_the_tag_says_with_few_packages(checkout):
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    wrong = checkout.run("build-wheel", "v99.0.0")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert f"the tag is v99.0.0, the version in pyproject.toml {version[1]}:" in wrong.stderr
    assert checkout.calls("") == []
    for given in ([], [f"v{version[1]}"]):
        done = checkout.run("build-wheel", *given)
        assert done.returncode == 0, done.stderr
        assert checkout.calls("-m ")[1:] == [PIP.removeprefix("-m ") + " build", "build --outdir dist ."]


def test_test_lowest_takes_the_lowest_versions_and_no_torch(checkout):
    checkout.answer(("-c import torch", 1, "no torch"))
    done = checkout.run("test-lowest", "-k", "some name")
    assert done.returncode == 0, done.stderr
    calls = checkout.calls("-m ")
    assert calls[0] == "venv --clear build/lowest"
    lowest, tools, ours = (call for call in calls if call.startswith("uv pip install"))
    users, own = (set(re.findall(r"--extra (\S+)", call)) for call in (lowest, tools))
    assert "--resolution lowest-direct" in lowest
    assert users == {"cpu", "heif", "openvino", "remote"}  # what needs no GPU, and no torch
    assert own == {"dev"}
    assert "--resolution" not in tools
    (onnx,) = re.findall(r'"(onnx>=[\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert lowest.endswith(f" {onnx}")
    assert ours.endswith("--no-deps -e .")
    assert calls[-1] == f"pytest {IN_PARALLEL} tests/runtime tests/conformance -k some name"
    checkout.answer()
    with_torch = checkout.run("test-lowest")
    assert (with_torch.returncode, checkout.calls("-m pytest")) == (1, [])
    assert "torch is in build/lowest" in with_torch.stderr


def test_test_checks_first_and_hands_its_arguments_to_pytest(checkout):
    (checkout.root / "scripts/check").write_text('#!/bin/sh\nset -eu\nscripts/setup\necho checked >>"$CALLS"\n')
    (checkout.root / "scripts/build-cpp").write_text('#!/bin/sh\necho built >>"$CALLS"\n')
    checkout.run("test", "-k", "some name")
    calls = [call for call in checkout.calls("") if call != "built"]  # where there is a compiler
    assert calls[-2:] == ["checked", f"-m pytest {IN_PARALLEL} -k some name"]
    checkout.run("test", "--slow", "-x")
    assert checkout.calls("-m pytest") == [f"{IN_PARALLEL} -m not gpu -x"]


@pytest.mark.parametrize("required", ["", "required"])
def test_test_builds_cpp_where_a_compiler_is_and_says_so_where_not(checkout, required, monkeypatch, tmp_path):
    (checkout.root / "scripts/check").write_text("#!/bin/sh\nexec scripts/setup\n")
    (checkout.root / "scripts/build-cpp").write_text('#!/bin/sh\necho built >>"$CALLS"\n')
    monkeypatch.setenv("ITAE_CPP", required)
    bare = tmp_path / "bin"  # what the scripts need, and no compiler
    bare.mkdir()
    for tool in ("sh", "dirname", "cat", "cksum", "pwd", "rm", "mkdir", "cp"):
        (bare / tool).symlink_to(shutil.which(tool))
    monkeypatch.setenv("PATH", str(bare))
    done = checkout.run("test")
    assert done.returncode == 0, done.stderr
    assert checkout.calls("built") == ([""] if required else [])
    assert ("C++ is not tested; scripts/build-cpp says what it needs" in done.stderr) == (not required)
    for tool in ("c++", "cmake"):
        (bare / tool).symlink_to("/bin/true")
    assert checkout.run("test").returncode == 0
    assert checkout.calls("built") == [""]


@pytest.mark.parametrize("tool", ["ruff format --check", "ruff check", "mypy"])
def test_test_stops_where_a_check_fails(checkout, tool):
    checkout.answer((f"-m {tool}", 1, "found something"))
    assert checkout.run("test").returncode == 1
    assert checkout.calls("-m pytest") == []


@pytest.mark.parametrize("script", SHELL)
def test_what_a_script_imports_is_there(script):
    """The stand-in for Python above runs none of it."""
    text = (ROOT / "scripts" / script).read_text()
    for module, names in re.findall(r"^from ((?:runtime|exporter)[\w.]*) import ([\w, ]+)$", text, re.MULTILINE):
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), f"{script}: {module}.{name}"


def test_gpu_check_hands_its_arguments_on(checkout):
    assert checkout.run("gpu-check", "--dry-run", "--only", "golden").returncode == 0
    assert checkout.calls("-m scripts.gpu_checks") == ["--dry-run --only golden"]


def test_quickstart_uses_the_official_weights_where_it_can(checkout):
    result = checkout.run("quickstart")
    assert result.returncode == 0, result.stderr
    calls = checkout.calls("")
    exports = [call for call in calls if call.startswith("-m exporter")]
    assert exports == [
        "-m exporter --size vitb14 --weights auto --out quickstart/itae.engine",
        "-m exporter --size vitb14 --weights auto --out quickstart/itae.onnx",
    ]
    assert [call for call in calls if "runtime" in call or "digits" in call] == [
        "-m runtime verify quickstart/itae.onnx",
        "scripts/make_digits.py quickstart/digits",
        "-m runtime embed quickstart/itae.onnx quickstart/digits --out quickstart/embeddings",
        "-m runtime cluster quickstart/embeddings --k 10 --labels folders --out quickstart/clusters",
    ]
    assert "DEMONSTRATION" not in result.stdout + result.stderr
    assert f"{checkout.root}/quickstart" in result.stdout
    assert "clusters/clusters.png" in result.stdout


def test_quickstart_without_the_hub_says_so_loudly_and_shows_planted_artifacts(checkout):
    checkout.answer(("--weights auto", 2, UNREACHABLE))
    result = checkout.run("quickstart")
    assert result.returncode == 0, result.stderr
    planted = "exporter --size vits14 --weights quickstart/planted/weights.safetensors"
    assert [call for call in checkout.calls("-m ") if "venv" not in call and "pip" not in call] == [
        "exporter --size vitb14 --weights auto --out quickstart/itae.engine",
        "scripts.planting --out quickstart/planted --kind place --per-class 8",
        f"{planted} --out quickstart/itae.engine",
        f"{planted} --outputs embedding,artifact_mask,artifact_norm --out quickstart/itae.onnx",
        f"{planted} --no-itae --out quickstart/plain.onnx",
        "runtime verify quickstart/itae.onnx",
        "runtime embed quickstart/itae.onnx quickstart/planted/pictures --out quickstart/embeddings",
        "runtime cluster quickstart/embeddings --k 8 --labels folders --out quickstart/clusters",
        "runtime evaluate quickstart/plain.onnx quickstart/itae.onnx --data folder:quickstart/planted/pictures "
        "--cache quickstart/cache --report quickstart/compare.html --note A demonstration: made pictures of 8 "
        "classes, and a small model of random weights in which artifacts were planted as analyses of DINOv2 describe "
        "them. plain.onnx is that model without ITAE, itae.onnx with it. It shows that ITAE finds such artifacts and "
        "wins the clusters back, not what Meta's weights do.",
    ]
    assert UNREACHABLE in result.stderr
    assert "PLANTED" in result.stderr
    assert "a DEMONSTRATION with planted artifacts" in result.stdout
    assert "compare.html" in result.stdout


def test_quickstart_without_the_hub_takes_a_folder_with_random_weights(checkout):
    images = checkout.folder / "photos"
    images.mkdir()
    checkout.answer(("--weights auto", 2, UNREACHABLE))
    result = checkout.run("quickstart", str(images))
    assert result.returncode == 0, result.stderr
    weights = [call.split()[5] for call in checkout.calls("") if call.startswith("-m exporter")]
    assert weights == ["auto", "random:0", "random:0"]
    assert "RANDOM weights" in result.stderr
    assert "a DEMONSTRATION with random weights" in result.stdout
    assert not checkout.calls("-m scripts.planting")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        pytest.param(("-m exporter", 2, "exporter: tensorrt-rtx is not installed"), "not installed", id="no TensorRT"),
        pytest.param(("itae.engine", 1, f"parity failed; {UNREACHABLE}"), "parity failed", id="a failed check"),
        pytest.param(("planted/weights", 1, "exporter: parity failed"), "parity failed", id="planted weights fail too"),
        pytest.param(("itae.onnx", 1, "no twin"), "no twin", id="no ONNX twin"),
        pytest.param(("runtime verify", 1, "it is off"), "it is off", id="verify fails"),
        pytest.param(("runtime cluster", 2, "bad k"), "bad k", id="clustering fails"),
    ],
)
def test_quickstart_ends_with_the_code_of_what_failed(checkout, rule, words):
    rules = [rule] if rule[0] != "planted/weights" else [rule, ("--weights auto", 2, UNREACHABLE)]
    checkout.answer(*rules)
    result = checkout.run("quickstart")
    assert result.returncode == rule[1]
    assert words in result.stderr
    assert "Done" not in result.stdout


def test_quickstart_takes_a_folder_of_images_and_no_more_clusters_than_images(checkout):
    images = checkout.folder / "my images"
    images.mkdir()
    result = checkout.run("quickstart", "my images")  # relative to where it is called
    assert result.returncode == 0, result.stderr
    calls = checkout.calls("-m runtime")
    assert calls[1:] == [
        f"embed quickstart/itae.onnx {images} --out quickstart/embeddings",
        "cluster quickstart/embeddings --k 3 --out quickstart/clusters",
    ]


def test_quickstart_never_mixes_images_or_models(checkout):
    images = checkout.folder / "photos"
    images.mkdir()
    made = checkout.root / "quickstart"

    def embedded(*arguments: str) -> list[str]:
        result = checkout.run("quickstart", *arguments)
        assert result.returncode == 0, result.stderr
        clusters = sorted((made / "clusters").iterdir()) if (made / "clusters").is_dir() else []
        (made / "clusters").mkdir(exist_ok=True)
        (made / "clusters" / "old").touch()
        return [*(made / "embeddings/images").read_text().splitlines(), *(path.name for path in clusters)]

    assert embedded() == ["quickstart/digits"]
    assert embedded("photos") == [str(images)]
    assert embedded("photos") == [str(images), str(images), "old"]  # goes on
    checkout.answer(("--weights auto", 2, UNREACHABLE))
    assert embedded("photos") == [str(images)]
    assert embedded() == ["quickstart/planted/pictures"]


def test_quickstart_refuses_a_folder_that_is_not_there_before_any_work(checkout):
    result = checkout.run("quickstart", "nowhere")
    assert (result.returncode, result.stderr) == (2, "quickstart: there is no folder nowhere\n")
    assert checkout.calls("") == []


def test_digits_are_200_images_20_of_each_digit(tmp_path):
    subprocess.run([sys.executable, ROOT / "scripts/make_digits.py", tmp_path], check=True, timeout=120)
    files = sorted(tmp_path.glob("*/*.png"))
    assert [len(list((tmp_path / str(digit)).iterdir())) for digit in range(10)] == [20] * 10
    assert len({file.read_bytes() for file in files}) == 200
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    assert pixels.shape == (200, 64, 64)
    assert (pixels.min(), pixels.max()) == (0, 255)
    squares = pixels.reshape(200, 8, 8, 8, 8)
    assert (squares == squares[:, :, :1, :, :1]).all()


def test_ci_installs_a_browser_and_calls_the_scripts():
    first, *lines, last = (ROOT / ".ci/run").read_text().splitlines()
    assert first == "#!/usr/bin/env bash"
    assert last == 'exec "$(dirname "$0")/../scripts/test"'
    assert not {word for line in lines for word in line.split()} & {"pip", "pytest", "python", "scripts/setup"}
    assert "chromium" in "".join(lines)
    assert lines[-2:] == [
        "export ITAE_CPP=required ITAE_TRITON=required # tests of C++ and of Triton fail where they would be skipped",
        '"$(dirname "$0")/../scripts/sanitize-cpp" || exit',
    ]


@pytest.mark.parametrize("path", [".ci/run", *(f"scripts/{name}" for name in SHELL)])
def test_script_can_be_run_and_stops_at_the_first_error(path):
    text = (ROOT / path).read_text()
    assert os.access(ROOT / path, os.X_OK)
    assert "\nset -eu\n" in text or path == ".ci/run"
    subprocess.run(["sh" if path != ".ci/run" else "bash", "-n", ROOT / path], check=True)


def test_every_script_is_looked_at_here():
    files = {path.name for path in (ROOT / "scripts").iterdir() if path.is_file()}
    tables = {"fusion_table.py", "option_tables.py", "parity_table.py", "precision_table.py"}
    assert files == {*SHELL, *tables, "make_digits.py"}


@pytest.mark.parametrize("folder", ["/quickstart/", "/gpu-check/"])
def test_what_a_script_makes_is_ignored_by_git(folder):
    assert folder in (ROOT / ".gitignore").read_text().splitlines()
