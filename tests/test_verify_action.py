"""How users verify a model in their own CI: the action's shell lines and the README's, run on an exported model."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import yaml
from rehash import rehash

from exporter import ExportSpec, export
from exporter.models.architecture import Architecture

ROOT = Path(__file__).parents[1]
ACTION = ROOT / ".github/actions/verify"
TINY = Architecture("tiny", width=48, heads=3, depth=2)
STAND_IN = """#!/bin/sh
# Stands in for the action's Python: a new environment holds this file as its Python, and our runtime as its `itae`.
echo "$PWD: $*" >>"$RUNNER_TEMP/calls"
case "$*" in "-m venv "*)
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$RUNNER_TEMP/itae-command" "$3/bin/itae" ;;
esac
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "a model.onnx"
    export(ExportSpec(path, size=TINY, weights="random:0", image_size=42))
    return path


@pytest.fixture
def spoilt(model, tmp_path) -> Path:
    """The model with one weight 2 % larger, and a manifest that fits it."""
    copy = tmp_path / "spoilt"
    shutil.copytree(model.parent, copy)
    path = copy / model.name
    graph = onnx.load(path)
    weight = max(graph.graph.initializer, key=lambda one: np.prod(one.dims))
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.02), weight.name))
    onnx.save(graph, path)
    rehash(path)
    return path


def failures(report: Path) -> list[int]:
    """The number of failures in each suite of a JUnit report, which has at least one test."""
    suites = ElementTree.parse(report).findall("testsuite")
    assert all(int(suite.get("tests", 0)) for suite in suites)
    return [int(suite.get("failures", -1)) for suite in suites]


class Action:
    """The action's steps, run in order by bash as GitHub runs them, in the folder `work`."""

    def __init__(self, folder: Path) -> None:
        self.work, self.temp, programs = folder / "work", folder / "temp", folder / "bin"
        for made in (self.work, self.temp, programs):
            made.mkdir()
        for path, text in (
            (programs / "python3", STAND_IN),
            (self.temp / "itae-command", f'#!/bin/sh\nexec "{sys.executable}" -m runtime "$@"\n'),
        ):
            path.write_text(text)
            path.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RUNNER_TEMP": str(self.temp),
            "GITHUB_ACTION_PATH": str(ACTION),
        }

    def run(self, **inputs: str) -> int:
        """Exit code of the last step that ran."""
        read = yaml.safe_load((ACTION / "action.yml").read_text())
        assert set(inputs) <= set(read["inputs"])
        values = {name: inputs.get(name, declared.get("default")) for name, declared in read["inputs"].items()}
        for step in read["runs"]["steps"]:
            assert step["shell"] == "bash"
            given = {key: re.fullmatch(r"\$\{\{ inputs\.(\w+) \}\}", value) for key, value in step["env"].items()}
            environment = self.environment | {key: str(values[found[1]]) for key, found in given.items() if found}
            (self.temp / "step.sh").write_text(step["run"])
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", self.temp / "step.sh"],
                cwd=self.work,
                env=environment,
                capture_output=True,
                timeout=120,
            )
            if done.returncode != 0:
                break
        return done.returncode


@pytest.fixture
def action(tmp_path) -> Action:
    return Action(tmp_path)


def test_the_action_passes_a_good_model_and_writes_junit(action, model):
    assert action.run(model=str(model), extra="cpu") == 0
    assert failures(action.work / "parity.xml") == [0]
    made, installed = (action.temp / "calls").read_text().splitlines()
    assert made == f"{action.work}: -m venv {action.temp}/itae"
    assert installed == f"{ROOT}: -m pip install --quiet .[cpu]"


def test_the_action_fails_a_spoilt_model_and_writes_junit(action, spoilt):
    assert action.run(model=str(spoilt), junit="a report.xml", provider="cpu") == 1
    assert failures(action.work / "a report.xml")[0] > 0


def test_the_action_refuses_a_model_that_was_altered(action, model, tmp_path):
    shutil.copytree(model.parent, tmp_path / "altered")
    altered = tmp_path / "altered" / model.name
    altered.write_bytes(altered.read_bytes()[:-1] + b"x")
    assert action.run(model=str(altered)) == 2


@pytest.mark.parametrize("name", ["model", "junit", "extra", "provider"])
def test_an_input_is_never_run_as_a_command(action, model, name):
    action.run(**{"model": str(model), name: '"; touch bad; $(touch bad)'})
    assert not list(action.work.rglob("bad"))
    assert not (ROOT / "bad").exists()


def test_inputs_go_through_the_environment():
    read = yaml.safe_load((ACTION / "action.yml").read_text())
    assert not [step["name"] for step in read["runs"]["steps"] if "${{" in step["run"]]
    used = {value for step in read["runs"]["steps"] for value in step["env"].values()}
    assert used == {"${{ inputs." + name + " }}" for name in read["inputs"]}


def test_the_lines_of_the_readme_do_the_same(model, spoilt, tmp_path):
    section = (ROOT / "runtime/README.md").read_text().partition("**In your own CI**")[2]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    install, verify = block[1].splitlines()
    assert install.startswith("pip install '.[cpu]'")
    for path, code in ((model, 0), (spoilt, 1)):
        folder = tmp_path / f"ci {code}"
        folder.mkdir()
        for file in path.parent.iterdir():  # a manifest names its files, so the model keeps its name
            shutil.copy(file, folder)
        text = verify.replace("itae.onnx", f"'{path.name}'").replace("python ", f"'{sys.executable}' ")
        done = subprocess.run(
            ["bash", "-ec", text], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert (failures(folder / "parity.xml")[0] > 0) == bool(code)


def test_the_example_for_github_is_one_that_the_action_takes():
    section = (ROOT / "runtime/README.md").read_text().partition("**In your own CI**")[2]
    block = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert block is not None
    steps = yaml.safe_load(block[1])["steps"]
    (ours,) = [step for step in steps if "itae" in step["uses"]]
    path = ours["uses"].split("@")[0].removeprefix("OWNER/itae/")
    inputs = yaml.safe_load((ROOT / path / "action.yml").read_text())["inputs"]
    assert set(ours["with"]) <= set(inputs)
    assert {name for name, one in inputs.items() if one.get("required")} <= set(ours["with"])
