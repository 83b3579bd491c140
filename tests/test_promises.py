"""Promises: the README is true."""

import dataclasses
import os
import re
import shlex
from pathlib import Path

import runtime.__main__
from exporter import arguments
from exporter.methods.itae.options import ATTENUATIONS, THRESHOLDS, ItaeConfig

ROOT = Path(__file__).parents[1]


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


def test_the_code_cites_sections_that_itae_md_has():
    sections = set(re.findall(r"^## (\d)\. ", (ROOT / "exporter/ITAE.md").read_text(), re.MULTILINE))
    cited: set[str] = set()
    for path in [path for package in ("exporter", "runtime") for path in (ROOT / package).rglob("*.py")]:
        text = path.read_text()
        assert "Source: itae.md" not in text, path
        for first, last in re.findall(r"exporter/ITAE\.md (\d)(?: to (\d))?", text):
            cited |= {first, last} - {""}
    assert cited
    assert cited <= sections
