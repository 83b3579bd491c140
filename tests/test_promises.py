"""Promises: the documents are true. Their Python runs in tests/test_readme_python.py."""

import os
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import runtime.__main__
from exporter import arguments, by_name, onnx_command
from exporter.calibration import command as calibrate
from exporter.foreign import inspection
from exporter.method_arguments import method_of
from exporter.methods.itae.options import ATTENUATIONS, SIDES, SOURCES, THRESHOLDS
from scripts import option_tables
from scripts.studies import __main__ as study

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "runtime/contract/README.md",
    "README.md",
    "CHANGELOG.md",
    "tests/DECISIONS.md",
    "scripts/gpu_checks/README.md",
    *(f"exporter/{name}.md" for name in ("README", "ITAE", "DECISIONS", "MEASUREMENTS")),
    *(
        f"runtime/{name}.md"
        for name in (
            "README",
            "DECISIONS",
            "MEASUREMENTS",
            "contract/README",
            "serving/README",
            "cpp/README",
            "cpp/DECISIONS",
        )
    ),
)
MANUAL = ("README.md", "exporter/README.md", "exporter/ITAE.md", "runtime/README.md", "runtime/contract/README.md")
"""Documents that describe the program as it is; CHANGELOG and DECISIONS also name what is gone."""
README_LINES = 150
CARD = "python -m exporter --size vitb14 --out itae.engine"


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


def commands(document: str) -> list[str]:
    """Commands of a document's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", text_of(document), re.DOTALL)
    return [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_every_document_of_the_packages_is_read_here():
    found = {
        str(path.relative_to(ROOT)) for package in ("exporter", "runtime") for path in (ROOT / package).rglob("*.md")
    }
    assert found <= set(DOCUMENTS)


def test_the_readme_is_short_and_begins_with_the_main_command():
    assert len(text_of("README.md").splitlines()) <= README_LINES
    assert commands("README.md")[0] == CARD


def test_two_commands_set_up_a_fresh_machine():
    first = text_of("README.md").partition("## Start")[2].partition("## ")[0]
    assert re.findall(r"^(scripts/\w+)", first, re.MULTILINE) == ["scripts/quickstart", "scripts/test"]
    assert "scripts/setup\n" in text_of("scripts/quickstart")
    assert "scripts/check\n" in text_of("scripts/test")
    assert "scripts/setup\n" in text_of("scripts/check")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_parse(document):
    for command in commands(document):
        program, *rest = shlex.split(command)
        if program.startswith("scripts/"):
            assert os.access(ROOT / program, os.X_OK)
        elif program == "build/cpp/itae-embed":
            declared = re.findall(r'"(--[a-z-]+)"', text_of("runtime/cpp/command/options.cpp"))
            assert {option for option in rest if option.startswith("-")} <= {*declared, "-", "--help"}
        elif program == "pip":
            assert re.fullmatch(r"install \.\[[\w,-]+\]", " ".join(rest))
        elif rest[:3] == ["-m", "exporter", "calibrate"]:
            calibrate.parser().parse_args(rest[3:])
        elif rest[:3] == ["-m", "exporter", "inspect"]:
            inspection.parser().parse_args(rest[3:])
        elif rest[:2] == ["-m", "exporter"] and "--onnx" in rest:
            onnx_command.parser().parse_args(rest[2:])
        elif rest[:2] == ["-m", "exporter"] and "--model" in rest:
            by_name.parser().parse_args(rest[2:])
        elif rest[:2] == ["-m", "exporter"]:
            given = arguments.parser().parse_args(rest[2:])
            given.config = None  # its file is one that the reader makes
            arguments.to_spec(given, method_of(given))
        else:
            assert rest[:2] == ["-m", "runtime"], command
            runtime.__main__.parser().parse_args(rest[2:])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_paths_lead_somewhere(document):
    text = text_of(document)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("https://") or ((ROOT / document).parent / target).exists(), target
    for path in re.findall(r"`((?:scripts|tests|exporter|runtime)/[\w./-]+)", text):
        assert (ROOT / path.rstrip(".")).exists(), path


@pytest.mark.parametrize("page", option_tables.PAGES, ids=lambda page: page.parent.name)
def test_the_tables_have_every_option_and_its_default(page):
    text = page.read_text()
    assert text == option_tables.filled(text), "the options have changed: python scripts/option_tables.py"


def test_every_command_has_its_table():
    named = [found[2] for page in option_tables.PAGES for found in option_tables.BLOCK.finditer(page.read_text())]
    assert sorted(named) == sorted(option_tables.parsers())


def test_a_help_text_that_states_another_default_is_noticed():
    parser = runtime.__main__.Parser()
    parser.add_argument("--k", type=int, default=5, help="clusters (default: 6)")
    with pytest.raises(ValueError, match="its help states 6, its parser has 5"):
        option_tables.table(parser)


@pytest.mark.parametrize("document", MANUAL)
def test_the_manual_names_only_options_that_exist(document):
    parsers = [*option_tables.parsers().values(), study.parser()]
    known = {option for parser in parsers for option in option_tables.options(parser)}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text_of(document)))
    foreign = {"--vector"} if document == "runtime/README.md" else set()  # of embedding-atlas
    assert named - foreign <= known


def test_the_extras_of_the_manual_are_those_of_the_package():
    extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    named = {
        name
        for document in MANUAL
        for found in re.findall(r"\.\[([\w,-]+)\]", text_of(document))
        for name in found.split(",")
    }
    assert named == set(extras) - {"dev", "bench"}  # for work on the project itself


def test_itae_md_names_every_word_of_itaes_options():
    text = text_of("exporter/ITAE.md")
    for word in (*THRESHOLDS, *ATTENUATIONS, *SOURCES, *SIDES):
        assert re.search(rf"`(--\w+ )?{word}\b", text), word


def test_the_code_cites_sections_that_itae_md_has():
    sections = set(re.findall(r"^## (\d)\. ", text_of("exporter/ITAE.md"), re.MULTILINE))
    cited: set[str] = set()
    for path in [path for package in ("exporter", "runtime") for path in (ROOT / package).rglob("*.py")]:
        text = path.read_text()
        assert "Source: itae.md" not in text, path
        for first, last in re.findall(r"exporter/ITAE\.md (\d)(?: to (\d))?", text):
            cited |= {first, last} - {""}
    assert cited
    assert cited <= sections
