"""JUnit XML, as CI servers read it."""

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
    """What was tested: `golden sample`."""
    subject: str
    """On what: the model's path."""
    failure: str | None = None
    """Why it failed."""
    skipped: str | None = None
    """Why it was not run."""
    error: ItaeError | None = None
    """What kept it from ending: a failure where that is a `CheckError`, else an error."""
    output: str | None = None
    """What else there is to say."""


def as_junit_xml(suite_name: str, cases: Sequence[Case], seconds: float | None = None) -> bytes:
    """The report, with one suite."""
    suite = ElementTree.Element("testsuite", name=suite_name)
    if seconds is not None:
        suite.set("time", f"{seconds:.3f}")
    for case in cases:
        element = ElementTree.SubElement(suite, "testcase", classname=case.test, name=clean(case.subject))
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
    """The text without what XML 1.0 can't hold, escaped or not: control characters, lone surrogates."""
    return _NOT_XML.sub("\ufffd", text)
