"""JUnit's XML, as CI systems read it: a testsuite for each model, a testcase for each gate of each file, and one for its making."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from trustformers_ir.ir.diagnostics import DiagnosticError, printable
from trustformers_ir.tools.ci.outcome import Check, FileOutcome, ModelOutcome, Outcome, State


def as_junit(outcome: Outcome) -> bytes:
    """The document, in UTF-8. Times are in the attributes ``time`` and ``timestamp`` alone; comparing is in the time of the model."""
    root = ET.Element("testsuites", name="tfc ci", time=f"{outcome.seconds:.3f}")
    for m in outcome.models:
        suite = ET.SubElement(root, "testsuite", name=printable(m.plan.name), time=f"{m.seconds:.3f}", timestamp=outcome.began.partition("+")[0])
        for f in m.files:
            _file(suite, m, f)
        _count(suite, [suite])
    _count(root, list(root))
    ET.indent(root)
    found: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return found + b"\n"


def _file(suite: ET.Element, m: ModelOutcome, f: FileOutcome) -> None:
    seconds = f.made.seconds if f.made is not None else 0.0
    made = _case(suite, m, f, "made", seconds)
    if f.error is not None:
        case = made if f.made is None else _case(suite, m, f, "checked", 0.0)
        _problem(case, "error", _first(f.error), str(f.error))
    measuring = next((c for c in f.checks if c.gate in ("latency", "memory")), None)
    for c in f.checks:
        case = _case(suite, m, f, c.name, f.seconds if c is measuring else 0.0)
        if c.state is State.FAILS:
            _problem(case, "failure", f"{f.plan.name}: {c.said}", _text(c))
        elif c.state is State.OPEN:
            ET.SubElement(case, "skipped", message=printable(c.said))


def _case(suite: ET.Element, m: ModelOutcome, f: FileOutcome, gate: str, seconds: float) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=printable(f"{m.plan.name}.{f.plan.name}"), name=gate, time=f"{seconds:.3f}")


def _problem(case: ET.Element, kind: str, message: str, text: str) -> None:
    found = ET.SubElement(case, kind, message=printable(message), type="tfc")
    found.text = "\n".join(printable(line) for line in text.split("\n"))


def _text(c: Check) -> str:
    """What a person reads under the message."""
    rows = [("figure", c.figure), ("bound", c.bound), ("baseline", c.stored), ("where", str(c.where) or None), ("help", c.help or None)]
    return "\n".join([c.said, *(f"{name}: {value}" for name, value in rows if value is not None)])


def _first(error: DiagnosticError) -> str:
    first, *more = error.diagnostics
    return f"{first.code.id}: {first.message}" + (f" (and {len(more)} more)" if more else "")


def _count(element: ET.Element, suites: Sequence[ET.Element]) -> None:
    cases = [c for s in suites for c in s.iter("testcase")]
    element.set("tests", str(len(cases)))
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(name, str(sum(c.find(tag) is not None for c in cases)))
