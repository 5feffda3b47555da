"""One case through the compiled path: what came of it. Tolerances are those of ONNX's own runner; shapes and dtypes have to be the same."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.frontend.onnx.elements import ELEMENTS, held, of_numpy
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.tools.onnx_scoreboard.cases import Case, tensor_of

REFUSED = {Code.ONNX_UNSUPPORTED, Code.ONNX_VALUE, Code.UNSUPPORTED_OP, Code.UNSUPPORTED_DTYPE, Code.UNSUPPORTED_SHAPE}


class Status(enum.Enum):
    """What came of a case. Only ``PASSED`` and ``REFUSED`` are what a user may meet."""

    PASSED = "passed"
    RANDOM = "random"  # nothing to compare with
    REFUSED = "refused"  # an error that says what is not supported
    FAILED = "failed"  # another error
    WRONG = "WRONG"  # other numbers, shapes or dtypes
    CRASHED = "CRASHED"  # an exception that is no error of ours, a signal, or no end


@dataclass(frozen=True)
class Outcome:
    name: str
    op: str
    status: Status
    detail: str = ""
    expanded: bool = False
    suite: str = "node"


def run(case: Case) -> Outcome:
    """Compiles the model with the inputs of the case as examples, runs it and compares."""

    def outcome(status: Status, detail: str = "") -> Outcome:
        return Outcome(case.name, case.op, status, " ".join(detail.split())[:400], case.expanded, case.suite)

    try:
        for inputs, wanted in case.sets():
            given = [tensor_of(v) for v in inputs]
            names = _input_names(case.model, len(given))
            executable = tfir.compile(case.model, dict(zip(names, given, strict=True)), threads=1)
            got = executable(*_flat(given))
            results = list(got) if isinstance(got, tuple) else [got]
            if case.deterministic:
                compare(case, results, [tensor_of(v) for v in wanted])
    except AssertionError as error:
        return outcome(Status.WRONG, str(error))
    except CompilerError as error:
        code = error.codes[0] if error.codes else Code.INTERNAL
        if code in REFUSED and not case.deterministic:
            return outcome(Status.RANDOM, f"{code}: {error.diagnostics[0].message}")
        return outcome(Status.REFUSED if code in REFUSED else Status.FAILED, f"{code}: {error.diagnostics[0].message}")
    except Exception as error:
        return outcome(Status.CRASHED, f"{type(error).__name__}: {error}")
    return outcome(Status.PASSED if case.deterministic else Status.RANDOM)


def _input_names(model: Any, count: int) -> list[str]:
    made = {t.name for t in model.graph.initializer}
    names = [i.name for i in model.graph.input if i.name not in made]
    return names if len(names) == count else [i.name for i in model.graph.input]


def _flat(values: Sequence[Any]) -> list[np.ndarray]:
    """The arrays that the executable takes: sequences one by one, in the dtypes that hold their elements."""
    out: list[np.ndarray] = []
    for v in values:
        if isinstance(v, list):
            out += _flat(v)
        elif v is not None:
            out.append(held(v))
    return out


def compare(case: Case, results: list[np.ndarray], wanted: Sequence[Any]) -> None:
    """``AssertionError`` unless the results are what the case wants."""
    at = iter(results)
    for number, (info, expected) in enumerate(zip(case.model.graph.output, wanted, strict=True)):
        for one in expected if isinstance(expected, list) else [expected]:
            if one is not None:
                _compare(case, f"output {number} '{info.name}'", next(at, None), one)
    assert next(at, None) is None, "there are more results than the case has"


def _compare(case: Case, what: str, got: np.ndarray | None, wanted: np.ndarray) -> None:
    assert got is not None, f"{what} is missing"
    assert got.shape == wanted.shape, f"{what} has the shape {list(got.shape)}, not {list(wanted.shape)}"
    element = of_numpy(wanted)
    assert element is not None, f"{what} holds {wanted.dtype}"
    assert got.dtype == element.dtype.numpy, f"{what} is {got.dtype}, not {element.dtype.numpy}"
    rtol = case.rtol
    if element is ELEMENTS[16]:
        rtol = max(rtol, 2.0**-6)  # as onnx's runner
    if element.small is not None or element.narrow_integer or element is ELEMENTS[16]:
        got, wanted = held(got).astype(np.float32), held(wanted).astype(np.float32)
    try:
        np.testing.assert_allclose(got, wanted, rtol=rtol, atol=case.atol)
    except AssertionError as error:
        raise AssertionError(f"{what}: {' '.join(str(error).split())}") from None
