"""Reports in JUnit XML, which CI servers read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from runtime.contract.errors import CheckError, ItaeError, one_line

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Case:
    """A test of a report: it passed unless it has a failure, was skipped or ended in an error."""

    test: str
    """The name of the test: `golden sample`."""
    subject: str
    """The model's path."""
    failure: str | None = None
    """The reason why it failed."""
    skipped: str | None = None
    """The reason why it was not run."""
    error: ItaeError | None = None
    """The error that ended it; reported as a failure if it is a `CheckError`, otherwise as an error."""
    output: str | None = None
    """Further text."""
    seconds: float | None = None
    """Time that it took."""


def as_junit_xml(suite_name: str, cases: Sequence[Case], seconds: float | None = None) -> bytes:
    """The report, with one suite."""
    suite = ElementTree.Element("testsuite", name=suite_name)
    if seconds is not None:
        suite.set("time", f"{seconds:.3f}")
    for case in cases:
        element = ElementTree.SubElement(suite, "testcase", classname=case.test, name=clean(case.subject))
        if case.seconds is not None:
            element.set("time", f"{case.seconds:.3f}")
        if case.error is not None:
            tag, kind = "failure" if isinstance(case.error, CheckError) else "error", type(case.error).__name__
            problem = ElementTree.SubElement(element, tag, type=kind, message=clean(one_line(case.error)))
            problem.text = clean(str(case.error))
        elif case.failure is not None:
            ElementTree.SubElement(element, "failure", type="ParityError", message=clean(case.failure))
        elif case.skipped is not None:
            ElementTree.SubElement(element, "skipped", message=clean(case.skipped))
        if case.output is not None:
            ElementTree.SubElement(element, "system-out").text = clean(case.output)
    suite.set("tests", str(len(suite)))
    for plural, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(plural, str(len(suite.findall(f"testcase/{tag}"))))
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return bytes(ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)) + b"\n"


def clean(text: str) -> str:
    """The text without characters that XML 1.0 can't hold: control characters, lone surrogates."""
    return _NOT_XML.sub("\ufffd", text)
