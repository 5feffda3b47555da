"""What the tracer says when a function cannot be traced: a code, the user's own line, and what to do instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trustformers_ir.frontend.trace import trace
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.diagnostics import Code, CompilerError, Diagnostic
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.parameters import Parameter

f32, i64 = DType.f32, DType.i64
PARAMETER = Parameter("w", (2,))
THIS = "tests/frontend/test_trace_errors.py"


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


def failure(fn: Callable[..., Any], *specs: Any, **options: Any) -> Diagnostic:
    with pytest.raises(CompilerError) as caught:
        trace(fn, *specs, **options)
    (diagnostic,) = caught.value.diagnostics
    return diagnostic


def line_of(fn: Callable[..., Any], text: str) -> int:
    lines, first = inspect.getsourcelines(fn)
    (found,) = [first + i for i, line in enumerate(lines) if text in line]
    return found


DATA_DEPENDENT: list[tuple[Callable[[Any], Any], str]] = [
    (lambda x: x if x.sum() > 0 else -x, "where(cond, a, b)"),
    (lambda x: x if x else -x, "where"),
    (lambda x: not x, "where"),
    (lambda x: 1 < x.sum() < 2, "where"),
    (lambda x: int(x.sum()), ".shape"),
    (lambda x: float(x.mean()), "with the tensor"),
    (lambda x: complex(x.mean()), "with the tensor"),
    (lambda x: range(x.sum()), "gather"),
    (lambda x: [1, 2, 3][x.argmax()], "index_select"),
    (lambda x: x.sum().item(), "with the tensor"),
    (lambda x: x.tolist(), "with the tensor"),
    (lambda x: x.numpy(), "methods of the tensor"),
    (lambda x: np.asarray(x), "methods of the tensor"),
    (lambda x: list(x), "one operation on the whole"),
    (lambda x: [row for row in x], "one operation on the whole"),  # noqa: C416
    (lambda x: 1.0 in x, "any()"),
    (lambda x: x.nonzero(), "where"),
    (lambda x: x[x > 0], "masked_fill"),
    (lambda x: x[: x.sum().long()], "dims from .shape"),
]


@pytest.mark.parametrize(("fn", "help"), DATA_DEPENDENT)
def test_data_dependent_python(fn: Callable[[Any], Any], help: str) -> None:
    found = failure(fn, f32["n", 3])
    assert found.code is Code.TRACE_CONTROL_FLOW
    assert help in found.help
    assert (found.where.file, found.where.line) == (THIS, inspect.getsourcelines(fn)[1])


def test_rows_of_a_constant_axis_are_iterated() -> None:
    module = trace(lambda x: [row * i for i, row in enumerate(x)], f32[3, 2])
    assert [v.name for v in module.main.outputs] == ["output_0", "output_1", "output_2"]
    q, k = (v.type for v in trace(lambda x: tuple(x), f32[2, 5]).main.outputs)
    assert q == k == f32[5]


def test_shapes_that_do_not_fit_point_at_the_line_and_the_constraint() -> None:
    def layer(x: Any, w: Any) -> Any:
        y = x * 2
        return y @ w  # here

    found = failure(layer, f32["batch", 8], f32[9, 8])
    assert found.code is Code.TRACE_SHAPE
    assert "matmul.C3" in found.message and "8 != 9" in found.message
    assert "f32[batch, 8], w: f32[9, 8]" in found.message
    assert (found.where.file, found.where.line, found.where.op) == (THIS, line_of(layer, "# here"), "matmul")
    assert found.source == "return y @ w  # here"
    assert f"{THIS}:{found.where.line}" in str(found) and "# here" in str(found)


def test_undecided_dims_name_the_missing_fact() -> None:
    found = failure(lambda x: x[:, 5], f32["b", "seq"])
    assert found.code is Code.UNDECIDED_DIM and "seq: [1, inf]" in found.message and "facts=" in found.help
    trace(lambda x: x[:, 5], f32["b", "seq"], facts={"seq": (6, None)})
    found = failure(lambda x: x if x.shape[0] % 2 else x + 1, f32["n"])
    assert found.code is Code.UNDECIDED_DIM and "n%2" in found.message and found.where.file == THIS


OTHER: list[tuple[Callable[[Any], Any], Code, str]] = [
    (lambda x: x[7], Code.TRACE_SHAPE, "out of range"),
    (lambda x: x[-4], Code.TRACE_SHAPE, "out of range"),
    (lambda x: x[0, 0, 0], Code.TRACE_SHAPE, "3 indices"),
    (lambda x: x[..., ...], Code.TRACE_UNSUPPORTED, "at most one"),
    (lambda x: x[1.5], Code.TRACE_UNSUPPORTED, "float is no index"),
    (lambda x: x[::0], Code.TRACE_UNSUPPORTED, "step"),
    (lambda x: x[2:0:-1], Code.TRACE_UNSUPPORTED, "negative step"),
    (lambda x: x[x], Code.TRACE_UNSUPPORTED, "no index"),
    (lambda x: x.sum(2), Code.TRACE_SHAPE, "axis 2"),
    (lambda x: x.sum((0, 0)), Code.TRACE_SHAPE, "twice"),
    (lambda x: x.reshape(-1, -1), Code.TRACE_SHAPE, "at most one -1"),
    (lambda x: x.reshape(5, 5), Code.TRACE_SHAPE, "reshape.C2"),
    (lambda x: x.reshape(2.5), Code.TRACE_UNSUPPORTED, "sizes"),
    (lambda x: x.expand(3, 3), Code.TRACE_SHAPE, "expand.C2"),
    (lambda x: x.split([1, 1], 0), Code.TRACE_SHAPE, "do not make up"),
    (lambda x: x.permute(0, 0), Code.TRACE_SHAPE, "transpose.C1"),
    (lambda x: x.view(3, 4).nope, Code.TRACE_UNSUPPORTED, "has no 'nope'"),
    (lambda x: x.add_(1), Code.TRACE_UNSUPPORTED, "has no 'add_'"),
    (lambda x: x.__setitem__(0, 1), Code.TRACE_UNSUPPORTED, "cannot be written"),
    (lambda x: x.to("f31"), Code.TRACE_UNSUPPORTED, "is not a dtype"),
    (lambda x: x.to(DType.u8) + -1, Code.TRACE_UNSUPPORTED, "-1 is not a number of dtype u8"),
    (lambda x: x.to(DType.u64) + x.long(), Code.TRACE_UNSUPPORTED, "no integer dtype"),
    (lambda x: (x > 0) + (x > 1), Code.TRACE_SHAPE, "add.O2"),
    (lambda x: x + np.array(["a"]), Code.TRACE_UNSUPPORTED, "neither a tensor"),
    (lambda x: x + "a", Code.TRACE_FAILED, "TypeError"),
    (lambda x: np.exp(x), Code.TRACE_FAILED, "TypeError"),
    (lambda x: {}["key"], Code.TRACE_FAILED, "KeyError"),
    (lambda x: 1 // 0, Code.TRACE_FAILED, "ZeroDivisionError"),
    (lambda x: F.concat([]), Code.TRACE_UNSUPPORTED, "nothing to concatenate"),
    (lambda x: F.pad(x, (1,)), Code.TRACE_UNSUPPORTED, "pad"),
    (lambda x: x.norm(3), Code.TRACE_UNSUPPORTED, "p=3"),
    (lambda x: x.scatter(0, x.long(), x, reduce="mean"), Code.TRACE_UNSUPPORTED, "mean"),
    (lambda x: x.matmul(2.0), Code.TRACE_SHAPE, "matrix product"),
    (lambda x: F.arange(0, 5, 0), Code.TRACE_UNSUPPORTED, "step 0"),
]


@pytest.mark.parametrize(("fn", "code", "text"), OTHER)
def test_other_errors(fn: Callable[[Any], Any], code: Code, text: str) -> None:
    found = failure(fn, f32[3, 4])
    assert found.code is code
    assert text in found.message
    assert (found.where.file, found.where.line) == (THIS, inspect.getsourcelines(fn)[1])


def test_needs_of_symbolic_sizes() -> None:
    for fn in (lambda x: x.split(2), lambda x: x.unbind(), lambda x: len(x)):
        found = failure(fn, f32["n", 4])
        assert found.code is Code.TRACE_UNSUPPORTED and "has to be a constant" in found.message


def test_the_innermost_line_of_ones_own_is_blamed() -> None:
    def helper(x: Any) -> Any:
        return np.linalg.inv(np.zeros((2, 2))) + x  # inner

    def model(x: Any) -> Any:
        return helper(x)

    found = failure(model, f32[2])
    assert found.code is Code.TRACE_FAILED and "LinAlgError" in found.message
    assert found.where.line == line_of(helper, "# inner")


def test_endless_recursion() -> None:
    def model(x: Any) -> Any:
        return model(x)

    assert failure(model, f32[2]).code is Code.TRACE_FAILED


@pytest.mark.parametrize("result", ["text", None, (), {}, object(), {"a": 1.0, "b": "text"}])
def test_results(result: Any) -> None:
    assert failure(lambda x: result, f32[2]).code is Code.TRACE_RESULT


def test_specs() -> None:
    def fn(x: Any, y: Any = 1) -> Any:
        return x

    for specs, text in (
        ((), "missing a required argument: 'x'"),
        ((f32[1], f32[1], f32[1]), "too many positional arguments"),
        (("f32[1]",), "str 'f32[1]'"),
        ((f32,), "without a shape"),
        ((object(),), "no tensor type"),
        ((np.array(["a"]),), "dtype <U1"),
    ):
        found = failure(fn, *specs)
        assert found.code is Code.TRACE_SPEC and text in found.message
    assert failure(fn, f32[1], z=f32[1]).code is Code.TRACE_SPEC
    found = failure(fn, f32["batch"], facts={"bach": (1, 2)})
    assert found.code is Code.TRACE_SPEC and found.help == "did you mean 'batch'?"
    assert failure(fn, f32["batch"], facts={"batch": (3, 2)}).code is Code.TRACE_SPEC


def test_tensors_do_not_leave_their_trace() -> None:
    kept: list[Any] = []

    def keep(x: Any) -> Any:
        kept.append(x)
        return x + 1

    trace(keep, f32[2])
    assert failure(lambda x: x + kept[0], f32[2]).code is Code.TRACE_FOREIGN
    assert failure(lambda x: kept[0].exp(), f32[2]).code is Code.TRACE_FOREIGN
    with pytest.raises(CompilerError) as caught:
        F.zeros(3)
    assert caught.value.codes == (Code.TRACE_FOREIGN,)


def test_missing_and_wrong_weights() -> None:
    from_scope = failure(lambda x: x + F.tensor(PARAMETER), f32[2])
    assert from_scope.code is Code.WEIGHT_MISSING
    assert failure(lambda x: x + PARAMETER, f32[2], weights={"w": np.zeros(3)}).code is Code.WEIGHT_SHAPE
    assert failure(lambda x: x + PARAMETER, f32[2], weights={"w": np.array(["a", "b"])}).code is Code.WEIGHT_DTYPE
