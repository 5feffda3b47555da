"""Programs of torch that cannot be compiled: each error has a code, the user's line and help, and all of a program come at once."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch_wrong

import trustformers_ir as tfir
from trustformers_ir.ir.diagnostics import CompilerError, Diagnostic

RIGHT = 0.95  # of the programs name the right line


def problems(wrong: torch_wrong.Wrong) -> tuple[Diagnostic, ...]:
    with warnings.catch_warnings(), pytest.raises(CompilerError) as caught:
        warnings.simplefilter("ignore")
        tfir.compile(torch_wrong.model_of(wrong), wrong.inputs, dynamic=wrong.dynamic)
    return caught.value.diagnostics


@functools.cache
def verdict_of(name: str) -> dict[str, Any]:
    return verdict(next(w for w in torch_wrong.PROGRAMS if w.name == name))


def verdict(wrong: torch_wrong.Wrong) -> dict[str, Any]:
    """What was said of a program, and whether it is right."""
    found = problems(wrong)
    said = {(d.code.id, d.where.line) for d in found}
    wanted = torch_wrong.expected(wrong)
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


SOME = [pytest.param(w, id=w.name, marks=[pytest.mark.long] if i % 3 else []) for i, w in enumerate(torch_wrong.PROGRAMS)]


@pytest.mark.parametrize("wrong", SOME)
def test_a_wrong_program_gets_a_code_and_help(wrong: torch_wrong.Wrong) -> None:
    found = verdict_of(wrong.name)
    assert found["codes"], found
    assert found["help"], found


@pytest.mark.long
def test_nearly_all_wrong_programs_are_told_at_the_right_line() -> None:
    verdicts = [verdict_of(w.name) for w in torch_wrong.PROGRAMS]
    right = [v for v in verdicts if v["lines"]]
    assert len(verdicts) >= 50
    assert len(right) >= RIGHT * len(verdicts), [(v["name"], v["said"], v["wanted"]) for v in verdicts if not v["lines"]]
