"""The wheel: built, looked into, installed, and its two commands run from outside of the checkout."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from runtime.contract.tensorrt import LIBRARIES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = ("exporter", "runtime")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, by way of the source archive of a clean copy: a checkout's `build/` would leak files that are gone."""
    copy = tmp_path_factory.mktemp("source")
    for name in ["pyproject.toml", "README.md", "LICENSE", *SOURCES]:
        (copy / name).symlink_to(ROOT / name)
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture
def imposter(tmp_path) -> Path:
    """A folder of a user whose `runtime.py` says so when it runs."""
    (tmp_path / "runtime.py").write_text("print('the wrong one ran')\n")
    return tmp_path


def another_runtime(command: list[object], folder: Path, path: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of Python in a user's folder."""
    variables = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False
    )


def test_another_runtime_in_the_current_folder_is_one_line(imposter) -> None:
    done = another_runtime(["-m", "exporter", "--help"], imposter, ROOT)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(
        f"exporter: the package `runtime` beside this one is needed, and {imposter}/runtime.py"
    )
    assert "`itae-export`" in done.stderr


def test_another_package_named_runtime_is_one_line_too(tmp_path) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "__init__.py").write_text("print('the wrong one ran')\n")
    done = another_runtime(["-m", "exporter", "--help"], tmp_path, ROOT)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"{tmp_path}/runtime/__init__.py is found in its place" in done.stderr


def test_a_folder_named_runtime_that_is_no_package_does_no_harm(tmp_path) -> None:
    (tmp_path / "runtime").mkdir()
    done = another_runtime(["-m", "exporter", "--help"], tmp_path, ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_in_python_another_runtime_is_an_import_error(imposter) -> None:
    code = "try:\n    import exporter\nexcept ImportError as error:\n    print(error)"
    done = another_runtime(["-c", code], imposter, ROOT)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    assert f"{imposter}/runtime.py is found in its place" in done.stdout


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The scripts folder of a fresh environment with the wheel in it; its dependencies are borrowed from here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (target,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert names
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel],
        check=True,
        timeout=300,
    )
    # Behind the wheel's own files in the path, and without the .pth of the checkout's editable install.
    (target / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin"


def run(command: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run([command, *arguments], cwd=cwd, env=clean, capture_output=True, text=True, timeout=300)


def test_wheel_holds_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        str(path.relative_to(ROOT))
        for source in SOURCES
        for path in (ROOT / source).rglob("*")
        if (path.suffix in (".py", ".css", ".js", ".json") or path.name == "py.typed")
        and ROOT / "runtime" / "cpp" not in path.parents  # it is built from a checkout
    }
    assert names == expected
    assert {"exporter/py.typed", "runtime/py.typed"} <= names


def test_wheel_says_who_it_is(wheel):
    assert re.fullmatch(r"itae-\d+\.\d+\.\d+-py3-none-any\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        files = {name.split(".dist-info/")[1]: name for name in archive.namelist() if ".dist-info/" in name}
        metadata = archive.read(files["METADATA"]).decode()
        entry_points = archive.read(files["entry_points.txt"]).decode()
        license_text = archive.read(files["licenses/LICENSE"]).decode()
    assert "\nName: itae\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert "itae = runtime.__main__:main\n" in entry_points
    assert "itae-export = exporter.__main__:main\n" in entry_points
    assert license_text == (ROOT / "LICENSE").read_text()
    assert "Apache License" in license_text


@pytest.mark.parametrize("command", ["itae", "itae-export"])
def test_installed_command_answers_from_outside_of_the_checkout(installed, tmp_path, command):
    result = run(installed / command, "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: ")
    wrong = run(installed / command, "--no-such-option", cwd=tmp_path)
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["itae", "itae-export"])
@pytest.mark.parametrize("name", ["{}.py", "{}/__init__.py", "{}/__main__.py"])
def test_installed_command_is_ours_beside_a_users_files_of_our_names(installed, tmp_path, command, name):
    for package in SOURCES:
        path = tmp_path / name.format(package)
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit('the wrong one ran')\n")
    result = run(installed / command, "--help", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("package", SOURCES)
def test_a_users_folder_of_our_names_without_an_init_does_no_harm(tmp_path, package):
    for name in SOURCES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__main__.py").write_text("raise SystemExit('the wrong one ran')\n")
        (tmp_path / name / "options.py").write_text("raise SystemExit('the wrong one ran')\n")
    done = another_runtime(["-m", package, "--help"], tmp_path, ROOT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("package", SOURCES)
def test_installed_package_is_the_wheels_own(installed, tmp_path, package):
    result = run(installed / "python", "-c", f"import {package}; print({package}.__file__)", cwd=tmp_path)
    assert Path(result.stdout.strip()).is_relative_to(installed.parent), result.stderr


def names_of(requirements: list[str]) -> set[str]:
    return {Requirement(text).name for text in requirements}


EXTRAS = PROJECT["project"]["optional-dependencies"]


def test_extras_are_the_promised_ones():
    assert set(EXTRAS) == {
        "cpu", "gpu", "gpu-cu12", "rtx", "openvino", "remote", "heif", "umap", "search", "ray", "bench", "export",
        "timm", "triton", "dev",
    }  # fmt: skip
    assert names_of(EXTRAS["openvino"]) == {"openvino"}
    assert names_of(EXTRAS["heif"]) == {"pillow-heif"}
    assert names_of(EXTRAS["search"]) == {"faiss-cpu"}
    assert names_of(EXTRAS["gpu"]) == {"onnxruntime-gpu", "tensorrt", "cuda-core", "cuda-bindings"}
    assert names_of(EXTRAS["gpu-cu12"]) == {"onnxruntime-gpu", "tensorrt-cu12", "cuda-core", "cuda-bindings"}
    assert names_of(EXTRAS["rtx"]) == {"tensorrt-rtx", "cuda-core", "cuda-bindings"}
    assert {"torch", "transformers", "onnx", "onnxscript", "onnx-graphsurgeon"} <= names_of(EXTRAS["export"])


def asked(extra: str) -> dict[str, Requirement]:
    return {one.name: one for one in map(Requirement, EXTRAS[extra])}


def test_extras_ask_for_the_versions_of_tensorrt_that_are_supported():
    for extra, package, library in (("gpu-cu12", "tensorrt-cu12", "tensorrt"), ("rtx", "tensorrt-rtx", "tensorrt-rtx")):
        assert str(asked(extra)[package].specifier) == f">={'.'.join(map(str, LIBRARIES[library].oldest))}"
    assert not asked("gpu")["tensorrt"].specifier.contains("10.13.3")  # whose CUDA was another, by its patch release


@pytest.mark.parametrize(
    ("extra", "cuda", "fitting", "others"),
    [
        # Of 1.27.0 the extras of onnxruntime-gpu name packages of CUDA 13 that are called otherwise.
        ("gpu", "cu13", {"onnxruntime-gpu": "1.31.1", "cuda-bindings": "13.5.0"}, {"onnxruntime-gpu": "1.27.0"}),
        ("gpu-cu12", "cu12", {"onnxruntime-gpu": "1.26.0", "cuda-bindings": "12.9.10"}, {"onnxruntime-gpu": "1.27.0"}),
    ],
)
def test_an_extra_for_gpus_is_for_one_cuda(extra, cuda, fitting, others):
    found = asked(extra)
    assert found["cuda-core"].extras == {cuda}
    assert found["onnxruntime-gpu"].extras == {"cuda", "cudnn"}
    assert all(found[name].specifier.contains(version) for name, version in fitting.items())
    assert not any(found[name].specifier.contains(version) for name, version in others.items())


def test_base_install_is_the_runtime_without_torch():
    base = names_of(PROJECT["project"]["dependencies"])
    assert not base & {"torch", "transformers", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt-rtx"}


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_onnxruntime_comes_by_one_extra_only(extra):
    """The packages onnxruntime and onnxruntime-gpu overwrite each other's files."""
    by_extra = {"cpu": {"onnxruntime"}, "gpu": {"onnxruntime-gpu"}, "gpu-cu12": {"onnxruntime-gpu"}}
    found = names_of(EXTRAS[extra]) & {"onnxruntime", "onnxruntime-gpu"}
    assert found == by_extra.get(extra, set())


def test_setup_never_asks_for_both_onnxruntimes():
    (asked,) = re.findall(r"-e '\.\[(.*)\]'", (ROOT / "scripts/setup").read_text())
    assert set(asked.split(",")) == {"cpu", "rtx", "export", "dev"}


NAMES = {
    "PIL": "pillow", "sklearn": "scikit-learn", "onnx_graphsurgeon": "onnx-graphsurgeon", "ml_dtypes": "ml-dtypes",
    "huggingface_hub": "huggingface-hub", "tensorrt_rtx": "tensorrt-rtx", "umap": "umap-learn", "faiss": "faiss-cpu",
    "google": "onnx", "pillow_heif": "pillow-heif",
}  # fmt: skip
"""Modules whose package has another name; protobuf (`google`) comes with onnx, whose messages are made of it."""


def imported() -> dict[str, set[str]]:
    """By package that is imported anywhere in the code: the files that do."""
    folders = ("exporter", "runtime", "scripts")
    ours = {*folders, *(path.stem for path in (ROOT / "tests/helpers").glob("*.py"))}
    found: dict[str, set[str]] = {}
    for file in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                modules = [node.module]
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                modules = [one.value for one in node.args[:1] if isinstance(one, ast.Constant)]
            for module in modules:
                name = module.split(".")[0]
                if name not in sys.stdlib_module_names | ours:
                    found.setdefault(NAMES.get(name, name), set()).add(str(file.relative_to(ROOT)))
    return found


def test_every_import_is_of_a_declared_dependency():
    project = PROJECT["project"]
    declared = names_of(project["dependencies"]).union(*map(names_of, EXTRAS.values()))
    declared |= {"cuda"} if "cuda-bindings" in declared else set()  # both cuda-core and cuda-bindings are in `cuda`
    declared |= {"onnxruntime"} if "onnxruntime-gpu" in declared else set()
    declared |= {"triton_python_backend_utils"}  # Triton's own, which only its Python processes have
    assert {name: files for name, files in imported().items() if name not in declared} == {}


def test_the_runtime_imports_scipy_and_threadpoolctl_and_so_declares_them():
    assert {"scipy", "threadpoolctl", "numpy", "scikit-learn"} <= set(imported())  # so the test above sees imports
    assert {"scipy", "threadpoolctl"} <= names_of(PROJECT["project"]["dependencies"])


def test_what_a_user_without_extras_imports_is_a_base_dependency():
    """What `clustering`, `evaluation`, `report` and `store` import, except for a GPU, maps, HEIC, an index or Ray."""
    base = names_of(PROJECT["project"]["dependencies"]) | {"torch", "umap-learn", "pillow-heif", "faiss-cpu", "ray"}
    rooms = tuple(f"runtime/{room}/" for room in ("contract", "images", "store", "clustering", "evaluation", "report"))
    for name, files in imported().items():
        if any(file.startswith(rooms) for file in files) and name not in base:
            pytest.fail(f"{name} is imported by {files}")
