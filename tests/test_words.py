"""Words: cheap rules that keep docstrings and messages plain."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for package in ("exporter", "runtime", "scripts") for path in sorted((ROOT / package).rglob("*.py"))]
DOCSTRINGS = {
    r"^Of ": 'begins with "Of": name the thing',
    r"^What (?!.*\?)": 'begins with "What": use a noun phrase or a sentence',
    r"(^|; )none: ": '"None if" or "None for", not "none:"',
}
"""Patterns that no docstring may have, and what to do."""
TEXTS = {
    r"\b([Tt]old|[Tt]ells|[Tt]ell(?!:))\b": 'reports, shows or says, not "tells"',
    r"\b([Nn]one where|where None)\b": '"None if", not "None where"',
}
"""Patterns that neither a docstring nor any other text may have, and what to do."""


def texts(source: str) -> Iterator[tuple[int, str, bool]]:
    """Line, text without code in backticks, and whether it is a docstring (of attributes too), for each string."""
    tree = ast.parse(source)
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, re.sub(r"`[^`]*`", "``", node.value), id(node) in docstrings


def faults(source: str) -> list[str]:
    """A line for each text that breaks a rule."""
    found = []
    for line, text, is_docstring in texts(source):
        rules = {**DOCSTRINGS, **TEXTS} if is_docstring else TEXTS
        found += [f"line {line}: {advice}: {text[:60]!r}" for rule, advice in rules.items() if re.search(rule, text)]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_and_messages_are_plain(path):
    assert faults(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        '"""Of a model."""',
        '"""What it is."""',
        'x = 1\n"""Of x."""',
        'raise ValueError("none where it is missing")',
        'print(f"{x} is told")',
        '"""A limit; none: no limit."""',
    ],
)
def test_each_rule_can_fail(source):
    assert len(faults(source)) == 1


def test_code_in_backticks_and_questions_are_no_faults():
    assert faults('"""What is `told`? `none: x` if None."""\nx = "a name"') == []
