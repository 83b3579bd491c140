"""The workflows of CI: no security fault that zizmor finds, and nothing in them that this checkout has not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = {path.stem: path for path in sorted((ROOT / ".github/workflows").iterdir())}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MADE = {"gpu-check": "gpu-check/", "build-wheel": "dist/"}
"""By script: the folder that it makes, which a workflow may keep."""


def read(name: str) -> dict[str, Any]:
    """A workflow; YAML takes the key `on` for True."""
    found = yaml.safe_load(WORKFLOWS[name].read_text())
    return {"on" if key is True else key: value for key, value in found.items()}


def jobs() -> dict[str, dict[str, Any]]:
    return {f"{name} {job}": found for name in WORKFLOWS for job, found in read(name)["jobs"].items()}


def steps() -> dict[str, dict[str, Any]]:
    return {
        f"{job} {number}": step for job, found in jobs().items() for number, step in enumerate(found.get("steps", []))
    }


def triggers(name: str) -> set[str]:
    return set(read(name)["on"])


def zizmor(folder: Path) -> subprocess.CompletedProcess[str]:
    """Look at workflows without network; exit code 0 if nothing is found."""
    program = shutil.which("zizmor", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program is not None, "zizmor is not installed: scripts/setup"
    return subprocess.run(
        [program, "--offline", "--no-progress", "--persona", "pedantic", folder],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_zizmor_finds_nothing():
    done = zizmor(ROOT / ".github")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("found", "old", "new"),
    [
        ("template-injection", "run: .ci/run", "run: .ci/run '${{ github.head_ref }}'"),
        ("artipacked", "persist-credentials: false", "fetch-depth: 1"),
        ("excessive-permissions", "permissions: {}", "permissions: write-all"),
        ("dangerous-triggers", "  pull_request:", "  pull_request_target:"),
        ("unpinned-uses", "actions/cache@v5", "another/cache@v5"),
    ],
)
def test_zizmor_would_find(found, old, new, tmp_path):
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    path = tmp_path / ".github/workflows/ci.yml"
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new))
    done = zizmor(tmp_path / ".github")
    assert done.returncode > 0
    assert f"[{found}]" in done.stdout


def test_steps_call_scripts_that_are_there():
    called = []
    for where, step in steps().items():
        for path in re.findall(r"(?<![\w/.])((?:scripts|\.ci)/[\w./-]+)", step.get("run", "")):
            assert os.access(ROOT / path, os.X_OK), f"{where}: {path}"
            called.append(path)
        words = set(re.findall(r"[\w.-]+", step.get("run", "")))
        assert not words & {"pip", "pytest", "python", "python3", "uv", "apt-get"}, (
            f"{where}: scripts are the only door"
        )
    assert set(called) == {
        ".ci/run", "scripts/test", "scripts/test-lowest", "scripts/gpu-check", "scripts/build-wheel",
    }  # fmt: skip


def test_what_a_workflow_keeps_is_what_a_script_of_it_makes():
    assert all(f"/{folder}" in (ROOT / ".gitignore").read_text().splitlines() for folder in MADE.values())
    for where, job in jobs().items():
        text = " ".join(step.get("run", "") for step in job.get("steps", []))
        for step in job.get("steps", []):
            if step.get("uses", "").startswith("actions/upload-artifact@"):
                assert step["with"]["path"] in {MADE[name] for name in MADE if f"scripts/{name}" in text}, where


def test_files_and_workflows_that_are_named_are_there():
    for name, path in WORKFLOWS.items():
        text = path.read_text()
        hashed = {one for call in re.findall(r"hashFiles\((.*?)\)", text) for one in re.findall(r"'([^']+)'", call)}
        local = {found.removeprefix("./") for found in re.findall(r"uses: (\./\S+)", text)}
        documents = set(re.findall(r"[\w./-]+\.md\b", re.sub(r"^\s*[^#]*$", "", text, flags=re.MULTILINE)))
        for one in hashed | local | documents:
            assert (ROOT / one).exists(), f"{name}: {one}"
    assert "workflow_call" in triggers("ci")


def test_the_python_versions_are_those_of_the_package():
    declared = {one.rpartition(" ")[2] for one in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", one)}
    tested = set()
    for name, job in read("ci")["jobs"].items():
        matrix = job.get("strategy", {}).get("matrix", {}).get("python", [None])
        images = {job["container"].replace("${{ matrix.python }}", python or "") for python in matrix}
        if name in ("whole", "test"):
            tested |= {image.removeprefix("python:").removesuffix("-bookworm") for image in images}
    assert tested == declared
    assert PROJECT["requires-python"] == f">={min(declared, key=lambda version: int(version.split('.')[1]))}"
    looked_for = re.findall(r"python(3\.\d+)", (ROOT / "scripts/setup").read_text())
    assert set(looked_for) == declared


def test_a_machine_with_a_gpu_is_never_lent_to_a_pull_request():
    own = {where for where, job in jobs().items() if "self-hosted" in str(job.get("runs-on"))}
    assert own == {"gpu gpu-check"}
    assert triggers("gpu") == {"push", "schedule", "workflow_dispatch"}
    assert read("gpu")["on"]["push"] == {"branches": ["main"]}
    assert "GPU_RUNNER" in jobs()["gpu gpu-check"]["if"]


def test_only_a_release_gets_more_than_the_right_to_read():
    for where, job in jobs().items():
        more = {name for name, right in job["permissions"].items() if right != "read"}
        assert more == {"release attest": {"attestations", "id-token"}, "release publish": {"id-token"}}.get(
            where, set()
        )
    for name, path in WORKFLOWS.items():
        assert read(name)["permissions"] == {}
        assert "secrets" not in path.read_text()
    assert triggers("release") == {"push"}
    assert set(read("release")["on"]["push"]) == {"tags"}


def test_every_job_ends():
    for where, job in jobs().items():
        assert "uses" in job or 0 < job["timeout-minutes"] <= 240, where


DOCKERFILE = ROOT / "scripts/gpu_checks/Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Of the container's recipe: word and rest, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def test_the_container_calls_scripts_that_are_there_and_has_no_rubbish_in_it():
    recipe = instructions()
    named = {path for _, rest in recipe for path in re.findall(r"\bscripts/[\w/-]+", rest)}
    assert named == {"scripts/setup", "scripts/build-cpp", "scripts/gpu-check"}
    assert all(os.access(ROOT / path, os.X_OK) for path in named)
    assert [rest for word, rest in recipe if word == "COPY"] == ["--chown=runner . /work"]
    assert dict(recipe)["WORKDIR"] == "/work"
    left_out = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    made = {
        line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line.startswith(("/", ".venv"))
    }
    assert {".git", *made} <= set(left_out)
    readme = (DOCKERFILE.parent / "README.md").read_text()
    assert f"--file {DOCKERFILE.relative_to(ROOT)} ." in readme
    assert "/work/gpu-check" in readme
    assert "never built" in readme.lower()
    assert "NEVER BUILT" in DOCKERFILE.read_text()


def test_the_container_ends_as_a_user_and_leaves_no_lists_of_packages():
    recipe = instructions()
    assert [rest for word, rest in recipe if word == "USER"][-1] == "runner"
    assert recipe[-1] == ("ENTRYPOINT", '["scripts/gpu-check"]')
    (base,) = [rest for word, rest in recipe if word == "FROM"]
    assert re.fullmatch(r"nvcr\.io/nvidia/tensorrt:\d\d\.\d\d-py3", base)
    for word, rest in recipe:
        if word == "RUN" and ("apt-get" in rest or "build-cpp" in rest):
            assert rest.endswith("rm -rf /var/lib/apt/lists/*") or "&& rm -rf /var/lib/apt/lists/* " in rest
        if "apt-get install" in rest:
            assert "--no-install-recommends" in rest
    assert {word for word, _ in recipe} <= {"FROM", "ENV", "RUN", "COPY", "WORKDIR", "USER", "ENTRYPOINT"}


def test_the_job_on_a_gpu_hands_its_inputs_on(tmp_path):
    """Its shell lines, run with a stand-in for the script."""
    (step,) = [one for where, one in steps().items() if where.startswith("gpu ") and "ONLY" in one.get("env", {})]
    (tmp_path / "scripts").mkdir()
    fake = tmp_path / "scripts/gpu-check"
    fake.write_text('#!/bin/sh\nprintf "%s|" "$@"\nexit 1\n')
    fake.chmod(0o755)
    (tmp_path / "step").write_text(step["run"])

    def arguments(**inputs: str) -> str:
        environment = {"PATH": os.environ["PATH"], "ONLY": "", "MINUTES": "", "STUDY": "", **inputs}
        done = subprocess.run(
            ["bash", "-e", "step"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1, "a red check must be a red step"
        return done.stdout

    assert arguments() == "--minutes|120|"
    assert arguments(STUDY="false", MINUTES="5") == "--minutes|5|"
    hostile = "golden, $(touch bad)"
    assert arguments(STUDY="true", ONLY=hostile) == f"--minutes|120|--only|{hostile}|--study|"
    assert not (tmp_path / "bad").exists()
