"""Programs of torch that cannot be compiled: each error has a code, the user's line and help, and all of a program come at once."""

from __future__ import annotations

import functools
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch_wrong

import trustformers_ir as tfir
from trustformers_ir.ir.diagnostics import CompilerError, Diagnostic

FILE = Path(torch_wrong.__file__)
LINES = FILE.read_text().splitlines()
MARK = re.compile(r"# wrong: (TFC\d+)")
DETACHED = re.compile(r'name="([^"]+)".*# wrong: none (TFC\d+)')
RIGHT = 0.95  # of the programs name the right line


def problems(wrong: torch_wrong.Wrong) -> tuple[Diagnostic, ...]:
    with warnings.catch_warnings(), pytest.raises(CompilerError) as caught:
        warnings.simplefilter("ignore")
        model = wrong.make()
        model = model if wrong.name.startswith("InTraining") else model.eval()
        tfir.compile(model, wrong.inputs, dynamic=wrong.dynamic)
    return caught.value.diagnostics


def expected(wrong: torch_wrong.Wrong) -> set[tuple[str, int | None]]:
    """Codes and lines, as the marks in the class of the program, and in what it calls, say."""
    for line in LINES:
        found = DETACHED.search(line)
        if found and found[1] == wrong.name:
            return {(found[2], None)}
    named = {"InAHelper": "def helper", "InASubmodule": "class Rand("}.get(wrong.name, f"class {wrong.name}(")
    start = next(n for n, line in enumerate(LINES) if line.startswith(named))
    out: set[tuple[str, int | None]] = set()
    for n in range(start, len(LINES)):
        if n > start and re.match(r"(class|def|@|PROGRAMS|# ---)", LINES[n]):
            break
        found = MARK.search(LINES[n])
        if found:
            out.add((found[1], n + 1))
    return out


@functools.cache
def verdict_of(name: str) -> dict[str, Any]:
    return verdict(next(w for w in torch_wrong.PROGRAMS if w.name == name))


def verdict(wrong: torch_wrong.Wrong) -> dict[str, Any]:
    """What was said of a program, and whether it is right."""
    found = problems(wrong)
    said = {(d.code.id, d.where.line) for d in found}
    wanted = expected(wrong)
    assert wanted, wrong.name
    return {
        "name": wrong.name,
        "codes": {c for c, _ in said} == {c for c, _ in wanted},
        "lines": {n for _, n in wanted if n} <= {n for _, n in said},
        "only": said == wanted,
        "help": all(d.help or d.code.advice for d in found) and all("Traceback" not in str(d) for d in found),
        "said": sorted(said, key=str),
        "wanted": sorted(wanted, key=str),
        "text": "\n".join(map(str, found)),
    }


@pytest.mark.parametrize("wrong", torch_wrong.PROGRAMS, ids=lambda w: w.name)
def test_a_wrong_program_gets_a_code_and_help(wrong: torch_wrong.Wrong) -> None:
    found = verdict_of(wrong.name)
    assert found["codes"], found
    assert found["help"], found


def test_nearly_all_wrong_programs_are_told_at_the_right_line() -> None:
    verdicts = [verdict_of(w.name) for w in torch_wrong.PROGRAMS]
    right = [v for v in verdicts if v["lines"]]
    assert len(verdicts) >= 50
    assert len(right) >= RIGHT * len(verdicts), [(v["name"], v["said"], v["wanted"]) for v in verdicts if not v["lines"]]
