"""Promises: who may import whom, and that the README is true."""

import ast
import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import runtime.__main__
from exporter import arguments
from exporter.itae import ATTENUATIONS, THRESHOLDS, ItaeConfig

ROOT = Path(__file__).parents[1]
STATIONS = ("weights", "trace", "surgery", "materialize", "gate", "parity", "engine", "publish")
"""Of the street in `exporter.pipeline`; `reference` stands apart from `surgery`, which it is the proof of."""
CONTRACT = ("atomic", "command", "errors", "golden", "manifest", "parity", "preprocess", "records")
"""Of `runtime`, what `exporter` may use, besides the probe for a GPU."""


def imports(path: Path) -> set[str]:
    """Modules that a file imports when it runs, not for its types only."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def station_of(path: Path) -> str:
    return path.relative_to(ROOT / "exporter").parts[0].removesuffix(".py")


@pytest.mark.parametrize("station", STATIONS)
def test_a_station_imports_no_other_station(station):
    others = {f"exporter.{other}" for other in (*STATIONS, "reference", "golden_sample") if other != station}
    for path in files("exporter"):
        if station_of(path) == station:
            used = {name for name in imports(path) if any(name == o or name.startswith(f"{o}.") for o in others)}
            assert not used, f"{path} imports {used}"


@pytest.mark.parametrize("package", ["reference", "golden_sample", "position"])
def test_the_reference_shares_no_code_with_the_surgery(package):
    assert not {name for name in imports(ROOT / "exporter" / f"{package}.py") if "surgery" in name}


def test_the_surgery_knows_no_torch():
    for path in files("exporter/surgery"):
        assert not {name for name in imports(path) if name.split(".")[0] in ("torch", "transformers")}


def test_the_exporter_uses_of_the_runtime_only_the_contract():
    allowed = {f"runtime.{name}" for name in CONTRACT} | {"runtime", "runtime.backends.cuda"}
    for path in files("exporter"):
        for name in imports(path):
            if name.split(".")[0] == "runtime":
                assert (
                    any(name == a or name.startswith(f"{a}.") for a in allowed if a != "runtime") or name == "runtime"
                )


def test_the_runtime_never_imports_the_exporter():
    for path in files("runtime"):
        assert not {name for name in imports(path) if name.split(".")[0] == "exporter"}


@pytest.mark.parametrize("statement", ["import runtime", "import exporter, runtime.manifest, exporter.arguments"])
def test_importing_a_package_stays_light(statement):
    heavy = ("torch", "transformers", "onnx", "onnxruntime", "tensorrt_rtx", "sklearn", "pyarrow")
    code = f"{statement}\nimport sys\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_no_file_outgrows_its_reader():
    for package in ("exporter", "runtime"):
        for path in files(package):
            assert len(path.read_text().splitlines()) <= 300, path


def readme_commands() -> list[str]:
    """Commands of the README's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line.partition("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_the_readmes_commands_parse():
    commands = readme_commands()
    assert "python -m exporter --size vitb14 --out itae.engine" in commands
    for command in commands:
        program, *rest = shlex.split(command)
        if program.startswith("scripts/"):
            assert os.access(ROOT / program, os.X_OK)
        elif rest[:2] == ["-m", "exporter"]:
            arguments.to_spec(arguments.parser().parse_args(rest[2:]))
        else:
            assert rest[:2] == ["-m", "runtime"]
            runtime.__main__.parser().parse_args(rest[2:])


def test_the_readmes_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    for path in re.findall(r"`((?:scripts|tests|exporter|runtime)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_readme_names_every_option_of_itae_and_its_default():
    text = (ROOT / "README.md").read_text()
    for field in dataclasses.fields(ItaeConfig):
        (row,) = re.findall(rf"^\| `--{field.name}` \|.*$", text, re.MULTILINE)
        assert row.endswith(f"| `{field.default}` |")
    for word in (*THRESHOLDS, *ATTENUATIONS):
        assert f"`{word}" in text
